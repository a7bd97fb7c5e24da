#!/usr/bin/env python
"""Write the file names of minival, the 2 % of the training images that hyper-parameters are chosen on."""
from timm_rs.programs.minival import main

if __name__ == '__main__':
    main()

#!/usr/bin/env python
"""Print the most likely classes of images."""
from timm_rs.programs.predict import main

if __name__ == '__main__':
    main()

#!/usr/bin/env python
"""Print the most likely classes of images or videos, or draw what a network says of their pixels."""
from timm_rs.programs.predict import main

if __name__ == '__main__':
    main()

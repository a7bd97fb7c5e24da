#!/usr/bin/env python
"""Train models of several sizes, and compare them at equal cost."""
from timm_rs.programs.scaling import main

if __name__ == '__main__':
    main()

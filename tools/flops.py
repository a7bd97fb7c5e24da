#!/usr/bin/env python
"""Print parameters, multiply-adds, FLOPs (2 x multiply-adds, as the paper) and activations of models."""
from timm_rs.programs.flops import main

if __name__ == '__main__':
    main()

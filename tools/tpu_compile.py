#!/usr/bin/env python
"""Compile the training step of a recipe with the real TPU compiler, without a TPU: memory, work, floors, exchanges."""
from timm_rs.programs.tpu_compile import main

if __name__ == '__main__':
    main()

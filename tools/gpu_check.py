#!/usr/bin/env python
"""Run all that needs a GPU, in one go and in a given time: tests, bit-identical resume, speed and memory."""
from timm_rs.programs.gpu_check import main

if __name__ == '__main__':
    main()

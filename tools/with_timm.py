#!/usr/bin/env python
"""Run an unmodified script of timm (validate.py, benchmark.py, onnx_export.py, …) with our models in the registry."""
from timm_rs.programs.with_timm import main

if __name__ == '__main__':
    main()

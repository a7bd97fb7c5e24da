#!/usr/bin/env python
"""Write a model as a file for another runtime (torch.export, ONNX, OpenVINO), and check that it computes the same."""
from timm_rs.programs.export import main

if __name__ == '__main__':
    main()

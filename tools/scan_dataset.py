#!/usr/bin/env python
"""Read and decode every image or video of a dataset, and list those that training would skip."""
from timm_rs.programs.scan_dataset import main

if __name__ == '__main__':
    main()

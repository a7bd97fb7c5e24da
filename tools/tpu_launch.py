#!/usr/bin/env python
"""Print the commands that train on Cloud TPUs: create, install, launch, watch, stop, resume. Nothing is executed."""
from timm_rs.programs.tpu_launch import main

if __name__ == '__main__':
    main()

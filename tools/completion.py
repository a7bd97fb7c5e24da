#!/usr/bin/env python
"""Print the script by which a shell completes timm-rs: its commands, their options, recipes and files."""
from timm_rs.programs.completion import main

if __name__ == '__main__':
    main()

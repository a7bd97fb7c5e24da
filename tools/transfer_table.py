#!/usr/bin/env python
"""Set side by side what backbones are worth elsewhere: tasks as rows, initialisations as columns."""
from timm_rs.programs.transfer_table import main

if __name__ == '__main__':
    main()

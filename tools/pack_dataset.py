#!/usr/bin/env python
"""Pack a dataset into tar shards that training reads from front to back: smaller, and without a file per image."""
from timm_rs.programs.pack_dataset import main

if __name__ == '__main__':
    main()

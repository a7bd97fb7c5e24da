#!/usr/bin/env python
"""Write the table of train_recipes/README.md from the recipes' own headers."""
from timm_rs.programs.list_recipes import main

if __name__ == '__main__':
    main()

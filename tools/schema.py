#!/usr/bin/env python
"""Print the JSON Schema of recipes, by which editors complete and check them."""
from timm_rs.programs.schema import main

if __name__ == '__main__':
    main()

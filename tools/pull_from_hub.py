#!/usr/bin/env python
"""Fetch a model from the Hugging Face Hub into a folder, and check every file against the Hub's digests."""
from timm_rs.programs.pull_from_hub import main

if __name__ == '__main__':
    main()

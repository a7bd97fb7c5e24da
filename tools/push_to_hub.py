#!/usr/bin/env python
"""Publish a trained model on the Hugging Face Hub, so that timm loads it by name."""
from timm_rs.programs.push_to_hub import main

if __name__ == '__main__':
    main()

#!/usr/bin/env python
"""Train, or evaluate, an image classifier, or a network for segmentation or depth, from a recipe."""
from timm_rs.errors import exit_on_user_error
from timm_rs.programs.train import main

if __name__ == '__main__':
    with exit_on_user_error():
        main()

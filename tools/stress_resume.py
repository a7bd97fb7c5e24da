#!/usr/bin/env python
"""Kill a small training run in the worst ways, continue it, and compare it with one that was left alone."""
from timm_rs.errors import exit_on_user_error
from timm_rs.programs.stress_resume import main

if __name__ == '__main__':
    with exit_on_user_error():
        main()

#!/usr/bin/env python
"""Measure speed and memory here: candidates in turn, medians and spreads, rows with provenance."""
from timm_rs.programs.benchmark import main

if __name__ == '__main__':
    main()

#!/usr/bin/env python
"""Draw accuracy against latency: a line per family, dominated points hollow, speed-ups at equal accuracy."""
from timm_rs.programs.pareto import main

if __name__ == '__main__':
    main()

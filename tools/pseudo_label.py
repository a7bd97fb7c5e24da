#!/usr/bin/env python
"""Label images without labels by a trained model, and select which of them another model learns from."""
from timm_rs.programs.pseudo_label import main

if __name__ == '__main__':
    main()

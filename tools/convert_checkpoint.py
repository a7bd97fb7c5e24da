#!/usr/bin/env python
"""Convert a ResNet-RS checkpoint of the authors (TensorFlow 1, or 2 for clips), or of Keras, to a folder for timm."""
from timm_rs.programs.convert_checkpoint import main

if __name__ == '__main__':
    main()

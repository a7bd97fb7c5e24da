#!/usr/bin/env python
"""Convert a ResNet-RS checkpoint of the authors (TensorFlow 1), or of Keras, to a folder that timm loads."""
from timm_rs.programs.convert_checkpoint import main

if __name__ == '__main__':
    main()

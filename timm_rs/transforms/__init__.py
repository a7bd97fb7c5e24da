"""One encoded image -> uint8 pixels, on the host."""

"""One encoded image -> uint8 pixels, on the host."""

import cv2

# A data worker is one core, and OpenCV's own threads do not survive the fork that makes one.
cv2.setNumThreads(0)

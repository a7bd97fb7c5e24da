"""Pseudo labels: a teacher's view of images without labels, and which of it a student should believe."""

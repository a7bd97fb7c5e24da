"""Speed and memory, measured here."""

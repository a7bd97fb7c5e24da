"""A model for others."""

"""Numbers and figures."""

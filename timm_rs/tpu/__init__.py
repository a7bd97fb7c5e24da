"""TPUs that are not here."""

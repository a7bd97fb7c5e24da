"""A scaling study: models of several sizes, trained for as long as the final one will be."""

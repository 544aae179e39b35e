"""A model and text in, results out."""

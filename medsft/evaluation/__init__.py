"""Judging a model: validation loss, base against tuned."""

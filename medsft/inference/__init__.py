"""Answers from a model folder: generation, chat."""

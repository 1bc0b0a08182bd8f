"""Training data: files -> examples -> tokens -> steps -> micro-batches."""

"""Checkpoints that training resumes from, and model folders made of them or of a live model."""

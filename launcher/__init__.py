"""Gets a run onto its nodes: one process for each slot, started, watched and ended together.

Standard library only, so that it starts on any head node. It knows nothing of what it starts: it meets
the training script through arguments, environment and exit code.
"""

"""DeepSpeed behind pure functions: its configuration, the ranks, the optimiser, the step."""

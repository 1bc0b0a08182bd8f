"""What a run tells: metrics.jsonl, TensorBoard, the console, and the report of it all."""

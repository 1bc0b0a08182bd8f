"""What a training run will need and take, calculated before it starts: plain arithmetic, no torch."""

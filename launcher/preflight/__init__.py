"""Every host checked before a rank starts: `probe` asks, `compare` judges, `table` shows, `run` conducts."""

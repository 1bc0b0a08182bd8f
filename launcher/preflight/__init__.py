"""Every host checked before a rank starts: `probe` asks, `compare` judges, `table` shows, `run` conducts."""

from launcher.preflight.run import Settings, add_arguments, check, settings

__all__ = ["Settings", "add_arguments", "check", "settings"]

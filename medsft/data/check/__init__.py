"""An instruction file -> what is worth training on, what is not and why, and a report."""

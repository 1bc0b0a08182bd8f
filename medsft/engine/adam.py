"""What AdamW keeps of a parameter. Without torch, for those who only read about it."""

STATES = ("master", "exp_avg", "exp_avg_sq")
"""fp32 weight, mean of the gradients, mean of their squares: the names of AdamW's state in torch."""

"""What a run's exit code means; `docs/exit-codes.md` is the same table for people.

0 alone is no proof of success (a launcher may die with 0): the proof is the file DONE.
"""

FINISHED = 0
CRASHED = 1
GATE_CLOSED = 1
"""Of `medsft compare` and `medsft data check`: done, but worse than the bound that was asked for."""
USER_ERROR = 2
DIVERGED = 3
STOPPED = 75
INTERRUPTED = 130

"""What a run's exit code means; `docs/exit-codes.md` is the same table for people.

0 alone is no proof of success (a launcher may die with 0): the proof is the file DONE.
"""

FINISHED = 0
CRASHED = 1
USER_ERROR = 2
DIVERGED = 3
STOPPED = 75
INTERRUPTED = 130

"""Points of a save at which a test can have the process killed.

`MEDSFT_CRASH_AT=before-rename:40` kills the process when the save of step 40 comes to that point;
`before-rename:40:1` only the process whose `RANK` is 1. A kill, and not an exception, because nothing may
depend on cleaning up behind oneself.
"""

from __future__ import annotations

import os
import signal

VARIABLE = "MEDSFT_CRASH_AT"

POINTS = (
    "begin",  # the temporary folder is there, empty
    "shard-half",  # half of a rank's file is written
    "shard-written",  # a rank's file is complete and on the disk
    "before-manifest",  # all files of all ranks are
    "before-rename",  # the manifest is, too
    "after-rename",  # the folder has its name, perhaps not yet on the disk
    "before-pointer",  # it has it on the disk
    "after-pointer",  # `latest` names it
    "before-delete",  # of a checkpoint that retention gives up
    "in-delete",  # that one is hidden, and half gone
)


def reach(point: str, step: int) -> None:
    """Ends the process with SIGKILL if the environment names this point and step; else does nothing.

    ValueError for an environment that names no point: the test that set it would test nothing.
    """
    assert point in POINTS, point
    wanted = os.environ.get(VARIABLE)
    if not wanted:
        return
    wanted_point, _, rest = wanted.partition(":")
    wanted_step, _, rank = rest.partition(":")
    if wanted_point not in POINTS or not wanted_step.isdecimal() or not (rank.isdecimal() or not rank):
        raise ValueError(f"{VARIABLE}={wanted} is not point:step or point:step:rank, point one of {POINTS}")
    if (wanted_point, int(wanted_step)) == (point, step) and rank in ("", os.environ.get("RANK", "0")):
        os.kill(os.getpid(), signal.SIGKILL)

"""The rows of the fault matrix, by their numbers there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from campaign import Campaign
from rows_damage import cut_a_shard, flip_a_bit, lose_files, skew_the_clock
from rows_disk import fill_the_disk
from rows_ranks import crash_for_ever, kill_a_rank, stop_a_rank, two_jobs
from rows_saves import kill_while_saving
from rows_stops import ask_to_stop
from rows_worlds import change_the_world_size
from rows_writers import kill_writers
from tally import Tally


@dataclass(frozen=True)
class Row:
    """injected: what, in short. promise: what must come of it. run: (campaign, tally, whether in short).

    in_short: whether the row belongs to the short campaign.
    """

    number: int
    injected: str
    promise: str
    run: Callable[[Campaign, Tally, bool], None]
    in_short: bool = False


MATRIX = (
    Row(
        1,
        "kill -9 of a rank: rank 0, the last",
        "nonzero or an automatic restart, at most one save interval lost, same final weights",
        kill_a_rank,
    ),
    Row(3, "SIGSTOP of a rank", "named within the timeout, restarted, same final weights", stop_a_rank),
    Row(
        4,
        "kill -9 at every point of a save and at random times",
        "always a complete checkpoint to go on from, no bad load, same final weights",
        kill_while_saving,
        in_short=True,
    ),
    Row(
        5,
        "shards cut short",
        "refused by all ranks together, named, the one before taken; without a good one no start",
        cut_a_shard,
    ),
    Row(6, "single bits flipped", "the same, by checksum", flip_a_bit),
    Row(
        7,
        "pointer deleted or emptied, shard deleted",
        "the newest good checkpoint, never step 0; the pointer is rebuilt",
        lose_files,
        in_short=True,
    ),
    Row(
        8,
        "disk full at a save and in a save",
        "checkpoint before intact, nothing half written left, stops or goes on as told",
        fill_the_disk,
    ),
    Row(
        11,
        "TERM, USR1, INT, twice, in a save, to a rank or the launcher",
        "exit code 75 with a checkpoint, no step lost, same final weights",
        ask_to_stop,
    ),
    Row(18, "clocks an hour wrong", "order by step, never by date", skew_the_clock),
    Row(
        22,
        "two jobs for one folder; its owner killed",
        "the second refused with the owner's name, the dead one's lock recovered",
        two_jobs,
    ),
    Row(
        23,
        "2, 1, 3, 2 ranks",
        "same examples at every step, losses within 1e-5 of 2 ranks throughout",
        change_the_world_size,
    ),
    Row(
        24,
        "kill -9 in a compilation and while figures are written",
        "the next start does not wait for a dead one's lock; every step shown once",
        kill_writers,
    ),
    Row(25, "a crash loop", "stops after so many restarts without progress, exit code 4", crash_for_ever),
)

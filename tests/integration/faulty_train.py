"""medsft/train.py with a fault built in: faulty_train.py FAULT FLAGS…

load    rank 1 cannot read its part of the weights
write   rank 0 finds the disk full in the middle of the final model
data    rank 1 sees another training file of the same name
crash   rank 1 has a bug in the middle of the training
wait    after step $WAIT_AFTER no rank goes on until the file $WAIT_FOR is there
"""

import errno
import os
import sys
import time
from itertools import count
from pathlib import Path

from medsft import train
from medsft.chatglm.weights import ShardWriter, WeightFiles
from medsft.engine.step import TrainStep
from medsft.errors import UserError

RANK = os.environ["RANK"]


def load():
    def read_range(self, name, start, end):
        raise UserError(f"shard of {name} is broken, fetch it again")

    if RANK == "1":
        WeightFiles.read_range = read_range


def write():
    add, calls = ShardWriter.add, []

    def add_until_full(self, name, tensor):
        calls.append(name)
        if len(calls) == 5:
            raise OSError(errno.ENOSPC, "No space left on device")
        add(self, name, tensor)

    if RANK == "0":
        ShardWriter.add = add_until_full


def data():
    if RANK == "1":
        place = sys.argv.index("--train_file") + 1
        with open(sys.argv[place], encoding="utf-8") as file:  # noqa: PTH123
            lines = file.readlines()
        sys.argv[place] += ".other.jsonl"
        with open(sys.argv[place], "w", encoding="utf-8") as file:  # noqa: PTH123
            file.writelines(lines[1:])


def crash():
    def fail(self, *arguments, **more):
        raise ZeroDivisionError("a bug on rank 1")

    if RANK == "1":
        TrainStep.__call__ = fail


def wait():
    step, steps_done = TrainStep.__call__, count()

    def step_when_it_may(self, *arguments, **more):
        if next(steps_done) == int(os.environ["WAIT_AFTER"]):
            while not Path(os.environ["WAIT_FOR"]).exists():
                time.sleep(0.01)
        return step(self, *arguments, **more)

    TrainStep.__call__ = step_when_it_may


if __name__ == "__main__":
    fault = sys.argv.pop(1)
    {"load": load, "write": write, "data": data, "crash": crash, "wait": wait}[fault]()
    sys.exit(train.main())

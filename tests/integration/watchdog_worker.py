"""One rank under the watchdog: watchdog_worker.py FAULT RANK TIMEOUT_S NUM_STEPS.

Steps of one all-reduce each. In step 3 the rank meets its fault:

stop    it is stopped (SIGSTOP) and does not wake up
gone    it is killed (SIGKILL) while the others are too busy for a collective that would notice
data    it sleeps in its data loading
none    nothing hangs, but every rank is slow at times, and stopped for a fifth of the timeout again and again
"""

import os
import random
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import torch
import torch.distributed as dist

from medsft.engine import watchdog
from medsft.engine.process import run_process

FOR_EVER_S = 600


def stop_now_and_then(pause_s):
    """A helper that stops this process for a moment, ten times, as a busy machine does."""
    moments, pid = "1 2 3 4 5 6 7 8 9 10", os.getpid()
    loop = f"for i in {moments}; do sleep 1; kill -STOP {pid}; sleep {pause_s}; kill -CONT {pid}; done"
    subprocess.Popen(["/bin/sh", "-c", loop], stderr=subprocess.DEVNULL)


def meet(fault, is_its_rank, timeout_s):
    time.sleep(timeout_s / 3)  # so that the others have heard where this rank is
    if is_its_rank and fault == "data":
        time.sleep(FOR_EVER_S)
    if is_its_rank and fault in ("stop", "gone"):
        os.kill(os.getpid(), signal.SIGSTOP if fault == "stop" else signal.SIGKILL)
    if fault == "gone":
        time.sleep(FOR_EVER_S)


def body(config, world, stop):
    chance = random.Random(world.rank)
    if config.fault == "none":
        stop_now_and_then(config.timeout_s / 5)
    for step in range(1, config.num_steps + 1):
        watchdog.now_at(f"step {step}: waiting for data")
        if config.fault == "none":
            time.sleep(chance.uniform(0, config.timeout_s / 8))
        elif step == 3:
            meet(config.fault, world.rank == config.rank, config.timeout_s)
        watchdog.now_at(f"step {step}: computing")
        dist.all_reduce(torch.ones(1))
    dist.barrier()
    os.write(1, f"rank {world.rank} is done\n".encode())


def read():
    fault, rank, timeout_s, num_steps = sys.argv[1:]
    run = SimpleNamespace(distributed_timeout_min=float(timeout_s) / 60)
    return SimpleNamespace(
        run=run, fault=fault, rank=int(rank), timeout_s=float(timeout_s), num_steps=int(num_steps)
    )


if __name__ == "__main__":
    sys.exit(run_process(read, body))

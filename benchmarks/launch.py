"""Seconds from the command to the ranks and to the first training step, for each way to start; and of checks.

    python benchmarks/launch.py        # as root, with the packages of tests/cluster: on hosts of its own too
    python benchmarks/launch.py --local

Two ranks: both on this machine, or one on each of two hosts (network namespaces with ssh and Slurm, see
tests/cluster; all share this machine's cores). Ways take turns in a changing order. Until "the ranks": a
script that does nothing else has left its mark on every rank. Until "step 1": a toy ChatGLM of three layers
has its first line in metrics.jsonl; nearly all of that is Python's imports. The launcher checks several hosts
before it starts anything there, and DeepSpeed's does not; `launch_check` has the seconds of that, on real
hosts by ssh and on simulated ones that answer after 0.3 s what a real one has answered.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import machine
from machine import write_result

from launcher import shell
from launcher.job import Node
from launcher.preflight.run import PACKAGES, Settings, check
from launcher.shell import Done

REPOSITORY = Path(__file__).resolve().parents[1]
PYTHON = sys.executable
DEEPSPEED = str(Path(PYTHON).with_name("deepspeed"))
RUN = (PYTHON, "-m", "launcher", "run")
LIMIT_S = 300.0
ANSWER_S = 0.3
ENVIRONMENT = {"OMP_NUM_THREADS": "1"}
# A rank's mark, in the folder that comes last among its arguments: DeepSpeed puts --local_rank before.
MARK = "import os, sys; open(os.path.join(sys.argv[-1], 'rank-' + os.environ['RANK']), 'x').close()"
SHAPE = {"hidden_size": 64, "num_layers": 3, "num_attention_heads": 4, "inner_hidden_size": 256}


@dataclass(frozen=True)
class Way:
    """words: what a user types before the script; HOSTFILE stands for a hostfile's path. hosts: 1 or 2."""

    name: str
    hosts: int
    words: tuple[str, ...]


LOCAL_WAYS = (
    Way("deepspeed", 1, (DEEPSPEED, "--num_accelerators", "2")),
    Way("launcher, local", 1, (*RUN, "--num-gpus", "2")),
)
CLUSTER_WAYS = (
    Way("deepspeed --hostfile", 2, (DEEPSPEED, "--hostfile", "HOSTFILE")),
    Way("launcher, pdsh", 2, (*RUN, "--hostfile", "HOSTFILE")),
    Way("launcher, openmpi", 2, (*RUN, "--hostfile", "HOSTFILE", "--transport", "openmpi")),
    Way("launcher, slurm", 2, ("salloc", "--quiet", "--nodes=2", *RUN, "--num-gpus", "1")),
)

Start = Callable[[Sequence[str]], "subprocess.Popen[str]"]


@dataclass(frozen=True)
class Toy:
    """What is trained, where marks and runs go, and how a command of two hosts is started."""

    folder: Path
    model: Path
    data: Path
    on_hosts: Start | None


def start_here(words: Sequence[str]) -> subprocess.Popen[str]:
    """On this machine."""
    environment = os.environ | ENVIRONMENT
    environment["PATH"] = f"{Path(PYTHON).parent}{os.pathsep}{environment['PATH']}"
    silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen(words, cwd=REPOSITORY, env=environment, text=True, **silent)


def make_toy(folder: Path, on_hosts: Start | None) -> Toy:
    """A random model of a few layers and pairs to train it on."""
    from medsft.chatglm.init import write_random_model
    from medsft.chatglm.tokenizer_training import train_tokenizer
    from medsft.knowledge.build import build_pairs

    data = folder / "pairs.jsonl"
    build_pairs([REPOSITORY / "medsft" / "knowledge" / "sample.jsonl"], data, seed=0)
    lines = data.read_text(encoding="utf-8").splitlines(keepends=True)[:64]
    data.write_text("".join(lines), encoding="utf-8")
    texts = (record["context"] + record["target"] for record in map(json.loads, lines))
    train_tokenizer(texts, folder / "tokenizer", vocab_size=600)
    write_random_model(folder / "model", folder / "tokenizer", overrides=SHAPE, seed=1, dtype="float32")
    (folder / "mark.py").write_text(MARK, encoding="utf-8")
    (folder / "hosts").write_text("node1 slots=1\nnode2 slots=1\n", encoding="utf-8")
    return Toy(folder, folder / "model", data, on_hosts)


def timed(way: Way, toy: Toy, script: Sequence[str], is_there: Callable[[], bool]) -> float:
    """Seconds from the command until `is_there`; returns when the command has ended, well or not at all.

    Raises `RuntimeError` when it fails.
    """
    words = [str(toy.folder / "hosts") if word == "HOSTFILE" else word for word in way.words]
    start = start_here if way.hosts == 1 else toy.on_hosts
    assert start is not None
    begin_s = time.perf_counter()
    with start([*words, *script]) as process:
        while not is_there():
            has_ended = process.poll() is not None and not is_there()
            if has_ended or time.perf_counter() - begin_s > LIMIT_S:
                process.terminate()
                raise RuntimeError(f"{way.name}: {' '.join(map(str, process.args))} came to nothing")
            time.sleep(0.01)
        seconds = time.perf_counter() - begin_s
    if process.returncode != 0:
        raise RuntimeError(f"{way.name} ended with {process.returncode}")
    return seconds


def to_the_ranks(way: Way, toy: Toy) -> float:
    """Until the last of two ranks runs."""
    marks = Path(tempfile.mkdtemp(dir=toy.folder))
    script = [str(toy.folder / "mark.py"), str(marks)]
    return timed(way, toy, script, lambda: len(list(marks.iterdir())) == 2)


def to_the_first_step(way: Way, toy: Toy) -> float:
    """Until the first step is done and written down."""
    output = toy.folder / "run"
    metrics = output / "metrics.jsonl"
    flags = {
        "deepspeed": "ds_configs/zero3_cpu.json",
        "model_name_or_path": toy.model,
        "train_file": toy.data,
        "output_dir": output,
        "max_steps": 1,
        "global_batch_size": 4,
        "per_device_train_batch_size": 2,
        "max_source_length": 64,
        "max_target_length": 64,
        "logging_steps": 1,
        "save_strategy": "no",
    }
    script = [
        "medsft/train.py",
        *(str(word) for name, value in flags.items() for word in (f"--{name}", value)),
    ]
    try:
        return timed(way, toy, script, lambda: metrics.exists() and metrics.stat().st_size > 0)
    finally:
        shutil.rmtree(output, ignore_errors=True)


def in_turns(ways: Sequence[Way], num_rounds: int, measure: Callable[[Way], float]) -> dict[str, list[float]]:
    """Every way in every round, each round begun by another one: name -> seconds."""
    found: dict[str, list[float]] = {way.name: [] for way in ways}
    for number in range(num_rounds):
        first = number % len(ways)
        for way in (*ways[first:], *ways[:first]):
            found[way.name].append(measure(way))
    return found


def start_rows(ways: Sequence[Way], toy: Toy, num_rounds: int, num_step_rounds: int) -> list[dict[str, Any]]:
    """A line for each way and each of the two ends of the clock."""
    measured = {
        "the ranks": in_turns(ways, num_rounds, lambda way: to_the_ranks(way, toy)),
        "step 1": in_turns(ways, num_step_rounds, lambda way: to_the_first_step(way, toy)),
    }
    rows = []
    for until, found in measured.items():
        for way in ways:
            seconds = found[way.name]
            if not seconds:
                continue
            bare = found[next(each.name for each in ways if each.hosts == way.hosts)]
            ratios = [mine / others for mine, others in zip(seconds, bare, strict=True)]
            rows.append(
                {
                    "until": until,
                    "way": way.name,
                    "hosts": way.hosts,
                    "rounds": len(seconds),
                    **spread(seconds),
                    "times deepspeed's": round(statistics.median(ratios), 2),
                }
            )
    return rows


def spread(seconds: Sequence[float]) -> dict[str, float]:
    """Median, least and most."""
    found = {"s (median)": statistics.median(seconds), "min": min(seconds), "max": max(seconds)}
    return {name: round(value, 2) for name, value in found.items()}


def check_row(hosts: int, how: str, seconds: Sequence[float], red: int) -> dict[str, Any]:
    """A line of the second table."""
    return {
        "hosts": hosts,
        "reached": how,
        "rounds": len(seconds),
        **spread(seconds),
        "red": red,
    }


def simulated_rows(numbers: Sequence[int], num_rounds: int) -> list[dict[str, Any]]:
    """Hosts that all answer what a probe of this machine found."""
    # A host's clock is compared with ours: that is for real hosts.
    settings = Settings(
        python=PYTHON, repository=str(REPOSITORY), folder=str(REPOSITORY), skip=frozenset(["clock"])
    )
    answers: dict[tuple[str, ...], Done] = {}

    def answer(host: str, command: Sequence[str], stdin: bytes, limit_s: float) -> Done:
        time.sleep(ANSWER_S)
        return answers[tuple(command)]

    def probe(host: str, command: Sequence[str], stdin: bytes, limit_s: float) -> Done:
        return answers.setdefault(tuple(command), shell.here(host, command, stdin, limit_s))

    check([Node("first", 1)], probe, settings, print)
    rows = []
    for number in numbers:
        nodes = [Node(f"node{index:04d}", 1) for index in range(number)]
        reports = [check(nodes, answer, settings, print) for _ in range(num_rounds)]
        seconds = [report.seconds for report in reports]
        rows.append(check_row(number, "simulated", seconds, len(reports[-1].bad_hosts)))
    return rows


def ssh_row(on_hosts: Start, folder: Path, num_rounds: int, collective: bool) -> dict[str, Any]:
    """Three real hosts, the whole command, with or without the collective test."""
    hostfile = folder / "three hosts"
    hostfile.write_text("".join(f"node{number} slots=1\n" for number in (1, 2, 3)), encoding="utf-8")
    words = [PYTHON, "-m", "launcher", "check", "--hostfile", str(hostfile)]
    words += [] if collective else ["--skip", "collective"]
    seconds = []
    for _ in range(num_rounds):
        begin_s = time.perf_counter()
        with on_hosts(words) as process:
            pass
        seconds.append(time.perf_counter() - begin_s)
        if process.returncode != 0:
            raise RuntimeError(f"the check of three hosts ended with {process.returncode}")
    how = "ssh, and the collective test" if collective else "ssh"
    return check_row(3, how, seconds, 0)


def bring_up(stack: ExitStack) -> tuple[Start | None, str]:
    """Hosts for as long as the stack lasts; None, and why, where there can be none."""
    sys.path.insert(0, str(REPOSITORY / "tests" / "cluster"))
    from cluster import temporary
    from requirements import missing

    if sentence := missing():
        return None, f"none ({sentence.rstrip('.')})"
    hosts = temporary()
    stack.enter_context(hosts)
    hosts.end_with_me()
    silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return lambda words: hosts.start_on("node1", words, environment=ENVIRONMENT, **silent), "3"


def parse_options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=machine.at_least(1), default=3)
    parser.add_argument(
        "--step_rounds", type=machine.at_least(0), default=3, help="of starts of a training; 0: none"
    )
    parser.add_argument("--local", action="store_true", help="this machine only")
    parser.add_argument(
        "--hosts", type=machine.at_least(1), nargs="+", default=[1, 10, 100, 1000], help="numbers, simulated"
    )
    parser.add_argument("--results", type=Path, default=machine.RESULTS)
    return parser.parse_args()


def main() -> None:
    """Measures all ways and writes medians."""
    options = parse_options()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="launch-")))
        on_hosts, hosts = (None, "none (--local)") if options.local else bring_up(stack)
        toy = make_toy(folder, on_hosts)
        ways = LOCAL_WAYS if on_hosts is None else LOCAL_WAYS + CLUSTER_WAYS
        starts = start_rows(ways, toy, options.rounds, options.step_rounds)
        checks = simulated_rows(options.hosts, options.rounds)
        if on_hosts is not None:
            checks = [ssh_row(on_hosts, folder, options.rounds, each) for each in (False, True)] + checks
    settings = {"ranks": 2, "hosts of its own": hosts}
    extra = {"packages asked for": len(PACKAGES), "at once": 64}
    tables = (
        write_result("launch", settings, starts, options.results),
        write_result("launch_check", settings | extra, checks, options.results),
    )
    for path in tables:
        print(path.with_suffix(".md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()

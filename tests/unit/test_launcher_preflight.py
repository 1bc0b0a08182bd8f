"""From what hosts say to findings, the table and its JSON; and 1,000 hosts that a function plays."""

import copy
import json
import threading
import time

import pytest

from launcher.errors import LauncherError
from launcher.job import Node
from launcher.preflight.answer import Answer, Limits, Needs
from launcher.preflight.compare import compare
from launcher.preflight.findings import CHECKS, checks_to_skip
from launcher.preflight.run import Settings, check
from launcher.preflight.shared import skew_s
from launcher.preflight.table import Report, fold
from launcher.shell import Done

GIB = 2**30
GPU = {"index": "0", "name": "NVIDIA A100-SXM4-80GB", "memory_bytes": 80 * GIB, "driver": "550.54.15"}
PROBE = {
    "format": 1,
    "hostname": "node",
    "python": {"version": "3.11.7", "executable": "/opt/venv/bin/python"},
    "packages": {"torch": "2.13.0", "numpy": "2.4.6"},
    "commit": {"repository": "/repo", "commit": "a" * 40, "dirty": False, "code": "c" * 64},
    "data": {"训练.jsonl": {"size": 7, "sha256": "d" * 64, "hashed": "whole"}},
    "gpus": {"gpus": [GPU, {**GPU, "index": "1"}], "visible": None},
    "cores": 16,
    "memory": {"total": 256 * GIB, "available": 200 * GIB},
    "disk": {place: {"folder": f"/{place}", "free": 100 * GIB} for place in ("output", "tmp", "shm")},
    "output": {"folder": "/shared/运行", "nonce": "read", "writable": True},
    "files": {"open_files": 65536, "locked_bytes": 65536, "infiniband": False},
    "port": {},
    "clock": {"began": 1000.4, "ended": 1000.6},
}


def probe(**changes):
    """A probe like any other, with parts replaced; "commit.code" is a part of a part."""
    changed = copy.deepcopy(PROBE)
    for name, value in changes.items():
        *parents, last = name.split("__")
        part = changed
        for parent in parents:
            part = part[parent]
        part[last] = value
    return changed


def answers(*probes, num_slots=2):
    return [
        Answer(Node(f"node{number}", num_slots), each, 1000.0, 1001.0)
        for number, each in enumerate(probes, start=1)
    ]


def levels(found, check_name):
    return {finding.host: finding.level for finding in found if finding.check == check_name}


def judged(*probes, needs=None, num_slots=2):
    return compare(answers(*probes, num_slots=num_slots), needs or Needs(), Limits(), frozenset())


def test_hosts_all_alike_are_green():
    found = judged(probe(), probe(), probe(port={"number": 29500, "free": True}))
    assert {finding.level for finding in found} == {"green"}
    assert {finding.check for finding in found} == set(CHECKS) - {"reach", "collective"}


@pytest.mark.parametrize(
    ("changes", "check_name", "level", "words"),
    [
        ({"python__version": "3.12.1"}, "python", "red", ["3.12.1", "2 other hosts have 3.11.7"]),
        ({"python__version": "3.11.9"}, "python", "yellow", ["3.11.9", "3.11.7"]),
        (
            {"packages__torch": "2.12.1"},
            "packages",
            "red",
            ["torch 2.12.1; 2 other hosts have 2.13.0", "/opt/venv/bin/python -m pip install torch==2.13.0"],
        ),
        ({"packages__numpy": None}, "packages", "red", ["without numpy", "install numpy==2.4.6"]),
        ({"packages": {"error": "this Python is older than 3.8"}}, "packages", "red", ["older than 3.8"]),
        (
            {"commit__code": "e" * 64},
            "commit",
            "red",
            ["eeeeeeee", "2 other hosts", "cccccccc", "git checkout"],
        ),
        ({"commit__commit": "b" * 40}, "commit", "yellow", ["bbbbbbbbbb", "2 other hosts", "the same code"]),
        ({"commit__commit": "unknown", "commit__dirty": None}, "commit", "green", ["unknown"]),
        (
            {"commit": {"error": "No such file or directory: '/repo'"}},
            "commit",
            "red",
            ["no repository", "/repo"],
        ),
        (
            {"data": {"训练.jsonl": {"size": 8, "sha256": "f" * 64, "hashed": "whole"}}},
            "data",
            "red",
            ["训练.jsonl", "ffffffffffff", "dddddddddddd", "rsync"],
        ),
        ({"data": {"训练.jsonl": {"error": "No such file"}}}, "data", "red", ["训练.jsonl cannot be read"]),
        ({"gpus__gpus": [GPU]}, "gpus", "red", ["1 GPUs", "2 slots", "slots=1"]),
        ({"gpus__visible": "1"}, "gpus", "red", ["1 GPUs", "CUDA_VISIBLE_DEVICES=1"]),
        ({"gpus__visible": "GPU-5f1,GPU-77a"}, "gpus", "green", ["2 GPUs"]),
        ({"gpus": {"error": "nvidia-smi gave no answer for 10 s"}}, "gpus", "red", ["gave no answer"]),
        ({"gpus__gpus": [{**GPU, "name": "V100"}] * 2}, "gpus", "yellow", ["V100", "A100"]),
        ({"gpus__gpus": [{**GPU, "driver": "470.1"}] * 2}, "driver", "yellow", ["470.1", "550.54.15"]),
        ({"cores": 1}, "cores", "yellow", ["1 CPU cores for 2 ranks"]),
        ({"memory": {"total": 32 * GIB, "available": 30 * GIB}}, "memory", "red", ["30.0 GiB", "64.0 GiB"]),
        ({"memory__available": 30 * GIB}, "memory", "red", ["30.0 GiB", "Something else uses it"]),
        ({"disk__output__free": GIB}, "disk", "red", ["1.0 GiB free in /output", "10.0 GiB"]),
        ({"disk__shm__free": 2**20}, "disk", "yellow", ["/shm"]),
        ({"disk__shm": {"error": "No such file"}}, "disk", "yellow", ["shm", "No such file"]),
        ({"output__nonce": "missing"}, "output", "red", ["/shared/运行", "not the first host's", "mount"]),
        (
            {"output__writable": "Read-only file system"},
            "output",
            "red",
            ["Read-only", "Mount it for writing"],
        ),
        ({"clock": {"began": 4600.0, "ended": 4600.1}}, "clock", "yellow", ["3599 s ahead", "chrony"]),
        ({"clock": {"began": 900.0, "ended": 900.1}}, "clock", "yellow", ["100 s behind"]),
        ({"files__open_files": 256}, "files", "red", ["256 open files", "268", "ulimit -n"]),
        ({"files__open_files": 300}, "files", "yellow", ["300 open files"]),
        ({"files__open_files": None}, "files", "green", ["no limit"]),
        ({"files__infiniband": True}, "files", "yellow", ["InfiniBand", "memlock"]),
        ({"port": {"number": 29500, "free": False}}, "port", "yellow", ["29500 is taken"]),
    ],
)
def test_what_differs_is_found_with_both_values(changes, check_name, level, words):
    needs = Needs(memory_bytes=64 * GIB, disk_bytes=10 * GIB, gpu_memory_bytes=40 * GIB)
    found = judged(probe(), probe(**changes), probe(), needs=needs)
    [finding] = [each for each in found if (each.host, each.check) == ("node2", check_name)]
    assert finding.level == level
    text = f"{finding.found} {finding.remedy}"
    assert [word for word in words if word not in text] == []
    assert bool(finding.remedy) == (level != "green")
    # Nobody else has anything to do with it.
    assert {each.level for each in found if each.host != "node2"} == {"green"}


def test_gpus_too_small_are_red():
    found = judged(probe(), needs=Needs(gpu_memory_bytes=81 * GIB))
    assert levels(found, "gpus") == {"node1": "red"}


def test_without_gpus_anywhere_only_cores_count():
    none = probe(gpus={"gpus": [], "visible": None}, cores=1)
    found = judged(none, none)
    assert levels(found, "gpus") == levels(found, "driver") == {}
    assert levels(found, "cores") == {"node1": "yellow", "node2": "yellow"}
    assert levels(judged(none, probe()), "gpus") == {"node1": "red", "node2": "green"}
    assert levels(judged(none, needs=Needs(use_gpus=True)), "gpus") == {"node1": "red"}
    assert levels(judged(none, probe(), needs=Needs(use_gpus=False)), "gpus") == {}


def test_a_driver_that_is_dead_everywhere_is_red_unless_the_run_is_one_on_cpus():
    dead = probe(gpus={"error": "nvidia-smi failed with code 9: no communication with the driver"})
    assert levels(judged(dead), "gpus") == {"node1": "red"}
    assert levels(judged(dead, dead), "gpus") == {"node1": "red", "node2": "red"}
    assert levels(judged(dead, needs=Needs(use_gpus=False)), "gpus") == {}


def test_who_says_how_much_gpu_memory_is_needed_wants_gpus():
    none = probe(gpus={"gpus": [], "visible": None})
    assert levels(judged(none, needs=Needs(gpu_memory_bytes=GIB)), "gpus") == {"node1": "red"}
    on_cpus = Needs(gpu_memory_bytes=GIB, use_gpus=False)
    assert levels(judged(none, needs=on_cpus), "gpus") == {}


def test_a_package_missing_everywhere_is_red_everywhere():
    found = judged(probe(packages__torch=None), probe(packages__torch=None))
    assert levels(found, "packages") == {"node1": "red", "node2": "red"}


def test_of_two_hosts_the_first_is_right():
    found = judged(probe(), probe(packages__torch="2.12.1"))
    assert levels(found, "packages") == {"node1": "green", "node2": "red"}


@pytest.mark.parametrize(
    ("began", "ended", "skew"),
    [(1000.1, 1000.9, 0), (1000.9, 1003.0, 2.0), (996.0, 996.1, -4.0), (1001.5, 1001.6, 0.6)],
)
def test_skew_is_only_what_is_certain(began, ended, skew):
    [answer] = answers(probe(clock={"began": began, "ended": ended}))
    assert skew_s(answer) == pytest.approx(skew)


def test_an_unknown_check_cannot_be_skipped():
    assert checks_to_skip(["data", "clock"]) == {"data", "clock"}
    with pytest.raises(LauncherError, match=r"--skip 'dta' is no check.*commit, data"):
        checks_to_skip(["dta"])


@pytest.mark.parametrize(
    ("hosts", "folded"),
    [
        ([f"node{number:03d}" for number in range(1, 1001) if number != 7], "node[001-006,008-999],node1000"),
        (["a1", "a2", "a10"], "a[1-2],a10"),
        (["gpu1.cluster", "gpu2.cluster", "head"], "gpu[1-2].cluster,head"),
        (["10.0.0.1", "10.0.0.2"], "10.0.0.1,10.0.0.2"),
        (["node7"], "node7"),
    ],
)
def test_fold(hosts, folded):
    assert fold(hosts) == folded


class Cluster:
    """1,000 hosts: answers after 10 ms, with faults by number, and counts who is asked at a time."""

    def __init__(self):
        self.most = 0
        self._running = 0
        self._lock = threading.Lock()
        self.calls = []

    def shell(self, host, command, stdin, limit_s):
        with self._lock:
            self._running += 1
            self.most = max(self.most, self._running)
            self.calls.append((host, [word for word in command if word.startswith("--role")]))
        try:
            time.sleep(0.01)
            return self._answer(host, command)
        finally:
            with self._lock:
                self._running -= 1

    def _answer(self, host, command):
        if "--role=remove" in command:
            return Done(0, json.dumps({"output": {"nonce": "removed"}}), "")
        now = {"began": time.time(), "ended": time.time()}
        number = int(host.removeprefix("node"))
        if number == 13:
            return Done(255, "", f"ssh: Could not resolve hostname {host}: Name or service not known\r\n")
        if number == 400:
            return Done(None, "", "")
        if number == 500:
            return Done(127, "", "env: '/opt/venv/bin/python': No such file or directory\n")
        if 700 <= number < 710:
            return Done(0, json.dumps(probe(clock=now, packages__torch="2.12.1")), "")
        if number == 900:
            return Done(0, "Welcome!\n{broken\n" + json.dumps(probe(clock=now, output__nonce="missing")), "")
        return Done(0, json.dumps(probe(clock=now, files__open_files=None)), "motd on stderr")


SETTINGS = Settings(python="/opt/venv/bin/python", repository="/repo", folder="/work", output="/shared/运行")


def test_a_thousand_hosts_with_faults():
    cluster, said = Cluster(), []
    nodes = [Node(f"node{number:04d}", 2) for number in range(1, 1001)]
    report = check(nodes, cluster.shell, SETTINGS, said.append)
    assert not report.ok
    bad = [13, 400, 500, *range(700, 710), 900]
    assert report.bad_hosts == tuple(f"node{number:04d}" for number in bad)
    assert 8 < cluster.most <= SETTINGS.at_once
    assert said == []
    assert cluster.calls[0] == ("node0001", ["--role=write"])
    assert cluster.calls[-1] == ("node0001", ["--role=remove"])
    assert {tuple(role) for _, role in cluster.calls[1:-1]} == {("--role=read",)}

    table = report.table()
    assert "\033[" not in table
    lines = table.splitlines()
    assert lines[1].startswith("node[0001-0012,0014-0399,0401-0499,0501-0699,0710-0899,0901…")
    assert lines[1].endswith("all green")
    assert len(lines) < 20
    assert any(line.startswith("node[0700-0709]") and line.count("✗") == 1 for line in lines)
    [torch] = [line for line in lines if line.startswith("✗ node[0700-0709] packages")]
    assert "torch 2.12.1; 987 other hosts have 2.13.0" in torch
    assert any(line.startswith("✗ node0400 reach: no answer within 15 s") for line in lines)
    assert lines[-1].startswith("14 of 1000 hosts must be mended")

    content = json.loads(report.json())
    assert content["ok"] is False
    assert len(content["hosts"]) == 1000
    told = content["hosts"]["node0013"]
    assert told["probe"] is None
    assert told["findings"]["reach"]["level"] == "red"
    assert content["hosts"]["node0900"]["findings"]["output"]["level"] == "red"
    assert content["hosts"]["node0002"]["probe"]["packages"]["torch"] == "2.13.0"


def test_a_thousand_healthy_hosts_are_two_lines_and_a_summary():
    nodes = [Node(f"node{number:04d}", 2) for number in range(1001, 2001)]
    lines = check(nodes, Cluster().shell, SETTINGS, lambda line: None).table(colour=True).splitlines()
    assert len(lines) == 3
    assert lines[1].startswith("node[1001-2000]  \033[32mall green")
    assert lines[2].startswith("1000 hosts: nothing stands in the way")


def test_an_unreachable_first_host_holds_up_nobody():
    cluster = Cluster()
    report = check([Node("node13", 1), Node("node14", 1)], cluster.shell, SETTINGS, lambda line: None)
    assert report.bad_hosts == ("node13",)
    # It never ran there, so nothing is looked for and nothing removed.
    assert cluster.calls == [("node13", ["--role=write"]), ("node14", [])]


def test_a_first_host_that_hangs_is_still_asked_to_clean_up():
    cluster = Cluster()
    check([Node("node400", 1)], cluster.shell, SETTINGS, lambda line: None)
    assert cluster.calls == [("node400", ["--role=write"]), ("node400", ["--role=remove"])]


def test_a_nonce_that_stays_is_named():
    def shell(host, command, stdin, limit_s):
        if "--role=remove" in command:
            return Done(1, "", "Stale file handle\n")
        return Done(0, json.dumps(probe()), "")

    said = []
    check([Node("node1", 1)], shell, SETTINGS, said.append)
    assert len(said) == 1
    assert "/shared/运行/.medsft-check-" in said[0]
    assert "Stale file handle" in said[0]


def test_the_nonce_is_removed_when_the_check_is_broken_off():
    calls = []

    def shell(host, command, stdin, limit_s):
        calls.append((host, [word for word in command if word.startswith("--role")]))
        if host == "node2":
            raise KeyboardInterrupt
        return Done(0, json.dumps(probe()), "")

    with pytest.raises(KeyboardInterrupt):
        check([Node("node1", 1), Node("node2", 1)], shell, SETTINGS, lambda line: None)
    assert calls[-1] == ("node1", ["--role=remove"])


def test_colours_and_symbols():
    report = Report(("node1",), tuple(judged(probe())), {}, None, ("a note",), 1.26)
    assert "✓" in report.table()
    assert "\033[32m" in report.table(colour=True)
    assert report.table().endswith("a note\n1 host: nothing stands in the way (in 1.3 s)\n")

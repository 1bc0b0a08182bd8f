"""The collective test: real ranks over gloo, and the judgement of what they measured."""

import json
import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

from launcher import check as launcher_check
from launcher.check import run_collective
from launcher.errors import LauncherError
from launcher.hosts.ports import free_port
from launcher.job import Job, Node
from launcher.place import Place
from launcher.preflight.collective import SlowLimits, describe, judge
from launcher.preflight.run import Settings, check
from launcher.ranks import local
from launcher.ranks.commands import rank_commands
from launcher.shell import InterruptedWork, here
from medsft import allreduce
from medsft.allreduce import bandwidth

REPOSITORY = Path(__file__).resolve().parents[2]
HOSTS = ["node1", "node2", "node3", "node4"]


def result(slow_link=None, slow_compute=None, correct=True):
    """Four hosts; all links of `slow_link` take 80 ms, others 4."""

    def link(one, other):
        return 0.08 if slow_link in (one, other) else 0.004

    hosts = []
    for rank in range(4):
        peers = [peer for peer in range(4) if peer != rank and (peer < 2 or rank < 2)]
        links = {str(peer): link(rank, peer) for peer in peers}
        compute_s = 0.05 if rank == slow_compute else 0.002
        hosts.append(
            {"node_rank": rank, "hostname": "x", "ranks": [rank], "compute_s": compute_s, "links_s": links}
        )
    return {
        "format": 1,
        "backend": "gloo",
        "world_size": 4,
        "correct": correct,
        "sizes": [bandwidth(2**20, 0.001, 4), bandwidth(2**23, 0.01, 4)],
        "hosts": hosts,
    }


def test_bandwidths_are_those_of_nccl_tests():
    measured = bandwidth(10**9, 0.5, 4)
    assert measured["algbw_gb_s"] == pytest.approx(2.0)
    assert measured["busbw_gb_s"] == pytest.approx(3.0)
    assert bandwidth(10**9, 0.5, 1)["busbw_gb_s"] == 0


@pytest.mark.parametrize("slow", range(4))
def test_a_slow_link_is_its_hosts_alone_be_it_a_hubs(slow):
    found = judge(result(slow_link=slow), HOSTS, SlowLimits())
    assert [each.host for each in found if each.level == "yellow"] == [HOSTS[slow]]
    assert "its link takes 80.0 ms, others 4.0 ms" in found[slow].found
    assert found[slow].remedy


def test_a_slow_computer_is_named():
    found = judge(result(slow_compute=2), HOSTS, SlowLimits())
    assert [each.host for each in found if each.level == "yellow"] == ["node3"]
    assert "computes in 50.0 ms, others in 2.0 ms" in found[2].found


def test_healthy_hosts_are_green_and_a_wrong_sum_is_red():
    assert {each.level for each in judge(result(), HOSTS, SlowLimits())} == {"green"}
    assert {each.level for each in judge(result(correct=False), HOSTS, SlowLimits())} == {"red"}
    assert describe(result()) == ("all-reduce of 8 MiB over 4 ranks (gloo): 10.0 ms, bus bandwidth 1.26 GB/s")


@pytest.mark.parametrize("damaged", [{}, {**result(), "hosts": []}, {**result(), "hosts": [3]}])
def test_a_result_of_something_else_is_refused(damaged):
    with pytest.raises(ValueError, match="collective test's result"):
        judge(damaged, HOSTS, SlowLimits())


def test_check_calls_it_when_nothing_is_red():
    nodes = [Node(host, 1) for host in HOSTS]
    wanted = Settings(python=sys.executable, repository=str(REPOSITORY), folder="/", packages=("numpy",))
    report = check(nodes, here, wanted, print, collective=lambda: result(slow_link=2))
    assert report.ok
    assert report.json().count('"busbw_gb_s"') == 2
    assert "! node3 collective: slow: its link" in report.table()
    assert "bus bandwidth 1.26 GB/s" in report.table()

    def fails():
        raise LauncherError("rank 3 did not come within 60 s.")

    report = check(nodes, here, wanted, print, collective=fails)
    assert report.bad_hosts == tuple(HOSTS)
    assert "✗ node[1-4] collective: rank 3 did not come within 60 s. See" in report.table()

    wanted = Settings(python="/no/python", repository=str(REPOSITORY), folder="/")
    report = check(nodes, here, wanted, print, collective=fails)
    assert "collective test was left out" in report.table()


class Hosts:
    """A transport whose hosts are all this machine; `before` is done when ranks are to be started."""

    name = "hosts"

    def __init__(self, before=lambda: None):
        self.asked = []
        self._before = before

    def shell(self, host, command, stdin, limit_s):
        self.asked.append(host)
        return here(host, command, stdin, limit_s)

    @contextmanager
    def started(self, job, signals, start_limit_s, say):
        self._before()
        commands = [
            command
            for index in range(len(job.nodes))
            for command in rank_commands(job, index, "127.0.0.1", 29500, os.environ)
        ]
        with local.started(commands, job.logs, signals, has_terminal=True) as ranks:
            yield ranks


class TestRunCollective:
    """`launcher check`'s end of it, with ranks that do a line of Python each."""

    @pytest.fixture
    def collective(self, tmp_path, monkeypatch):
        head = tmp_path / "own folder of the head"
        head.mkdir()
        monkeypatch.chdir(head)
        name = f"test-{os.getpid()}"
        monkeypatch.setattr(launcher_check.secrets, "token_hex", lambda _: name)

        def run(hosts, body):
            script = tmp_path / "rank 一.py"
            begin = "import os, sys, time\noutput, rank = sys.argv[2], int(os.environ['RANK'])\n"
            script.write_text(begin + body, encoding="utf-8")
            monkeypatch.setattr(launcher_check, "_COLLECTIVE", script)
            nodes = (Node("node1", 1), Node("node2", 1))
            job = Job(nodes, sys.executable, Path(), (), (), "", 0)
            try:
                return run_collective(Place(hosts, nodes), job, 30.0, print)
            finally:
                assert list(head.iterdir()) == []
                assert not Path(f"/tmp/medsft-check-{name}.json").exists()

        return run

    def test_the_result_comes_from_the_first_host_and_nothing_is_left(self, collective):
        hosts = Hosts()
        body = f"if rank == 0:\n    open(output, 'w').write({json.dumps(result(), indent=2)!r})"
        assert collective(hosts, body) == result()
        assert hosts.asked == ["node1"]

    @pytest.mark.parametrize(
        ("body", "said"), [("sys.exit(rank)", "rank 1 .*exit code 1"), ("", "cannot be read: cat")]
    )
    def test_without_a_result_it_says_why(self, collective, body, said):
        with pytest.raises(LauncherError, match=said):
            collective(Hosts(), body)

    def test_a_request_to_stop_is_no_finding(self, collective):
        with pytest.raises(KeyboardInterrupt):
            collective(Hosts(lambda: signal.raise_signal(signal.SIGINT)), "time.sleep(600)")

        def interrupted():
            raise InterruptedWork("asked to stop")

        with pytest.raises(KeyboardInterrupt):
            collective(Hosts(interrupted), "")


def test_what_libraries_print_is_not_on_standard_output(capfd, monkeypatch, tmp_path):
    """NCCL_DEBUG's lines are, where nobody takes care, and the JSON of the check is printed there."""
    monkeypatch.setattr(allreduce, "measure", lambda timeout_s: os.write(1, b"NCCL INFO\n") and {"a": 1})
    own = os.dup(1)
    try:
        assert allreduce.main(["--output", str(tmp_path / "x.json")]) == 0
    finally:
        os.dup2(own, 1)
        os.close(own)
    assert capfd.readouterr() == ("", "NCCL INFO\n")


def ranks(output, number, timeout_s, start=None):
    port = free_port(None)
    words = [
        sys.executable,
        str(REPOSITORY / "medsft/allreduce.py"),
        "--output",
        output,
        "--timeout",
        str(timeout_s),
    ]
    # Two ranks cannot share the one GPU that some machines have.
    common = {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    common |= {"WORLD_SIZE": str(number), "MASTER_ADDR": "127.0.0.1"}
    processes = [
        subprocess.Popen(
            words,
            env=os.environ
            | common
            | {"MASTER_PORT": str(port), "RANK": str(rank), "LOCAL_RANK": "0", "NODE_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(number if start is None else start)
    ]
    return [(process.communicate()[1], process.returncode) for process in processes]


def test_real_ranks_measure_and_rank_0_writes(tmp_path):
    output = tmp_path / "测 量.json"
    assert [code for _, code in ranks(output, 2, 200)] == [0, 0]
    measured = json.loads(output.read_text(encoding="utf-8"))
    assert (measured["backend"], measured["world_size"], measured["correct"]) == ("gloo", 2, True)
    assert [host["ranks"] for host in measured["hosts"]] == [[0], [1]]
    assert all(size["busbw_gb_s"] > 0 for size in measured["sizes"])
    found = judge(measured, ["node1", "node2"], SlowLimits(least_compute_s=60.0))
    assert [each.level for each in found] == ["green", "green"]
    assert "link" in found[1].found
    assert [path.name for path in tmp_path.iterdir()] == [output.name]


def test_a_rank_that_does_not_come_is_waited_for_no_longer_than_told(tmp_path):
    [(said, code)] = ranks(tmp_path / "x.json", 2, 1, start=1)
    assert code == 1
    assert "collective test, rank 0 on" in said
    assert not list(tmp_path.iterdir())

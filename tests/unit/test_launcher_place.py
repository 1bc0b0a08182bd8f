"""Where a job runs: hosts, the slots of them that it takes, addresses, and how they are reached."""

from __future__ import annotations

import socket

import pytest

from launcher import options
from launcher.errors import LauncherError
from launcher.hosts import address
from launcher.hosts.selection import select
from launcher.job import Node
from launcher.place import choose

NODES = (Node("node1", 4), Node("node2", 2), Node("node3", 8))
ALLOCATION = {
    "SLURM_JOB_ID": "7",
    "SLURM_JOB_NODELIST": "gpu[01-02]",
    "SLURM_NNODES": "2",
    "SLURM_GPUS_ON_NODE": "8",
    "SLURM_TASKS_PER_NODE": "1(x2)",
    "PATH": "/nowhere",
}
CPU = {"DS_ACCELERATOR": "cpu"}


@pytest.fixture(autouse=True)
def no_scontrol(monkeypatch):
    """Node lists are expanded by the launcher itself."""
    monkeypatch.setenv("PATH", "/nowhere")


@pytest.fixture
def hostfile(tmp_path):
    path = tmp_path / "主机 file"
    path.write_text("node1 slots=4\nnode2 slots=2\n", encoding="utf-8")
    return str(path)


def place(*flags: str, environment: dict[str, str]):
    return choose(options.parse(["run", *flags, "train.py"]), environment)


class TestSelection:
    @pytest.mark.parametrize(
        ("flags", "expected"),
        [
            ({}, NODES),
            ({"include": "node2"}, (Node("node2", 2),)),
            # The hosts keep the order of the hostfile, the slots that of their numbers.
            ({"include": "node3:5,0@node1"}, (Node("node1", 4), Node("node3", 2, (0, 5)))),
            ({"include": "node1:0,1,2,3"}, (Node("node1", 4),)),
            ({"include": "node1: 1 , 2 "}, (Node("node1", 2, (1, 2)),)),
            ({"exclude": "node1"}, NODES[1:]),
            ({"exclude": "node1@node3:0,7"}, (Node("node2", 2), Node("node3", 6, (1, 2, 3, 4, 5, 6)))),
            ({"exclude": "node2:0,1"}, (NODES[0], NODES[2])),
            ({"num_nodes": 2}, NODES[:2]),
            ({"num_gpus": 2}, (Node("node1", 2), Node("node2", 2), Node("node3", 2))),
            (
                {"exclude": "node3:0", "num_nodes": 3, "num_gpus": 1},
                (Node("node1", 1), Node("node2", 1), Node("node3", 1, (1,))),
            ),
            ({"include": "node3:2,4,6", "num_gpus": 2}, (Node("node3", 2, (2, 4)),)),
            ({"exclude": "node2", "num_nodes": 1}, NODES[:1]),
        ],
    )
    def test_what_is_left(self, flags, expected):
        assert select(NODES, **flags) == expected

    @pytest.mark.parametrize(
        ("flags", "said"),
        [
            ({"include": "node1", "exclude": "node2"}, "exclude each other"),
            ({"include": "node9"}, "'node9' is none of the hosts (node1, node2, node3)"),
            ({"include": "node1 : 1"}, "'node1 ' is none of the hosts"),
            ({"include": ""}, "'' is none of the hosts"),
            ({"include": "node1@node1:2"}, "names node1 twice"),
            ({"include": "node2:2"}, "node2 has the slots 0 to 1, not '2'"),
            ({"include": "node2:"}, "node2 has the slots 0 to 1, not ''"),
            ({"include": "node2:-1"}, "not '-1'"),
            ({"include": "node2:0;1"}, "not '0;1'"),
            ({"exclude": "node1@node2@node3"}, "leaves no slot at all"),
            ({"num_nodes": 4}, "--num-nodes 4 must be from 1 to 3, the number of hosts"),
            ({"num_nodes": 0}, "--num-nodes 0 must be from 1 to 3"),
            ({"num_gpus": 3}, "--num-gpus 3 must be from 1 to 2, the number of slots of node2"),
            ({"num_gpus": 0}, "--num-gpus 0 must be from 1 to 4"),
        ],
    )
    def test_what_is_refused(self, flags, said):
        with pytest.raises(LauncherError) as caught:
            select(NODES, **flags)
        assert said in str(caught.value)


class TestPlace:
    def test_auto(self, hostfile):
        chosen = place("--num-gpus", "2", environment=CPU)
        assert (chosen.transport.name, chosen.nodes) == ("local", (Node("localhost", 2),))
        chosen = place("--hostfile", hostfile, environment=CPU)
        assert (chosen.transport.name, chosen.nodes) == ("pdsh", (Node("node1", 4), Node("node2", 2)))
        chosen = place(environment=ALLOCATION)
        assert (chosen.transport.name, chosen.nodes) == ("slurm", (Node("gpu01", 8), Node("gpu02", 8)))
        # Who names hosts means them.
        chosen = place("--hostfile", hostfile, environment=ALLOCATION)
        assert chosen.transport.name == "pdsh"

    def test_asked_for(self, hostfile):
        chosen = place("--transport", "openmpi", "-H", hostfile, "--num-gpus", "1", environment=CPU)
        assert (chosen.transport.name, chosen.nodes) == ("openmpi", (Node("node1", 1), Node("node2", 1)))
        chosen = place("--transport", "local", "--num-gpus", "3", environment=ALLOCATION | CPU)
        assert (chosen.transport.name, chosen.nodes) == ("local", (Node("localhost", 3),))
        chosen = place("--num-gpus", "3", "--exclude", "gpu01", environment=ALLOCATION)
        assert chosen.nodes == (Node("gpu02", 3),)
        chosen = place("--num-gpus", "4", "--include", "localhost:1,3", environment=CPU)
        assert chosen.nodes == (Node("localhost", 2, (1, 3)),)

    @pytest.mark.parametrize(
        ("flags", "environment", "said"),
        [
            (["--transport", "local", "-H", "FILE"], CPU, "--transport local runs on this machine alone"),
            (["--transport", "slurm", "-H", "FILE"], ALLOCATION, "takes the hosts of its allocation"),
            (["--transport", "pdsh"], CPU, "--transport pdsh needs --hostfile FILE"),
            (["--transport", "openmpi"], ALLOCATION, "--transport openmpi needs --hostfile FILE"),
            (["--transport", "slurm"], CPU, "SLURM_JOB_ID"),
            (["-H", "/no/hosts"], CPU, "the hostfile /no/hosts does not exist"),
            (["--num-gpus", "0"], ALLOCATION, "--num-gpus 0 starts no rank"),
            (["-H", "FILE", "--include", "node7"], CPU, "'node7' is none of the hosts (node1, node2)"),
        ],
    )
    def test_contradictions(self, hostfile, flags, environment, said):
        with pytest.raises(LauncherError) as caught:
            place(*[hostfile if flag == "FILE" else flag for flag in flags], environment=environment)
        assert said in str(caught.value)

    def test_an_allocation_without_gpus_needs_a_number(self):
        environment = {name: value for name, value in ALLOCATION.items() if "GPU" not in name}
        with pytest.raises(LauncherError, match="the number of ranks on each node is not known"):
            place(environment=environment)
        assert place("--num-gpus", "2", environment=environment).nodes[1] == Node("gpu02", 2)


class TestAddress:
    def test_the_way_is_the_kernels(self):
        assert address.towards("127.0.0.9") == "127.0.0.1"
        assert address.towards("no such host 主") is None
        assert address.own([]) == ()
        assert address.own(["127.0.0.9", "127.0.0.8"]) == ("127.0.0.1",)

    def test_ipv4_where_there_is_a_choice(self, monkeypatch):
        both = [
            (socket.AF_INET6, socket.SOCK_DGRAM, 17, "", ("::1", 9, 0, 0)),
            (socket.AF_INET, socket.SOCK_DGRAM, 17, "", ("127.0.0.1", 9)),
        ]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: both)
        assert address.towards("both") == "127.0.0.1"

    def test_one_machine_alone_meets_on_itself(self):
        assert address.choose([]) == "127.0.0.1"
        assert address.choose(["127.0.0.9"]) == "127.0.0.1"

    @pytest.mark.parametrize(("given", "expected"), [("127.3.2.1", True), ("::1", True), ("10.0.0.1", False)])
    def test_loopback(self, given, expected):
        assert address.is_loopback(given) is expected

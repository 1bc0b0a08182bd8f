"""Hostfiles: what is read, and what is refused with the line quoted."""

from pathlib import Path

import pytest

from launcher.__main__ import main
from launcher.errors import LauncherError
from launcher.hosts.hostfile import parse_hostfile, read_hostfile
from launcher.job import Node

REPOSITORY = Path(__file__).resolve().parents[2]


def write(folder: Path, content: bytes) -> Path:
    path = folder / "host file"
    path.write_bytes(content)
    return path


def test_hosts_comments_blank_lines_and_order(tmp_path):
    path = write(tmp_path, "# 两台机器\n\nnode-1 slots=8\n  10.0.0.2\tslots=4  # the old one\n".encode())
    assert read_hostfile(path) == (Node("node-1", 8), Node("10.0.0.2", 4))


def test_windows_line_ends_and_byte_order_mark(tmp_path):
    path = write(tmp_path, b"\xef\xbb\xbfnode1 slots=8\r\nnode2.example.org slots=2\r\n")
    assert read_hostfile(path) == (Node("node1", 8), Node("node2.example.org", 2))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("node1", "slots=N must follow"),
        ("node1 slots=0", "'slots=0' must be a number of ranks, 1 or more"),
        ("node1 slots=-1", "'slots=-1' must be"),
        ("node1 slots=", "'slots=' must be"),
        ("node1 slots=eight", "'slots=eight' must be"),
        ("node1 slots=٨", "must be a number"),
        ("node1 slot=8", "slots=N must follow"),
        ("node1 slots = 8", "slots=N must follow"),
        ("node1 slots=8 max_slots=9", "and nothing else"),
        ("node_1! slots=8", "'node_1!' is no host name"),
        ("-node slots=8", "'-node' is no host name"),
        ("node..1 slots=8", "'node..1' is no host name"),
        ("$(reboot) slots=8", "is no host name"),
        ("slots=8", "'slots=8' is no host name"),
    ],
)
def test_a_bad_line_is_quoted_with_file_and_number(line, said):
    with pytest.raises(LauncherError) as caught:
        parse_hostfile(["# hosts", "good slots=1", line], name="cluster/hosts")
    message = str(caught.value)
    assert message.startswith("cluster/hosts:3: ")
    assert said in message
    assert repr(line) in message


def test_a_host_named_twice_is_refused_whatever_its_case():
    with pytest.raises(LauncherError, match=r"hosts:3: NODE1 stands on line 1 already.*'NODE1 slots=2'"):
        parse_hostfile(["node1 slots=1", "", "NODE1 slots=2"], name="hosts")


@pytest.mark.parametrize("content", [b"", b"\n \r\n", b"# node1 slots=8\n"])
def test_a_file_without_hosts_is_refused(tmp_path, content):
    with pytest.raises(LauncherError, match="names no host"):
        read_hostfile(write(tmp_path, content))


def test_a_missing_or_unreadable_file_is_refused(tmp_path):
    with pytest.raises(LauncherError, match="does not exist"):
        read_hostfile(tmp_path / "none")
    with pytest.raises(LauncherError, match="cannot be read as UTF-8"):
        read_hostfile(write(tmp_path, b"node\xff slots=1\n"))
    with pytest.raises(LauncherError, match="cannot be read"):
        read_hostfile(tmp_path)


def test_a_thousand_hosts():
    nodes = parse_hostfile([f"gpu{number:04d} slots=8" for number in range(1000)], name="hosts")
    assert len(nodes) == 1000
    assert nodes[-1] == Node("gpu0999", 8)


def test_the_example_at_the_top_of_the_repository_reads():
    assert all(node.num_slots == 8 for node in read_hostfile(REPOSITORY / "hostfile"))


def test_a_dry_run_shows_what_would_run_where(capsys):
    script = str(REPOSITORY / "medsft" / "train.py")
    assert main(["run", "--dry-run", "--hostfile", str(REPOSITORY / "hostfile"), script]) == 0
    *deliveries, first = (lines := capsys.readouterr().out.splitlines())[:3]
    ranks = lines[3:]
    assert [line.split(":")[0] for line in deliveries] == [f"first on node{n}, by ssh" for n in (1, 2)]
    assert first.startswith("pdsh: env ") and "-w node1,node2 " in first
    assert [rank.split(":")[0] for rank in ranks] == [
        f"rank {rank} on node{rank // 8 + 1}" for rank in range(16)
    ]


def test_a_bad_hostfile_is_refused_with_its_line(tmp_path, capsys):
    path = tmp_path / "主机"
    path.write_text("node1 slots=0\n", encoding="utf-8")
    assert main(["check", "--hostfile", str(path)]) == 2
    assert "node1 slots=0" in capsys.readouterr().err

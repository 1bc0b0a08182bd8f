"""What must not be started at all, and a port that somebody else has."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from campaign import Campaign
from hosts import Hosts
from runs import REPOSITORY
from tally import Tally

from launcher.exit_codes import USER_ERROR

_PORT = 23456
_PACKAGE = "safetensors"
_UNKNOWN_COMMIT = "1234567890" * 4
# A hostfile's name -> its content, and the line that is to be quoted ("": there is none).
_BAD_HOSTFILES = {
    "host named twice": ("node1 slots=1\nnode2 slots=1\nNODE1 slots=1\n", "NODE1 slots=1"),
    "misspelt slots": ("node1 slots=1\nnode2 slot=1\n", "node2 slot=1"),
    "no slots": ("node1 slots=1\nnode2\n", "node2"),
    "zero slots": ("node1 slots=1\nnode2 slots=0\n", "node2 slots=0"),
    "slots in words": ("node1 slots=1\nnode2 slots=one\n", "node2 slots=one"),
    "bad name": ("node1 slots=1\nnode_2! slots=1\n", "node_2! slots=1"),
    "empty": ("", ""),
    "comments only": ("# node1 slots=1\n\n", ""),
}


def take_the_port(campaign: Campaign, tally: Tally, hosts: Hosts) -> None:
    """Row 15: somebody else listens on node1."""
    listen = "import socket, sys; s = socket.create_server(('', int(sys.argv[1]))); print('ok', flush=True)"
    holder = hosts.cluster.start_on(
        "node1",
        [sys.executable, "-c", f"{listen}; sys.stdin.read()", str(_PORT)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        tally.equal(holder.stdout.readline(), "ok\n", "the port's holder")
        tally.inject(f"port {_PORT} is taken on node1 (--master-port {_PORT})")
        run = campaign.new_run("port taken")
        with campaign.start(run, launcher_flags=["--master-port", str(_PORT)]) as job:
            said_s = job.wait_for_words(f"port {_PORT} is taken") - job.started_s
            tally.detected_s.append(said_s)
            tally.recovered_s.append(job.wait_for_step(1) - job.started_s)
            tally.equal(job.end(), 0, f"exit code\n{job.text}\n")
    finally:
        holder.communicate()
    tally.check(said_s <= 10, f"said only after {said_s:.1f} s")
    campaign.check_finished(tally, run)


def write_bad_hostfiles(campaign: Campaign, tally: Tally, hosts: Hosts) -> None:
    """Row 16: nothing is started with any of them."""
    for name, (text, line) in _BAD_HOSTFILES.items():
        tally.inject(f"hostfile: {name}")
        path = hosts.write_hostfile(name, text)
        words = [f"The line reads {line!r}"] if line else [f"{path} names no host"]
        _see_it_refused(campaign, tally, hosts, name, words, flags=["--hostfile", str(path)])
    tally.inject("hostfile: unknown host")
    path = hosts.write_hostfile("unknown", "node1 slots=1\nnodde2 slots=1\n")
    words = ["nodde2 reach: the name is unknown here"]
    _see_it_refused(campaign, tally, hosts, "unknown", words, flags=["--hostfile", str(path)])

    tally.inject("hostfile: CRLF, a byte order mark and comments, all of which are harmless")
    path = hosts.write_hostfile("CRLF", "\ufeff# hosts\r\nnode1 slots=1 # first\r\n\r\nnode2 slots=1\r\n")
    run = campaign.new_run("CRLF")
    with campaign.start(run, launcher_flags=["--hostfile", str(path)], max_steps=1) as job:
        tally.equal(job.end(), 0, f"exit code\n{job.text}\n")


def refuse_connections(campaign: Campaign, tally: Tally, hosts: Hosts) -> None:
    """Row 17: on node2 of three hosts."""
    tally.inject("sshd is down on node2")
    hosts.cluster.stop("node2", "sshd")
    _see_it_refused(campaign, tally, hosts, "sshd down", ["node2 reach: the host answers, but no ssh server"])
    hosts.cluster.start("node2", "sshd")
    tally.inject("node2 refuses the key")
    hosts.cluster.refuse_key("node2")
    _see_it_refused(
        campaign, tally, hosts, "key refused", ["node2 reach: ssh refuses the key", "ssh-copy-id"]
    )
    hosts.cluster.accept_key("node2")
    tally.check(max(tally.detected_s) <= 15, f"said only after {max(tally.detected_s):.1f} s")


def differ(campaign: Campaign, tally: Tally, hosts: Hosts) -> None:
    """Row 21: one file after the other is another one on node3 of three hosts."""
    place = Path(str(importlib.metadata.distribution(_PACKAGE).locate_file("")))
    (metadata,) = place.glob(f"{_PACKAGE}-*.dist-info/METADATA")
    version = importlib.metadata.version(_PACKAGE)
    code, settings = REPOSITORY / "medsft" / "errors.py", REPOSITORY / "ds_configs" / "zero3_cpu.json"
    git = ["git", "-C", str(REPOSITORY), "rev-parse"]
    head = REPOSITORY / _output([*git, "--git-path", "HEAD"])
    commit, data = _output([*git, "HEAD"])[:10], campaign.data
    both = rf"node3 commit: .*, code [0-9a-f]{{8}}; 2 other hosts have {commit}, code [0-9a-f]{{8}}"
    changes: dict[str, tuple[list[tuple[Path, Callable[[str], str]]], str]] = {
        "version of a package": (
            [(metadata, lambda text: text.replace(f"Version: {version}", "Version: 0.0.9"))],
            rf"node3 packages: .*{_PACKAGE} 0\.0\.9; 2 other hosts have {re.escape(version)}",
        ),
        "code": ([(code, lambda text: text + "\n# one line more\n")], both),
        "settings": ([(settings, lambda text: text.replace("{", "{ ", 1))], both),
        "commit": (
            [(head, lambda _: _UNKNOWN_COMMIT + "\n"), (code, lambda text: text + "\n# changed\n")],
            both.replace(".*", _UNKNOWN_COMMIT[:10], 1),
        ),
        "data": (
            [(data, lambda text: text.replace("a", "b", 1))],
            r"node3 data: .* has SHA-256 [0-9a-f]{12} \(\d+ bytes\); 2 other hosts have [0-9a-f]{12}",
        ),
    }
    for name, (files, expected) in changes.items():
        tally.inject(f"another {name} on node3")
        with ExitStack() as stack:
            for path, change in files:
                before = path.read_text(encoding="utf-8")
                after = change(before)
                assert after != before, path
                stack.enter_context(hosts.instead("node3", path, after))
            text = _see_it_refused(campaign, tally, hosts, name, [])
        tally.check(re.search(expected, text) is not None, f"{expected} is not in the log:\n{text}")


def _see_it_refused(
    campaign: Campaign,
    tally: Tally,
    hosts: Hosts,
    name: str,
    words: Sequence[str],
    flags: Sequence[str] = (),
) -> str:
    """A start on three hosts ends as a user error, says the words, and has started nothing; the log."""
    run = campaign.new_run(f"refused, {name}")
    with campaign.start(run, ranks=3, launcher_flags=flags) as job:
        ranks_seen = 0
        while job.process.poll() is None:
            ranks_seen = max(ranks_seen, len(job.ranks()))
            time.sleep(0.05)
        tally.detected_s.append(time.monotonic() - job.started_s)
        tally.equal(job.end(), USER_ERROR, f"exit code\n{job.text}\n")
        text = job.text
    tally.says(text, words)
    tally.equal(ranks_seen, 0, "ranks seen")
    # An agent's ranks begin with their logs there.
    tally.equal(run.exists(), False, "output folder is there")
    return text


def _output(words: Sequence[str]) -> str:
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()

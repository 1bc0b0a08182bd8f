"""Slurm's node lists: what they name, and what is refused."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from launcher.errors import LauncherError
from launcher.hosts.nodelist import MOST_HOSTS, expand, expand_here

LISTS = {
    "login1": "login1",
    "node[01-03,7],gpu-a[1-2]b[3-4],login1": (
        "node01 node02 node03 node7 gpu-a1b3 gpu-a1b4 gpu-a2b3 gpu-a2b4 login1"
    ),
    "n[08-12]": "n08 n09 n10 n11 n12",
    "n[099-101]": "n099 n100 n101",
    "n[9-010]": "n9 n10",
    "n[00-01,1]": "n00 n01 n1",
    "n[01-3]": "n01 n02 n03",
    "n[1-2][3-4]": "n13 n14 n23 n24",
    "[1-3]": "1 2 3",
    "n[000]": "n000",
    "N[1-2],n_3": "N1 N2 n_3",
    "a[1-2]b[3-4]c[5-6]": "a1b3c5 a1b3c6 a2b3c5 a2b3c6 a1b4c5 a1b4c6 a2b4c5 a2b4c6",
}


@pytest.mark.parametrize("text", LISTS)
def test_names_widths_and_order(text):
    assert expand_here(text) == tuple(LISTS[text].split())


def test_a_name_may_go_on_behind_its_brackets():
    assert expand_here("n[1-2].cluster") == ("n1.cluster", "n2.cluster")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "a host name is missing"),
        ("n1,", "a host name is missing"),
        (",n1", "must stand before ',n1'"),
        ("n1,,n2", "must stand before ',n2'"),
        ("n1 n2", "' n2' cannot be read"),
        ("n[1-2", "'[1-2' cannot be read"),
        ("n]1", "']1' cannot be read"),
        ("n[1-2]]", "']' cannot be read"),
        ("n[[1-2]]", "cannot be read"),
        ("n[]", "'' in brackets"),
        ("n[1,,2]", "'' in brackets"),
        ("n[a-b]", "'a-b' in brackets"),
        ("n[-1]", "'-1' in brackets"),
        ("n[1-]", "'1-' in brackets"),
        ("n[ 1-3 ]", "' 1-3 ' in brackets"),
        ("n[0-8:2]", "'0-8:2' in brackets"),
        ("n[١-٢]", "in brackets"),
        ("n[3-1]", "'3-1' runs backwards"),
        ("n!1", "'n!1' is no host name"),
        ("--help", "'--help' is no host name"),
        ("$(reboot)", "is no host name"),
        ("节点[1-2]", "'节点1' is no host name"),
        ("n[1-2],N2", "N2 stands in it twice"),
    ],
)
def test_a_bad_list_is_quoted(text, said):
    for read in (expand_here, expand):
        with pytest.raises(LauncherError) as caught:
            read(text)
        assert said in str(caught.value)
        assert f"the node list {text!r} " in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "n[1-65537]",
        "n[0-999999999999999999]",
        "a[1-60000]b[1-60000]",
        "n[1-40000],m[1-40000]",
        "n[" + ",".join(["1-60000"] * 1000) + "]",
    ],
)
def test_too_many_hosts_are_refused_before_they_take_memory(text):
    with pytest.raises(LauncherError, match="names more than 65,536 hosts"):
        expand(text)


def test_as_many_hosts_as_slurm_takes():
    names = expand_here("n[1-65536]")
    assert len(names) == MOST_HOSTS
    assert names[-1] == "n65536"


@pytest.fixture
def scontrol(tmp_path, monkeypatch):
    """The real program; a slurm.conf of two lines is all it needs, no daemon."""
    program = shutil.which("scontrol")
    if program is None:
        pytest.skip("scontrol is not installed (apt-get install slurm-client)")
    configuration = tmp_path / "集群 1.conf"
    configuration.write_text("ClusterName=test\nSlurmctldHost=nowhere\n", encoding="utf-8")
    monkeypatch.setenv("SLURM_CONF", str(configuration))
    return program


@pytest.mark.parametrize("text", LISTS)
def test_slurm_itself_reads_the_same(scontrol, text):
    shown = subprocess.run(
        [scontrol, "show", "hostnames", text], capture_output=True, text=True, check=True, timeout=30
    )
    assert tuple(shown.stdout.split()) == expand_here(text) == expand(text)


def test_slurms_refusal_of_what_can_be_read_here_does_no_harm(scontrol):
    assert expand("n[1-2].cluster") == ("n1.cluster", "n2.cluster")


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("printf 'b\\na\\n'", ("b", "a")),
        ("echo 'Unable to contact slurmctld' >&2; exit 1", ("a", "b")),
        ("printf 'a\\n'", ("a", "b")),
        ("printf 'a b]\\n'", ("a", "b")),
    ],
)
def test_slurms_answer_counts_where_it_is_one(tmp_path, monkeypatch, script, expected):
    program = tmp_path / "scontrol"
    program.write_text(f'#!/bin/sh\n[ "$*" = "show hostnames a,b" ] || exit 9\n{script}\n', encoding="utf-8")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert expand("a,b") == expected

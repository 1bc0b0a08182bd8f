"""Real probes by this machine's Python, each "host" with its own folders."""

import ast
import json
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from launcher import __main__ as command_line
from launcher.job import Node
from launcher.preflight import probe
from launcher.preflight.findings import CHECKS
from launcher.preflight.run import PACKAGES, Settings, check
from launcher.shell import here

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def repository(tmp_path):
    """A small clone, with one commit where there is git."""
    folder = tmp_path / "my 仓库"
    (folder / "medsft").mkdir(parents=True)
    (folder / "medsft/a.py").write_text("one = 1\n")
    (folder / "notes").write_text("x")
    git(folder, "init", "-q")
    git(folder, "add", ".")
    git(folder, "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-q", "-m", "one")
    return folder


def git(folder, *words):
    subprocess.run(["git", "-C", str(folder), *words], check=True)


def settings(repository, **changes):
    given = {
        "python": sys.executable,
        "repository": str(repository),
        "folder": str(repository),
        "packages": ("numpy", "no-such-package"),
    }
    return Settings(**(given | changes))


def nodes(number):
    return [Node(f"node{each}", 1) for each in range(1, number + 1)]


def test_real_hosts_share_a_folder_and_leave_nothing_behind(repository, tmp_path):
    output = tmp_path / "输出 run" / "new"
    said = []
    wanted = settings(repository, output=str(output), packages=("numpy",), data=("notes",), master_port=29999)
    report = check(nodes(3), here, wanted, said.append)
    assert report.ok, report.table()
    assert said == []
    assert not output.exists()
    assert list(tmp_path.iterdir()) == [repository]
    facts = report.probes["node2"]
    assert facts["output"] == {"folder": str(tmp_path), "nonce": "read", "writable": True}
    assert facts["packages"]["numpy"][0].isdigit()
    assert facts["data"]["notes"]["sha256"].startswith("2d711642b726")
    assert facts["commit"]["dirty"] is False
    assert re.fullmatch("[0-9a-f]{40}", facts["commit"]["commit"])
    assert 0 < facts["memory"]["available"] <= facts["memory"]["total"]
    assert facts["cores"] >= 1
    assert "port" in report.table().splitlines()[0]


def test_a_folder_that_is_not_shared_is_red(repository, tmp_path):
    """node2 sees other folders than node1: its paths are rewritten on the way."""
    for name in ("own-of-node1", "own-of-node2"):
        (tmp_path / name).mkdir()

    def shell(host, command, stdin, limit_s):
        own = str(tmp_path / f"own-of-{host}")
        return here(
            host, [word.replace(str(tmp_path / "own-of-node1"), own) for word in command], stdin, limit_s
        )

    report = check(
        nodes(2), shell, settings(repository, packages=(), output=str(tmp_path / "own-of-node1")), print
    )
    assert report.bad_hosts == ("node2",)
    assert "✗ node2 output: " in report.table()
    assert [list((tmp_path / name).iterdir()) for name in ("own-of-node1", "own-of-node2")] == [[], []]


def test_other_code_a_missing_repository_and_a_missing_python_are_red(repository, tmp_path):
    other = tmp_path / "other"
    git(tmp_path, "clone", "-q", str(repository), str(other))
    (other / "medsft/a.py").write_text("one = 2\n")
    (tmp_path / "empty").mkdir()
    places = {"node3": str(other), "node4": str(tmp_path / "none"), "node6": str(tmp_path / "empty")}

    def shell(host, command, stdin, limit_s):
        words = [word.replace(str(repository), places.get(host, str(repository))) for word in command]
        if host == "node5":
            words[1] = "/no/python"
        return here(host, words, stdin, limit_s)

    report = check(nodes(6), shell, settings(repository, packages=()), print)
    assert report.bad_hosts == ("node3", "node4", "node5", "node6")
    found = {(each.host, each.check): each.found for each in report.findings if each.level == "red"}
    assert "with changes" in found["node3", "commit"]
    assert "2 other hosts have" in found["node3", "commit"]
    assert "no repository there" in found["node4", "commit"]
    assert f"no code in {tmp_path / 'empty'}" in found["node6", "commit"]
    assert "cannot be started there (env: " in found["node5", "reach"]
    assert "/no/python" in found["node5", "reach"]


@pytest.mark.parametrize("script", [[], ["medsft/train.py"], ["other.py"]])
def test_the_code_that_is_compared_is_what_runs_wherever_the_check_is_made(
    script, tmp_path, monkeypatch, capsys
):
    """In an empty folder it was the digest of nothing, green on every host."""
    one, two = tmp_path / "仓库 1", tmp_path / "here"
    for path in (one / "medsft/train.py", two / "other.py"):
        path.parent.mkdir(parents=True)
        path.write_text("one = 1\n")
    monkeypatch.chdir(two)
    script = [str((one if name.startswith("medsft") else two) / name) for name in script]
    skips = [word for name in CHECKS if name != "commit" for word in ("--skip", name)]
    assert command_line.main(["check", "--num-gpus", "1", "--json", *skips, *script]) == 0
    (host,) = json.loads(capsys.readouterr().out)["hosts"].values()
    expected = one if script and script[0].endswith("train.py") else REPOSITORY
    assert host["probe"]["commit"]["repository"] == str(expected)
    assert host["probe"]["commit"]["code"] == probe.code_state(expected)["code"]


def test_a_missing_package_and_what_is_skipped(repository):
    report = check(nodes(1), here, settings(repository), print)
    assert "without no-such-package" in report.table()
    skip = frozenset(["packages", "gpus", "commit"])
    report = check(nodes(1), here, settings(repository, skip=skip, data=("/none",)), print)
    told = {each.check: each.level for each in report.findings}
    assert told["data"] == "red"
    assert not skip & set(told)
    assert not {"packages", "commit"} & set(report.probes["node1"])


def test_a_host_that_hangs_is_one_red_cell(repository):
    def shell(host, command, stdin, limit_s):
        assert limit_s == 60.0
        # Only this one's time is up at once: the others may need theirs on a busy machine.
        return (
            here(host, ["sleep", "60"], stdin, 0.1)
            if host == "node2"
            else here(host, command, stdin, limit_s)
        )

    report = check(nodes(3), shell, settings(repository, packages=(), limit_s=60.0), print)
    assert report.bad_hosts == ("node2",)
    assert "no answer within 60 s" in report.table()


def test_a_large_file_is_sampled(tmp_path):
    path = tmp_path / "large"
    with path.open("wb") as file:
        file.truncate(70 * 2**20)
    before = probe.fingerprint(path)
    assert before["hashed"] == "sampled"
    with path.open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"x")
    assert probe.fingerprint(path)["sha256"] != before["sha256"]


def test_a_whole_file_by_its_bytes_and_a_folder_by_its_list(tmp_path):
    (tmp_path / "权重").write_bytes(b"x" * (2**20 + 1))
    by_hand = subprocess.run(["sha256sum", tmp_path / "权重"], capture_output=True, text=True, check=True)
    assert probe.fingerprint(tmp_path / "权重")["sha256"] == by_hand.stdout.split()[0].lstrip("\\")
    before = probe.fingerprint(tmp_path)
    assert (before["hashed"], before["size"]) == ("names and sizes", 2**20 + 1)
    (tmp_path / "more").write_bytes(b"")
    assert probe.fingerprint(tmp_path)["sha256"] != before["sha256"]


def test_gpus_as_nvidia_smi_lists_them():
    text = "0, NVIDIA H200, 143771, 570.86.15\n1, NVIDIA H200, [N/A], 570.86.15\n"
    assert probe.parse_gpus(text) == [
        {"index": "0", "name": "NVIDIA H200", "memory_bytes": 143771 * 2**20, "driver": "570.86.15"},
        {"index": "1", "name": "NVIDIA H200", "memory_bytes": None, "driver": "570.86.15"},
    ]


@pytest.mark.parametrize("version", [1, 2])
def test_memory_of_the_control_group(tmp_path, version):
    gib = 2**30
    if version == 2:
        files = {
            "proc/self/cgroup": "0::/job/step\n",
            "sys/fs/cgroup/job/memory.max": f"{4 * gib}\n",
            "sys/fs/cgroup/job/memory.current": f"{3 * gib}\n",
            "sys/fs/cgroup/job/memory.stat": f"anon 5\ninactive_file {gib}\n",
            "sys/fs/cgroup/job/step/memory.max": "max\n",
            "sys/fs/cgroup/job/step/memory.current": f"{gib}\n",
            "sys/fs/cgroup/job/step/memory.stat": "anon 5\n",
        }
    else:
        files = {
            "proc/self/cgroup": "3:cpu:/\n2:memory:/inside\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{4 * gib}\n",
            "sys/fs/cgroup/memory/memory.usage_in_bytes": f"{3 * gib}\n",
            "sys/fs/cgroup/memory/memory.stat": f"rss 5\ntotal_inactive_file {gib}\n",
        }
    files["proc/meminfo"] = (
        "MemTotal: 16777216 kB\nMemFree: 1 kB\nMemAvailable: 8388608 kB\nHugePages_Total: 0\n"
    )
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert probe.memory(tmp_path) == {"total": 4 * gib, "available": 2 * gib}
    (tmp_path / "proc/self/cgroup").write_text("")
    assert probe.memory(tmp_path) == {"total": 16 * gib, "available": 8 * gib}


def test_a_taken_port(repository):
    with socket.socket() as server:
        server.bind(("", 0))
        server.listen()
        number = server.getsockname()[1]
        assert probe.port(number) == {"number": number, "free": False}
    assert probe.port(number) == {"number": number, "free": True}


def test_the_probe_needs_nothing_of_ours_and_reads_as_python_3_7():
    source = Path(probe.__file__).read_text(encoding="utf-8")
    ast.parse(source, feature_version=(3, 7))
    assert not re.search(r"^\s*(from|import) (launcher|medsft)", source, re.MULTILINE)


def test_the_probe_as_a_command(tmp_path):
    words = [sys.executable, "-c", "import sys; from launcher.preflight.probe import main; sys.exit(main())"]
    done = subprocess.run(
        [*words, "--package=numpy"], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout)["packages"]["numpy"]


def test_the_packages_are_those_of_setup_py():
    tree = ast.parse((REPOSITORY / "setup.py").read_text(encoding="utf-8"))
    [wanted] = [
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and node.targets[0].id == "DEPENDENCIES"
    ]
    assert tuple(re.split(r"[<>=]", requirement)[0] for requirement in wanted) == PACKAGES

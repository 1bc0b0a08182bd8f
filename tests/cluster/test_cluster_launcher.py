"""The launcher between real hosts: what reaches the ranks, and what is left when something breaks."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import processes
import pytest

PATIENCE_S = 90
# What a rank of these tests does, after the words of the test: it has `rank`, `folder` and `end`.
BEGIN = """
import json, os, signal, sys, time
from pathlib import Path

rank, folder = int(os.environ["RANK"]), Path(sys.argv[1])

def write(path, text):
    # Whole at once: nobody reads a file that is still empty.
    fresh = path.with_name(f"new {path.name} {rank}")
    fresh.write_text(text)
    fresh.rename(path)

def mark(name):
    write(folder / f"{name}-{rank}", str(os.getpid()))

def beat():
    write(Path(os.environ["MEDSFT_HEARTBEAT"]), json.dumps({"place": "step 3", "number": time.time()}))

def checkpoint(number, frame):
    mark(f"signal{number}")
    os._exit(75)  # the same signal may come from several sides
"""
WAIT = """
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
    signal.signal(number, checkpoint)
mark("ready")
while True:
    beat()
    time.sleep(0.2)
"""


class Launch:
    """A launcher on node1 with its job."""

    def __init__(self, cluster, folder: Path, process: subprocess.Popen, num_ranks: int):
        self.cluster = cluster
        self.folder = folder
        self.process = process
        self.num_ranks = num_ranks

    def marks(self, name: str) -> dict[int, int]:
        """Rank -> process id, of those that have said `name`."""
        return {
            int(path.name.partition("-")[2]): int(path.read_text()) for path in self.folder.glob(f"{name}-*")
        }

    def wait_until_ready(self) -> dict[int, int]:
        wait_until(lambda: len(self.marks("ready")) == self.num_ranks, "all ranks are ready", self.process)
        return self.marks("ready")

    def result(self) -> tuple[int, str, str]:
        out, err = self.process.communicate(timeout=2 * PATIENCE_S)
        return self.process.returncode, out, err

    def child(self, name: str) -> processes.Process:
        """The program of this name that the launcher has started."""
        for process in self.cluster.processes_on("node1"):
            status = Path(f"/proc/{process.pid}/status").read_text()
            if process.command.split()[0].endswith(name) and f"\nPPid:\t{self.process.pid}\n" in status:
                return process
        raise AssertionError(f"no {name} below the launcher")

    def agents(self, host: str) -> list[processes.Process]:
        return [
            process
            for process in self.cluster.processes_on(host, "-m launcher node")
            if "python" in process.command.split()[0]
        ]

    def left(self) -> list[str]:
        """Ranks and agents that still run anywhere."""
        return [
            f"{host}: {process.command}"
            for host in self.cluster.names
            for process in self.cluster.processes_on(host)
            if str(self.folder) in process.command or "-m launcher" in process.command
        ]


def wait_until(
    condition: Callable[[], bool],
    what: str,
    process: subprocess.Popen | None = None,
    limit_s: float = PATIENCE_S,
) -> None:
    deadline_s = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline_s, f"not within {limit_s} s: {what}"
        assert process is None or process.poll() is None, f"ended before: {what}"
        time.sleep(0.05)


@pytest.fixture
def launch(cluster, tmp_path) -> Iterator[Callable[..., Launch]]:
    launches: list[Launch] = []

    def one(
        body: str,
        *flags: str,
        slots: Sequence[int] = (2, 2),
        arguments: Sequence[str] = (),
        environment: dict[str, str] | None = None,
        begin: Sequence[str] = (),
    ) -> Launch:
        folder = tmp_path / f"blank 中文 {len(launches)}"
        folder.mkdir()
        script = folder / "rank's 脚本.py"
        script.write_text(BEGIN + body, encoding="utf-8")
        hostfile = folder / "hosts"
        lines = [f"{host} slots={number}\n" for host, number in zip(cluster.names, slots, strict=False)]
        hostfile.write_text("".join(lines), encoding="utf-8")
        place = () if begin else ("--hostfile", str(hostfile))
        words = [*begin, sys.executable, "-m", "launcher", "run", *place, *flags]
        process = cluster.start_on(
            "node1",
            [*words, str(script), str(folder), *arguments],
            environment=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        launches.append(Launch(cluster, folder, process, sum(slots)))
        return launches[-1]

    yield one
    for each in launches:
        if each.process.poll() is None:
            each.process.kill()
        each.process.communicate()
        wait_until(lambda each=each: not each.left(), "nothing is left")


TRANSPORTS = {
    "pdsh": {},
    "openmpi": {"flags": ("--transport", "openmpi")},
    "slurm": {"flags": ("--num-gpus", "2"), "begin": ("salloc", "--quiet", "--nodes=2")},
}


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_every_rank_gets_its_place_its_arguments_and_the_environment(launch, transport):
    """Blanks, quotes, commas, dollars and Chinese arrive as they are, and nothing of them is executed."""
    body = """
keys = ["RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT"]
keys += ["NCCL_ODD", "HF_TOKEN", "GIVEN", "OTHER"]
seen = {key: os.environ.get(key) for key in keys}
(folder / f"seen-{rank}").write_text(json.dumps([seen, os.uname().nodename, sys.argv[2:], os.getcwd()]))
print(f"out {rank}")
print(f"err {rank}", file=sys.stderr)
"""
    odd = "a b,c='d' \"e\" $(touch pwned) `touch pwned` %h %n \\ ; 中文"
    how = TRANSPORTS[transport]
    run = launch(
        body,
        *how.get("flags", ()),
        "--env",
        f"GIVEN={odd}",
        arguments=["--text", odd, "", "$HOME"],
        environment={"NCCL_ODD": odd, "HF_TOKEN": "hunter2", "OTHER": "stays"},
        begin=how.get("begin", ()),
    )
    code, out, err = run.result()
    assert code == 0, err
    assert sorted(out.split("\n")) == ["", *(f"out {rank}" for rank in range(4))]
    assert all(f"err {rank}" in err for rank in range(4))
    seen = {rank: json.loads((run.folder / f"seen-{rank}").read_text()) for rank in range(4)}
    address, port = seen[0][0]["MASTER_ADDR"], seen[0][0]["MASTER_PORT"]
    assert address == run.cluster.hosts[0].address
    for rank, (environment, host, arguments, folder) in seen.items():
        assert host == f"node{rank // 2 + 1}"
        assert arguments == ["--text", odd, "", "$HOME"]
        assert folder == str(Path.cwd())
        assert environment == {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank % 2),
            "WORLD_SIZE": "4",
            "LOCAL_WORLD_SIZE": "2",
            "NODE_RANK": str(rank // 2),
            "MASTER_ADDR": address,
            "MASTER_PORT": port,
            "NCCL_ODD": odd,
            "HF_TOKEN": "hunter2",
            "GIVEN": odd,
            # srun carries the whole environment; by ssh only what is listed, and what --env names.
            # mpirun's own host has the launcher's.
            "OTHER": "stays" if transport == "slurm" or (transport == "openmpi" and rank < 2) else None,
        }
    assert not Path("pwned").exists()
    assert "hunter2" not in out + err


def test_the_check_sums_over_the_ranks_of_two_hosts(cluster, tmp_path):
    """A real all-reduce, its result as clean JSON, and no folder of it left in the repository."""
    hostfile = tmp_path / "hosts"
    hostfile.write_text("node1 slots=1\nnode2 slots=1\n", encoding="utf-8")
    before = set(Path.cwd().glob(".medsft-check-*"))
    skips = [word for name in ("packages", "commit", "data", "output") for word in ("--skip", name)]
    done = cluster.run_on(
        "node1",
        [sys.executable, "-m", "launcher", "check", "--hostfile", hostfile, "--json", *skips],
        environment={"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"},
        limit_s=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(done.stdout)
    assert (told["collective"]["world_size"], told["collective"]["correct"]) == (2, True)
    assert [host["hostname"] for host in told["collective"]["hosts"]] == ["node1", "node2"]
    assert told["hosts"]["node2"]["findings"]["collective"]["level"] in ("green", "yellow")
    assert set(Path.cwd().glob(".medsft-check-*")) == before


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_failing_rank_ends_all_and_its_last_lines_are_shown(launch, transport):
    how = TRANSPORTS[transport]
    body = 'mark("ready")\nif rank == 3:\n    print("the cause", file=sys.stderr)\n    sys.exit(7)\n' + WAIT
    run = launch(
        body, *how.get("flags", ()), begin=how.get("begin", ()), arguments=["--output_dir", "OUT 出"]
    )
    output = Path("OUT 出")
    try:
        code, _, err = run.result()
        assert code == 7, err
        assert "launcher: rank 3 on node2 printed last:\n    the cause\n" in err
        assert "rank 3 on node2 (process " in err and "exit code 7" in err
        assert sorted(path.name for path in (output / "logs").iterdir()) == [
            f"rank-0000{rank}.log" for rank in range(4)
        ]
        assert "the cause" in (output / "logs" / "rank-00003.log").read_text()
        wait_until(lambda: not run.left(), "nothing is left")
    finally:
        for path in (output / "logs").iterdir():
            path.unlink()
        (output / "logs").rmdir()
        output.rmdir()


@pytest.mark.parametrize(
    ("transport", "number"),
    [
        ("pdsh", signal.SIGTERM),
        ("openmpi", signal.SIGUSR1),
        ("slurm", signal.SIGUSR1),
        pytest.param("pdsh", signal.SIGUSR1, marks=pytest.mark.slow),
        pytest.param("openmpi", signal.SIGTERM, marks=pytest.mark.slow),
        pytest.param("slurm", signal.SIGTERM, marks=pytest.mark.slow),
    ],
)
def test_a_signal_reaches_every_rank(launch, transport, number):
    how = TRANSPORTS[transport]
    run = launch(WAIT, *how.get("flags", ()), begin=how.get("begin", ()))
    run.wait_until_ready()
    launcher = next(
        process
        for process in run.cluster.processes_on("node1", "-m launcher run")
        if "python" in process.command.split()[0]
    )
    launcher.send(number)
    code, _, err = run.result()
    assert code == 75, err
    assert len(run.marks(f"signal{int(number)}")) == 4


@pytest.mark.parametrize(
    "victim",
    [
        "launcher",
        "pdsh",
        "agent",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("mpirun", "srun")),
    ],
)
def test_whatever_is_killed_there_is_no_false_success_and_no_orphan(launch, victim):
    """Row 2 of the fault matrix."""
    transport = {"mpirun": "openmpi", "srun": "slurm"}.get(victim, "pdsh")
    how = TRANSPORTS[transport]
    # Ranks deaf to SIGTERM: they have to be killed.
    body = WAIT.replace("signal.signal(number, checkpoint)", "signal.signal(number, signal.SIG_IGN)")
    run = launch(body, "--grace", "2", *how.get("flags", ()), begin=how.get("begin", ()))
    run.wait_until_ready()
    if victim == "launcher":
        os.kill(run.process.pid, signal.SIGKILL)
    elif victim == "agent":
        run.agents("node2")[0].send(signal.SIGKILL)
    else:
        found = [each for each in run.cluster.processes_on("node1") if each.command.startswith(f"{victim} ")]
        found[0].send(signal.SIGKILL)
    code, _, err = run.result()
    assert code not in (0, 75), err
    wait_until(lambda: not run.left(), "nothing is left", limit_s=60)


def test_a_cut_host_is_named_and_its_ranks_end(launch):
    """Row 9: the head and the other hosts give up after the silence, and so does the host that is cut off."""
    run = launch(WAIT, "--grace", "1", slots=(1, 1, 1))
    run.wait_until_ready()
    run.cluster.cut("node3")
    code, _, err = run.result()
    assert code == 1, err
    assert "nothing more was heard of node3: silent for 15 s" in err
    wait_until(lambda: not run.left(), "nothing is left", limit_s=60)


def test_a_frozen_rank_is_named(launch):
    """Row 3: a heartbeat that stands still."""
    run = launch(WAIT, "--hang-timeout", "3", "--grace", "2")
    pids = run.wait_until_ready()
    os.kill(pids[3], signal.SIGSTOP)
    code, _, err = run.result()
    assert code == 1, err
    assert "no sign of life from rank 3 on node2 (process " in err
    assert "after step 3" in err


def test_a_killed_rank_is_restarted(launch):
    """Row 1, between hosts."""
    body = """
if (folder / "again").exists():
    sys.exit(0)
"""
    run = launch(body + WAIT, "--max-restarts", "1", "--restart-delay", "0", "--grace", "1")
    pids = run.wait_until_ready()
    (run.folder / "again").touch()
    os.kill(pids[2], signal.SIGKILL)
    code, _, err = run.result()
    assert code == 0, err
    assert "rank 2 on node2" in err and "SIGKILL" in err and "starting again" in err


def test_a_host_that_refuses_is_named_and_nothing_is_started(launch, cluster):
    """Row 17: no rank anywhere."""
    cluster.refuse_key("node2")
    run = launch('mark("ready")')
    code, _, err = run.result()
    assert code == 2
    assert "node2" in err and "Permission denied" in err
    assert not run.marks("ready")


def test_two_names_of_one_machine_are_found_out(launch, cluster, tmp_path):
    hostfile = tmp_path / "two names"
    hostfile.write_text(f"node1 slots=1\n{cluster.hosts[0].address} slots=1\n", encoding="utf-8")
    run = launch("", begin=("env",), slots=(), arguments=())
    run.result()
    done = cluster.run_on(
        "node1",
        [sys.executable, "-m", "launcher", "run", "--hostfile", hostfile, run.folder / "rank's 脚本.py"],
    )
    assert done.returncode == 2
    assert "a machine that the job has under another name" in done.stderr


def test_a_taken_port_is_replaced_on_the_master(launch, cluster):
    """Row 15: it is the master that looks, not the machine of the launcher."""
    listener = (
        "import socket, time; s = socket.create_server(('', 23456)); print('ok', flush=True); time.sleep(60)"
    )
    holder = cluster.start_on("node1", [sys.executable, "-c", listener], stdout=subprocess.PIPE)
    try:
        assert holder.stdout.readline() == "ok\n"
        run = launch(
            '(folder / f"port-{rank}").write_text(os.environ["MASTER_PORT"])', "--master-port", "23456"
        )
        code, _, err = run.result()
    finally:
        holder.kill()
        holder.communicate()
    assert code == 0, err
    assert "port 23456 is taken; using " in err
    assert len({path.read_text() for path in run.folder.glob("port-*")} - {"23456"}) == 1

"""The cluster is one: what the other tests here rest on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import processes
import pytest
from cluster import Cluster, ClusterError, Description, temporary
from requirements import missing
from slurm_jobs import job, submit, wait_for_state

HERE = Path(__file__).parent
# OpenMPI does not run as root unless told twice.
AS_ROOT = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}


def test_pdsh_reaches_every_host(cluster):
    done = cluster.run_on("node2", ["pdsh", "-R", "ssh", "-w", ",".join(cluster.names), "hostname"])
    assert sorted(done.stdout.splitlines()) == [f"{name}: {name}" for name in cluster.names], done.stderr


def test_a_host_has_a_network_and_a_shared_memory_of_its_own(cluster):
    (Path("/dev/shm") / f"medsft-{os.getpid()}").touch()
    try:
        for host in cluster.hosts:
            seen = cluster.run_on(
                host.name, ["sh", "-c", "ls /dev/shm; ls /sys/class/net; hostname -I"]
            ).stdout
            assert seen.split() == ["eth0", "lo", host.address]
    finally:
        (Path("/dev/shm") / f"medsft-{os.getpid()}").unlink()


def test_nothing_of_the_callers_environment_is_seen(cluster, monkeypatch):
    monkeypatch.setenv("CALLER", "1")
    given = {"GIVEN": "blank, 'quote' $(id) 中文"}
    code = "import json, os; print(json.dumps([os.environ.get('CALLER'), os.environ['GIVEN']]))"
    done = cluster.run_on("node1", ["python3", "-c", code], environment=given)
    assert done.stdout == "[null, \"blank, 'quote' $(id) \\u4e2d\\u6587\"]\n"


def test_srun_reaches_every_host(cluster):
    done = cluster.run_on("node1", ["srun", "--nodes=3", "--gres=gpu:8", "hostname"])
    assert sorted(done.stdout.split()) == list(cluster.names), done.stderr


def test_a_job_with_the_resources_of_an_a100_node_completes(cluster, tmp_path):
    script = tmp_path / "job.sh"
    script.write_text('#!/bin/sh\necho "$SLURM_JOB_NODELIST $SLURM_GPUS_ON_NODE"\n', encoding="utf-8")
    asked = ["--gres=gpu:8", "--cpus-per-task=64", "--mem=0", "--time=04:00:00", "--nodelist=node3"]
    number = submit(cluster, *asked, f"--output={tmp_path}/log", script)
    known = wait_for_state(cluster, number, ["COMPLETED"], limit_s=120)
    assert known["ExitCode"] == "0:0"
    assert (tmp_path / "log").read_text() == "node3 8\n"


def test_a_requeued_job_starts_again(cluster, tmp_path):
    script = tmp_path / "job.sh"
    script.write_text(
        '#!/bin/sh\n[ "${SLURM_RESTART_COUNT:-0}" = 1 ] || { scontrol requeue "$SLURM_JOB_ID"; sleep 60; }\n',
        encoding="utf-8",
    )
    number = submit(cluster, f"--output={tmp_path}/log", script)
    known = wait_for_state(cluster, number, ["COMPLETED", "FAILED", "CANCELLED"], limit_s=120)
    assert (known["JobState"], known["Restarts"]) == ("COMPLETED", "1")


def test_mpirun_reaches_two_hosts(cluster):
    done = cluster.run_on("node1", ["mpirun", "--host", "node1,node2", "hostname"], environment=AS_ROOT)
    assert sorted(done.stdout.split()) == ["node1", "node2"], done.stderr


def test_a_cut_host_is_out_of_reach_until_it_is_restored(cluster):
    def reach(*options: str) -> int:
        return cluster.run_on("node1", ["ssh", *options, "node2", "true"]).returncode

    cluster.cut("node2")
    assert reach("-o", "ConnectTimeout=1") == 255
    cluster.restore("node2")
    assert reach() == 0


def test_faults_of_one_hosts_ssh_are_mended(cluster):
    def reach(host: str) -> int:
        return cluster.run_on("node1", ["ssh", "-o", "BatchMode=yes", host, "true"]).returncode

    cluster.stop("node2", "sshd")
    cluster.refuse_key("node3")
    assert [reach("node2"), reach("node3")] == [255, 255]
    cluster.mend()
    assert [reach("node2"), reach("node3")] == [0, 0]


def test_a_slowed_host_is_slow_to_reach(cluster):
    receive = (
        "import socket; s = socket.create_server(('', 5000)); c, _ = s.accept()\nwhile c.recv(65536): pass"
    )
    send = (
        "import socket, time; c = socket.create_connection(('node2', 5000)); start = time.monotonic()\n"
        "c.sendall(bytes(1_000_000)); c.shutdown(1); c.recv(1); print(time.monotonic() - start)"
    )

    def transfer_s() -> float:
        receiver = cluster.start_on("node2", ["python3", "-c", receive])
        for _ in range(100):
            done = cluster.run_on("node1", ["python3", "-c", send])
            if done.returncode == 0:
                receiver.wait()
                return float(done.stdout)
            time.sleep(0.1)
        raise AssertionError(done.stderr)

    cluster.slow("node2", mbit_s=8)
    # A megabyte takes a second by the setting; this is what is proven, not the machine's speed.
    assert transfer_s() > 0.5
    cluster.quicken("node2")


def test_power_off_ends_all_that_runs_on_a_host(cluster):
    sleeper = cluster.start_on("node3", ["sleep", "1000"])
    elsewhere = cluster.start_on("node2", ["sleep", "1000"])
    assert [process.pid for process in cluster.processes_on("node3", "sleep 1000")] == [sleeper.pid]
    cluster.power_off("node3")
    assert sleeper.wait() == -signal.SIGKILL
    assert cluster.processes_on("node3") == []
    assert elsewhere.poll() is None
    elsewhere.kill()
    elsewhere.wait()
    cluster.mend()
    assert cluster.run_on("node1", ["srun", "--nodelist=node3", "hostname"]).stdout == "node3\n"


def test_slurmctld_keeps_its_jobs_over_a_restart(cluster):
    number = submit(cluster, "--output=/dev/null", "--wrap=sleep 100")
    wait_for_state(cluster, number, ["RUNNING"], limit_s=120)
    cluster.stop("ctl", "slurmctld", signal.SIGTERM)
    cluster.start("ctl", "slurmctld")
    cluster.wait_until_slurm_answers()
    assert job(cluster, number)["JobState"] == "RUNNING"


def test_a_second_start_after_a_crash_works():
    if sentence := missing():
        pytest.skip(sentence)
    first = temporary(num_hosts=1)
    first.up()
    try:
        stray = first.start_on("node1", ["sleep", "1000"])
        killed = [processes.recall(path) for path in first.folder.glob("*/holder.pid")]
        killed += [processes.recall(first.folder / "node1/slurmd.pid")]
        for process in killed:
            process.send(signal.SIGKILL)
        with Cluster(Description(first.folder, num_hosts=2)) as second:
            assert stray.wait() == -signal.SIGKILL
            done = second.run_on("node1", ["srun", "--nodes=2", "hostname"])
            assert sorted(done.stdout.split()) == ["node1", "node2"], done.stderr
    finally:
        first.down()
    assert not first.folder.exists()


def test_the_cluster_goes_when_the_process_is_killed_that_asked_for_that(tmp_path):
    if sentence := missing():
        pytest.skip(sentence)
    program = (
        "import sys, time\nsys.path.insert(0, sys.argv[1])\nfrom cluster import temporary\n"
        "cluster = temporary(1)\ncluster.up()\ncluster.end_with_me()\nprint(cluster.folder, flush=True)\n"
        "time.sleep(1000)"
    )
    owner = subprocess.Popen([sys.executable, "-c", program, HERE], stdout=subprocess.PIPE, text=True)
    try:
        folder = Path(owner.stdout.readline().strip())
        started = [processes.recall(path) for path in folder.glob("*/*.pid")]
        assert len(started) == 6
    finally:
        owner.kill()
        owner.communicate()
    for _ in range(600):
        if not folder.exists():
            break
        time.sleep(0.1)
    assert not folder.exists()
    assert not [process for process in started if process.is_alive]


def test_the_scripts_for_people(tmp_path):
    if sentence := missing():
        pytest.skip(sentence)
    environment = os.environ | {"CLUSTER_FOLDER": str(tmp_path / "mine")}

    def call(*words: str) -> subprocess.CompletedProcess[str]:
        command = [HERE / words[0], *words[1:]]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    refused = call("on", "node1", "true")
    assert refused.returncode == 1
    assert "tests/cluster/up" in refused.stderr
    try:
        assert call("up", "1").returncode == 0
        assert call("on", "node1", "sh", "-c", "hostname; exit 7").returncode == 7
        assert call("on", "node1", "hostname").stdout == "node1\n"
        assert "node9" in call("on", "node9", "hostname").stderr
    finally:
        assert call("down").returncode == 0
    assert not (tmp_path / "mine").exists()


def test_a_folder_that_slurm_cannot_write_in_is_refused():
    with pytest.raises(ValueError, match="my folder"):
        Cluster(Description(Path("/tmp/my folder")))
    with pytest.raises(ClusterError, match="no cluster is up"):
        Cluster.of(Path("/tmp/no-such-folder"))

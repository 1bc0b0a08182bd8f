"""A cluster on one machine: hosts with networks and names of their own, ssh, pdsh, OpenMPI and Slurm.

A host is a set of namespaces (network, mounts, host name) that a holding process keeps alive. They hang
on a bridge inside one more such host, `ctl`, which also runs slurmctld and munged: the machine's own
network, files and settings are never touched, and any number of clusters can be up at once. All that is known
of a running cluster stands in its folder. Disk and process ids are shared by all hosts; /run, /dev/shm, /sys
and the settings in /etc are each host's own.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import processes
from processes import Process
from requirements import SYSTEM_PATH, missing
from slurm_conf import cgroup_conf, gres_conf, slurm_conf

REPOSITORY = Path(__file__).resolve().parents[2]
CONTROL = "ctl"
# What someone who has just logged in to a host has in the environment.
LOGIN = {"PATH": SYSTEM_PATH, "HOME": "/root", "USER": "root", "SHELL": "/bin/bash", "LANG": "C.UTF-8"}
_HOLDER = "holder"
# The time after which the share of the cores that a host has used up is given anew, in microseconds.
_CORE_PERIOD_US = 100_000
_DESCRIPTION = "cluster.json"


class ClusterError(Exception):
    """The cluster could not be brought up, or did not do what it was told."""


@dataclass(frozen=True)
class Host:
    """One host."""

    name: str
    address: str

    @property
    def port(self) -> str:
        """The bridge's end of its network cable, an interface of the host `ctl`."""
        return f"to-{self.name}"


@dataclass(frozen=True)
class Description:
    """What a cluster consists of."""

    # Everything the cluster writes; a name without blanks, which slurm.conf does not allow.
    folder: Path
    # The hosts are node1, node2 …
    num_hosts: int = 3
    # What every host claims to have of each.
    num_gpus: int = 8
    num_cpus: int = 64

    @property
    def hosts(self) -> tuple[Host, ...]:
        """The hosts that work: node1 at 10.77.0.11 and so on."""
        return tuple(Host(f"node{n}", f"10.77.0.{10 + n}") for n in range(1, self.num_hosts + 1))

    @property
    def control(self) -> Host:
        """The host of the bridge, slurmctld and munged."""
        return Host(CONTROL, "10.77.0.1")


class Cluster:
    """A cluster, up or down; `with Cluster(description) as cluster:` brings it up and down again."""

    def __init__(self, description: Description):
        """Names a cluster; nothing is started. Raises `ValueError` for what cannot be one."""
        if any(letter.isspace() or letter in ",=#%[]\"'\\" for letter in str(description.folder)):
            raise ValueError(
                f"the folder {description.folder} has a character which slurm.conf does not allow"
            )
        if not 1 <= description.num_hosts <= 64:
            raise ValueError(f"{description.num_hosts} hosts: 1 to 64 are possible")
        self.description = description
        self.folder = description.folder
        self.hosts = description.hosts
        self.names = tuple(host.name for host in self.hosts)
        # Undoes a fault that has been injected, by the name of the fault.
        self._undo: dict[str, Callable[[], None]] = {}
        # Kept so that they are reaped.
        self._children: list[subprocess.Popen[str]] = []
        self._watcher: subprocess.Popen[str] | None = None

    @classmethod
    def of(cls, folder: Path) -> Cluster:
        """The cluster that is up in this folder. Raises `ClusterError` when none is."""
        try:
            values = json.loads((folder / _DESCRIPTION).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ClusterError(f"no cluster is up in {folder}: bring it up with tests/cluster/up") from None
        return cls(Description(folder, **values))

    def __enter__(self) -> Cluster:
        self.up()
        return self

    def __exit__(self, *_: object) -> None:
        self.down()

    # Up and down.

    def up(self) -> None:
        """Brings all hosts up and returns when they take jobs; what an earlier crash left goes first.

        Raises `ClusterError`, with what was found in the logs, and leaves nothing behind.
        """
        if sentence := missing():
            raise ClusterError(sentence)
        if (self.folder / _DESCRIPTION).exists():
            Cluster.of(self.folder).down()
        try:
            self._write_files()
            self._make_hosts()
            self._connect()
            self._start_daemons()
        except (ClusterError, OSError, subprocess.SubprocessError) as error:
            logs = self._log_tails()
            self.down()
            raise ClusterError(f"the cluster did not come up: {error}\n{logs}") from error
        except BaseException:
            self.down()
            raise

    def down(self) -> None:
        """Ends every process on the hosts, whoever started it, and removes all traces; harmless when down."""
        if (self.folder / _DESCRIPTION).exists():
            self._end_hosts()
            shutil.rmtree(self.folder)
        for child in self._children:
            child.wait()
        self._children.clear()
        self._undo.clear()
        if self._watcher is not None:
            # Its standard input ends, and it finds nothing left to do.
            self._watcher.communicate()
            self._watcher = None

    def _end_hosts(self) -> None:
        for host in (*self.hosts, self.description.control):
            pin = self._of(host.name) / "network"
            if inode := self._network(host.name):
                _end_all(inode)
            # Also what has not reached the namespace yet.
            for path in self._of(host.name).glob("*.pid"):
                if process := processes.recall(path):
                    process.send(signal.SIGKILL)
            while subprocess.run(["umount", pin], capture_output=True, check=False).returncode == 0:
                pass

    def end_with_me(self) -> None:
        """Has the cluster brought down when this process ends, even by SIGKILL."""
        # Reads until we are gone.
        self._watcher = subprocess.Popen(
            [sys.executable, Path(__file__).parent, "--folder", self.folder, "watch"],
            stdin=subprocess.PIPE,
            start_new_session=True,
            text=True,
        )

    def _write_files(self) -> None:
        """The folder: keys, settings, device files."""
        folder, description = self.folder, self.description
        # Root's keys are in it.
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        values = {"num_hosts": len(self.hosts), "num_gpus": description.num_gpus}
        values["num_cpus"] = description.num_cpus
        (folder / _DESCRIPTION).write_text(json.dumps(values), encoding="utf-8")
        for name in (CONTROL, *self.names):
            (folder / name / "cgroup").mkdir(parents=True)
            (folder / name / "spool").mkdir()
        for name in ("etc", "slurm", "munge", "gpus", "keys"):
            (folder / name).mkdir()
        (folder / CONTROL / "state").mkdir()
        # munged lets nobody but itself write where its socket is, and anybody go there.
        (folder / "munge").chmod(0o755)

        every = (description.control, *self.hosts)
        lines = ["127.0.0.1 localhost", *(f"{host.address} {host.name}" for host in every)]
        (folder / "etc/hosts").write_text("\n".join(lines) + "\n", encoding="ascii")
        (folder / "etc/nsswitch.conf").write_text(
            "passwd: files\ngroup: files\nhosts: files\n", encoding="ascii"
        )
        (folder / "etc/ssh_config").write_text(
            f"IdentityFile {folder}/keys/user\nIdentitiesOnly yes\n"
            "StrictHostKeyChecking no\nUserKnownHostsFile /dev/null\nLogLevel ERROR\n",
            encoding="utf-8",
        )
        for key in ("user", "host"):
            _call(
                ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "cluster", "-f", folder / "keys" / key]
            )
        for name in self.names:
            shutil.copy(folder / "keys/user.pub", folder / name / "authorized_keys")
        (folder / "keys/munge").touch(mode=0o600)
        (folder / "keys/munge").write_bytes(secrets.token_bytes(128))

        for number in range(description.num_gpus):
            # Behaves as /dev/null.
            os.mknod(folder / f"gpus/gpu{number}", 0o020666, os.makedev(1, 3))
        control = (CONTROL, description.control.address)
        texts = {
            "slurm.conf": slurm_conf(control, self.names, folder, description.num_gpus, description.num_cpus),
            "gres.conf": gres_conf(self.names, folder / "gpus", description.num_gpus),
            "cgroup.conf": cgroup_conf(),
        }
        for name, text in texts.items():
            (folder / "slurm" / name).write_text(text, encoding="utf-8")

    def _make_hosts(self) -> None:
        """Namespaces for every host, held by one process each."""
        holders = {name: self._hold(name) for name in (CONTROL, *self.names)}
        for name, holder in holders.items():
            assert holder.stdout is not None
            if holder.stdout.readline() != "ready\n":
                raise ClusterError(f"the host {name} could not be made")
            holder.stdout.close()
            # A mounted namespace keeps its inode number, by which its processes are found, from being reused.
            pin = self._of(name) / "network"
            pin.touch()
            _call(["mount", "--bind", f"/proc/{holder.pid}/ns/net", pin])

    def _hold(self, name: str) -> subprocess.Popen[str]:
        script = Path(__file__).with_name("enter_host.sh")
        with (self._of(name) / "holder.log").open("w") as log:
            holder = subprocess.Popen(
                ["unshare", "--net", "--mount", "--uts", "bash", script, name, self.folder],
                env=LOGIN,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
            )
        self._keep(holder, name, _HOLDER)
        return holder

    def _connect(self) -> None:
        """The bridge, and a cable from it to every host."""
        control = self.description.control
        lines = [
            "link set lo up",
            "link add bridge0 type bridge",
            f"addr add {control.address}/24 dev bridge0",
        ]
        for host in self.hosts:
            lines += [
                f"link add {host.port} type veth peer name eth0 netns {self._holder(host.name).pid}",
                f"link set {host.port} master bridge0",
                f"link set {host.port} up",
            ]
        self._ip(CONTROL, [*lines, "link set bridge0 up"])
        for host in self.hosts:
            self._ip(
                host.name, ["link set lo up", f"addr add {host.address}/24 dev eth0", "link set eth0 up"]
            )

    def _start_daemons(self) -> None:
        self.start(CONTROL, "munged")
        _wait(lambda: any((self.folder / "munge").glob("*.socket.*")), 10, "munged opens its socket")
        self.start(CONTROL, "slurmctld")
        for name in self.names:
            self.start(name, "sshd")
            self.start(name, "slurmd")
        _wait(self._is_idle, 30, "all hosts take jobs")

    def _is_idle(self) -> bool:
        done = self.run_on(CONTROL, ["sinfo", "-h", "-N", "-p", "batch", "-o", "%T"])
        return done.returncode == 0 and done.stdout.split() == ["idle"] * len(self.hosts)

    # Work on the hosts.

    def words_on(
        self, host: str, command: Sequence[str | Path] = (), folder: Path = REPOSITORY
    ) -> list[str | Path]:
        """The command line that runs a command on a host. The words before the command replace themselves."""
        enter = ["nsenter", "--target", str(self._holder(host).pid), "--net", "--mount", "--uts"]
        return [*enter, "env", "-C", folder, *command]

    def run_on(
        self,
        host: str,
        command: Sequence[str | Path],
        *,
        environment: Mapping[str, str] | None = None,
        folder: Path = REPOSITORY,
        stdin: str = "",
        limit_s: float = 60,
    ) -> subprocess.CompletedProcess[str]:
        """Runs a command on a host, as if typed there after logging in, and returns its output and exit code.

        Args:
            environment: added to `LOGIN`; nothing else of the caller's environment is seen.
            folder: where the command starts.
            limit_s: the command is killed after so many seconds, and `subprocess.TimeoutExpired` raised.
        """
        return subprocess.run(
            self.words_on(host, command, folder),
            env=LOGIN | dict(environment or {}),
            input=stdin,
            capture_output=True,
            text=True,
            timeout=limit_s,
            check=False,
        )

    def start_on(
        self,
        host: str,
        command: Sequence[str | Path],
        *,
        environment: Mapping[str, str] | None = None,
        folder: Path = REPOSITORY,
        **options: Any,
    ) -> subprocess.Popen[str]:
        """Starts a command on a host, in a session of its own, and returns when it runs, as `pid`.

        `options` are those of `subprocess.Popen`. The rest is as with `run_on`.
        """
        child = subprocess.Popen(
            self.words_on(host, command, folder),
            env=LOGIN | dict(environment or {}),
            text=True,
            start_new_session=True,
            **options,
        )
        if (group := self._core_group(host)).exists():
            (group / "cgroup.procs").write_text(str(child.pid), encoding="ascii")

        def is_there() -> bool:
            if (process := processes.find(child.pid)) is None:
                return True
            # Between one program and the next there is no command line.
            line = process.command
            return bool(line) and not line.startswith(("nsenter --target", "env -C"))

        _wait(is_there, 10, f"{command[0]} starts on {host}")
        return child

    def replace_by(self, host: str, command: Sequence[str]) -> None:
        """Becomes the command on the host, with this process's terminal and folder; does not return."""
        environment = LOGIN | {"TERM": os.environ.get("TERM", "dumb")}
        words = [str(word) for word in self.words_on(host, command, Path.cwd())]
        os.execvpe(words[0], words, environment)

    def processes_on(self, host: str, containing: str = "") -> list[Process]:
        """Living processes on a host whose command line contains the text, save the cluster's own."""
        own = {processes.recall(path) for path in self._of(host).glob("*.pid")}
        found = []
        for process in processes.in_network(self._network(host)):
            command = process.command
            # Without a command line it has just ended; slurmctld's own helper goes by ": slurmscriptd".
            if process not in own and command and containing in command and "slurmscriptd" not in command:
                found.append(process)
        return found

    def wait_until_slurm_answers(self, limit_s: float = 20) -> None:
        """Waits until slurmctld answers, as after its start."""
        _wait(
            lambda: self.run_on(CONTROL, ["scontrol", "ping"]).stdout.rstrip().endswith("UP"),
            limit_s,
            "slurmctld answers",
        )

    # Faults, each with its remedy; `mend` does what was not undone.

    def cut(self, host: str) -> None:
        """Pulls the host's network cable."""
        self._ip(CONTROL, [f"link set {self._host(host).port} down"])
        self._undo[f"cut {host}"] = lambda: self.restore(host)

    def restore(self, host: str) -> None:
        """Plugs the host's network cable in again."""
        self._ip(CONTROL, [f"link set {self._host(host).port} up"])
        self._undo.pop(f"cut {host}", None)

    def slow(self, host: str, mbit_s: float, queue_ms: float = 100) -> None:
        """Narrows the host's network in both directions.

        What is sent faster than `mbit_s` waits up to `queue_ms` and is lost beyond that: delay and loss, as
        on a crowded or broken link. (tc's netem would do, but many kernels are built without it.)
        """
        shape = f"root tbf rate {mbit_s}mbit burst 16kb latency {queue_ms}ms".split()
        for where, interface in ((CONTROL, self._host(host).port), (host, "eth0")):
            self._checked(where, ["tc", "qdisc", "replace", "dev", interface, *shape])
        self._undo[f"slow {host}"] = lambda: self.quicken(host)

    def quicken(self, host: str) -> None:
        """Undoes `slow`."""
        for where, interface in ((CONTROL, self._host(host).port), (host, "eth0")):
            self._checked(where, ["tc", "qdisc", "del", "dev", interface, "root"])
        self._undo.pop(f"slow {host}", None)

    def limit_cores(self, host: str, cores: float) -> None:
        """What sshd and `start_on` start there from now on has so many cores' time, all of it together.

        However much runs there, other hosts lose nothing by it, as with cores of their own. Raises
        `ClusterError` where the machine has no control group for that.
        """
        group = self._core_group(host)
        try:
            group.mkdir(exist_ok=True)
            quota_us = round(cores * _CORE_PERIOD_US)
            if (group / "cpu.max").exists():
                (group / "cpu.max").write_text(f"{quota_us} {_CORE_PERIOD_US}", encoding="ascii")
            else:
                (group / "cpu.cfs_period_us").write_text(str(_CORE_PERIOD_US), encoding="ascii")
                (group / "cpu.cfs_quota_us").write_text(str(quota_us), encoding="ascii")
            (group / "cgroup.procs").write_text(str(self.daemon(host, "sshd").pid), encoding="ascii")
        except OSError as error:
            raise ClusterError(f"{group}: cores cannot be limited here: {error.strerror}") from error
        self._undo[f"limit {host}"] = lambda: self.free_cores(host)

    def free_cores(self, host: str) -> None:
        """Undoes `limit_cores`; what was started meanwhile goes back to the others as well."""
        group = self._core_group(host)
        while left := (group / "cgroup.procs").read_text(encoding="ascii").split():
            for number in left:
                with suppress(ProcessLookupError):
                    (group.parent / "cgroup.procs").write_text(number, encoding="ascii")
        group.rmdir()
        self._undo.pop(f"limit {host}", None)

    def _core_group(self, host: str) -> Path:
        """The host's control group for cores, under the one this process is in."""
        for line in Path("/proc/self/cgroup").read_text(encoding="ascii").splitlines():
            _, controllers, path = line.split(":", 2)
            if "cpu" in controllers.split(","):
                return Path("/sys/fs/cgroup/cpu") / path.lstrip("/") / f"{self.folder.name}-{host}"
        return Path("/sys/fs/cgroup") / f"{self.folder.name}-{host}"

    def refuse_key(self, host: str) -> None:
        """The host's sshd accepts nobody from now on."""
        path = self._of(host) / "authorized_keys"
        path.write_text("", encoding="ascii")
        self._undo[f"refuse {host}"] = lambda: self.accept_key(host)

    def accept_key(self, host: str) -> None:
        """Undoes `refuse_key`."""
        shutil.copy(self.folder / "keys/user.pub", self._of(host) / "authorized_keys")
        self._undo.pop(f"refuse {host}", None)

    def start(self, host: str, daemon: str) -> None:
        """Starts sshd or slurmd on a host, munged or slurmctld on `ctl`, with what it last wrote down."""
        folder = self._of(host)
        commands: dict[str, list[str | Path]] = {
            "munged": ["munged", "--foreground", "--force", "--key-file", self.folder / "keys/munge"],
            "slurmctld": ["slurmctld", "-D"],
            "slurmd": ["slurmd", "-D", "-N", host],
            "sshd": ["/usr/sbin/sshd", "-D", "-e", "-f", "/dev/null", "-h", self.folder / "keys/host"],
        }
        settings = {
            "AuthorizedKeysFile": folder / "authorized_keys",
            "StrictModes": "no",
            "PasswordAuthentication": "no",
            "PermitRootLogin": "yes",
            "UsePAM": "no",
            "UseDNS": "no",
            "PidFile": "none",
            "PrintMotd": "no",
            # A launcher comes with many at once.
            "MaxStartups": "200",
        }
        if daemon == "sshd":
            commands["sshd"] += [
                word for name, value in settings.items() for word in ("-o", f"{name}={value}")
            ]
        if daemon == "munged":
            commands["munged"] += [
                *("--log-file", folder / "munged.log"),
                *("--seed-file", folder / "munge.seed"),
                *("--pid-file", folder / "munged.own_pid"),
            ]
        with (folder / f"{daemon}.log").open("a") as log:
            # slurmd and slurmctld write the log file of slurm.conf, and say the same once more here.
            output = subprocess.DEVNULL if daemon.startswith("slurm") else log
            child = self.start_on(
                host,
                commands[daemon],
                folder=Path("/"),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        self._keep(child, host, daemon)
        self._undo.pop(f"stop {host} {daemon}", None)

    def daemon(self, host: str, name: str) -> Process:
        """The process of sshd, slurmd, munged or slurmctld. Raises `ClusterError` when it does not run."""
        process = processes.recall(self._of(host) / f"{name}.pid")
        if process is None or not process.is_alive:
            raise ClusterError(f"{name} does not run on {host}")
        return process

    def stop(self, host: str, daemon: str, number: signal.Signals = signal.SIGKILL) -> None:
        """Ends the daemon by a signal, and returns when it is dead; what it has started lives on.

        Killed, slurmctld forgets what happened in its last five seconds; at SIGTERM it writes all down.
        """
        process = self.daemon(host, daemon)
        process.send(number)
        _wait(lambda: not process.is_alive, 30, f"{daemon} on {host} ends")
        self._undo[f"stop {host} {daemon}"] = lambda: self.start(host, daemon)

    def power_off(self, host: str) -> None:
        """Cuts the host off and kills all its processes, as a failing power supply does."""
        self.cut(host)
        holder = self._holder(host)
        _end_all(self._network(host), spared=holder)
        self._undo[f"power {host}"] = lambda: self.power_on(host)

    def power_on(self, host: str) -> None:
        """Undoes `power_off`."""
        self.restore(host)
        for daemon in ("sshd", "slurmd"):
            self.start(host, daemon)
        self._undo.pop(f"power {host}", None)

    def mend(self) -> None:
        """Undoes all faults, cancels all jobs and returns when the hosts take jobs again.

        What has been started on the hosts other than by Slurm stays.
        """
        for undo in reversed(list(self._undo.values())):
            undo()
        if jobs := self.run_on(CONTROL, ["squeue", "-h", "-o", "%A"]).stdout.split():
            self.run_on(CONTROL, ["scancel", *jobs])
            # Without the seconds after SIGTERM.
            for name in self.names:
                for process in self.processes_on(name):
                    if process.has_variable("SLURM_JOB_ID") and "slurmstepd" not in process.command:
                        process.send(signal.SIGKILL)
        if not self._is_idle():
            for name in self.names:
                # Fails where a host is neither down nor drained, which is as good.
                self.run_on(CONTROL, ["scontrol", "update", f"nodename={name}", "state=resume"])
            _wait(self._is_idle, 60, "all hosts take jobs again")

    # Small things.

    def _of(self, host: str) -> Path:
        if host not in (CONTROL, *self.names):
            raise ClusterError(f"no host {host}: there are {', '.join((CONTROL, *self.names))}")
        return self.folder / host

    def _host(self, name: str) -> Host:
        self._of(name)
        return next(host for host in (self.description.control, *self.hosts) if host.name == name)

    def _keep(self, child: subprocess.Popen[str], host: str, what: str) -> None:
        """Writes down what has been started."""
        process = processes.find(child.pid)
        if process is None:
            raise ClusterError(f"{what} on {host} ended at once, with exit code {child.wait()}")
        processes.remember(process, self._of(host) / f"{what}.pid")
        self._children.append(child)

    def _holder(self, host: str) -> Process:
        holder = processes.recall(self._of(host) / f"{_HOLDER}.pid")
        if holder is None or not holder.is_alive:
            raise ClusterError(f"the host {host} is not up: bring the cluster up again with tests/cluster/up")
        return holder

    def _network(self, host: str) -> int:
        """Inode number of the host's network namespace; 0 when there is none any more."""
        pin = self._of(host) / "network"
        # A mounted namespace lies on another device than the plain file beneath.
        if not pin.exists() or pin.stat().st_dev == pin.parent.stat().st_dev:
            return 0
        return pin.stat().st_ino

    def _ip(self, host: str, lines: Sequence[str]) -> None:
        self._checked(host, ["ip", "-batch", "-"], "\n".join(lines) + "\n")

    def _checked(self, host: str, command: Sequence[str], stdin: str = "") -> None:
        done = self.run_on(host, command, stdin=stdin)
        if done.returncode != 0:
            raise ClusterError(f"`{' '.join(command)}` on {host}: {done.stderr.strip()}")

    def _log_tails(self) -> str:
        """The last lines of every log, for an error message."""
        parts = []
        for path in sorted(self.folder.glob("*/*.log")):
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines()[-8:]
            parts += [f"{path.parent.name}/{path.name}: {line}" for line in lines]
        return "\n".join(parts)


def temporary(num_hosts: int = 3) -> Cluster:
    """A cluster, still down, in a new folder of its own."""
    return Cluster(Description(Path(tempfile.mkdtemp(prefix="medsft-cluster-")), num_hosts))


def _end_all(inode: int, spared: Process | None = None, limit_s: float = 10) -> None:
    """Kills all processes in a network namespace, and returns when they are dead."""

    def is_empty() -> bool:
        # Again and again: one that is starting another may be faster than we are.
        found = [process for process in processes.in_network(inode) if process != spared]
        for process in found:
            process.send(signal.SIGKILL)
        return not found

    _wait(is_empty, limit_s, "all processes of a host end")


def _wait(is_so: Callable[[], bool], limit_s: float, what: str) -> None:
    """Waits until it is so. Raises `ClusterError` after the time limit."""
    end_s = time.monotonic() + limit_s
    while not is_so():
        if time.monotonic() > end_s:
            raise ClusterError(f"waited {limit_s:.0f} s in vain until {what}")
        time.sleep(0.05)


def _call(command: Sequence[str | Path]) -> None:
    """Runs a command on the machine itself. Raises `ClusterError` when it fails."""
    done = subprocess.run(command, env=LOGIN, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise ClusterError(f"`{' '.join(map(str, command))}`: {done.stderr.strip()}")

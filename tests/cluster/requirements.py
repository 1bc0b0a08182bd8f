"""What a machine needs to carry a test cluster."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# Program -> its package in Debian.
PROGRAMS = {
    "ip": "iproute2",
    "tc": "iproute2",
    "nsenter": "util-linux",
    "unshare": "util-linux",
    "sshd": "openssh-server",
    "ssh": "openssh-client",
    "ssh-keygen": "openssh-client",
    "pdsh": "pdsh",
    "mpirun": "openmpi-bin",
    "munged": "munge",
    "slurmctld": "slurm-wlm",
    "slurmd": "slurm-wlm",
    "sbatch": "slurm-wlm",
}
# What making hosts takes, tried in namespaces that end with the command.
_TRIAL = """
mount -t sysfs sysfs /sys && mount -t tmpfs tmpfs /run && mknod /run/gpu0 c 1 3 &&
ip link add bridge0 type bridge && ip link add port0 type veth peer name port1
"""


def missing() -> str | None:
    """What this machine lacks for a cluster and what to do, as one sentence; None when nothing is lacking."""
    if sys.platform != "linux":
        return "A test cluster needs network namespaces, which only Linux has."
    if os.geteuid() != 0:
        return "A test cluster needs root, for network namespaces: run as root."
    absent = [program for program in PROGRAMS if shutil.which(program, path=SYSTEM_PATH) is None]
    if absent:
        packages = " ".join(sorted({PROGRAMS[program] for program in absent}))
        return f"A test cluster needs {', '.join(absent)}: apt-get install {packages}."
    trial = subprocess.run(
        ["unshare", "--net", "--mount", "--uts", "sh", "-c", _TRIAL],
        env={"PATH": SYSTEM_PATH},
        capture_output=True,
        text=True,
        check=False,
    )
    if trial.returncode != 0:
        return (
            "A test cluster needs the right to make network and mount namespaces, which this root lacks "
            f"({trial.stderr.strip()}): run on the machine itself or in a privileged container."
        )
    return None

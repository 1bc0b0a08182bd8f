"""However the ranks get to their hosts, the losses are those of one local process."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
from toy_training import (
    ENVIRONMENT,
    PYTHON,
    SHORT_STEPS,
    local_losses,
    make_toy,
    metrics,
    place_flags,
    step_flags,
)

DEEPSPEED = str(Path(PYTHON).with_name("deepspeed"))
# mpirun does not run as root unless told twice.
AS_ROOT = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
RUN = (PYTHON, "-m", "launcher", "run")


@dataclass(frozen=True)
class Start:
    """What a user types on node1 before medsft/train.py. HOSTFILE stands for the hostfile's path.

    slots: ranks on node1, node2 ...
    """

    words: tuple[str, ...]
    slots: tuple[int, ...] = (1, 1)
    environment: tuple[tuple[str, str], ...] = ()


STARTS = {
    "pdsh": Start((*RUN, "--hostfile", "HOSTFILE")),
    "pdsh, uneven": Start((*RUN, "--hostfile", "HOSTFILE"), slots=(2, 1)),
    "openmpi, three hosts": Start(
        (*RUN, "--hostfile", "HOSTFILE", "--transport", "openmpi"), slots=(1, 1, 1)
    ),
    "slurm, three hosts": Start(("salloc", "--quiet", "--nodes=3", *RUN, "--num-gpus", "1"), slots=(1, 1, 1)),
    "deepspeed": Start((DEEPSPEED, "--hostfile", "HOSTFILE")),
    "bare mpirun": Start(
        ("mpirun", "--host", "node1,node2", "-x", "OMP_NUM_THREADS", PYTHON),
        environment=tuple(AS_ROOT.items()),
    ),
}
# One in CI; Slurm's is in test_cluster_slurm.py, by its job script.
QUICK = ("pdsh",)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in STARTS]
)
def test_the_losses_are_those_of_one_local_process(name, cluster, tmp_path, tmp_path_factory):
    session = tmp_path_factory.getbasetemp()
    start = STARTS[name]
    expected = local_losses(session)
    hostfile = tmp_path / "主机 hosts"
    lines = [f"{host} slots={number}\n" for host, number in zip(cluster.names, start.slots, strict=False)]
    hostfile.write_text("".join(lines), encoding="utf-8")
    output = tmp_path / "the run 一"
    done = cluster.run_on(
        "node1",
        [
            *(str(hostfile) if word == "HOSTFILE" else word for word in start.words),
            "medsft/train.py",
            *place_flags(make_toy(session), output),
            *step_flags(SHORT_STEPS),
            *("--save_strategy", "no"),
        ],
        environment=ENVIRONMENT | dict(start.environment),
        limit_s=240,
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    assert (output / "DONE").exists()
    assert f"ranks: {sum(start.slots)}," in said
    assert [record["step"] for record in metrics(output)] == list(range(1, SHORT_STEPS + 1))
    assert [record["loss"] for record in metrics(output)] == pytest.approx(expected, rel=1e-6, abs=0)

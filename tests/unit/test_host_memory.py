"""The memory that a run may use is that of the narrowest control group around it."""

import psutil
import pytest

from medsft.host_memory import free_memory_bytes, host_memory_bytes

GIB = 2**30


@pytest.mark.parametrize(
    ("groups", "files", "found"),
    [
        ("", {}, None),
        ("0::/\n", {"memory.max": "max"}, None),
        ("0::/\n", {"memory.max": GIB}, GIB),
        # A job of Slurm without a namespace of its own: the limit stands at the job, the step has none.
        ("0::/slurm/job_7/step_0\n", {"slurm/job_7/memory.max": GIB, "slurm/memory.max": 2 * GIB}, GIB),
        ("0::/a/b\n", {"a/memory.max": 2 * GIB, "a/b/memory.max": GIB}, GIB),
        ("0::/named/as/outside\n", {"memory.max": GIB}, GIB),
        ("9:name=systemd:/\n5:memory:/a\n", {"memory/a/memory.limit_in_bytes": GIB}, GIB),
        ("5:memory:/\n", {"memory/memory.limit_in_bytes": 2**63 - 4096}, None),
    ],
)
def test_the_narrowest_group_counts(groups, files, found, tmp_path):
    (tmp_path / "proc/self").mkdir(parents=True)
    if groups:
        (tmp_path / "proc/self/cgroup").write_text(groups)
    for name, limit in files.items():
        path = tmp_path / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{limit}\n")
    assert host_memory_bytes(tmp_path) == (psutil.virtual_memory().total if found is None else found)


def test_free_memory_is_never_more_than_the_group_allows(tmp_path):
    assert 0 < free_memory_bytes() <= psutil.virtual_memory().total + psutil.swap_memory().total
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("0::/\n")
    (tmp_path / "sys/fs/cgroup").mkdir(parents=True)
    (tmp_path / "sys/fs/cgroup/memory.max").write_text("4096\n")
    assert free_memory_bytes(tmp_path) == 4096

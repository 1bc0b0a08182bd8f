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


def test_free_memory_is_what_the_host_has_left():
    assert 0 < free_memory_bytes() <= psutil.virtual_memory().total + psutil.swap_memory().total


@pytest.mark.parametrize(
    ("group", "place", "files", "left"),
    [
        ("0::/", "", {"memory.max": 4096, "memory.current": 1000}, 3096),
        # The page cache is dropped before anything has to end.
        (
            "0::/a",
            "a",
            {"memory.max": 4096, "memory.current": 4000, "memory.stat": "anon 500\ninactive_file 3500"},
            3596,
        ),
        ("0::/", "", {"memory.max": 4096, "memory.current": 5000}, 0),
        (
            "5:memory:/",
            "memory",
            {
                "memory.limit_in_bytes": 4096,
                "memory.usage_in_bytes": 4000,
                "memory.stat": "total_inactive_file 904",
            },
            1000,
        ),
    ],
)
def test_free_memory_is_what_the_group_has_left(group, place, files, left, tmp_path):
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text(f"{group}\n")
    folder = tmp_path / "sys/fs/cgroup" / place
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_text(f"{content}\n")
    assert free_memory_bytes(tmp_path) == left

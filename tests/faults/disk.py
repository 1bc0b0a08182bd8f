"""A disk that is small enough to be filled."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from runs import REPOSITORY


class TinyDisk:
    """A tmpfs of its own, mounted where only processes started with `inside` see it.

    path: its place for them. seen_at: the same for everybody else, while it is there. inside: words to put
    before a command that is to see it.
    """

    def __init__(self, path: Path, holder: int) -> None:
        self.path = path
        self.seen_at = Path(f"/proc/{holder}/root{path}")
        self.inside = ("nsenter", f"--mount=/proc/{holder}/ns/mnt", "env", "-C", str(REPOSITORY))
        self._ballast = self.seen_at / "ballast"

    def fill(self) -> None:
        """Takes all the room there is, to the last byte."""
        with self._ballast.open("wb", buffering=0) as file:
            for size in (1 << 20, 4096, 1):
                try:
                    while file.write(bytes(size)) == size:
                        pass
                except OSError:
                    continue

    def fill_but(self, num_bytes: int) -> None:
        """Takes the room but for so many bytes."""
        free = shutil.disk_usage(self.seen_at).free
        with self._ballast.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, free - num_bytes)

    def leave_names(self, number: int) -> None:
        """Takes the room for names, so that so many files and folders can still be made: bytes are left."""
        self._ballast.mkdir()
        for each in range(os.statvfs(self.seen_at).f_ffree - number):
            (self._ballast / str(each)).touch()

    def make_room(self) -> None:
        """Gives everything back."""
        if self._ballast.is_dir():
            shutil.rmtree(self._ballast)
        else:
            self._ballast.unlink()


def can_mount() -> bool:
    """Whether this process may mount a disk of its own."""
    has_tools = all(shutil.which(name) for name in ("unshare", "nsenter"))
    return has_tools and subprocess.run(["unshare", "--mount", "true"], check=False).returncode == 0


@contextmanager
def tiny_disk(path: Path, size_mib: int = 40, num_names: int = 2000) -> Iterator[TinyDisk]:
    """Mounts one at `path`; with the block it is gone."""
    path.mkdir(parents=True)
    options = f"size={size_mib}m,nr_inodes={num_names}"
    # The holder ends with its standard input, and the disk with it.
    holder = subprocess.Popen(
        ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs -o "$1" tmpfs "$0" && echo && exec cat',
         str(path), options],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )  # fmt: skip
    try:
        assert holder.stdout.readline() == b"\n", "the disk cannot be mounted"
        yield TinyDisk(path, holder.pid)
    finally:
        holder.stdin.close()
        holder.wait()
        holder.stdout.close()

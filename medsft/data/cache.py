"""Tokens are made once and kept, however many ranks and nodes share the folder.

    cache_dir/<key>/tokens.arrow, manifest.json    complete by construction: a renamed folder
    cache_dir/<key>.lock                           who builds
    cache_dir/<key>.building-<host>-<pid>-<random> being built, or left by a build that was killed

The key hashes everything that decides about the tokens: the bytes of the data files in their order, columns,
template, limits, number of samples, tokenizer, and the version of this format. Names and times do not enter.

One process builds while the others wait for the lock. Where locks do not work over the network, several may
build, and the rename decides: all of them made the same tokens, one folder gets the name, the others go.
"""

import errno
import hashlib
import json
import logging
import os
import secrets
import shutil
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import filelock
import psutil

from medsft.data.build import (
    ARROW_FILE,
    MANIFEST_FILE,
    EncodingSettings,
    Progress,
    build,
    summary_from_manifest,
)
from medsft.data.dataset import EncodedDataset, Row
from medsft.data.encode import Tokenizer, check_limits
from medsft.data.files import SUFFIXES, expand_files, file_sha256
from medsft.data.records import Columns
from medsft.data.template import AUTO, check_template
from medsft.errors import UserError
from medsft.files import sync

__all__ = ["EncodedDataset", "Row", "cache_key", "load_or_build"]

logger = logging.getLogger(__name__)

FORMAT_VERSION = 2
"""Raised when the code makes other tokens, or another file, from the same input."""

_SETTINGS = (
    "num_image_tokens",
    "do_lower_case",
    "remove_space",
    "gmask_token_id",
    "bos_token_id",
    "eop_token_id",
)
"""Of the tokenizer: what decides about the ids beside its vocabulary file."""

_POLL_S = 5.0
_STALL_S = 600.0
"""A builder that writes nothing for so long is given up."""

_ABANDONED_S = 3600.0
"""A build folder of another host is removed when nothing was written to it for so long."""


def load_or_build(
    files: Sequence[str | Path],
    tokenizer: Tokenizer,
    cache_dir: str | Path,
    *,
    max_source_length: int,
    max_target_length: int,
    columns: Columns | None = None,
    template: str = AUTO,
    max_samples: int | None = None,
    max_bad_share: float = 0.0,
    num_workers: int = 1,
    progress: Progress | None = None,
) -> EncodedDataset:
    """The tokens of some data files, from the cache or made now.

    Every rank calls it; all get the same data set, or raise the same error.

    Args:
        files: files, folders and globs, see `expand_files`. Their order matters.
        tokenizer: see `Tokenizer`.
        cache_dir: folder of the cache, made when absent; may be shared by ranks and nodes.
        max_source_length, max_target_length: limits in tokens, see `encode_example`.
        columns: column names; None: recognised.
        template: prompt template, or "auto", see `detect_template`; `summary.template` is the one used.
        max_samples: use only the first so many examples.
        max_bad_share: largest share of records that may be unusable, 0 … 1; also checked for cached data.
        num_workers: processes that encode. The result does not depend on it.
        progress: called only in the process that builds.

    Raises:
        UserError: files, settings or the cache folder are at fault, too many records are bad, or there is no
            example.
    """
    check_limits(max_source_length, max_target_length)
    check_template(template)
    if max_samples is not None and max_samples < 1:
        raise UserError(f"The number of samples to use is {max_samples}; it must be at least 1.")
    paths = expand_files(files)
    settings = EncodingSettings(
        columns or Columns(), template, max_source_length, max_target_length, max_samples
    )
    states = _file_states(paths)
    key = cache_key(paths, tokenizer, settings)
    final = Path(cache_dir) / key

    def write(folder: Path) -> None:
        build(folder, paths, tokenizer, settings, num_workers, progress)
        if _file_states(paths) != states:
            names = ", ".join(map(str, paths))
            raise UserError(f"The data changed while it was read: {names}. Start again when it is complete.")

    try:
        manifest = _read_manifest(final)
        if manifest is None:
            final.parent.mkdir(parents=True, exist_ok=True)
            with _turn_to_build(final) as manifest:
                if manifest is None:
                    logger.info("tokenising %s into %s", ", ".join(map(str, paths)), final)
                    manifest = _build_and_commit(final, write)
    except OSError as error:
        raise UserError(
            f"Cannot use the token cache in {cache_dir}: {error.strerror or error}. Make room or grant "
            "access there, or name another folder with --data_cache_dir."
        ) from error
    assert manifest is not None
    summary = summary_from_manifest(manifest, paths)
    summary.check(max_bad_share)
    return EncodedDataset(final / ARROW_FILE, paths, manifest["fingerprint"], summary)


def cache_key(files: Sequence[Path], tokenizer: Tokenizer, settings: EncodingSettings) -> str:
    """SHA-256 over everything that decides about the tokens, hexadecimal."""
    parts = {
        "format": FORMAT_VERSION,
        "files": [(SUFFIXES[path.suffix.lower()], file_sha256(path)) for path in files],
        "settings": asdict(settings),
        "tokenizer": [
            file_sha256(Path(tokenizer.vocab_file)),
            *(getattr(tokenizer, name) for name in _SETTINGS),
        ],
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _file_states(paths: Sequence[Path]) -> list[tuple[int, int]]:
    return [(state.st_size, state.st_mtime_ns) for state in (path.stat() for path in paths)]


def _read_manifest(final: Path) -> dict | None:
    """The manifest of a complete cache folder, or None where there is none.

    A folder that is there but not whole (copied in part, cut short) counts as none and is built anew.
    """
    try:
        manifest = json.loads((final / MANIFEST_FILE).read_text(encoding="utf-8"))
        is_whole = (final / ARROW_FILE).stat().st_size == manifest["arrow_bytes"]
    except (FileNotFoundError, ValueError, KeyError):
        return None
    return manifest if is_whole else None


@contextmanager
def _turn_to_build(final: Path) -> Iterator[dict | None]:
    """Wait until it is this process's turn to build, or another has built: yields its manifest or None.

    The lock is held meanwhile, if it could be had. It could not when the file system has no locks, or when
    its holder has stopped writing; then this process builds beside it.
    """
    lock = filelock.FileLock(f"{final}.lock")
    seen, since_s = None, time.monotonic()
    try:
        while True:
            try:
                lock.acquire(timeout=_POLL_S)
                break
            except filelock.Timeout:
                if seen is None:
                    logger.info("waiting for the process that makes %s", final)
            except (OSError, NotImplementedError) as error:
                logger.warning("no lock on %s (%s); several processes may tokenise", lock.lock_file, error)
                break
            if (manifest := _read_manifest(final)) is not None:
                yield manifest
                return
            written = _written(final)
            if written != seen:
                seen, since_s = written, time.monotonic()
            elif time.monotonic() - since_s > _STALL_S:
                logger.warning(
                    "who holds %s has written nothing for %.0f s; tokenising here", lock.lock_file, _STALL_S
                )
                break
        yield _read_manifest(final)
    finally:
        lock.release()


def _build_folders(final: Path) -> list[Path]:
    return sorted(final.parent.glob(f"{final.name}.building-*"))


def _written(final: Path) -> list[tuple[str, int]]:
    """What all builders of this key have written so far: names and sizes."""
    sizes = []
    for folder in _build_folders(final):
        try:
            sizes += [(str(path), path.stat().st_size) for path in sorted(folder.iterdir())]
        except FileNotFoundError:
            continue  # committed or removed just now
    return sizes


def _build_and_commit(final: Path, write: Callable[[Path], None]) -> dict:
    """Let `write` fill a folder of its own and give it the final name; the manifest of what has that name."""
    suffix = f"{os.getpid()}-{secrets.token_hex(4)}"
    folder = final.with_name(f"{final.name}.building-{socket.gethostname()}-{suffix}")
    folder.mkdir()
    try:
        _remove_abandoned(final, folder)
        write(folder)
        if final.exists() and _read_manifest(final) is None:
            logger.warning("%s is not whole; it is made anew", final)
            shutil.rmtree(final)
        if not _commit(folder, final):
            logger.info("another process was first to make %s", final)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    manifest = _read_manifest(final)
    if manifest is None:
        raise FileNotFoundError(errno.ENOENT, "the folder was removed while it was made", str(final))
    return manifest


def _commit(folder: Path, final: Path) -> bool:
    """Rename a built folder; False when another process did so before."""
    try:
        folder.rename(final)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            return False
        raise
    sync(final.parent)
    return True


def _remove_abandoned(final: Path, own: Path) -> None:
    """Remove what killed builds of this key have left.

    A process of this host is known to be dead; of another host, ages are compared on the file server's own
    clock.
    """
    now_s = own.stat().st_mtime
    prefix = f"{final.name}.building-{socket.gethostname()}-"
    for folder in _build_folders(final):
        if folder == own:
            continue
        try:
            written_s = max(path.stat().st_mtime for path in (folder, *folder.iterdir()))
        except FileNotFoundError:
            continue  # removed just now
        pid = folder.name.removeprefix(prefix).partition("-")[0]
        is_dead = folder.name.startswith(prefix) and not psutil.pid_exists(int(pid))
        if is_dead or now_s - written_s > _ABANDONED_S:
            logger.info("removing %s, left by a build that did not end", folder)
            shutil.rmtree(folder, ignore_errors=True)

"""Data files -> raw records with their line numbers.

Lines (`.jsonl`, `.ndjson`, `.txt`): one JSON object each, read one at a time. JSON (`.json`): an array of
objects, or `{"data": [...]}`; one object a line is also taken, as many published `.json` sets are that. CSV:
a header line, then records. Text is UTF-8, a byte order mark at the start is skipped.
"""

import codecs
import csv
import glob
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise, takewhile
from pathlib import Path
from typing import BinaryIO

from medsft.errors import UserError

SUFFIXES = {".jsonl": "lines", ".ndjson": "lines", ".txt": "lines", ".json": "json", ".csv": "csv"}
"""Allowed file name endings and how such a file is read."""

MAX_LINE_BYTES = 64 * 2**20
"""A longer line is no record of one example or entity; it is counted as bad, without being held in memory."""

# Bytes that are not UTF-8 become lone surrogates, which no valid text holds, and so are found per record.
_DECODING = {"encoding": "utf-8-sig", "errors": "surrogateescape"}

NOT_UTF8 = "not valid UTF-8"
FROM_GBK = (
    "A Chinese Excel writes GBK: save as CSV UTF-8 there, or convert with "
    "iconv -f GB18030 -t UTF-8 OLD > NEW."
)


class BadRecord(Exception):
    """A record that cannot be used: the kind of fault, and what exactly."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return self.reason + (f" ({self.detail})" if self.detail else "")


OnBytes = Callable[[int], None]
"""Called with the number of bytes read since the last call."""


def _unreadable(path: Path, error: OSError) -> UserError:
    return UserError(f"Cannot read {path}: {error.strerror}. Check the name and its permissions.")


def _expand(path: Path) -> list[Path]:
    """The files that one given file, folder or pattern stands for."""
    if path.is_dir():
        files = sorted(
            entry for entry in path.iterdir() if entry.suffix.lower() in SUFFIXES and entry.is_file()
        )
        if not files:
            raise UserError(f"The folder {path} holds no data file; allowed are {', '.join(SUFFIXES)}.")
        return files
    if path.exists() or not glob.has_magic(str(path)):
        return [path]
    files = sorted(match for match in _matches(path) if match.is_file())
    if not files:
        raise UserError(f"No file matches {path}; give a file, a folder or a pattern that matches.")
    return files


def _matches(pattern: Path) -> Iterator[Path]:
    """Paths that match; the part before the first wildcard is where the search starts."""
    fixed = list(takewhile(lambda part: not glob.has_magic(part), pattern.parts))
    return Path(*fixed).glob(str(Path(*pattern.parts[len(fixed) :])))


def expand_files(paths: Sequence[str | Path]) -> tuple[Path, ...]:
    """Files, globs and folders -> the data files, in the order given.

    Those of a folder (not of folders within it) and of a glob are sorted by name.

    Raises:
        UserError: nothing given, a file is missing, of an unknown kind, empty or given twice; a glob or
            folder without data files.
    """
    found: list[Path] = []
    for given in paths:
        path = Path(given).expanduser()
        try:
            found.extend(_expand(path))
        except OSError as error:
            raise _unreadable(path, error) from error
    if not found:
        raise UserError(f"No data file is given; give one or more of {', '.join(SUFFIXES)}.")
    for path in found:
        _check_file(path)
    for before, after in pairwise(sorted(path.resolve() for path in found)):
        if before == after:
            raise UserError(f"The data file {after} is given twice; each record would be used twice.")
    return tuple(found)


def _check_file(path: Path) -> None:
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        raise UserError(f"The data file {path} does not exist; check the name.") from None
    except OSError as error:
        raise _unreadable(path, error) from error
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(
            f"The data file {path} ends in {path.suffix or 'no suffix'!r}; allowed are {', '.join(SUFFIXES)}."
        )
    if size == 0:
        raise UserError(f"The data file {path} is empty (0 bytes).")


def file_sha256(path: Path) -> str:
    """SHA-256 of the file's bytes, hexadecimal; UserError when it cannot be read."""
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise _unreadable(path, error) from error


def iter_objects(path: Path, on_bytes: OnBytes | None = None) -> Iterator[tuple[int, object]]:
    """Records of one file in order: (line number, object), or (line number, BadRecord) where unreadable.

    Line numbers count from 1 and are those of the record's first line. Blank lines are no records.

    Raises:
        UserError: the file cannot be read, is UTF-16, or is broken in such a way that the records after the
            fault cannot be found.
    """
    on_bytes = on_bytes or (lambda count: None)
    try:
        with path.open("rb") as stream:
            if stream.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
                raise UserError(f"The data file {path} is UTF-16; save it as UTF-8.")
        kind = SUFFIXES[path.suffix.lower()]
        if kind == "json" and _is_one_object_a_line(path):
            kind = "lines"
        if kind == "lines":
            yield from _iter_lines(path, on_bytes)
        else:
            yield from {"json": _iter_json, "csv": _iter_csv}[kind](path, on_bytes)
    except OSError as error:
        raise _unreadable(path, error) from error


def _iter_lines(path: Path, on_bytes: OnBytes) -> Iterator[tuple[int, object]]:
    with path.open("rb") as stream:
        for number, line in enumerate(_bounded_lines(stream, MAX_LINE_BYTES), start=1):
            on_bytes(len(line))
            if len(line) > MAX_LINE_BYTES:
                yield number, BadRecord("line too long", f"more than {MAX_LINE_BYTES:,} bytes")
                continue
            if number == 1:
                line = line.removeprefix(codecs.BOM_UTF8)
            if not line.strip():
                continue
            yield number, _parse_line(line)


def _bounded_lines(stream: BinaryIO, max_bytes: int) -> Iterator[bytes]:
    """Lines of a file; of a longer one no more than its first `max_bytes` + 1 bytes."""
    while line := stream.readline(max_bytes + 1):
        rest = line
        while not rest.endswith(b"\n") and len(line) > max_bytes and rest:
            rest = stream.readline(max_bytes)
        yield line


def _parse_line(line: bytes) -> object:
    try:
        return json.loads(line.decode())
    except UnicodeDecodeError as error:
        return BadRecord(NOT_UTF8, f"byte {error.start + 1} of the line")
    except (ValueError, RecursionError) as error:
        return BadRecord("broken JSON", str(error))


def _is_one_object_a_line(path: Path) -> bool:
    """Whether a `.json` file is JSON lines: its first line is an object by itself, not {"data": […]}."""
    with path.open(**_DECODING) as stream:
        first = next((line for line in stream if line.strip()), "")
    if not first.lstrip().startswith("{"):
        return False
    try:
        value = json.loads(first)
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) and not isinstance(value.get("data"), list)


def _is_utf8(text: str) -> bool:
    return not any("\udc80" <= character <= "\udcff" for character in text)


def _skip_blank(text: str, at: int) -> int:
    while at < len(text) and text[at] in " \t\r\n":
        at += 1
    return at


def _iter_json(path: Path, on_bytes: OnBytes) -> Iterator[tuple[int, object]]:
    text = path.read_text(**_DECODING)
    on_bytes(path.stat().st_size)
    start = _skip_blank(text, 0)
    if text[start : start + 1] == "{":
        try:
            found = _find_data_array(text, start)
        except (ValueError, RecursionError):
            # Not one document; most likely one object a line, the first of them broken.
            yield from _iter_lines(path, lambda count: None)
            return
        if found is None:
            yield text.count("\n", 0, start) + 1, json.loads(text[start:])
            return
        start = found
    if text[start : start + 1] != "[":
        raise UserError(
            f'The data file {path} is neither a JSON array of objects nor {{"data": [...]}}, '
            f"but starts with {text[start : start + 20]!r}."
        )
    yield from _iter_array(path, text, start)


def _find_data_array(text: str, start: int) -> int | None:
    """Where the array of a document {"data": […]} starts; None when it is an object without one.

    Raises:
        ValueError: the object that starts at `start` is broken before that, or is not all of the text.
    """
    decoder = json.JSONDecoder()
    at = _skip_blank(text, start + 1)
    while text[at : at + 1] == '"':
        key, at = decoder.raw_decode(text, at)
        at = _skip_blank(text, at)
        if text[at : at + 1] != ":":
            raise ValueError("no ':' after a name")
        at = _skip_blank(text, at + 1)
        if key == "data" and text[at : at + 1] == "[":
            return at
        _, at = decoder.raw_decode(text, at)
        at = _skip_blank(text, at)
        if text[at : at + 1] == ",":
            at = _skip_blank(text, at + 1)
    json.loads(text[start:])
    return None


def _iter_array(path: Path, text: str, start: int) -> Iterator[tuple[int, object]]:
    """Elements of the array at `start`, decoded one at a time."""
    decoder = json.JSONDecoder()
    line, counted = 1, 0
    at = _skip_blank(text, start + 1)
    if text[at : at + 1] == "]":
        return
    while True:
        line, counted = line + text.count("\n", counted, at), at
        try:
            value, at = decoder.raw_decode(text, at)
            at = _skip_blank(text, at)
            if text[at : at + 1] not in (",", "]"):
                raise ValueError("expected ',' or ']' after the record")
        except (ValueError, RecursionError) as error:
            raise UserError(
                f"The JSON array in {path} is broken in the record that starts at line {line} ({error}); "
                "what follows cannot be read. Mend it, or give one object a line in a .jsonl file, where a "
                "broken line does not spoil the others."
            ) from error
        yield line, value
        if text[at] == "]":
            return
        at = _skip_blank(text, at + 1)


def _iter_csv(path: Path, on_bytes: OnBytes) -> Iterator[tuple[int, object]]:
    with path.open(newline="", **_DECODING) as stream:
        has_ended = False

        def lines() -> Iterator[str]:
            nonlocal has_ended
            yield from stream
            has_ended = True

        reader = csv.reader(lines(), strict=True)
        try:
            header = next((row for row in reader if row), [])
        except csv.Error as error:
            raise UserError(f"The header line of {path} cannot be read: {error}.") from error
        if any(not _is_utf8(name) for name in header):
            raise UserError(f"The header of {path} is not UTF-8. {FROM_GBK}")
        if len(set(header)) < len(header):
            raise UserError(f"The header of {path} names a column twice: {', '.join(header)}.")
        done = 0
        while True:
            line = reader.line_num + 1
            try:
                row = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                if has_ended:
                    raise UserError(
                        f"The CSV file {path} ends within the record that starts at line {line} ({error}): a "
                        'quote (") is opened there and not closed. Close it, or double it if it is text.'
                    ) from error
                # A quote that is left open swallows lines: each of them is lost, so each of them counts.
                for lost in range(line, reader.line_num + 1):
                    yield lost, BadRecord("broken CSV", str(error))
                continue
            on_bytes(stream.buffer.tell() - done)
            done = stream.buffer.tell()
            if len(row) == len(header):
                yield line, dict(zip(header, row, strict=True))
            elif row:
                yield line, BadRecord("broken CSV", f"{len(row)} fields under {len(header)} columns")

"""Data files -> a folder with the tokens (Arrow) and a manifest (JSON) that is written last."""

import hashlib
import json
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import chain, islice
from pathlib import Path

import numpy as np

from medsft.data.encode import Encoded, Tokenizer, encode_example
from medsft.data.records import BadLine, Columns, Example, iter_file
from medsft.data.summary import Summary, length_quantiles
from medsft.data.template import AUTO, detect_template
from medsft.data.workers import mapped
from medsft.files import sync

ARROW_FILE = "tokens.arrow"
MANIFEST_FILE = "manifest.json"

CHUNK_EXAMPLES = 1000
"""Examples that are encoded and written at a time."""

DETECTION_EXAMPLES = 100
"""Examples by which the template is recognised."""

FIRST_BAD = 10
"""Bad records kept with file:line; the others are counted."""

Progress = Callable[[int, int], None]
"""Called now and then with the bytes of the data files done so far, and in all."""


@dataclass(frozen=True)
class EncodingSettings:
    """What, beside the files and the tokenizer, decides about the tokens.

    Attributes:
        columns: column names, see `Columns`.
        template: prompt template or "auto".
        max_source_length: limit of prompt and [gMASK], tokens.
        max_target_length: limit of <sop>, answer and <eop>, tokens.
        max_samples: use only the first so many examples; None: all.
    """

    columns: Columns
    template: str
    max_source_length: int
    max_target_length: int
    max_samples: int | None


@dataclass(frozen=True)
class _Record:
    """A record on its way, with its file's number and its line."""

    file: int
    line: int
    value: Example | BadLine


@dataclass(frozen=True)
class _ChunkEncoder:
    """Encodes a chunk of records; bad ones pass. Picklable, so that other processes can do it."""

    tokenizer: Tokenizer
    max_source_length: int
    max_target_length: int
    template: str

    def __call__(self, chunk: Sequence[_Record]) -> list[Encoded | BadLine]:
        return [self._encode(record.value) for record in chunk]

    def _encode(self, value: Example | BadLine) -> Encoded | BadLine:
        if isinstance(value, BadLine):
            return value
        encoded = encode_example(
            value, self.tokenizer, self.max_source_length, self.max_target_length, self.template
        )
        # Text of characters that normalisation removes passes for text until here.
        if not encoded.num_prompt_tokens:
            return BadLine(value.source, "empty prompt", "no token is left of it")
        if not encoded.num_answer_tokens:
            return BadLine(value.source, "empty answer", "no token is left of it")
        return encoded


def _read(
    files: Sequence[Path], columns: Columns, max_samples: int | None, on_bytes: Callable[[int], None]
) -> Iterator[_Record]:
    """Records of all files in order, up to and including the example number `max_samples`."""
    num_examples = 0
    for number, path in enumerate(files):
        for line, value in iter_file(path, columns, on_bytes):
            yield _Record(number, line, value)
            num_examples += isinstance(value, Example)
            if num_examples == max_samples:
                return


def _chunks(records: Iterable[_Record]) -> Iterator[list[_Record]]:
    iterator = iter(records)
    while chunk := list(islice(iterator, CHUNK_EXAMPLES)):
        yield chunk


class _Counts:
    """Running counts of a build."""

    def __init__(self) -> None:
        self.lengths = array("q")
        self.num_targets = 0
        self.num_sources_cut = 0
        self.num_targets_cut = 0
        self.bad_by_reason: Counter[str] = Counter()
        self.first_bad: list[list[object]] = []
        self.content = hashlib.sha256()

    def add(self, encoded: Encoded) -> None:
        self.lengths.append(len(encoded.input_ids))
        self.num_targets += encoded.num_targets
        self.num_sources_cut += encoded.source_cut
        self.num_targets_cut += encoded.target_cut
        head = (len(encoded.input_ids), encoded.context_length)
        self.content.update(np.array([*head, *encoded.input_ids], dtype="<i4").tobytes())

    def add_bad(self, record: _Record, bad: BadLine) -> None:
        self.bad_by_reason[bad.reason] += 1
        if len(self.first_bad) < FIRST_BAD:
            # The number of the file, not its name: the same content may be read from elsewhere next time.
            self.first_bad.append([record.file, record.line, bad.reason, bad.detail])

    def summary(self, template: str) -> dict[str, object]:
        return {
            "template": template,
            "num_examples": len(self.lengths),
            "num_bad": self.bad_by_reason.total(),
            "bad_by_reason": dict(self.bad_by_reason.most_common()),
            "first_bad": self.first_bad,
            "num_sources_cut": self.num_sources_cut,
            "num_targets_cut": self.num_targets_cut,
            "num_tokens": sum(self.lengths),
            "num_targets": self.num_targets,
            "length_quantiles": length_quantiles(self.lengths),
        }


def build(
    folder: Path,
    files: Sequence[Path],
    tokenizer: Tokenizer,
    settings: EncodingSettings,
    num_workers: int = 1,
    progress: Progress | None = None,
) -> None:
    """Encode `files` into `folder`, which exists and is empty: the tokens, then the manifest, both synced.

    Raises:
        UserError: a file cannot be read. Bad records do not raise, they are counted.
        OSError: the folder cannot be written to.
    """
    from datasets import Features, List, Value
    from datasets.arrow_writer import ArrowWriter

    num_bytes = sum(path.stat().st_size for path in files)
    num_bytes_read = 0

    def on_bytes(count: int) -> None:
        nonlocal num_bytes_read
        num_bytes_read += count

    records = _read(files, settings.columns, settings.max_samples, on_bytes)
    template = settings.template
    if template == AUTO:
        first = list(islice(records, DETECTION_EXAMPLES))
        template = detect_template(record.value for record in first if isinstance(record.value, Example))
        records = chain(first, records)
    encoder = _ChunkEncoder(tokenizer, settings.max_source_length, settings.max_target_length, template)
    features = Features(
        input_ids=List(Value("int32")),
        context_length=Value("int32"),
        file=Value("int32"),
        line=Value("int64"),
    )
    counts = _Counts()
    with ArrowWriter(features=features, path=str(folder / ARROW_FILE)) as writer:
        # Spawned, not forked: the trainer has threads by now, and a fork of threads may hang.
        for chunk, encoded_chunk in mapped(encoder, _chunks(records), num_workers, "spawn"):
            rows: dict[str, list] = {name: [] for name in features}
            for record, encoded in zip(chunk, encoded_chunk, strict=True):
                if isinstance(encoded, BadLine):
                    counts.add_bad(record, encoded)
                    continue
                counts.add(encoded)
                rows["input_ids"].append(encoded.input_ids)
                rows["context_length"].append(encoded.context_length)
                rows["file"].append(record.file)
                rows["line"].append(record.line)
            if rows["line"]:
                writer.write_batch(rows)
            if progress is not None:
                progress(num_bytes_read, num_bytes)
        writer.finalize()
    sync(folder / ARROW_FILE)
    manifest = {
        "fingerprint": counts.content.hexdigest(),
        "arrow_bytes": (folder / ARROW_FILE).stat().st_size,
        "files": [path.name for path in files],
        "settings": asdict(settings),
        "summary": counts.summary(template),
    }
    (folder / MANIFEST_FILE).write_text(json.dumps(manifest, ensure_ascii=False, indent=1), encoding="utf-8")
    sync(folder / MANIFEST_FILE)
    sync(folder)


def summary_from_manifest(manifest: dict, files: Sequence[Path]) -> Summary:
    """The summary of a manifest, with the names that the files have now."""
    values = dict(manifest["summary"])
    values["first_bad"] = tuple(
        BadLine(f"{files[number]}:{line}", reason, detail)
        for number, line, reason, detail in values["first_bad"]
    )
    return Summary(**values)

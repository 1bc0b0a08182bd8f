"""What a checkpoint says of itself: manifest.json, its fields and the digest that guards it.

The format is described for other programs in docs/checkpoint-format.md.
"""

from __future__ import annotations

import hashlib
import json
import math
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from datetime import datetime
from functools import cache
from pathlib import Path, PurePosixPath
from types import NoneType, UnionType
from typing import Any, Self, get_args, get_origin, get_type_hints

from medsft.checkpoint.layout import MANIFEST
from medsft.engine.adam import STATES
from medsft.errors import UserError
from medsft.files import write_text

FORMAT = "medsft-checkpoint"
FORMAT_VERSION = 1
"""Raised when a reader of the version before would misunderstand what is written."""

_HEX = frozenset("0123456789abcdef")


class DamagedError(UserError):
    """A checkpoint that is not as it was written.

    path: the file. problem: what was expected and what was found, the end of a sentence about the file.
    """

    def __init__(self, path: Path, problem: str) -> None:
        super().__init__(path, problem)  # its arguments, so that it can be pickled
        self.path = path
        self.problem = problem

    def __str__(self) -> str:
        return f"{self.path} is damaged: {self.problem}. Restore it from a copy, or use another checkpoint."


@dataclass(frozen=True)
class FileEntry:
    """size: bytes. sha256: of all of them, hexadecimal."""

    size: int
    sha256: str


@dataclass(frozen=True)
class Slice:
    """Elements start … end-1 of a flattened parameter, and the file that holds them in all states."""

    file: str
    start: int
    end: int


@dataclass(frozen=True)
class Parameter:
    """slices: in order, without gap or overlap, none empty, from 0 to the number of elements."""

    shape: tuple[int, ...]
    slices: tuple[Slice, ...]

    @property
    def num_elements(self) -> int:
        """Of the whole parameter."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class RankState:
    """What each rank has of its own.

    figures_loss_sum: its share of the cross-entropy since the last report, in nats. rng: generator name ->
    base64 of its state's bytes.
    """

    figures_loss_sum: float
    rng: Mapping[str, str]


@dataclass(frozen=True)
class Identity:
    """What a run that resumes must have in common; the first three are fingerprints, hexadecimal.

    global_batch_size counts examples in a step.
    """

    model: str
    tokenizer: str
    data: str
    seed: int
    global_batch_size: int


@dataclass(frozen=True)
class Validation:
    """loss: mean over the supervised tokens of the validation data, in nats, after `step` steps.

    data: fingerprint of the validation data; None: not known, in checkpoints from before it was kept.
    """

    step: int
    loss: float
    data: str | None = None

    def is_comparable(self, data: str | None) -> bool:
        """Whether it was measured on the data of that fingerprint; unknown data are taken for the same."""
        return None in (self.data, data) or self.data == data


@dataclass(frozen=True)
class Manifest:
    """A checkpoint without its tensors. Everything in it can be written as JSON: no NaN, no infinity.

    Attributes:
        step: steps done.
        epoch: passes over the data done, with a fraction.
        examples_seen, tokens_seen: since the start of the run, over all ranks.
        train_loss: the last reported one, in nats a supervised token; None before the first report.
        validation: the most recent one whose loss is a number, or None.
        created: UTC, ISO 8601.
        world_size: ranks that wrote it.
        identity: what a run that resumes is compared with.
        plan: num_examples, num_steps, num_examples_total, global_batch_size, seed, fingerprint.
        base_model: folder of the weights that the run began with.
        prompt_template: form of the questions.
        flags, deepspeed, versions: all flags, the DeepSpeed configuration, package -> version.
        adam_step: updates that Adam has done.
        loss_scaler: numbers of fp16's loss scaler that change from step to step.
        counters: skipped steps and the figures since the last report, over all ranks.
        ranks: one for each rank, in order.
        files: every file of the folder but the manifest; name relative to the folder, with "/".
        parameters: in the model's order.
    """

    step: int
    epoch: float
    examples_seen: int
    tokens_seen: int
    train_loss: float | None
    validation: Validation | None
    created: str
    world_size: int
    identity: Identity
    plan: Mapping[str, Any]
    base_model: str
    prompt_template: str
    flags: Mapping[str, Any]
    deepspeed: Mapping[str, Any]
    versions: Mapping[str, str]
    adam_step: int
    loss_scaler: Mapping[str, Any]
    counters: Mapping[str, int | float | None]
    ranks: tuple[RankState, ...]
    files: Mapping[str, FileEntry]
    parameters: Mapping[str, Parameter]

    def num_bytes(self) -> int:
        """Size of all files but the manifest."""
        return sum(entry.size for entry in self.files.values())

    def to_json(self) -> dict[str, Any]:
        """The object in manifest.json, its digest included.

        Raises ValueError or TypeError for what JSON cannot hold.
        """
        content = {"format": FORMAT, "format_version": FORMAT_VERSION, **_encode(self)}
        return {**content, "sha256": content_digest(content)}

    @classmethod
    def from_json(cls, content: Any) -> Self:
        """The manifest of such an object; fields it does not know are ignored.

        Raises ValueError, with the end of a sentence, where the digest, the version, a field's type or the
        content is wrong.
        """
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise ValueError(f'it is no JSON object with "format": "{FORMAT}"')
        found, computed = content.get("sha256"), content_digest(content)
        if found != computed:
            raise ValueError(f"its content has the SHA-256 {computed}, its field sha256 says {found}")
        version = content.get("format_version")
        if type(version) is not int or version != FORMAT_VERSION:
            raise ValueError(f"its format_version is {version!r}, the known one is {FORMAT_VERSION}")
        manifest = _decode(cls, content, "")
        check_consistent(manifest)
        return manifest


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Writes manifest.json, flushed, complete or not at all. It must be the last file of a checkpoint.

    Raises ValueError or TypeError for a manifest that `read_manifest` would refuse.
    """
    check_consistent(manifest)
    write_text(folder / MANIFEST, _render(manifest.to_json(), 2, "") + "\n")


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a checkpoint; the other files are not looked at.

    Raises `DamagedError` where it is missing or not as it was written, and `UserError` where a newer medsft
    wrote it.
    """
    path = folder / MANIFEST
    try:
        content = json.loads(path.read_bytes().decode("utf-8"))
    except FileNotFoundError as error:
        raise DamagedError(path, "it is missing") from error
    except OSError as error:
        raise DamagedError(path, f"it cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise DamagedError(path, f"it is no JSON in UTF-8 ({error})") from error
    if _is_of_newer_format(content):
        raise UserError(
            f"{path} has format_version {content['format_version']}; this medsft reads {FORMAT_VERSION}. "
            "Update medsft to use this checkpoint."
        )
    try:
        return Manifest.from_json(content)
    except ValueError as error:
        raise DamagedError(path, str(error)) from error


def tensor_name(state: str, parameter: str) -> str:
    """Name of a slice inside its file."""
    assert state in STATES, state
    return f"{state}.{parameter}"


def even_slices(num_elements: int, files: Sequence[str]) -> tuple[Slice, ...]:
    """The slices that ZeRO-3 cuts a parameter into, given the files of all ranks in order.

    Each but the last has ceil(num_elements / ranks) elements; empty ones are left out.
    """
    size = math.ceil(num_elements / len(files))
    starts = range(0, num_elements, size) if num_elements else ()
    return tuple(
        Slice(file, start, min(start + size, num_elements))
        for file, start in zip(files, starts, strict=False)
    )


def content_digest(content: Mapping[str, Any]) -> str:
    """SHA-256 of an object without its field sha256, hexadecimal: of its JSON with sorted keys, no blanks."""
    rest = {name: value for name, value in content.items() if name != "sha256"}
    return hashlib.sha256(_dumps(rest, sort_keys=True).encode("utf-8")).hexdigest()


def check_consistent(manifest: Manifest) -> None:
    """Raises ValueError, with the end of a sentence, where the parts of a manifest contradict each other."""
    if len(manifest.ranks) != manifest.world_size or manifest.world_size < 1:
        raise ValueError(f"its world_size is {manifest.world_size}, and it has {len(manifest.ranks)} ranks")
    if min(manifest.step, manifest.examples_seen, manifest.tokens_seen, manifest.adam_step) < 0:
        raise ValueError("it has a negative count of steps, examples or tokens")
    if datetime.fromisoformat(manifest.created).tzinfo is None:
        raise ValueError(f"its time created is {manifest.created}, without a time zone")
    for name, entry in manifest.files.items():
        if not _is_inside(name):
            raise ValueError(f"it lists the file {name!r}, which is no name inside a checkpoint")
        if entry.size < 0 or len(entry.sha256) != 64 or not _HEX.issuperset(entry.sha256):
            raise ValueError(f"its entry of the file {name} is impossible: {entry}")
    for name, parameter in manifest.parameters.items():
        _check_slices(name, parameter, manifest.files)


def _check_slices(name: str, parameter: Parameter, files: Mapping[str, FileEntry]) -> None:
    if min(parameter.shape, default=0) < 0:
        raise ValueError(f"the shape of {name} is {parameter.shape}")
    reached = 0
    for piece in parameter.slices:
        if piece.start != reached or piece.end <= piece.start:
            raise ValueError(
                f"a slice of {name} has the elements {piece.start} to {piece.end}, and {reached} come before"
            )
        if piece.file not in files:
            raise ValueError(f"a slice of {name} is in {piece.file}, which is not among its files")
        reached = piece.end
    if reached != parameter.num_elements:
        raise ValueError(f"the slices of {name} have {reached} elements of {parameter.num_elements}")
    if len({piece.file for piece in parameter.slices}) < len(parameter.slices):
        raise ValueError(f"two slices of {name} are in one file")


def _is_inside(name: str) -> bool:
    """Whether it can be joined to the folder's path without leaving it."""
    path = PurePosixPath(name)
    is_plain = str(path) == name and not path.is_absolute() and ".." not in path.parts
    return is_plain and name not in (".", MANIFEST)


def _is_of_newer_format(content: Any) -> bool:
    """Asked only of a manifest that is whole: a flipped bit in the version must not send anyone updating.

    For this, all versions keep `format`, `format_version` and `sha256` as they are.
    """
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        return False
    version = content.get("format_version")
    is_newer = type(version) is int and version > FORMAT_VERSION
    return is_newer and content.get("sha256") == content_digest(content)


def _dumps(value: Any, sort_keys: bool = False) -> str:
    return json.dumps(value, sort_keys=sort_keys, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def _render(value: Any, depth: int, indent: str) -> str:
    """JSON with a line for each entry down to `depth`, compact below: readable, and small at 64 ranks."""
    if depth == 0 or not value or not isinstance(value, dict | list):
        return _dumps(value)
    inner = indent + " "
    if isinstance(value, dict):
        lines = [f"{_dumps(key)}: {_render(item, depth - 1, inner)}" for key, item in value.items()]
    else:
        lines = [_render(item, depth - 1, inner) for item in value]
    begin, end = "{}" if isinstance(value, dict) else "[]"
    return begin + "\n" + ",\n".join(inner + line for line in lines) + f"\n{indent}{end}"


def _encode(value: Any) -> Any:
    """Dataclasses as objects, slices as [file, start, end], mappings and sequences as JSON has them."""
    if isinstance(value, Slice):
        return [value.file, value.start, value.end]
    if is_dataclass(value):
        return {field.name: _encode(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {key: _encode(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_encode(item) for item in value]
    return value


def _decode(kind: Any, value: Any, where: str) -> Any:
    """The reverse of `_encode` for a field of type `kind`; ValueError names the place where it fails."""
    if kind is Any:
        return value
    if get_origin(kind) is UnionType:
        kinds = get_args(kind)
        if value is None and NoneType in kinds:
            return None
        return _decode(next((each for each in kinds if each is type(value)), kinds[0]), value, where)
    if kind is Slice:
        _expect(list, value, where)
        if [type(item) for item in value] != [str, int, int]:
            raise ValueError(f"{where} is {reprlib.repr(value)}, not [file, start, end]")
        return Slice(*value)
    if is_dataclass(kind):
        _expect(dict, value, where)
        hints = _hints(kind)
        must = [field.name for field in fields(kind) if field.default is MISSING]
        if missing := [name for name in must if name not in value]:
            raise ValueError(f"{where or 'it'} lacks {', '.join(missing)}")
        return kind(
            **{
                name: _decode(hint, value[name], f"{where}.{name}".lstrip("."))
                for name, hint in hints.items()
                if name in value
            }
        )
    if get_origin(kind) is tuple:
        _expect(list, value, where)
        return tuple(_decode(get_args(kind)[0], item, where) for item in value)
    if get_origin(kind) is Mapping:
        _expect(dict, value, where)
        return {key: _decode(get_args(kind)[1], item, f"{where}.{key}") for key, item in value.items()}
    if kind is float and type(value) is int:
        return float(value)
    _expect(kind, value, where)
    return value


def _expect(kind: type, value: Any, where: str) -> None:
    if type(value) is not kind:
        names = {list: "an array", dict: "an object", str: "text", int: "a whole number", float: "a number"}
        raise ValueError(f"{where} is {reprlib.repr(value)}, not {names[kind]}")


@cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)

"""A graph -> training, validation and test pairs with no entity in two of them.

| file | what it measures |
| --- | --- |
| `train.jsonl` | |
| `validation.jsonl` | unseen entities, for the loss while training |
| `test.jsonl` | generalisation: unseen entities |
| `recall.jsonl` | recall: facts of training entities, in a phrasing they were not trained in |

Which part an entity is in follows from its name and the seed, so that a graph that grows moves nobody. Pairs
are made within each part. A question may still name an entity of another part as a value (what can lead to a
stroke, where stroke is in the test); such pairs are left out and counted.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from medsft.data.files import expand_files
from medsft.data.progress import Steps, bytes_of, counting, silent_steps
from medsft.data.writing import check_output
from medsft.errors import UserError
from medsft.knowledge.card import NOTE, write_card
from medsft.knowledge.graph import Graph, read_graph
from medsft.knowledge.kinds.single import phrased
from medsft.knowledge.mentions import Names
from medsft.knowledge.pair import Pair
from medsft.knowledge.pair_file import write_pairs
from medsft.knowledge.pairs import KINDS, PairRecipe, Portion
from medsft.knowledge.templates import DEFAULT_TEMPLATES, load_templates

PARTS = ("train", "validation", "test")
RECALL = "recall"
CARD = "split.card.md"
_LISTED = re.compile(r"\| (\w+\.jsonl) \| [0-9a-f]{64} \|$")


@dataclass(frozen=True)
class SplitSummary:
    """What was made.

    Attributes:
        num_entities: part -> entities.
        num_pairs: file (a part, or recall) -> kind -> pairs.
        num_crossing: pairs left out because their question names an entity of another part.
    """

    num_entities: Mapping[str, int]
    num_pairs: Mapping[str, Mapping[str, int]]
    num_crossing: int

    def describe(self) -> str:
        """One paragraph for people."""
        parts = [
            f"{name}: {sum(kinds.values()):,} pairs"
            + (f" of {self.num_entities[name]:,} entities" if name in self.num_entities else "")
            for name, kinds in self.num_pairs.items()
        ]
        crossing = f"; {self.num_crossing:,} pairs left out whose question names an entity of another part"
        return "; ".join(parts) + crossing


def part_of(name: str, shares: Sequence[float], seed: int) -> str:
    """The part that an entity belongs to, by its name alone."""
    digest = hashlib.sha256(f"{seed}\x1fpart\x1f{name}".encode()).digest()
    place = int.from_bytes(digest[:8]) / 2**64
    for part, share in zip(PARTS, shares, strict=True):
        if place < share:
            return part
        place -= share
    return PARTS[0]


def split_graph(graph: Graph, shares: Sequence[float], seed: int) -> dict[str, Graph]:
    """Part -> the graph of its entities. Raises `UserError` for wrong shares and for an empty part."""
    if len(shares) != len(PARTS) or min(shares) < 0 or abs(sum(shares) - 1) > 1e-6 or not shares[0]:
        raise UserError(
            f"The shares {', '.join(f'{share:g}' for share in shares)} must be three numbers (training, "
            "validation, test) that add up to 1, the first above 0."
        )
    entities: dict[str, list] = {part: [] for part in PARTS}
    for entity in graph.entities:
        entities[part_of(entity.name, shares, seed)].append(entity)
    empty = [part for part, share in zip(PARTS, shares, strict=True) if share and not entities[part]]
    if empty:
        raise UserError(
            f"None of the graph's {len(graph.entities)} entities falls to {', '.join(empty)} with the shares "
            f"{', '.join(f'{share:g}' for share in shares)}; raise these, or give another seed."
        )
    return {part: replace(graph, entities=tuple(some)) for part, some in entities.items()}


@dataclass(frozen=True)
class _Part:
    """What makes the pairs of a part: of the recipe's, those that name no entity of another part."""

    recipe: PairRecipe
    names: Names

    def pairs(self, portion: Portion) -> Iterator[Pair | None]:
        """The pairs of a portion; None for a question that names an entity of another part."""
        return (pair if self._is_own(pair) else None for pair in self.recipe.pairs(portion))

    def recall(self, portion: Portion) -> Iterator[Pair]:
        """The facts of a single portion in the phrasing that follows those taken, if there is one."""
        asked = (pair for pair in self.recipe.pairs(portion) if self._is_own(pair))
        facts = {(pair.entities, pair.relations) for pair in {pair.question: pair for pair in asked}.values()}
        which = slice(self.recipe.num_phrasings, self.recipe.num_phrasings + 1)
        for entity in self.recipe.subjects[portion.kind][portion.start : portion.stop]:
            for pair in phrased(entity, self.recipe.templates, self.recipe.choose, which):
                if (pair.entities, pair.relations) in facts:
                    yield pair

    def _is_own(self, pair: Pair) -> bool:
        return all(self.recipe.around.has(name) for name in self.names.found_in(pair.question))


def write_split(
    graph_files: Sequence[str | Path],
    folder: Path,
    shares: Sequence[float] = (0.8, 0.1, 0.1),
    seed: int = 0,
    kinds: Sequence[str] = KINDS,
    num_phrasings: int = 2,
    max_bad_share: float = 0.01,
    templates_file: Path = DEFAULT_TEMPLATES,
    num_workers: int = 1,
    steps: Steps = silent_steps,
) -> SplitSummary:
    """Writes the four files and a data card, split.card.md, which comes last.

    Recall questions are of the kind single; none of them stands in the training pairs. An earlier split in
    the folder is replaced, parts that are not written now are deleted. Arguments as in `read_graph`,
    `split_graph`, `PairRecipe` and `write_pairs`. Raises `UserError` as these do, for a folder that cannot be
    written, and for one that holds other files of these names.
    """
    paths = expand_files(graph_files)
    templates = load_templates(templates_file)
    PairRecipe(Graph((), 0, ()), templates, seed, kinds, num_phrasings)
    with steps("reading") as progress:
        graph = read_graph(paths, max_bad_share, counting(progress, bytes_of(paths)))
    parts = split_graph(graph, shares, seed)
    _check_room(folder, [*(part for part in PARTS if parts[part].entities), RECALL], paths)
    with _unfinished(folder) as unfinished:
        summary = _write_parts(
            unfinished, parts, PairRecipe(graph, templates, seed, kinds, num_phrasings), num_workers, steps
        )
        _move(unfinished, folder, list(summary.num_pairs))
    settings = {
        "seed": seed,
        "shares": ", ".join(f"{part} {share:g}" for part, share in zip(PARTS, shares, strict=True)),
        "kinds": ", ".join(kinds),
        "phrasings of a fact": num_phrasings,
    }
    outputs = [folder / f"{name}.jsonl" for name in summary.num_pairs]
    write_card(folder / CARD, outputs, graph_files, templates_file, settings, summary)
    return summary


def _write_parts(
    folder: Path, parts: Mapping[str, Graph], recipe: PairRecipe, num_workers: int, steps: Steps
) -> SplitSummary:
    """The files, without a card; `recipe`: of the whole graph."""
    names = Names(entity.name for entity in recipe.graph.entities)
    num_pairs: dict[str, Mapping[str, int]] = {}
    num_crossing = 0
    for name, some in parts.items():
        part = _Part(replace(recipe, graph=some), names)
        portions = list(part.recipe.portions)
        with steps(f"writing {name}.jsonl") as progress:
            written = write_pairs(
                folder / f"{name}.jsonl", part.pairs, portions, recipe.seed, num_workers, progress=progress
            )
        num_pairs[name] = written.num_pairs
        num_crossing += written.num_left_out
        if name != PARTS[0]:
            continue
        if not written.num_pairs:
            raise UserError(
                f"The training entities give no pair of the kinds {', '.join(recipe.kinds)}; ask for others."
            )
        singles = [portion for portion in portions if portion.kind == "single"]
        with steps(f"writing {RECALL}.jsonl") as progress:
            recalled = write_pairs(
                folder / f"{RECALL}.jsonl",
                part.recall,
                singles,
                recipe.seed,
                num_workers,
                unlike=written.keys,
                progress=progress,
            )
    num_pairs[RECALL] = recalled.num_pairs
    return SplitSummary(
        num_entities={part: len(some.entities) for part, some in parts.items()},
        num_pairs={name: kinds for name, kinds in num_pairs.items() if kinds},
        num_crossing=num_crossing,
    )


@contextmanager
def _unfinished(folder: Path) -> Iterator[Path]:
    """A folder within, for files that take their place when all are whole; what a killed split left goes."""
    path = folder / ".unfinished"
    try:
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"The folder {folder} cannot be written: {error.strerror}.") from error
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _move(unfinished: Path, folder: Path, names: Collection[str]) -> None:
    """Moves the files into place and deletes parts of an earlier split that are not written now."""
    earlier = _names_in_card(folder / CARD)
    try:
        for name in (*PARTS, RECALL):
            file = f"{name}.jsonl"
            if name in names:
                (unfinished / file).replace(folder / file)
            elif file in earlier:
                (folder / file).unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"The earlier {folder / file} cannot be replaced: {error.strerror}.") from error


def _check_room(folder: Path, names: Collection[str], graph_files: Sequence[Path]) -> None:
    """Raises `UserError` where a file stands in the way that is not known to be of an earlier split."""
    for name in (*PARTS, RECALL):
        check_output(folder / f"{name}.jsonl", graph_files)
    earlier = _names_in_card(folder / CARD)
    files = [*(f"{name}.jsonl" for name in names), CARD]
    strange = [file for file in files if (folder / file).exists() and file not in earlier]
    if strange:
        raise UserError(
            f"The folder {folder} holds {', '.join(strange)}, not known to be of an earlier split (its card, "
            f"{CARD}, does not list them). Give another folder, or move them away."
        )


def _names_in_card(card: Path) -> set[str]:
    """The card itself and the files that it lists; none where there is no card of a split."""
    try:
        lines = card.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return set()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"The card {card} of an earlier split cannot be read: {error}.") from error
    if NOTE not in lines:
        return set()
    return {CARD} | {match[1] for match in map(_LISTED.match, lines) if match}

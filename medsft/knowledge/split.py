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
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from medsft.data.files import expand_files
from medsft.data.writing import check_output
from medsft.errors import UserError
from medsft.knowledge.build import write_pairs
from medsft.knowledge.card import NOTE, write_card
from medsft.knowledge.graph import Graph, read_graph
from medsft.knowledge.mentions import Names
from medsft.knowledge.pair import Pair
from medsft.knowledge.pairs import KINDS, make_pairs, recall_pairs
from medsft.knowledge.templates import DEFAULT_TEMPLATES, Templates, load_templates

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


def split_pairs(
    graph: Graph,
    templates: Templates,
    shares: Sequence[float],
    seed: int,
    kinds: Sequence[str] = KINDS,
    num_phrasings: int = 2,
) -> tuple[dict[str, tuple[Pair, ...]], int]:
    """File -> pairs, and how many were left out for crossing; arguments as in `make_pairs`.

    Recall questions are of the kind single; none of them stands in the training pairs.
    """
    parts = split_graph(graph, shares, seed)
    names = Names(entity.name for entity in graph.entities)
    files: dict[str, tuple[Pair, ...]] = {}
    num_crossing = 0
    for part, some in parts.items():
        own = {entity.name for entity in some.entities}
        made = make_pairs(some, templates, seed, kinds, num_phrasings) if own else ()
        files[part] = tuple(pair for pair in made if names.found_in(pair.question) <= own)
        num_crossing += len(made) - len(files[part])
    trained = {pair.question for pair in files["train"]}
    facts = {(pair.entities, pair.relations) for pair in files["train"] if pair.kind == "single"}
    files[RECALL] = tuple(
        pair
        for pair in recall_pairs(parts["train"], templates, seed, num_phrasings)
        if (pair.entities, pair.relations) in facts and pair.question not in trained
    )
    return files, num_crossing


def write_split(
    graph_files: Sequence[str | Path],
    folder: Path,
    shares: Sequence[float] = (0.8, 0.1, 0.1),
    seed: int = 0,
    kinds: Sequence[str] = KINDS,
    num_phrasings: int = 2,
    max_bad_share: float = 0.01,
    templates_file: Path = DEFAULT_TEMPLATES,
) -> SplitSummary:
    """Writes the four files and a data card, split.card.md, which comes last.

    An earlier split in the folder is replaced, parts that are not written now are deleted. Arguments as in
    `read_graph`, `split_graph` and `make_pairs`. Raises `UserError` as these do, for a folder that cannot be
    written, and for one that holds other files of these names.
    """
    templates = load_templates(templates_file)
    graph = read_graph(graph_files, max_bad_share)
    files, num_crossing = split_pairs(graph, templates, shares, seed, kinds, num_phrasings)
    names = {f"{name}.jsonl": pairs for name, pairs in files.items() if pairs}
    if "train.jsonl" not in names:
        raise UserError(
            f"The training entities give no pair of the kinds {', '.join(kinds)}; ask for others."
        )
    _make_room(folder, names, graph_files)
    for name, pairs in names.items():
        write_pairs(folder / name, pairs, {"seed": seed})
    summary = SplitSummary(
        num_entities={part: len(some.entities) for part, some in split_graph(graph, shares, seed).items()},
        num_pairs={name: Counter(pair.kind for pair in pairs) for name, pairs in files.items() if pairs},
        num_crossing=num_crossing,
    )
    settings = {
        "seed": seed,
        "shares": ", ".join(f"{part} {share:g}" for part, share in zip(PARTS, shares, strict=True)),
        "kinds": ", ".join(kinds),
        "phrasings of a fact": num_phrasings,
    }
    outputs = [folder / name for name in names]
    write_card(folder / CARD, outputs, graph_files, templates_file, settings, summary)
    return summary


def _make_room(folder: Path, names: Collection[str], graph_files: Sequence[str | Path]) -> None:
    """Deletes parts of an earlier split that are not written now; raises `UserError` for strange files."""
    everything = [f"{name}.jsonl" for name in (*PARTS, RECALL)]
    for name in everything:
        check_output(folder / name, expand_files(graph_files))
    earlier = _names_in_card(folder / CARD)
    strange = [name for name in (*names, CARD) if (folder / name).exists() and name not in earlier]
    if strange:
        raise UserError(
            f"The folder {folder} holds {', '.join(strange)}, not known to be of an earlier split (its card, "
            f"{CARD}, does not list them). Give another folder, or move them away."
        )
    try:
        for name in everything:
            if name in earlier and name not in names:
                (folder / name).unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"The earlier {folder / name} cannot be deleted: {error.strerror}.") from error


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

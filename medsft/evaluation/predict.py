"""Answers to many questions: in batches, shared over ranks, taken up again after an interruption."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from medsft.data.records import Example
from medsft.engine.distributed import World
from medsft.evaluation.ranks import gather
from medsft.files import write_text
from medsft.inference.responder import Responder
from medsft.inference.sampling import Sampling
from medsft.journal import Journal, read_journal
from medsft.run_folder import writing

_PARTS = "answers-*.jsonl"


def answers_key(identity: str, template: str, examples: Sequence[Example], sampling: Sampling) -> str:
    """Hash of all that the answers hang on; `identity` stands for the weights and how they are held."""
    questions = [(example.query, example.history) for example in examples]
    text = json.dumps([identity, template, questions, asdict(sampling)], ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def weights_identity(folder: Path) -> str:
    """Names, sizes and times of a model's files: what changes when the model is written anew."""
    files = sorted(path for path in folder.iterdir() if path.is_file())
    return json.dumps([(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files])


def answer_all(
    responder: Responder,
    examples: Sequence[Example],
    sampling: Sampling,
    folder: Path,
    key: str,
    world: World,
    batch_size: int = 8,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[str]:
    """An answer for each example, in order, on every rank; a collective.

    Each rank appends its batches to a file in `folder`, so that the next call with the same `key` asks only
    what is missing, on any number of ranks.
    """
    known: dict[int, str] = gather(world, _read_parts(folder, key) if world.is_main else {})[0]
    missing = [index for index in range(len(examples)) if index not in known]
    # Long prompts together: little padding. The order changes no greedy answer.
    missing.sort(key=lambda index: len(examples[index].query))
    mine = missing[world.rank :: world.size]
    answered: dict[int, str] = {}
    part = folder / f"answers-{world.rank}.jsonl"
    with writing(part):
        journal = Journal(part)
    with journal:
        for start in range(0, len(mine), batch_size):
            chosen = mine[start : start + batch_size]
            queries = [(examples[index].query, examples[index].history) for index in chosen]
            answers = dict(zip(chosen, responder.answers(queries, sampling, batch_size), strict=True))
            with writing(part):
                journal.append(
                    *({"key": key, "index": index, "answer": answer} for index, answer in answers.items())
                )
            answered |= answers
            progress(min(start + batch_size, len(mine)), len(mine))
    for share in gather(world, answered):
        known.update(share)
    return [known[index] for index in range(len(examples))]


def _read_parts(folder: Path, key: str) -> dict[int, str]:
    """Answers under `key` that earlier processes wrote down."""
    entries = (entry for path in folder.glob(_PARTS) for entry in read_journal(path))
    return {entry["index"]: entry["answer"] for entry in entries if entry.get("key") == key}


def write_predictions(path: Path, examples: Sequence[Example], answers: Sequence[str]) -> None:
    """`generated_predictions.txt` in THUDM's form: a line {"labels": reference, "predict": answer} each.

    Both without white space around, as https://github.com/THUDM/ChatGLM-6B/blob/main/ptuning/main.py has it.
    """
    lines = (
        json.dumps({"labels": example.response.strip(), "predict": answer.strip()}, ensure_ascii=False)
        for example, answer in zip(examples, answers, strict=True)
    )
    write_text(path, "".join(line + "\n" for line in lines))


def remove_parts(folder: Path) -> None:
    """Removes what `answer_all` wrote down, once the predictions are complete."""
    for path in folder.glob(_PARTS):
        path.unlink()

"""A graph -> pairs written by a model: what `medsft data generate` does.

Every reply is kept in a cache before anything is made of it. A run that was killed, or that lost requests on
the way, is started again and asks only for what is missing; the output is written when all is there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medsft.data.check.texts import CHECKS, first_fault
from medsft.data.files import expand_files
from medsft.data.progress import duration
from medsft.data.records import Example
from medsft.data.writing import check_output, writing_lines
from medsft.errors import UserError
from medsft.knowledge.card import write_card
from medsft.knowledge.facts import FactCheck
from medsft.knowledge.graph import Entity, Graph
from medsft.knowledge.llm.cache import ReplyCache, request_key
from medsft.knowledge.llm.client import Endpoint, Request, ask_all
from medsft.knowledge.llm.prompts import Prompts
from medsft.knowledge.llm.replies import parse_reply
from medsft.knowledge.pair import Pair
from medsft.knowledge.templates import Templates

_TOKENS_A_CHARACTER = 1.0
_TOKENS_A_PAIR = 120
_SECONDS_A_REPLY = 15.0


@dataclass(frozen=True)
class RequestSettings:
    """What every request asks for.

    Attributes:
        model: its name at the endpoint.
        num_pairs: in one reply.
        temperature: 0 and up.
        seed: sent along; whether the model heeds it is the endpoint's affair.
    """

    model: str
    num_pairs: int = 4
    temperature: float = 0.7
    seed: int = 0


@dataclass(frozen=True)
class Task:
    """One request: a prompt form about an entity."""

    entity: Entity
    form: str
    request: Request
    key: str


@dataclass(frozen=True)
class Estimate:
    """What the requests that are not in the cache will take, roughly.

    Attributes:
        num_requests, num_cached: to be sent, and answered already.
        prompt_tokens, reply_tokens: one for each Chinese character; a model's own count differs.
        seconds: by the rate limit, or by 15 s a reply.
        cost: in the prices' currency; None where no prices are given.
    """

    num_requests: int
    num_cached: int
    prompt_tokens: int
    reply_tokens: int
    seconds: float
    cost: float | None

    def describe(self) -> str:
        """One line for people."""
        cost = "" if self.cost is None else f", cost about {self.cost:.2f}"
        return (
            f"{self.num_requests:,} requests to send, {self.num_cached:,} answered already; about "
            f"{self.prompt_tokens:,} tokens in, {self.reply_tokens:,} out, {duration(self.seconds)}{cost}"
        )


@dataclass(frozen=True)
class Generated:
    """What became of the replies: pairs kept, replies repaired, replies and pairs rejected by reason."""

    num_pairs: int
    num_replies: int
    num_repaired: int
    rejected: Mapping[str, int]

    def describe(self) -> str:
        """One line for people."""
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in self.rejected.items()) or "none"
        return (
            f"{self.num_pairs:,} pairs from {self.num_replies:,} replies, {self.num_repaired:,} repaired; "
            f"rejected: {reasons}"
        )


def make_tasks(graph: Graph, prompts: Prompts, asked: RequestSettings) -> list[Task]:
    """Every form for every entity, in the order of the graph."""
    tasks = []
    for entity in graph.entities:
        for form in prompts.forms:
            request: Request = {
                "model": asked.model,
                "messages": prompts.messages(form, entity, asked.num_pairs),
                "temperature": asked.temperature,
                "seed": asked.seed,
            }
            tasks.append(Task(entity, form, request, request_key(request)))
    return tasks


def estimate(
    tasks: Sequence[Task],
    cache: ReplyCache,
    asked: RequestSettings,
    endpoint: Endpoint,
    prices: tuple[float, float] | None,
) -> Estimate:
    """`prices`: of a million tokens in and out."""
    missing = [task for task in tasks if not cache.is_settled(task.key)]
    characters = sum(len(message["content"]) for task in missing for message in task.request["messages"])
    tokens_in = round(characters * _TOKENS_A_CHARACTER)
    tokens_out = len(missing) * asked.num_pairs * _TOKENS_A_PAIR
    seconds = max(
        len(missing) * 60 / endpoint.requests_per_minute,
        len(missing) * _SECONDS_A_REPLY / endpoint.concurrency,
    )
    cost = (tokens_in * prices[0] + tokens_out * prices[1]) / 1e6 if prices else None
    return Estimate(len(missing), len(tasks) - len(missing), tokens_in, tokens_out, seconds, cost)


def ask_missing(
    tasks: Sequence[Task],
    cache: ReplyCache,
    endpoint: Endpoint,
    key: str,
    on_reply: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Fills the cache with replies and refusals.

    Raises `UserError` as `ask_all` does, and when some requests got neither.
    """
    missing = [(task.key, task.request) for task in tasks if not cache.is_settled(task.key)]
    num_done = 0

    def keep(name: str, reply: str) -> None:
        cache.put(name, reply)
        count()

    def keep_refusal(name: str, reason: str) -> None:
        cache.put_refusal(name, reason)
        count()

    def count() -> None:
        nonlocal num_done
        num_done += 1
        on_reply(num_done, len(missing))

    has_worked = any(cache.get(task.key) is not None for task in tasks)
    failures = ask_all(missing, endpoint, key, keep, keep_refusal, has_worked)
    if failures:
        told = ", ".join(f"{count:,} × {what}" for what, count in Counter(failures).most_common())
        raise UserError(
            f"{len(failures):,} of {len(missing):,} requests to {endpoint.base_url} got no reply ({told}). "
            "The others are kept: run the same command again, and only these are asked for. No output is "
            "written yet."
        )


def collect(
    tasks: Sequence[Task], cache: ReplyCache, graph: Graph, templates: Templates
) -> tuple[list[Pair], Generated]:
    """Pairs from the replies in the cache, each held against form, text checks and the entity's facts."""
    facts = FactCheck(graph, templates, is_strict=True)
    pairs: dict[str, Pair] = {}
    rejected: Counter[str] = Counter()
    num_repaired = 0
    num_replies = 0
    for task in tasks:
        reply = cache.get(task.key)
        if reply is None:
            refusal = cache.refusal(task.key)
            assert refusal is not None
            rejected[f"request refused ({refusal})"] += 1
            continue
        num_replies += 1
        found, is_as_asked = parse_reply(reply)
        num_repaired += bool(found) and not is_as_asked
        if not found:
            rejected["reply without a pair"] += 1
        for question, answer in found:
            example = Example(question, answer, (), task.entity.source)
            fault = (
                first_fault(example, CHECKS)
                or facts.fault(example)
                or facts.stray(task.entity.name, question, answer)
            )
            if fault is None and question in pairs:
                rejected["question asked before"] += 1
            elif fault is None:
                pairs[question] = Pair(
                    question,
                    answer,
                    "llm",
                    (task.entity.source,),
                    (task.entity.name,),
                    tuple(relation for relation, _ in task.entity.facts),
                    f"prompt {task.form}",
                )
            else:
                rejected[fault.reason] += 1
    return list(pairs.values()), Generated(len(pairs), num_replies, num_repaired, rejected)


def write_generated(
    output: Path,
    pairs: Sequence[Pair],
    summary: Generated,
    asked: RequestSettings,
    graph_files: Sequence[str | Path],
    prompts_file: Path,
    further_settings: Mapping[str, Any],
) -> None:
    """Writes pairs with provenance, and the data card; `UserError` for none, and for a wrong output.

    `further_settings`: for the card, beside what was asked.
    """
    check_output(output, expand_files(graph_files))
    if not pairs:
        raise UserError(
            f"No pair can be used: {summary.describe()}. Look at the model's replies in the cache."
        )
    made_by = {"model": asked.model, "seed": asked.seed}
    with writing_lines(output) as write:
        for pair in pairs:
            write(pair.record_with_provenance(made_by))
    settings = {
        "model": asked.model,
        "seed": asked.seed,
        "temperature": asked.temperature,
        "pairs a request": asked.num_pairs,
        **further_settings,
    }
    write_card(output.with_suffix(".card.md"), [output], graph_files, prompts_file, settings, summary)

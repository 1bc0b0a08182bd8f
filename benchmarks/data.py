"""Records a second and peak memory of the data commands; the token cache and the step plan at size.

    python benchmarks/data.py                         # 20,000 records; a plan for 10 million examples
    python benchmarks/data.py --file data/train.jsonl # check and convert pairs of your own
    python benchmarks/data.py --parts build --records 1000000 --name data_1m_build
    python benchmarks/data.py --parts split --records 100000 --name data_100k_split
    python benchmarks/data.py --parts cache plan --cached 10000000 --name data_10m_cache

Records are made from the project's graph: numbered names, and of their values a third is numbered too, so
that four records or so share one, as in the long tail of a real graph. Examples of the token cache are the
graph's facts, one relation each, under numbered names. Memory is that of all processes of a part together,
above what the process held before it began; what two share counts once.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from itertools import cycle, islice
from pathlib import Path

import psutil
from machine import RESULTS, at_least, write_result

from medsft.chatglm.tokenizer_training import train_tokenizer
from medsft.data.cache import load_or_build
from medsft.data.check.review import ReviewSettings, review_files
from medsft.data.convert import convert_files
from medsft.data.files import iter_objects
from medsft.data.plan import StepPlan
from medsft.data.workers import num_cores
from medsft.knowledge.build import build_pairs
from medsft.knowledge.graph import COMMON_GRAPH, Graph, read_graph
from medsft.knowledge.pairs import make_pairs
from medsft.knowledge.split import write_split
from medsft.knowledge.templates import load_templates

Row = dict[str, object]
LATE_STEP = 1_000_000
PARTS = ("build", "split", "check", "cache", "plan")


def write_graph(path: Path, num_records: int) -> None:
    """The project's entities again and again, under numbered names and with some numbered values."""
    records = [json.loads(line) for line in COMMON_GRAPH.read_text(encoding="utf-8").splitlines()]
    with path.open("w", encoding="utf-8") as file:
        for number in range(num_records):
            place, again = number % len(records), number // len(records)
            record = {
                field: [
                    f"{value}{again // 4}" if (place + at) % 3 == 0 else value
                    for at, value in enumerate(values)
                ]
                for field, values in records[place].items()
                if field != "中心词"
            }
            name = f"{records[place]['中心词']}{again}型"
            file.write(json.dumps({"中心词": name, **record}, ensure_ascii=False) + "\n")


def write_examples(path: Path, num_examples: int) -> None:
    """Pairs of the project's graph again and again, under numbered names and without provenance."""
    pairs = make_pairs(read_graph([COMMON_GRAPH]), load_templates(), 0, ["single"])
    with path.open("w", encoding="utf-8") as file:
        for number, pair in enumerate(islice(cycle(pairs), num_examples)):
            (name,), again = pair.entities, number // len(pairs)
            text = json.dumps(pair.record(), ensure_ascii=False)
            file.write(text.replace(name, f"{name}{again}型") + "\n")


def family_bytes() -> int:
    """Anonymous memory of this process and all it started; what several share is counted once."""
    own = psutil.Process()
    total = 0
    for process in [own, *own.children(recursive=True)]:
        try:
            lines = Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue  # it has ended
        total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss_Anon:"))
    return total * 1024


class FamilyPeak:
    """Highest `family_bytes` while the block runs, sampled every half second and at the end."""

    def __enter__(self) -> FamilyPeak:
        self.bytes = family_bytes()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()
        return self

    def _sample(self) -> None:
        while not self._done.wait(0.5):
            self.bytes = max(self.bytes, family_bytes())

    def __exit__(self, *_: object) -> None:
        self.bytes = max(self.bytes, family_bytes())
        self._done.set()
        self._thread.join()


def measured(part: str, count: int, what: str, work: Callable[[], object]) -> Row:
    """One row: what was done, how fast, with how much memory; in a process of its own.

    `work` may return a number to be told with the row: bytes or pairs written.
    """
    fork = multiprocessing.get_context("fork")
    told, tell = fork.Pipe(duplex=False)

    def child() -> None:
        before = family_bytes()
        begin_s = time.perf_counter()
        with FamilyPeak() as peak:
            note = work()
        tell.send((time.perf_counter() - begin_s, peak.bytes - before, note))

    process = fork.Process(target=child)
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit(f"{part} ended with exit code {process.exitcode}")
    seconds, num_bytes, note = told.recv()
    print(f"{part}: {count:,} {what} in {seconds:.1f} s; {note}", flush=True)
    return {
        "part": part,
        "items": f"{count:,} {what}",
        "s": round(seconds, 2),
        "items/s": round(count / seconds),
        "peak MB": round(num_bytes / 1e6),
        "result": note,
    }


def build_rows(graph: Path, pairs: Path, num_records: int, num_workers: int) -> Iterator[Row]:
    """Reading a graph, and its pairs of the kind single, each fact in one and in two phrasings."""
    held: list[Graph] = []

    def read() -> str:
        held.append(read_graph([graph]))
        return f"{held[0].num_facts:,} facts"

    yield measured("graph held in memory", num_records, "records", read)
    for num_phrasings in (1, 2):

        def build(num_phrasings: int = num_phrasings) -> str:
            summary = build_pairs([graph], pairs, 0, ["single"], num_phrasings, num_workers=num_workers)
            return f"{sum(summary.num_pairs.values()):,} pairs, {pairs.stat().st_size / 1e9:.2f} GB"

        yield measured(f"build, single, {num_phrasings} phrasings", num_records, "records", build)


def split_rows(graph: Path, folder: Path, num_records: int, num_workers: int) -> Iterator[Row]:
    """All kinds of pairs in four files."""

    def split() -> str:
        summary = write_split([graph], folder, num_workers=num_workers)
        return f"{sum(sum(kinds.values()) for kinds in summary.num_pairs.values()):,} pairs"

    yield measured("split, all kinds", num_records, "records", split)


def check_rows(some: Path, folder: Path, num_pairs: int, num_workers: int) -> Iterator[Row]:
    """Checks and conversion of instruction pairs."""
    for part, near in (("check, exact", None), ("check, near duplicates", 0.75)):
        settings = ReviewSettings(near_threshold=near)

        def check(settings: ReviewSettings = settings) -> str:
            review = review_files([some], folder / "kept.jsonl", folder / "rejects.jsonl", settings)
            return f"{review.num_kept:,} kept"

        yield measured(part, num_pairs, "pairs", check)

    def convert() -> str:
        return f"{convert_files([some], folder / 'c.jsonl', 'messages').num_written:,} written"

    yield measured("convert", num_pairs, "pairs", convert)


def cache_rows(folder: Path, num_examples: int, num_workers: int) -> Iterator[Row]:
    """The token cache: built, then opened again with the first look at a late step."""
    examples = folder / "examples.jsonl"
    if not examples.exists():
        write_examples(examples, num_examples)
    texts = (f"{record['context']}{record['target']}" for _, record in islice(iter_objects(examples), 5000))
    tokenizer = train_tokenizer(texts, folder / "tokenizer", 4000)
    limits = {"max_source_length": 256, "max_target_length": 256, "max_samples": num_examples}

    def build() -> str:
        tokens = load_or_build([examples], tokenizer, folder / "cache", num_workers=num_workers, **limits)
        size = sum(path.stat().st_size for path in (folder / "cache").rglob("*.arrow"))
        return f"{tokens.summary.num_tokens:,} tokens, {size / 1e9:.2f} GB"

    def open_again() -> str:
        tokens = load_or_build([examples], tokenizer, folder / "cache", **limits)
        begin_s = time.perf_counter()
        rows = [tokens[int(index)] for index in run_of(len(tokens), tokens.fingerprint).examples(LATE_STEP)]
        seconds = time.perf_counter() - begin_s
        return f"{len(rows)} examples of step {LATE_STEP:,}, {seconds:.2f} s of the time"

    yield measured("token cache, built", num_examples, "examples", build)
    yield measured("token cache, opened", num_examples, "examples", open_again)


def run_of(num_examples: int, fingerprint: str) -> StepPlan:
    """A run in steps of 16 examples that reaches LATE_STEP."""
    epochs = (LATE_STEP + 1) * 16 / num_examples + 1
    return StepPlan.for_run(num_examples, fingerprint, 16, 42, epochs)


def plan_rows(num_examples: int) -> Iterator[Row]:
    """The first look at a late step, which shuffles an epoch."""

    def look() -> str:
        return f"{len(run_of(num_examples, 'ab' * 32).examples(LATE_STEP))} examples"

    yield measured(f"step plan, step {LATE_STEP:,}", num_examples, "examples", look)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="what to measure")
    parser.add_argument("--records", type=at_least(1), default=20_000, help="records of the graph")
    parser.add_argument(
        "--checked", type=at_least(1), default=20_000, help="pairs to check and convert at most"
    )
    parser.add_argument("--file", type=Path, help="instruction file to check (default: what was built)")
    parser.add_argument(
        "--cached", type=at_least(1), default=100_000, help="examples of the token cache at most"
    )
    parser.add_argument(
        "--examples", type=at_least(1), default=10_000_000, help="examples of the planned run"
    )
    parser.add_argument("--num_workers", type=at_least(1), default=num_cores(), help="processes")
    parser.add_argument("--name", default="data", help="of the result")
    parser.add_argument("--folder", type=Path, help="where the files are made, and kept (default: nowhere)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where the table goes")
    options = parser.parse_args()
    graph_parts = {"build", "split", "check"} & set(options.parts)
    with tempfile.TemporaryDirectory() as name:
        folder = options.folder or Path(name)
        graph, pairs, some = folder / "graph.jsonl", folder / "pairs.jsonl", folder / "some.jsonl"
        workers, rows = options.num_workers, []
        if graph_parts and not graph.exists():
            write_graph(graph, options.records)
        if "build" in options.parts:
            rows += build_rows(graph, pairs, options.records, workers)
        if "split" in options.parts:
            rows += split_rows(graph, folder / "split", options.records, workers)
        if "check" in options.parts:
            if not options.file and not pairs.exists():
                build_pairs([graph], pairs, 0, ["single"], num_workers=workers)
            with (options.file or pairs).open(encoding="utf-8") as file:
                lines = list(islice(file, options.checked))
            some.write_text("".join(lines), encoding="utf-8")
            rows += check_rows(some, folder, len(lines), workers)
        if "cache" in options.parts:
            rows += cache_rows(folder, options.cached, workers)
        if "plan" in options.parts:
            rows += plan_rows(options.examples)
    settings: dict[str, object] = {"parts": " ".join(options.parts)}
    if graph_parts:
        settings["records"] = options.records
    if "check" in options.parts:
        settings["checked"] = options.file.name if options.file else "what was built"
    settings["processes"] = workers
    print(write_result(options.name, settings, rows, options.results))


if __name__ == "__main__":
    main()

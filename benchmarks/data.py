"""Records a second and peak memory of the data commands; the token cache and the step plan at size.

    python benchmarks/data.py                         # 20,000 records; a plan for 10 million examples
    python benchmarks/data.py --file data/train.jsonl # check and convert pairs of your own

Records are made from the project's graph with numbered names. Memory is private memory above what the process
held before the part began (see `peak.Peak`).
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from machine import RESULTS, write_result
from peak import Peak, private_bytes

from medsft.data.check.review import ReviewSettings, review_files
from medsft.data.convert import convert_files
from medsft.data.plan import StepPlan
from medsft.knowledge.build import build_pairs
from medsft.knowledge.graph import COMMON_GRAPH


def write_graph(path: Path, num_records: int) -> None:
    """The project's entities again and again, under numbered names."""
    records = [json.loads(line) for line in COMMON_GRAPH.read_text(encoding="utf-8").splitlines()]
    with path.open("w", encoding="utf-8") as file:
        for number in range(num_records):
            record = records[number % len(records)]
            name = f"{record['中心词']}{number // len(records)}型"
            file.write(json.dumps({**record, "中心词": name}, ensure_ascii=False) + "\n")


def measured(part: str, count: int, what: str, work: Callable[[], object]) -> dict[str, object]:
    """One row: what was done, how fast, with how much memory; in a process of its own."""
    fork = multiprocessing.get_context("fork")
    told, tell = fork.Pipe(duplex=False)

    def child() -> None:
        before = private_bytes()
        begin_s = time.perf_counter()
        with Peak() as peak:
            work()
        tell.send((time.perf_counter() - begin_s, peak.bytes - before))

    process = fork.Process(target=child)
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit(f"{part} ended with exit code {process.exitcode}")
    seconds, num_bytes = told.recv()
    print(f"{part}: {count:,} {what} in {seconds:.1f} s", flush=True)
    return {
        "part": part,
        "items": f"{count:,} {what}",
        "s": round(seconds, 2),
        "items/s": round(count / seconds),
        "peak MB": round(num_bytes / 1e6),
    }


def plan_rows(num_examples: int, step: int) -> list[dict[str, object]]:
    """The first look at a late step, which shuffles an epoch."""
    size = 16
    epochs = (step + 1) * size / num_examples + 1
    plan = StepPlan.for_run(num_examples, "ab" * 32, size, 42, epochs)
    return [measured(f"step plan, step {step:,}", num_examples, "examples", lambda: plan.examples(step))]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--records", type=int, default=20_000, help="records of the graph")
    parser.add_argument("--checked", type=int, default=20_000, help="pairs to check and convert at most")
    parser.add_argument("--file", type=Path, help="instruction file to check (default: what was built)")
    parser.add_argument("--examples", type=int, default=10_000_000, help="examples of the planned run")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where the table goes")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        graph, pairs, some = folder / "graph.jsonl", folder / "pairs.jsonl", folder / "some.jsonl"
        write_graph(graph, options.records)
        rows = [
            measured(
                "build, single",
                options.records,
                "records",
                lambda: build_pairs([graph], pairs, kinds=["single"], num_phrasings=1),
            )
        ]
        with (options.file or pairs).open(encoding="utf-8") as file:
            lines = [line for line, _ in zip(file, range(options.checked), strict=False)]
        some.write_text("".join(lines), encoding="utf-8")
        for part, near in (("check, exact", None), ("check, near duplicates", 0.75)):
            kept, rejects = folder / "kept.jsonl", folder / "rejects.jsonl"
            settings = ReviewSettings(near_threshold=near)
            rows.append(
                measured(
                    part,
                    len(lines),
                    "pairs",
                    lambda s=settings, k=kept, r=rejects: review_files([some], k, r, s),
                )
            )
        rows.append(
            measured(
                "convert", len(lines), "pairs", lambda: convert_files([some], folder / "c.jsonl", "messages")
            )
        )
        rows += plan_rows(options.examples, 1_000_000)
    settings = {**vars(options), "file": options.file.name if options.file else "what was built"}
    results = settings.pop("results")
    print(write_result("data", settings, rows, results))


if __name__ == "__main__":
    main()

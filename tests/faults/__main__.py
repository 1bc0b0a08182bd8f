"""The fault campaign: injures small trainings and checks what is promised of each fault.

python tests/faults                # every row (25 minutes on two cores), benchmarks/results/faults-DATE.md
python tests/faults --quick        # the short campaign, which the tests run too; writes no file
python tests/faults 4 7            # some rows; writes no file
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from campaign import Campaign
    from matrix import Row

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path[1:1] = [str(REPOSITORY / folder) for folder in ("", "tests/integration", "benchmarks")]

_LEGEND = """
Every row ran for real: two ranks on the CPU, fp32, ZeRO-3, a toy ChatGLM, started by `python -m launcher run`
or `deepspeed`. detected: seconds from the fault, or from the start that comes upon damage, until a process
has said so or has ended for it. recovered: until the training had gone past where it was. steps lost: done
again. All three are the worst of the row. loads: checkpoints whose whole content was held against that of an
undisturbed training at the same step; bad: those that seemed good and were not.
"""


def main() -> int:
    """Runs the rows asked for; 0 when every promise was kept."""
    parser = argparse.ArgumentParser(prog="tests/faults", description="The fault campaign.")
    parser.add_argument("rows", type=int, nargs="*", metavar="ROW", help="numbers of rows (default: all)")
    parser.add_argument("--quick", action="store_true", help="the short campaign")
    options = parser.parse_args()

    from campaign import NUM_STEPS, Campaign
    from machine import write_result
    from matrix import MATRIX

    known = [row.number for row in MATRIX]
    if unknown := sorted(set(options.rows) - set(known)):
        parser.error(f"there are no rows {unknown}; there are {known}")
    chosen = [
        row
        for row in MATRIX
        if (not options.rows or row.number in options.rows) and (row.in_short or not options.quick)
    ]
    start_s = time.monotonic()

    def say(line: str) -> None:
        minutes, seconds = divmod(int(time.monotonic() - start_s), 60)
        print(f"{minutes:3}:{seconds:02}  {line}", flush=True)

    with tempfile.TemporaryDirectory(prefix="faults ") as folder:
        campaign = Campaign(Path(folder), say)
        lines = [_run(row, campaign, options.quick, say) for row in chosen]
    print()
    for line in lines:
        print("; ".join(f"{name} {value}" for name, value in line.items()), flush=True)
    failed = [line["row"] for line in lines if line["kept"] != "yes"]
    say(f"promises not kept in rows {failed}" if failed else "all promises kept")
    if not options.rows and not options.quick:
        settings = {"steps": NUM_STEPS, "ranks": 2, "minutes": round((time.monotonic() - start_s) / 60)}
        date = datetime.now(UTC).strftime("%Y-%m-%d")
        path = write_result(f"faults-{date}", settings, lines).with_suffix(".md")
        path.write_text(path.read_text(encoding="utf-8") + _LEGEND, encoding="utf-8")
        say(f"written to {path}")
    return 1 if failed else 0


def _run(row: Row, campaign: Campaign, is_quick: bool, say: Callable[[str], None]) -> dict[str, object]:
    """One row, as a line of the table."""
    from tally import Tally

    say(f"row {row.number}: {row.injected}")
    tally = Tally(lambda what: say(f"    {what}"))
    kept = "yes"
    begun_s = time.monotonic()
    try:
        row.run(campaign, tally, is_quick)
    except Exception as error:
        kept = f"NO: {str(error).splitlines()[0]}"
        say(f"row {row.number} FAILED\n{traceback.format_exc()}")
    say(f"    {tally.num_checks} checks in {time.monotonic() - begun_s:.0f} s: kept {kept.partition(':')[0]}")
    return {
        "row": row.number,
        "injected": row.injected,
        "promise": row.promise,
        "faults": tally.injections,
        "detected in (s)": _worst(tally.detected_s),
        "recovered in (s)": _worst(tally.recovered_s),
        "steps lost": _worst(tally.steps_lost),
        "loads": tally.loads,
        "bad loads": tally.bad_loads,
        "checks": tally.num_checks,
        "kept": kept,
        "remarks": "; ".join(tally.remarks) or "–",
    }


def _worst(values: Sequence[float]) -> str:
    return "–" if not values else f"{max(values):.1f}" if isinstance(values[0], float) else str(max(values))


if __name__ == "__main__":
    sys.exit(main())

"""The fault campaign: injures small trainings and checks what is promised of each fault.

python tests/faults                # every row (25 minutes on two cores), benchmarks/results/faults-DATE.md
python tests/faults --quick        # the short campaign, which the tests run too; writes no file
python tests/faults 4 7            # some rows; writes no file
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

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
    from table import run_rows, tell, teller

    known = [row.number for row in MATRIX]
    if unknown := sorted(set(options.rows) - set(known)):
        parser.error(f"there are no rows {unknown}; there are {known}")
    chosen = [
        row
        for row in MATRIX
        if (not options.rows or row.number in options.rows) and (row.in_short or not options.quick)
    ]
    # A shell has SIGINT ignored in the background, and all that is started from here would inherit it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    start_s = time.monotonic()
    say = teller()
    with tempfile.TemporaryDirectory(prefix="faults ") as folder:
        campaign = Campaign(Path(folder), say)
        lines = run_rows(chosen, campaign, options.quick, say)
    failed = tell(lines, say)
    if not options.rows and not options.quick:
        settings = {"steps": NUM_STEPS, "ranks": 2, "minutes": round((time.monotonic() - start_s) / 60)}
        date = datetime.now(UTC).strftime("%Y-%m-%d")
        path = write_result(f"faults-{date}", settings, lines).with_suffix(".md")
        path.write_text(path.read_text(encoding="utf-8") + _LEGEND, encoding="utf-8")
        say(f"written to {path}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

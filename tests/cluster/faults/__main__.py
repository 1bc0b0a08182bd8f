"""The fault campaign between hosts: those rows of the fault matrix that need more than one machine.

python tests/cluster/faults             # every row (10 minutes), benchmarks/results/cluster-faults-DATE.md
python tests/cluster/faults 9 17        # some rows; writes no file
python tests/cluster/faults 9 --update  # some rows, anew in the file that today's campaign has written
python tests/cluster/faults --append F  # every row; what is in the Markdown file F goes below the table
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[3]
_FOLDERS = ("", "tests/cluster", "tests/faults", "tests/integration", "benchmarks")
sys.path[1:1] = [str(REPOSITORY / folder) for folder in _FOLDERS]

_LEGEND = """
Every row ran for real: hosts of `tests/cluster` (network namespaces of one machine, each with an sshd of its
own), one rank on each, on the CPU, fp32, ZeRO-3, a toy ChatGLM, started on node1 by `python -m launcher run
--hostfile`. detected: seconds from the fault, or from the start that comes upon it, until the launcher or a
rank has said so or has ended for it. recovered: seconds until the training had gone past where it was, the
check of the hosts and the start of the ranks included. steps lost: done again. All three are the worst of
the row. loads: checkpoints whose whole content was held against that of an undisturbed training at the same
step; bad: those that seemed good and were not. exit codes: of all starts, see docs/exit-codes.md. gone
after: seconds from the launcher's end until no process of the job was left on any host; orphans: those still
there after 30 s. Except for rows 9 and 10, which have another number of ranks, and row 16's single step,
every training that was to finish has ended with the weights, the loss curve and the last checkpoint of an
undisturbed one in two local processes, to the last bit.

The hosts share this machine's cores with each other and with whatever else ran there: on average of the last
15 minutes {load:.1f} processes wanted the {cores} cores. Times are the worse for it.
"""


def main() -> int:
    """Runs the rows asked for; 0 when every promise was kept."""
    parser = argparse.ArgumentParser(prog="tests/cluster/faults", description="Faults between hosts.")
    parser.add_argument("rows", type=int, nargs="*", metavar="ROW", help="numbers of rows (default: all)")
    parser.add_argument("--update", action="store_true", help="put the rows into today's file")
    parser.add_argument("--append", type=Path, metavar="FILE", help="Markdown to go below the table")
    options = parser.parse_args()

    from campaign import NUM_STEPS, Campaign
    from cluster import temporary
    from cluster_matrix import MATRIX
    from hosts import Hosts
    from machine import RESULTS, write_result
    from requirements import missing
    from table import run_rows, tell, teller

    if sentence := missing():
        parser.error(sentence)
    known = [row.number for row in MATRIX]
    if unknown := sorted(set(options.rows) - set(known)):
        parser.error(f"there are no rows {unknown}; there are {known}")
    appended = "" if options.append is None else options.append.read_text(encoding="utf-8")
    start_s = time.monotonic()
    say = teller()
    with tempfile.TemporaryDirectory(prefix="faults ") as folder, temporary() as cluster:
        cluster.end_with_me()
        hosts = Hosts(cluster, Path(folder))
        campaign = Campaign(Path(folder), say, hosts)
        chosen = [row.bound(hosts) for row in MATRIX if not options.rows or row.number in options.rows]
        lines = run_rows(chosen, campaign, True, say, more=hosts.row_ended)
    failed = tell(lines, say)
    if not options.rows or options.update:
        name = f"cluster-faults-{datetime.now(UTC):%Y-%m-%d}"
        settings = {
            "steps": NUM_STEPS,
            "hosts": "2 or 3",
            "minutes": round((time.monotonic() - start_s) / 60),
        }
        if options.update:
            before = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
            renewed = {line["row"]: line for line in [*before["rows"], *lines]}
            settings, lines = before["settings"], list(renewed.values())
        path = write_result(name, settings, lines).with_suffix(".md")
        legend = _LEGEND.format(load=os.getloadavg()[2], cores=len(os.sched_getaffinity(0)))
        parts = [path.read_text(encoding="utf-8"), legend, *([f"\n{appended}"] if appended else [])]
        path.write_text("".join(parts), encoding="utf-8")
        say(f"written to {path}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

"""Runs rows one after another and makes lines of a table of them."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from campaign import Campaign
from matrix import Row
from tally import Tally

Say = Callable[[str], None]


def teller() -> Say:
    """Prints lines with the minutes and seconds since this call."""
    start_s = time.monotonic()

    def say(line: str) -> None:
        minutes, seconds = divmod(int(time.monotonic() - start_s), 60)
        print(f"{minutes:3}:{seconds:02}  {line}", flush=True)

    return say


def run_rows(
    rows: Sequence[Row],
    campaign: Campaign,
    is_quick: bool,
    say: Say,
    more: Callable[[], Mapping[str, Any]] = dict,
) -> list[dict[str, Any]]:
    """A line for each row; `more` gives further columns after each of them."""
    return [_run(row, campaign, is_quick, say, more) for row in rows]


def tell(lines: Sequence[Mapping[str, Any]], say: Say) -> list[int]:
    """Prints the lines; returns the numbers of the rows whose promise was not kept."""
    print()
    for line in lines:
        print("; ".join(f"{name} {value}" for name, value in line.items()), flush=True)
    failed = [line["row"] for line in lines if line["kept"] != "yes"]
    say(f"promises not kept in rows {failed}" if failed else "all promises kept")
    return failed


def _run(
    row: Row, campaign: Campaign, is_quick: bool, say: Say, more: Callable[[], Mapping[str, Any]]
) -> dict[str, Any]:
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
        **more(),
        "checks": tally.num_checks,
        "kept": kept,
        "remarks": "; ".join(tally.remarks) or "–",
    }


def _worst(values: Sequence[float]) -> str:
    return "–" if not values else f"{max(values):.1f}" if isinstance(values[0], float) else str(max(values))

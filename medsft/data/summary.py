"""What a data set holds and what had to be left out or cut, for the log, the model card and the limits."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from medsft.data.files import FROM_GBK, NOT_UTF8
from medsft.data.records import BadLine
from medsft.errors import UserError

QUANTILES = (50, 90, 99)
"""Per cent; the lengths below which so many examples lie are part of a summary."""


@dataclass(frozen=True)
class Summary:
    """Counts of one encoded data set.

    Attributes:
        template: the prompt template used, never "auto".
        num_examples: examples that can be used.
        num_bad: records that cannot.
        bad_by_reason: kind of fault -> records, most frequent first.
        first_bad: the first bad records, with file:line.
        num_sources_cut: examples whose prompt lost rounds or tokens to max_source_length.
        num_targets_cut: examples whose answer lost tokens to max_target_length.
        num_tokens: tokens in all examples.
        num_targets: supervised tokens in all examples.
        length_quantiles: "p50", "p90", "p99", "max" -> tokens of an example; empty without examples.
    """

    template: str
    num_examples: int
    num_bad: int
    bad_by_reason: Mapping[str, int]
    first_bad: tuple[BadLine, ...]
    num_sources_cut: int
    num_targets_cut: int
    num_tokens: int
    num_targets: int
    length_quantiles: Mapping[str, int]

    @property
    def num_records(self) -> int:
        return self.num_examples + self.num_bad

    def describe(self) -> str:
        """One paragraph for the log."""
        parts = [
            f"{self.num_examples:,} examples, {self.num_tokens:,} tokens ({self.num_targets:,} supervised)",
            "lengths " + ", ".join(f"{name} {value}" for name, value in self.length_quantiles.items()),
            f"template {self.template}",
            f"cut: {self.num_sources_cut:,} prompts, {self.num_targets_cut:,} answers",
        ]
        if self.num_bad:
            parts.append(f"left out: {self.describe_bad()}")
        return "; ".join(parts)

    def facts(self) -> dict[str, Any]:
        """The counts as a JSON object, for run.json."""
        counts = asdict(self)
        return {**counts, "first_bad": [str(bad) for bad in self.first_bad]}

    def describe_bad(self) -> str:
        """The bad records by reason, and the first of them with file:line."""
        counts = ", ".join(f"{count:,} × {reason}" for reason, count in self.bad_by_reason.items())
        return f"{counts}. First: " + "; ".join(str(bad) for bad in self.first_bad)

    def check(self, max_bad_share: float) -> None:
        """Raise UserError when too many records are bad or none is left.

        Args:
            max_bad_share: largest allowed share of bad records, 0 … 1.
        """
        if not 0 <= max_bad_share <= 1:
            raise UserError(f"--max_bad_share is {max_bad_share}; it must lie between 0 and 1.")
        if self.num_bad > max_bad_share * self.num_records:
            share = self.num_bad / self.num_records
            raise UserError(
                f"{self.num_bad:,} of {self.num_records:,} records ({share:.1%}) cannot be used, more than "
                f"--max_bad_share {max_bad_share:g} allows: {self.describe_bad()}. Mend them, name the "
                "columns with --prompt_column and --response_column, or raise --max_bad_share."
                + (f" {FROM_GBK}" if NOT_UTF8 in self.bad_by_reason else "")
            )
        if not self.num_examples:
            raise UserError(
                f"The data set is empty: none of {self.num_records:,} records can be used: "
                f"{self.describe_bad()}."
            )


def length_quantiles(lengths: Sequence[int] | np.ndarray) -> dict[str, int]:
    """The lengths at `QUANTILES` and the greatest, each one that occurs; empty without lengths."""
    if not len(lengths):
        return {}
    values = np.percentile(lengths, QUANTILES, method="lower")
    return {f"p{q}": int(value) for q, value in zip(QUANTILES, values, strict=True)} | {"max": max(lengths)}

"""The gate of the exports: a file is within tolerance, or as near as rounding lets its weights be, or not written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from repvit_sam_jax.files import write_atomically

from ..report import MaskRow, Report, Row
from .source import Source
from .verify import ExportError, Precision, Refer, reference

PAST_TOLERANCE = "past_tolerance.md"
"""File beside an export that is."""


def gate(
    check: Callable[[Refer], Report], source: Source, precision: Precision = "float32", *, allow: bool = False
) -> Report:
    """The comparison of an export with the JAX model or, where it is past tolerance, with exact arithmetic.

    Weights may amplify rounding so much that JAX in float32 is past the bars itself. Then, if the two are the same but
    for rounding, the PyTorch twin in float64
    is the reference, and what rounding alone does to the twin in the export's precision is a bar besides.

    Args:
      check: from what makes the reference to a report of `verify`, or its like.
      source: the weights.
      precision: the export's.
      allow: let pass what is past all bars; the report says that it did not.

    Raises:
      ExportError: it is past tolerance, and past what rounding does; the worst comparison is named.
    """
    report = check(reference)
    if report.passed:
        return report
    from .rounding import exact_reference, explains, with_rounding  # torch, which not all exports need

    if explains(source):
        report = with_rounding(check(exact_reference), source, precision)
    return passed(report, allow)


def passed(report: Report, allow: bool) -> Report:
    """The report itself. Raises ExportError if it is past tolerance, unless that is allowed."""
    if report.passed or allow:
        return report
    raise ExportError(f"{worst(report)} and was not written; --allow-past-tolerance writes it all the same")


def worst(report: Report) -> str:
    """What is furthest past tolerance, in a sentence."""
    compared: list[Row | MaskRow] = [*report.rows, *report.masks]
    failed = [row for row in compared if not row.passed]
    if not failed:
        low = min(report.agreement, key=lambda each: np.nan_to_num(each.mean, nan=-1))
        return (
            f"{report.preset} with int8 weights is past tolerance, mean IoU {low.mean:.4f} with the masks of float32 "
            f"({low.prompt}) against {low.bar}"
        )
    figure = lambda row: row.relative if isinstance(row, Row) else row.flipped
    row = max(failed, key=lambda row: np.nan_to_num(figure(row) / row.tolerance, nan=np.inf))
    name = row.name if isinstance(row, Row) else "flipped mask pixels"
    case = f" ({row.case})" if row.case else ""
    rounding = "" if row.rounding is None else f", where rounding alone is {row.rounding:.1e}"
    return (
        f"{report.preset} in {row.form} is past tolerance in {len(failed)} comparisons, {name}{case} "
        f"{figure(row):.1e} against {row.tolerance:.0e}{rounding}"
    )


def write_table(report: Report, path: Path) -> None:
    """Put the comparison beside files that are past tolerance; nothing if they are not."""
    if not report.passed:
        write_atomically(path, lambda temporary: temporary.write_text(f"{worst(report)}.\n\n{report.to_text()}\n"))

"""A report, a dict that JSON can hold, as text for the terminal or as tables for the README."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Report = Mapping[str, Any]
"""`environment`, what every section shares, and `sections`: title -> section.

A section has `milliseconds` as of `harness.interleave`, `table` (a list of rows, each a mapping of cells by column),
or both; and further `ratios` and `notes`, as far as it has them.
"""


def to_text(report: Report) -> str:
    """The ratios and notes of each section, and the tables that hold no times."""
    lines = list(_about(report))
    for title, section in report["sections"].items():
        lines += ["", title]
        rows = _cells(section["table"]) if "table" in section else []
        if rows:
            widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
            lines += ["  " + "  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
        lines += [f"  {line}" for line in _remarks(section)]
    return "\n".join(lines)


def to_markdown(report: Report) -> str:
    """All of it, in tables."""
    lines = list(_about(report))
    for title, section in report["sections"].items():
        lines += ["", f"**{title}**", ""]
        for table in (_times(section), section.get("table")):
            if table:
                head, *rows = _cells(table)
                lines += [_row(head), _row(["---"] + ["---:"] * (len(head) - 1)), *map(_row, rows), ""]
        lines += [f"- {line}" for line in _remarks(section)]
    return "\n".join(lines).replace("\n\n\n", "\n\n").rstrip()


def _about(report: Report) -> Iterator[str]:
    about = report["environment"]
    versions = ", ".join(f"{name} {number}" for name, number in about["versions"].items())
    yield f"{about['cpus']} CPUs of {about['machine']}, JAX on {about['devices'][0]}; {versions}."
    yield f"{report['preset']} at {report['image_size']}; candidates take turns."


def _times(section: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [
        {
            "": name,
            "median ms": times["median"],
            "minimum ms": times["minimum"],
            "peak MB": times["peak_megabytes"],
        }
        for name, times in section.get("milliseconds", {}).items()
    ]


def _remarks(section: Mapping[str, Any]) -> Iterator[str]:
    for name, value in section.get("ratios", {}).items():
        yield f"{name}: {value:.2f}"
    yield from section.get("notes", ())


def _cells(table: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    return [list(table[0]), *([_cell(value) for value in row.values()] for row in table)]


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return str(value)


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"

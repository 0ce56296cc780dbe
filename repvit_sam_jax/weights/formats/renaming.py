"""Rules between the names of a layout and the official ones, a pair of templates each, read in both directions."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

Rules = tuple[tuple[str, str], ...]
"""(name in the layout, official name); `{i}` stands for an integer that both share."""


class Renaming:
    """Rules from one side to the other, each name by the one rule that matches all of it."""

    def __init__(self, rules: Iterable[tuple[str, str]]) -> None:
        self._rules = [
            (re.compile(re.sub(r"\\{(\w)\\}", r"(?P<\1>\\d+)", re.escape(source))), target) for source, target in rules
        ]

    def __call__(self, name: str) -> str | None:
        """The name on the other side, or None for a foreign one."""
        for pattern, target in self._rules:
            if match := pattern.fullmatch(name):
                return target.format(**match.groupdict())
        return None

    def all_of(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """A state dict under the other side's names; what has none keeps its own, to be listed as unexpected."""
        return {self(name) or name: value for name, value in state.items()}


def inverse(rules: Rules) -> Renaming:
    """From official names to the layout's."""
    return Renaming((official, layout) for layout, official in rules)

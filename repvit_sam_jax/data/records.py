"""Photos as they are stored, in a fixed order."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Protocol


class DamagedRecordError(ValueError):
    """A record that no example can be made of; the message names it."""


class NoMasksError(DamagedRecordError):
    """A photo whose annotations hold no masks, though some are asked for."""


@dataclasses.dataclass(frozen=True)
class Record:
    """A photo as it is stored."""

    name: str
    """What errors call it."""
    photo: bytes
    """The file."""
    annotations: bytes | None
    """JSON as in SA-1B: {"image": {"height", "width"}, "annotations": [{"segmentation": in any of COCO's forms}]}."""


class Source(Protocol):
    """Records in a fixed order, to be read in any order, from any thread or process."""

    @property
    def fingerprint(self) -> str:
        """Changes when files are added, removed, renamed, or change their size; the folder doesn't matter."""

    def __len__(self) -> int: ...

    def __getitem__(self, i: int) -> Record: ...


class Subset:
    """Some records of a source, under numbers of their own."""

    def __init__(self, source: Source, numbers: Sequence[int]) -> None:
        """Args: `numbers` of records, in the order that they are to have."""
        self._source, self._numbers = source, list(numbers)
        self.fingerprint = hashlib.sha256(f"{source.fingerprint} {self._numbers}".encode()).hexdigest()

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, i: int) -> Record:
        """The record; IndexError past the end."""
        if not 0 <= i < len(self):
            raise IndexError(f"record {i} of {len(self)}")
        return self._source[self._numbers[i]]

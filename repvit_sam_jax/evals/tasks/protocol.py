"""What a task is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from jaxtyping import UInt8

Picture = UInt8[np.ndarray, "h w 3"]


class Subject(Protocol):
    """What is measured: a `Segmenter`, or for edges another detector."""

    @property
    def name(self) -> str:
        """In tables."""

    @property
    def about(self) -> Mapping[str, Any]:
        """As JSON can hold it."""


class Task(Protocol):
    """An evaluation on a data set: what is asked of a segmenter for each of its items, and how answers are counted.

    An item is a photo, a video, or what else is looked at as one. It is read (in a thread), segmented (on the device,
    several at once), scored (perhaps in another process), and its record kept; records give the numbers.
    """

    name: str
    settings: Mapping[str, Any]
    """What numbers depend on besides the model, as JSON can hold it."""
    keys: Sequence[str]
    """Names of the items, in order."""
    group: int
    """Items that are segmented at once."""
    score: Callable[[Any], Any]
    """An answer -> its record, as JSON can hold it; a function of a module, so that other processes know it."""

    def load(self, key: str) -> Any:
        """An item. Raises ValueError or OSError, which names the file, if it can't be read."""

    def segment(self, subject: Any, items: Sequence[Any]) -> Sequence[Any]:
        """Answers, one an item; they can be pickled."""

    def summarise(self, records: Mapping[str, Any]) -> tuple[dict[str, float], dict[str, int]]:
        """Numbers, and counts of what they are over. Raises ValueError if there is nothing to count."""

    def panels(self, item: Any) -> dict[str, Picture]:
        """Pictures of an item, and of its truth, by title."""

    def panel(self, item: Any, answer: Any) -> Picture:
        """A picture of an answer."""

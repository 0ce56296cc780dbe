"""Photos to try the page with: scenes that the library draws itself, so that they are anyone's."""

from __future__ import annotations

import functools

import numpy as np
from jaxtyping import UInt8

from ..data.synthetic import scenes

_SEED, _SIZE = 7, (480, 640)
_CHOSEN: tuple[tuple[int, scenes.View], ...] = ((1, "close_up"), (3, "usual"), (2, "usual"))


@functools.cache
def examples() -> tuple[UInt8[np.ndarray, "h w 3"], ...]:
    """The pictures, which are the same everywhere."""
    return tuple(scenes.render(_SEED, number, _SIZE, view=view).image for number, view in _CHOSEN)

"""Clicks that correct a mask, in pixels of the photo (RITM, Sofiiuk et al., arXiv 2102.06583, `isegm/inference`).

A click is on the pixel farthest from the boundary of what a mask lacks or has too much: the pixel whose circle is the
larger, background where both are equal, of several pixels the first in row order, and none twice. Deliberate
difference: RITM goes on to click pixel (0, 0) as background once nothing is wrong; here such a mask is left as it is.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool

from ..inference import rle
from ..models.prompt_encoder import BACKGROUND, FOREGROUND
from .metrics import iou
from .protocols import farthest_pixel

MOST = 20
"""Clicks on an object."""
ALWAYS = 5
"""Clicks that are made however good the mask is."""
TARGETS = (0.85, 0.9)
"""IoUs that clicks are counted to; when the last is reached, there are no more than `ALWAYS`."""

Pixel = tuple[int, int]
"""Column and row."""


class Chain:
    """Clicks on an object, each where the mask that answered those before is most wrong."""

    def __init__(self, truth: rle.Counts, size: tuple[int, int]) -> None:
        """Args: lengths of runs of the object, of which there is a pixel, and (height, width) of the photo."""
        self._truth, self._size = truth, size
        self.points: list[Pixel] = []
        self.labels: list[int] = []
        self.ious: list[float] = []
        """Of the masks after each click."""
        self._click(rle.counts_to_mask(truth, size), np.zeros(size, bool))

    @property
    def goes_on(self) -> bool:
        """Whether the last click is still to be answered."""
        return len(self.points) > len(self.ious)

    def answer(self, found: rle.Counts) -> None:
        """Take the mask for the clicks so far, and click again if that is asked for."""
        truth, mask = (rle.counts_to_mask(counts, self._size) for counts in (self._truth, found))
        self.ious.append(float(iou(truth, mask)))
        if len(self.ious) < ALWAYS or (len(self.ious) < MOST and not reached(self.ious, TARGETS[-1])):
            self._click(truth, mask)

    def _click(self, truth: Bool[np.ndarray, "h w"], mask: Bool[np.ndarray, "h w"]) -> None:
        inside, outside = (_centre(wrong, self.points) for wrong in (truth & ~mask, mask & ~truth))
        if inside[0] or outside[0]:
            foreground = inside[0] > outside[0]
            self.points.append(inside[1:] if foreground else outside[1:])
            self.labels.append(FOREGROUND if foreground else BACKGROUND)


def reached(ious: Sequence[float], target: float) -> int:
    """The number of the first click after which the IoU is at least `target`, 0 if there is none."""
    return next((i for i, value in enumerate(ious, 1) if value >= np.float32(target)), 0)


def _centre(region: Bool[np.ndarray, "h w"], clicked: Sequence[Pixel]) -> tuple[float, int, int]:
    """As `farthest_pixel`, of the pixels that were not clicked."""
    found = farthest_pixel(region)
    if found[1:] not in clicked:
        return found
    from scipy import ndimage

    distances = ndimage.distance_transform_edt(np.pad(region, 1))[1:-1, 1:-1]
    distances[tuple(np.array(clicked).T[::-1])] = 0
    row, column = np.unravel_index(np.argmax(distances), distances.shape)
    return float(distances[row, column]), int(column), int(row)

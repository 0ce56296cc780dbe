"""Masks that no network makes, from a box, from points or from colours alone: floors for a segmenter's IoU."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
from jaxtyping import Bool

from .metrics import iou
from .protocols import Clicks, PromptBatch, check_points

Masks = Bool[np.ndarray, "b k h w"]

_RADII = (0.01, 0.02, 0.03, 0.04, 0.06, 0.08, 0.12, 0.16)
_TOLERANCES = (4, 6, 8, 12, 16, 24, 32, 48, 64)


@dataclasses.dataclass(frozen=True)
class Settings:
    """What baselines are tuned by.

    Attributes:
      radius: of `disc`, as a share of the longer side of the photo.
      tolerance: of `region grow`, in steps of 8-bit colours.
    """

    radius: float
    tolerance: float


def evaluate_baselines(
    batches: Iterable[Mapping[str, np.ndarray]], image_size: int, settings: Settings, *, points: Sequence[int] = (3,)
) -> dict[str, dict[str, float]]:
    """Mean IoU by baseline and kind of prompt, by the protocol of `protocols.evaluate` in the same frame.

    Baselines:
      `filled box`, `inscribed ellipse`: all of the box, and the ellipse with its sides as axes.
      `disc`: all within a radius of a point. `region grow`: what is connected with a point's pixel by pixels, four
        neighbours each, whose colours differ from that pixel's in no channel by more than a tolerance. Foreground
        points add what is theirs to the mask before, background points remove it.

    Args:
      batches: with masks, as for `protocols.evaluate`.
      image_size: S of the batches.
      settings: from `tune`, on other photos.
      points: numbers of points after which the mask is looked at, 2 or more each.

    Raises:
      ValueError: no batch holds a valid mask, batches have none, or a number of points is below 2.
    """
    check_points(points)
    from_points = {"disc": _disc(settings.radius), "region grow": _grow(settings.tolerance)}
    values: dict[str, dict[str, list[np.ndarray]]] = {}
    for given in batches:
        batch = PromptBatch.read(given, len(given["image"]), image_size)
        found = {name: {"box": shape(batch)} for name, shape in _FROM_BOXES.items()}
        found |= {name: _click(batch, draw, points) for name, draw in from_points.items()}
        for name, by_kind in found.items():
            for kind, masks in by_kind.items():
                hit = iou(masks & batch.content[:, None], batch.targets)[batch.kept]
                values.setdefault(name, {}).setdefault(kind, []).append(hit)
    means = {
        name: {kind: float(np.concatenate(hits).mean()) for kind, hits in by_kind.items() if sum(map(len, hits))}
        for name, by_kind in values.items()
    }
    if not means.get("disc"):
        raise ValueError("no batch holds a valid mask, so there is nothing to evaluate")
    return means


def tune(batches: Sequence[Mapping[str, np.ndarray]], image_size: int) -> Settings:
    """The settings with the highest mean IoU for one point, the centre.

    Raises:
      ValueError: no batch holds a valid mask, or batches have none.
    """
    read = [PromptBatch.read(given, len(given["image"]), image_size) for given in batches]
    if not any(batch.kept.any() for batch in read):
        raise ValueError("no batch holds a valid mask, so there is nothing to tune on")

    def score(draw: _Draw) -> float:
        hits = [iou(_click(b, draw, (1,))["centre"] & b.content[:, None], b.targets)[b.kept] for b in read]
        return float(np.concatenate(hits).mean())

    radius = max(_RADII, key=lambda value: score(_disc(value)))
    return Settings(radius, max(_TOLERANCES, key=lambda value: score(_grow(value))))


_Draw = Callable[[PromptBatch], Callable[[int, int, int], Bool[np.ndarray, "h w"]]]
"""Prepares a batch; then number of the photo, row and column to a mask."""


def _click(batch: PromptBatch, draw: _Draw, points: Sequence[int]) -> dict[str, Masks]:
    """Masks by kind of prompt, each point where those before it erred most."""
    clicks, drawn = Clicks(batch, max(points)), draw(batch)
    masks, found = np.zeros_like(batch.targets), {}
    stride = batch.images.shape[1] // masks.shape[-1]
    for number in range(max(points)):
        clicks.put(number, masks & batch.content[:, None])
        masks = masks.copy()
        for b, k in np.argwhere(clicks.valid[:, :, number]):
            column, row = (clicks.coords[b, k, number] // stride).astype(int)
            masks[b, k][drawn(b, row, column)] = clicks.labels[b, k, number] == 1
        if number == 0:
            found["centre"] = masks
        if number + 1 in points and number:
            found[f"points{number + 1}"] = masks
    return found


def _disc(radius: float) -> _Draw:
    def prepare(batch: PromptBatch) -> Callable[[int, int, int], Bool[np.ndarray, "h w"]]:
        side = batch.targets.shape[-1]
        y, x = np.arange(side)[:, None], np.arange(side)
        return lambda _, row, column: (y - row) ** 2 + (x - column) ** 2 <= (radius * side) ** 2

    return prepare


def _grow(tolerance: float) -> _Draw:
    def prepare(batch: PromptBatch) -> Callable[[int, int, int], Bool[np.ndarray, "h w"]]:
        from scipy import ndimage

        (b, size, _, _), side = batch.images.shape, batch.targets.shape[-1]
        stride = size // side
        pixels = batch.images.reshape(b, side, stride, side, stride, 3).mean((2, 4), dtype=np.float32)

        def region(photo: int, row: int, column: int) -> Bool[np.ndarray, "h w"]:
            alike = np.abs(pixels[photo] - pixels[photo, row, column]).max(-1) <= tolerance
            labels, _ = ndimage.label(alike)
            return labels == labels[row, column]

        return region

    return prepare


def _filled(batch: PromptBatch) -> Masks:
    x, y = _across_boxes(batch)
    return (np.abs(x) <= 1) & (np.abs(y) <= 1)


def _ellipse(batch: PromptBatch) -> Masks:
    x, y = _across_boxes(batch)
    return x**2 + y**2 <= 1


def _across_boxes(batch: PromptBatch) -> tuple[np.ndarray, np.ndarray]:
    """Pixels' centres, x and y, from -1 to 1 across each box.

    A prompt's box ends where the photo's last pixel of the mask begins, which may be many pixels of the frame before
    the mask does; so it is taken as far as the mask goes.
    """
    side = batch.targets.shape[-1]
    stride = batch.images.shape[1] / side

    def across(axis: int) -> np.ndarray:
        covered = np.any(batch.targets, axis=2 + axis)  # by columns for x, by rows for y
        last = stride * (side - covered[..., ::-1].argmax(-1))
        start, end = batch.boxes[..., axis, None], np.maximum(batch.boxes[..., 2 + axis], last)[..., None]
        return (2 * stride * (np.arange(side) + 0.5) - start - end) / (end - start)

    return across(0)[:, :, None], across(1)[..., None]


_FROM_BOXES = {"filled box": _filled, "inscribed ellipse": _ellipse}

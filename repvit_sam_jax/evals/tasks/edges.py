"""Zero-shot edges on BSDS500 (Segment Anything, arXiv 2304.02643, section 7.2 and appendix D.2).

A grid of 16 x 16 foreground points gives three masks each; duplicates go by non-maximum suppression of their boxes,
without any other filter. The edge map is the Sobel filter of each mask's probabilities on the mask's outer boundary,
the largest over all masks, stretched from 0 to 1, thinned by edge non-maximum suppression, in 8 bits.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, UInt8
from scipy import ndimage, special

from ...data.datasets import bsds, layout
from ...inference import masks
from ...inference.backends import ENCODE_BATCH
from ...inference.predictor import EmbeddedImage, SamPredictor
from ...inference.prompts import Prompt
from ..metrics import edge_nms, edges
from ..segmenters import Segmenter
from .protocol import Picture

POINTS_PER_SIDE = 16
NMS = 0.7
"""Masks whose boxes have a higher IoU are duplicates."""


@dataclasses.dataclass(frozen=True)
class Item:
    """A photo and its annotators' boundaries."""

    name: str
    photo: Picture
    truths: list[bsds.Boundaries]


@dataclasses.dataclass(frozen=True)
class Answer:
    """An edge map to be matched."""

    edges: Float[np.ndarray, "h w"] | UInt8[np.ndarray, "h w"]
    truths: list[bsds.Boundaries]


class Maps:
    """Edge maps that another detector made: `NAME.png` with 8 bits, or `NAME.mat` with `ucm2`, already thin."""

    def __init__(self, folder: Path) -> None:
        """Raises ValueError if the folder holds none."""
        self._files = layout.by_stem(folder, ".png", ".mat") if folder.is_dir() else {}
        if not self._files:
            raise ValueError(f"--maps {folder} holds no edge maps, NAME.png or NAME.mat")
        self.name, self.about = folder.name, {"maps": str(folder.resolve())}
        self._folder = folder

    def __call__(self, item: Item) -> Float[np.ndarray, "h w"]:
        """Raises ValueError if the photo has none, or one of another size."""
        if item.name not in self._files:
            raise ValueError(f"{self._folder} has no edge map {item.name}.png or {item.name}.mat")
        path = self._files[item.name]
        found, size = bsds.read_map(path), item.photo.shape[:2]
        if found.shape != size:
            raise ValueError(f"{path} is an edge map of {list(found.shape)} pixels, expected {list(size)}")
        return found


class PhotoSobel:
    """The Sobel filter of the photo's brightness, thinned: what edges are without any learning."""

    name, about = "sobel", {"detector": "Sobel filter of the photo"}

    def __call__(self, item: Item) -> UInt8[np.ndarray, "h w"]:
        """The thin edge map."""
        return thin(sobel(item.photo.astype(np.float32).mean(-1)))


class Edges:
    """The task; see the module."""

    name, group = "edges", ENCODE_BATCH

    def __init__(self, data: bsds.Bsds) -> None:
        self.data, self.keys = data, data.names
        self.settings: dict[str, Any] = {"points_per_side": POINTS_PER_SIDE, "nms": NMS}
        self.settings |= {"thresholds": edges.THRESHOLDS, "radius": edges.RADIUS}
        self.score = score

    def load(self, key: str) -> Item:
        """A photo and its truths."""
        return Item(key, self.data.photo(key), self.data.truths(key))

    def segment(self, subject: Segmenter | Maps | PhotoSobel, items: Sequence[Item]) -> list[Answer]:
        """Edge maps of a segmenter, or of another detector."""
        if not isinstance(subject, Segmenter):
            return [Answer(subject(item), item.truths) for item in items]
        predictor = subject.predictor
        embedded = predictor.embed([item.photo for item in items])
        return [Answer(edge_map(predictor, e), item.truths) for e, item in zip(embedded, items, strict=True)]

    def summarise(self, records: Mapping[str, Any]) -> tuple[dict[str, float], dict[str, int]]:
        """ODS, OIS and AP."""
        counts = [edges.Counts(*(np.array(column) for column in record)) for record in records.values()]
        return edges.summarise(counts), {"photos": len(counts)}

    def panels(self, item: Item) -> dict[str, Picture]:
        """The photo, and how many annotators drew an edge where."""
        drawn = np.mean(item.truths, axis=0)
        return {"photo": item.photo, "annotators": _dark_on_light(drawn)}

    def panel(self, item: Item, answer: Answer) -> Picture:
        """The edge map, dark on light."""
        return _dark_on_light(_as_shares(answer.edges))


def open_task(data: Path, proposals: Path | None = None) -> Edges:
    """As `tasks.open_task`; edges take no proposals."""
    if proposals is not None:
        raise ValueError("edges start from a grid of points: leave --proposals out")
    return Edges(bsds.Bsds(data))


def edge_map(predictor: SamPredictor, photo: EmbeddedImage) -> UInt8[np.ndarray, "h w"]:
    """The thin edge map of a photo, as the module says."""
    config, (height, width) = predictor.config, photo.size
    grid = masks.point_grid(POINTS_PER_SIDE) * (width, height)
    dispatched = predictor.dispatch(photo, [Prompt([point], [1]) for point in grid], multimask_output=True)
    _, predicted, low_res = predictor.fetch(dispatched, return_low_res_only=True)
    logits, scores = low_res.reshape(-1, *low_res.shape[2:]), predicted.reshape(-1)
    upscaler = masks.Upscaler(photo.size, config.image_size, config.low_res_size)
    runs = [upscaler(one, config.mask_threshold, 0).runs() for one in logits]
    seen = np.flatnonzero([len(x) > 0 for x, _ in runs])
    boxes = np.array([masks.runs_to_box(*runs[i]) for i in seen]).reshape(-1, 4)
    total = np.zeros(photo.size, np.float32)
    for i in seen[masks.nms(boxes, scores[seen], NMS)]:
        _add_edges(total, upscaler.logits(logits[i]), config.mask_threshold)
    return thin(total)


def _add_edges(total: Float[np.ndarray, "h w"], logits: Float[np.ndarray, "h w"], threshold: float) -> None:
    """Raise `total` to the edges of a mask's probabilities, on the pixels around the mask."""
    mask = logits > threshold
    around = ndimage.binary_dilation(mask, np.ones((3, 3))) & ~mask
    x0, y0, x1, y1 = masks.box_of(around) or (0, 0, 0, 0)
    part = slice(max(y0 - 1, 0), y1 + 2), slice(max(x0 - 1, 0), x1 + 2)
    strength = sobel(special.expit(logits[part])) * around[part]
    np.maximum(total[part], strength, out=total[part])


def sobel(values: Float[np.ndarray, "h w"]) -> Float[np.ndarray, "h w"]:
    """Length of the gradient by Sobel's filter; outside, the nearest value is taken."""
    return np.hypot(ndimage.sobel(values, 0, mode="nearest"), ndimage.sobel(values, 1, mode="nearest"))


def thin(strength: Float[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w"]:
    """A map, stretched from 0 to 1 and thinned, in 8 bits as it would be stored."""
    low, high = float(strength.min()), float(strength.max())
    stretched = (strength - low) / (high - low) if high > low else np.zeros_like(strength)
    return np.round(255 * np.clip(edge_nms.suppress(stretched), 0, 1)).astype(np.uint8)


def score(answer: Answer) -> list[list[int]]:
    """`metrics.edges.Counts`, as lists."""
    counts = edges.count_matches(_as_shares(answer.edges), answer.truths)
    return [column.tolist() for column in dataclasses.astuple(counts)]


def _as_shares(values: Float[np.ndarray, "h w"] | UInt8[np.ndarray, "h w"]) -> Float[np.ndarray, "h w"]:
    return values / 255 if values.dtype == np.uint8 else values


def _dark_on_light(strength: Float[np.ndarray, "h w"] | Bool[np.ndarray, "h w"]) -> Picture:
    return np.repeat(np.round(255 * (1 - strength)).astype(np.uint8)[..., None], 3, -1)

"""Miniatures of the data sets: scenes of flat colours, and a segmenter that knows colours."""

from __future__ import annotations

import dataclasses

import numpy as np

from repvit_sam_jax import PRESETS, SamPredictor
from repvit_sam_jax.evals.segmenters import Segmenter
from repvit_sam_jax.models.prompt_encoder import FOREGROUND, TOP_LEFT

COLOURS = np.array([[255 * (i >> bit & 1) for bit in range(3)] for i in range(8)], np.uint8)
"""Corners of the RGB cube, so far apart that resizing and JPEG leave them recognisable; the first is the background."""

SIZE = (48, 64)
"""Of a scene, (height, width)."""


def scene(seed: int, size: tuple[int, int] = SIZE, objects: int = 3) -> np.ndarray:
    """Labels of ellipses and boxes on background 0, numbered 1, 2, ...; each is visible."""
    rng = np.random.default_rng(seed)
    y, x = np.indices(size)
    while True:
        labels = np.zeros(size, int)
        for number in range(1, objects + 1):
            centre = rng.uniform(0.2, 0.8, 2) * size
            radius = rng.uniform(0.12, 0.25, 2) * min(size)
            offset = np.stack([y, x], -1) - centre
            inside = np.abs(offset / radius)
            labels[(inside**2).sum(-1) <= 1 if number % 2 else (inside <= 1).all(-1)] = number
        if all(np.count_nonzero(labels == number) >= 20 for number in range(1, objects + 1)):
            return labels


def photo_of(labels: np.ndarray) -> np.ndarray:
    """The scene in colours, uint8 [h, w, 3]."""
    return COLOURS[labels]


class ColourBackend:
    """A `Backend` that answers with all that has the colour under the points, or whose colour's box is the box's.

    On photos whose longer side is `side` pixels, its masks are exact; they are shifted by (rows, columns) of them if it
    is to be wrong. The first of three masks is the object, the second the object without its upper half, the third
    everything, or without `parts` all are the object; predicted IoUs are `IOUS`.
    """

    IOUS = (0.9, 0.5, 0.25)
    dtype = "float32"

    def __init__(self, side: int = 64, shift: tuple[int, int] = (0, 0), parts: bool = True) -> None:
        self.config = dataclasses.replace(PRESETS["tiny"], image_size=4 * side)
        self.shift, self.parts = shift, parts

    def warmup(self, num_points, multimask_output, num_images):
        """Nothing to compile."""

    def encode(self, images):
        """Labels at low resolution, -1 outside the photo."""
        found = images[:, 1::4, 1::4]
        colours = found * [58.395, 57.12, 57.375] + [123.675, 116.28, 103.53]
        labels = np.abs(colours[..., None, :] - COLOURS.astype(float)).sum(-1).argmin(-1)
        return list(np.where((found == 0).all(-1), -1, labels)[:, None])

    def decode(self, embedding, prompts, multimask_output):
        """Logits of 8 and -8."""
        labels = embedding[0]
        masks = []
        for i, valid in enumerate(prompts.point_valid[0]):
            mask = self._answer(labels, prompts.point_coords[0, i][valid] / 4, prompts.point_labels[0, i][valid])
            rows = np.flatnonzero(mask.any(1))
            lower = mask & (np.arange(len(mask))[:, None] >= (rows.mean() if len(rows) else 0))
            three = (mask, lower, labels >= 0) if self.parts else (mask,) * 3
            masks.append([shifted(m, self.shift) for m in (three if multimask_output else three[:1])])
        ious = np.tile(np.array(self.IOUS if multimask_output else self.IOUS[:1], np.float32), (1, len(masks), 1))
        return np.where(masks, 8, -8).astype(np.float32)[None], ious

    def decode_above(self, embedding, prompts, iou_threshold):
        """All of them."""
        return self.decode(embedding, prompts, True)

    def _answer(self, labels, coords, kinds):
        if (kinds >= TOP_LEFT).any():
            box = coords[kinds >= TOP_LEFT].reshape(-1)
            return max((labels == n for n in np.unique(labels[labels >= 0])), key=lambda m: _overlap(m, box))
        x, y = np.clip(coords[kinds == FOREGROUND].astype(int).T, 0, len(labels) - 1)
        under = labels[y, x]
        return labels == np.bincount(under[under >= 0]).argmax() if (under >= 0).any() else labels < -1


def shifted(mask: np.ndarray, by: tuple[int, int]) -> np.ndarray:
    """A mask moved by rows and columns; what comes in is empty."""
    height, width = mask.shape
    (down, right), moved = by, np.zeros_like(mask)
    moved[max(down, 0) : height + min(down, 0), max(right, 0) : width + min(right, 0)] = mask[
        max(-down, 0) : height - max(down, 0), max(-right, 0) : width - max(right, 0)
    ]
    return moved


def _overlap(mask: np.ndarray, box: np.ndarray) -> float:
    """IoU of a mask's box and a box."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    own = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
    sides = np.minimum(own[2:], box[2:]) - np.maximum(own[:2], box[:2])
    both = np.prod(np.maximum(sides, 0))
    return both / (np.prod(own[2:] - own[:2]) + np.prod(box[2:] - box[:2]) - both)


def colour_segmenter(
    side: int = 64, shift: tuple[int, int] = (0, 0), name: str = "colours", parts: bool = True
) -> Segmenter:
    """The segmenter over `ColourBackend`."""
    about = {"weights": "none", "sha256": "none", "model": name, "dtype": "float32", "runtime": "colours"}
    return Segmenter(name, SamPredictor.over(ColourBackend(side, shift, parts)), about | {"shift": list(shift)})

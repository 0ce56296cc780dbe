"""What an exported file computes against the JAX model, on synthetic photos, by many prompts."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Literal

import jax
import numpy as np

from repvit_sam_jax import transforms
from repvit_sam_jax.config import SamConfig
from repvit_sam_jax.inference.prompts import append_not_a_point
from repvit_sam_jax.models.prompt_encoder import BOTTOM_RIGHT, TOP_LEFT, Prompts
from repvit_sam_jax.models.sam import Sam

from ..report import DECODER_TOLERANCE, FLIP_TOLERANCE, MaskRow, Report, compare, encoder_tolerance
from ..synthetic import PHOTO, synthetic_image
from .source import Source

Precision = Literal["float32", "float16"]


class ExportError(ValueError):
    """An exported file that does not compute what the model computes, or is not built as it should be."""


@dataclasses.dataclass(frozen=True)
class Tolerances:
    """Bars: relative RMS of embedding and masks, deviation of predicted IoUs, share of mask pixels that flip."""

    embedding: float
    masks: float
    iou: float
    flipped: float

    @classmethod
    def float32(cls, config: SamConfig) -> Tolerances:
        """Those between PyTorch and JAX."""
        return cls(encoder_tolerance(config.image_encoder), DECODER_TOLERANCE, DECODER_TOLERANCE, FLIP_TOLERANCE)


@dataclasses.dataclass(frozen=True)
class PromptCase:
    """P prompts of N points, in the resized frame; corners of boxes are points with labels 2 and 3."""

    name: str
    coords: np.ndarray
    labels: np.ndarray
    masked: bool = False
    """Whether the mask of the first case is given as well."""

    @property
    def count(self) -> int:
        """P."""
        return len(self.labels)

    def feeds(self, mask: np.ndarray) -> dict[str, np.ndarray]:
        """For an exported decoder; `mask` [S/4, S/4] counts only if the case is masked."""
        coords, labels = self.coords, self.labels.astype(np.float32)
        if not (labels >= TOP_LEFT).any():
            coords, labels = append_not_a_point(coords, labels)
        return {
            "point_coords": coords,
            "point_labels": labels,
            "mask_input": mask[None, None] if self.masked else np.zeros((1, 1, *mask.shape), np.float32),
            "has_mask_input": np.array([self.masked], np.float32),
        }


def prompt_cases(height: int, width: int) -> list[PromptCase]:
    """Every kind of prompt, and several numbers of prompts and points, for a resized image of this size."""
    rng = np.random.default_rng(0)
    points = lambda p, n: rng.uniform((0, 0), (width, height), (p, n, 2)).astype(np.float32)
    box = np.array([[[0.2 * width, 0.25 * height], [0.75 * width, 0.8 * height]]], np.float32)
    corners = [[TOP_LEFT, BOTTOM_RIGHT]]
    labels = lambda *values: np.array(values, np.int32)
    return [
        PromptCase("point", points(1, 1), labels([1])),
        PromptCase("points", points(1, 2), labels([1, 0])),
        PromptCase("7 points", points(1, 7), labels([1, 0, 1, 1, 0, 1, 1])),
        PromptCase("box", box, labels(*corners)),
        PromptCase("box, points", np.concatenate([box, points(1, 2)], axis=1), labels([*corners[0], 1, 0])),
        PromptCase("points, mask", points(1, 2), labels([1, 0]), masked=True),
        PromptCase("5 prompts", points(5, 1), np.ones((5, 1), np.int32)),
        PromptCase("2 prompts of 3 points", points(2, 3), labels([1, 1, 0], [0, 1, 1])),
        PromptCase("point, mask", points(1, 1), labels([1]), masked=True),
    ]


@dataclasses.dataclass(frozen=True)
class Reference:
    """What the JAX model computes. Batches of photos; prompts are those on the first."""

    config: SamConfig
    photos: list[np.ndarray]
    """uint8 RGB [H, W, 3], each larger side S."""
    images: np.ndarray
    """float32 [B, S, S, 3], normalised and padded."""
    embeddings: np.ndarray
    """[B, S/16, S/16, C]."""
    cases: list[PromptCase]
    masks: dict[str, np.ndarray]
    """Low-res logits of each case, [P, 4, S/4, S/4]."""
    iou: dict[str, np.ndarray]

    @property
    def mask_input(self) -> np.ndarray:
        """What masked cases are given, [S/4, S/4]."""
        return self.masks[self.cases[0].name][0, 1]


def reference(
    source: Source, batch: int = 1, *, single: bool = False, square: bool = False, cases: bool = True
) -> Reference:
    """Run the JAX model, with products in full float32.

    Args:
      source: the weights.
      batch: number of photos.
      single: only cases of one prompt.
      square: photos that fill the square; else a quarter of it is padding.
      cases: whether there are prompts at all.
    """
    config, size = source.config, source.config.image_size
    photos = [synthetic_image(size if square else size * 3 // 4, size, seed) for seed in range(batch)]
    images = transforms.preprocess(photos, size)
    chosen = [case for case in prompt_cases(*photos[0].shape[:2]) if cases and (case.count == 1 or not single)]
    decode = jax.jit(Sam.decode, static_argnums=(0, 4))
    masks: dict[str, np.ndarray] = {}
    iou: dict[str, np.ndarray] = {}
    with jax.default_matmul_precision("highest"):
        embeddings = jax.jit(Sam.encode, static_argnums=0)(source.model, source.params, images)
        for masked in (False, True):
            group = [case for case in chosen if case.masked == masked]
            if not group:
                continue
            mask = masks[chosen[0].name][0, 1] if masked else None
            found = decode(source.model, source.params, embeddings[:1], pack_cases(group, mask), None)
            ends = np.cumsum([case.count for case in group])[:-1]
            for case, low_res, predicted in zip(group, *(np.split(np.asarray(x)[0], ends) for x in found), strict=True):
                masks[case.name], iou[case.name] = low_res, predicted
    return Reference(config, photos, images, np.asarray(embeddings), chosen, masks, iou)


def pack_cases(cases: Sequence[PromptCase], mask: np.ndarray | None, num_points: int = 0) -> Prompts:
    """All prompts of the cases in one call, padded to the longest or to a number of points.

    The mask, if there is one, is given to each of them.
    """
    count, longest = sum(case.count for case in cases), max(num_points, *(case.labels.shape[1] for case in cases))
    coords = np.zeros((1, count, longest, 2), np.float32)
    labels, valid = np.zeros((1, count, longest), np.int32), np.zeros((1, count, longest), bool)
    start = 0
    for case in cases:
        rows, columns = slice(start, start + case.count), slice(case.labels.shape[1])
        coords[0, rows, columns], labels[0, rows, columns], valid[0, rows, columns] = case.coords, case.labels, True
        start += case.count
    return Prompts(coords, labels, valid, masks=None if mask is None else np.stack([mask] * count)[None])


Decode = Callable[[np.ndarray, PromptCase], tuple[np.ndarray, np.ndarray]]
"""Embedding [1, C, S/16, S/16] and a case to low-res masks [P, 4, S/4, S/4] and IoUs [P, 4]."""


def verify(
    expected: Reference, what: str, encode: Callable[[Reference], np.ndarray], decode: Decode, bars: Tolerances
) -> Report:
    """Compare an exported encoder and decoder with the JAX model.

    The decoder is compared from the JAX model's embedding, then the masks end to end, as of a photo of 1024 pixels.

    Args:
      expected: of the same weights.
      what: the format, for the table.
      encode: to embeddings [B, C, S/16, S/16].
      decode: see `Decode`.
      bars: tolerances.
    """
    embeddings = encode(expected)
    found = embeddings.transpose(0, 2, 3, 1)
    rows = [compare(what, "embedding", found, expected.embeddings, bars.embedding)]
    masks = []
    given = expected.embeddings[:1].transpose(0, 3, 1, 2)
    for case in expected.cases:
        low_res, iou = decode(given, case)
        rows.append(compare(what, "low_res_masks", low_res, expected.masks[case.name], bars.masks, case=case.name))
        rows.append(compare(what, "iou_predictions", iou, expected.iou[case.name], bars.iou, 1.0, case=case.name))
        low_res, _ = decode(embeddings[:1], case)
        masks.append(_mask_row(what, case.name, low_res, expected, bars.flipped))
    return Report(expected.config.name, tuple(rows), tuple(masks))


def _mask_row(what: str, case: str, found: np.ndarray, expected: Reference, tolerance: float) -> MaskRow:
    config = expected.config
    height, width = (max(PHOTO) * side // config.image_size for side in expected.photos[0].shape[:2])
    ious, flipped = [], []
    for a, b in zip(found, expected.masks[case], strict=True):  # a prompt at a time: logits of full size are large
        ours, theirs = (
            transforms.postprocess_masks(x, (height, width), config.image_size) > config.mask_threshold for x in (a, b)
        )
        union = (ours | theirs).sum((1, 2))
        ious.append(np.where(union, (ours & theirs).sum((1, 2)) / np.maximum(union, 1), 1.0).min())
        flipped.append((ours != theirs).mean())
    return MaskRow(what, case, float(min(ious)), float(np.mean(flipped)), tolerance)


Refer = Callable[..., Reference]
"""`reference`, or `rounding.exact_reference`, which takes the same."""

"""From a record to an example: the photo in the model's frame, and some of its masks."""

from __future__ import annotations

import dataclasses
import io
import json
from typing import Any

import numpy as np

from .. import transforms
from ..inference import rle
from ..inference.rle import Counts
from . import masks
from .records import DamagedRecordError, NoMasksError, Record

Example = dict[str, np.ndarray]
"""`image` uint8 [S, S, 3], resized, padded with zeros at the bottom and right, not normalised; `size` int32 [2], the
(height, width) of its content.

With masks also `masks` bool [K, S/4, S/4], in the decoder's low-resolution frame; `boxes` float32 [K, 4], XYXY in the
S-frame, the last pixels of the photo included before scaling; `areas` float32 [K], in pixels of the photo; `valid` bool
[K], False for padding, where the other three are zero.
"""


@dataclasses.dataclass(frozen=True)
class ExampleConfig:
    """What an example holds."""

    image_size: int = 1024
    """S, the model's, in pixels."""
    num_masks: int | None = 0
    """K; None for all masks of the photo, as many as they are."""
    area_exponent: float = 0.0
    """A mask is chosen with probability proportional to area**-area_exponent: 0 for all alike, more for small ones."""
    flip_probability: float = 0.0
    """Probability of mirroring photo and masks. Cached embeddings are those of photos that are not."""
    spread: bool = False
    """Whether masks that no generator draws are evenly spread over the annotations, in place of their first ones: these
    may be of another kind, such as all of one class or of one annotator."""

    def __post_init__(self) -> None:
        if self.image_size <= 0 or self.image_size % 16:
            raise ValueError(f"image_size must be a positive multiple of 16, got {self.image_size}")
        if self.num_masks is not None and self.num_masks < 0:
            raise ValueError(f"num_masks must not be negative, got {self.num_masks}")
        if not 0 <= self.flip_probability <= 1:
            raise ValueError(f"flip_probability must be from 0 to 1, got {self.flip_probability}")


def make_example(record: Record, config: ExampleConfig, rng: np.random.Generator | None = None) -> Example:
    """An example; the same for the same record, config and state of the generator.

    Args:
      record: a photo and, if masks are asked for, its annotations.
      config: what the example holds.
      rng: draws the masks, without replacement, and whether to flip. None takes the first K, or K that are spread, and
        flips nothing, for evaluation.

    Returns:
      See `Example`. A mask without a pixel in the low-resolution frame is left out, unless there are no others.

    Raises:
      DamagedRecordError: photo or annotations are damaged, don't fit each other, or have no masks though some are asked
        for.
    """
    try:
        photo = transforms.decode_image(io.BytesIO(record.photo), record.name)
    except ValueError as error:
        raise DamagedRecordError(str(error)) from error
    size = (photo.shape[0], photo.shape[1])
    flip = rng is not None and bool(rng.random() < config.flip_probability)
    example: Example = {}
    try:
        if config.num_masks != 0:
            example = _choose(read_annotations(record.annotations, size), size, config, flip, rng)
        resized = transforms.resize_longest_side(photo[:, ::-1] if flip else photo, config.image_size)
    except NoMasksError as error:
        raise NoMasksError(f"{record.name}: {error}") from error
    except ValueError as error:
        raise DamagedRecordError(f"{record.name}: {error}") from error
    image = np.zeros((config.image_size, config.image_size, 3), np.uint8)
    image[: resized.shape[0], : resized.shape[1]] = resized
    return {"image": image, "size": np.array(resized.shape[:2], np.int32), **example}


def blank_example(config: ExampleConfig) -> Example:
    """Zeros in the place of an example; with one invalid mask if their number is open."""
    size = config.image_size
    image: Example = {"image": np.zeros((size, size, 3), np.uint8), "size": np.zeros(2, np.int32)}
    count = 1 if config.num_masks is None else config.num_masks
    return {**image, **_no_masks(count, size)} if count else image


def read_annotations(text: bytes | None, size: tuple[int, int]) -> list[Counts]:
    """The masks of a record, empty ones left out, as lengths of runs.

    `inference.rle.counts_to_mask` makes bitmaps of them.

    Args:
      text: as in `Record.annotations`.
      size: (height, width) of the decoded photo.

    Raises:
      ValueError: the text is damaged, is another photo's, or holds no masks.
    """
    if text is None:
        raise ValueError("no annotations, but masks are asked for")
    try:
        content: dict[str, Any] = json.loads(text)
        about = content["image"]
        if (about["height"], about["width"]) != size:
            raise ValueError(f"annotations of a photo of {about['height']} x {about['width']} pixels, not {size}")
        found = [rle.read_segmentation(item["segmentation"], size) for item in content["annotations"]]
    except (KeyError, TypeError, AttributeError, IndexError, OverflowError, RecursionError) as error:
        raise ValueError(f"damaged annotations: {type(error).__name__}: {error}") from error
    if not any(map(rle.area, found)):
        raise NoMasksError("annotations without masks")
    return [counts for counts in found if rle.area(counts)]


def _choose(
    found: list[Counts], size: tuple[int, int], config: ExampleConfig, flip: bool, rng: np.random.Generator | None
) -> Example:
    """The arrays of up to K masks."""
    areas = np.array([rle.area(counts) for counts in found], np.float32)
    order = _spread(len(found), config.num_masks) if config.spread else np.arange(len(found))
    if rng is not None:  # the first of exponential arrivals at these rates: weighted, without replacement
        order = np.argsort(rng.exponential(size=len(found)) * areas**config.area_exponent)
    limit = len(found) if config.num_masks is None else config.num_masks
    resized = transforms.resized_shape(*size, config.image_size)
    visible = (
        7.99 * size[0] * size[1] / (resized[0] * resized[1])
    )  # half a low-resolution pixel; with less, it has none
    low_res: dict[int, np.ndarray] = {}
    for i in order[areas[order] >= visible]:
        mask = masks.to_low_res(found[i], size, config.image_size, flip=flip)
        if mask.any():
            low_res[i] = mask
        if len(low_res) == limit:
            break
    chosen = list(low_res) or list(order[:limit])
    example = _no_masks(limit, config.image_size)
    example["valid"][: len(chosen)] = True
    for place, i in enumerate(chosen):
        x1, y1, x2, y2 = rle.box(found[i], size[0])
        box = np.array((size[1] - 1 - x2, y1, size[1] - 1 - x1, y2) if flip else (x1, y1, x2, y2))
        example["boxes"][place] = transforms.apply_boxes(box, size, config.image_size)
        example["masks"][place] = low_res.get(i, False)
        example["areas"][place] = areas[i]
    return example


def _spread(length: int, count: int | None) -> np.ndarray:
    """All places, those first that are evenly spread; the others take the place of masks that have no pixel."""
    first = np.unique(np.linspace(0, length - 1, min(count or length, length)).round().astype(int))
    return np.concatenate([first, np.setdiff1d(np.arange(length), first)])


def _no_masks(count: int, image_size: int) -> Example:
    side = image_size // 4
    return {
        "masks": np.zeros((count, side, side), bool),
        "boxes": np.zeros((count, 4), np.float32),
        "areas": np.zeros(count, np.float32),
        "valid": np.zeros(count, bool),
    }

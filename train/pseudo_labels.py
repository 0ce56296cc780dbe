"""Pseudo-labels: masks that a segmenter finds by itself on photos without any, for self-training.

As in noisy student (arXiv 1911.04252), the teacher has it easier than the student: it sees small things magnified, and
everything twice, as it is and mirrored.
"""

from __future__ import annotations

import dataclasses
import functools
import io
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image
from scipy import ndimage

from repvit_sam_jax import Prompts, Sam, transforms
from repvit_sam_jax.data import shards
from repvit_sam_jax.data.sources import Record, Source
from repvit_sam_jax.evals.metrics import iou
from repvit_sam_jax.inference.backends import encode_pixels
from repvit_sam_jax.inference.masks import box_of, point_grid
from repvit_sam_jax.models.model import Params
from repvit_sam_jax.models.prompt_encoder import BOTTOM_RIGHT, FOREGROUND, TOP_LEFT

from .teacher import Teacher

CELL = 4
"""Pixels of the frame that a logit covers, along each side."""

ASPECTS = (1.0, 4 / 3, 3 / 2, 3 / 4, 2 / 3)
"""Widths of windows in terms of their heights."""

SMALLEST = 450
"""Shorter side of a window in pixels of the photo, at least, where the photo has them."""


@dataclasses.dataclass(frozen=True)
class Look:
    """A part of a window, at the size of a frame, and the masks that are taken from it."""

    side: float
    """Sides of the part, as a share of the window's."""
    smallest: float
    """Area of a mask, as a share of the window's."""
    largest: float
    points: int = 7
    """A side, that are asked about in it."""


LOOKS = (Look(1, 0.05, 0.8), Look(2 / 3, 0.015, 0.05), Look(0.4, 0.0004, 0.015), Look(0.4, 0.0004, 0.015))
"""The parts that are looked at in each window; where those lie that are smaller than it is random."""

WHOLE = (Look(1, 0.0004, 0.8, points=10),)
"""In place of them, one look at the whole window for masks of all sizes."""

MOST = 24
"""Masks of a look, at most."""

FEWEST = 3
"""Masks that a window needs; another one is taken in place of one that has less."""

OVERLAP = 0.55
"""IoU with a mask before it above which a mask is left out."""

AGREEMENT = 0.75
"""IoU of the masks for a box in the part and in its mirror image, at least."""

CONTRAST = 0.7
"""By how many standard deviations of the colours at a place the means of both sides differ where an outline is seen, in
one of the channels."""

SEEN = 0.75
"""Share of its outline that is seen, at least."""

_NEARBY = 21
"""Side of the squares around pixels of an outline in which the two sides of it are compared."""

_NOISE = 6.0
"""Levels of 255 that are added to the standard deviation."""

_MARGIN = 8
"""Pixels between a box and the border of its part, unless that is the window's."""

_ATTEMPTS = 100
"""Windows to look at for one that has masks."""


def write_pseudo_labels(
    folder: Path, source: Source, teacher: Teacher, count: int, *, seed: int = 0, whole: bool = False
) -> list[Path]:
    """Write windows of photos, with the masks that a teacher finds there, as shards in SA-1B's layout.

    Shards that are there already are kept, so an interrupted run goes on where it stopped. Large photos are taken more
    often, up to four times. What is written depends on the photos, the teacher, the count and the seed alone, up to
    rounding, which differs from machine to machine.

    Args:
      folder: new, empty, or of an earlier run with the same settings.
      source: the photos; masks of theirs are not read.
      teacher: a segmenter.
      count: windows.
      seed: of the series.
      whole: look at windows as a whole, and not at magnified parts of them. Then masks are rougher, and those of all
        sizes come from one look, as a model's answers to a user do.

    Returns:
      the shards.

    Raises:
      ValueError: the folder holds something else, or windows with other settings; an argument is out of range; a photo
        is damaged or too small; or a hundred windows one after the other have no masks that are good enough.
    """
    if count < 1 or seed < 0:
        raise ValueError(f"count must be at least 1 and seed not negative, got {count} and {seed}")
    looks = WHOLE if whole else LOOKS
    settings = {"count": count, "seed": seed, "shard_size": shards.SHARD_SIZE, "teacher": teacher.identity}
    settings |= {"dtype": teacher.model.dtype, "size": teacher.model.config.image_size}
    settings |= {"photos": source.fingerprint, "looks": [list(dataclasses.astuple(look)) for look in looks]}
    photo = functools.lru_cache(maxsize=32)(partial(_read, source))
    weights = np.clip([_shorter_side(source[i]) / 600 for i in range(len(source))], 1, 4)
    label = Labeller(teacher.model, teacher.params, looks)

    def members_of(number: int) -> shards.Members:
        rng = np.random.Generator(np.random.PCG64([seed, number]))
        for _ in range(_ATTEMPTS):
            window = Window.of(photo(int(rng.choice(len(source), p=weights / weights.sum()))), label.image_size, rng)
            masks, scores = label(window, rng)
            if len(masks) >= FEWEST:
                return shards.pack(window.image, masks, number, rng, scores)
        raise ValueError(f"none of {_ATTEMPTS} windows of the photos has {FEWEST} masks that are good enough")

    return shards.write_series(folder, count, members_of, "window", settings)


def _shorter_side(record: Record) -> int:
    """In pixels; only the file's header is read."""
    try:
        with Image.open(io.BytesIO(record.photo)) as opened:
            side = min(opened.size)
    except OSError as error:
        raise ValueError(f"{record.name} is not an image that Pillow can read") from error
    if side < 64:
        raise ValueError(f"{record.name} is too small for windows: its shorter side has {side} pixels, of 64 or more")
    return side


def _read(source: Source, i: int) -> Image.Image:
    record = source[i]
    return Image.fromarray(transforms.decode_image(io.BytesIO(record.photo), record.name))


@dataclasses.dataclass(frozen=True)
class Window:
    """A part of a photo, and what it is a part of."""

    photo: Image.Image
    box: tuple[float, float, float, float]
    """XYXY in pixels of the photo."""
    size: tuple[int, int]
    """(height, width) in pixels, multiples of `CELL`."""

    @classmethod
    def of(cls, photo: Image.Image, longest: int, rng: np.random.Generator) -> Window:
        """Somewhere in an RGB photo, of some extent and aspect ratio, `longest` pixels on its longer side."""
        aspect = rng.choice(ASPECTS)
        height = min(photo.height, photo.width / aspect)
        most = height * min(aspect, 1)
        height *= np.exp(rng.uniform(np.log(min(SMALLEST, most)), np.log(most))) / most
        width = height * aspect
        left, top = (
            rng.uniform(0, max(whole - part, 0)) for whole, part in zip(photo.size, (width, height), strict=True)
        )
        box = (left, top, min(left + width, photo.width), min(top + height, photo.height))
        scale = longest / max(width, height)
        return cls(photo, box, (_in_cells(height * scale), _in_cells(width * scale)))

    @functools.cached_property
    def image(self) -> UInt8[np.ndarray, "h w 3"]:
        """The window's pixels."""
        return self.part((0, 0, *self.size), self.size)

    def part(self, box: tuple[int, int, int, int], size: tuple[int, int]) -> UInt8[np.ndarray, "h w 3"]:
        """A part (top, left, bottom, right) of the window, in its pixels, scaled to (height, width)."""
        left, top, right, bottom = self.box
        down, across = (bottom - top) / self.size[0], (right - left) / self.size[1]
        there = (left + box[1] * across, top + box[0] * down, left + box[3] * across, top + box[2] * down)
        there = (there[0], there[1], min(there[2], right), min(there[3], bottom))
        enlarged = there[2] - there[0] < size[1]
        kind = Image.Resampling.BICUBIC if enlarged else Image.Resampling.LANCZOS
        return np.asarray(self.photo.resize((size[1], size[0]), kind, there))


class Labeller:
    """Masks by a segmenter that looks at parts of a window."""

    def __init__(self, model: Sam, params: Params, looks: Sequence[Look] = LOOKS) -> None:
        """A segmenter of any image size, and how it looks at each window."""
        self.image_size, self.looks = model.config.image_size, looks
        params = jax.device_put(params)
        self._encode = partial(encode_pixels, model, params)
        self._decode = partial(_decode, model, params)

    def __call__(self, window: Window, rng: np.random.Generator) -> tuple[list[Bool[np.ndarray, "h w"]], list[float]]:
        """Masks in a window and how well two answers agree on each (IoU).

        In each look, a grid of points is asked about, and the masks for them become boxes. Each box is asked about in
        the part and in its mirror image; the mean of the logits, cut off at the box, is its mask. Masks that the two
        don't agree on are left out, those with another colour on the other side of too little of their outlines, and
        those that reach the border of a part that is not the window's.

        Args:
          window: with the model's image size as its longer side.
          rng: places the parts, and the points in them.
        """
        found: list[tuple[Bool[np.ndarray, "h w"], float]] = []
        for look in self.looks:
            sides = [_in_cells(side * look.side) for side in window.size]
            top, left = (int(rng.integers(whole - side + 1)) for whole, side in zip(window.size, sides, strict=True))
            place = (top, left, top + sides[0], left + sides[1])
            zoom = self.image_size / max(sides)
            image = window.part(place, (_in_cells(sides[0] * zoom), _in_cells(sides[1] * zoom)))
            scale = zoom**2 * window.size[0] * window.size[1]
            areas = look.smallest * scale, look.largest * scale
            for mask, score in self._look(image, look.points, rng, areas, place, window.size):
                whole = np.zeros(window.size, bool)
                coverage = _resized(mask, (sides[0], sides[1]), Image.Resampling.BOX)
                whole[place[0] : place[2], place[1] : place[3]] = coverage >= 0.5
                if whole.any():
                    found.append((whole, score))
        kept = _distinct(np.array([mask for mask, _ in found]).reshape(len(found), *window.size))
        return [found[i][0] for i in kept], [found[i][1] for i in kept]

    def _look(
        self,
        image: UInt8[np.ndarray, "h w 3"],
        points: int,
        rng: np.random.Generator,
        areas: tuple[float, float],
        place: tuple[int, int, int, int],
        window_size: tuple[int, int],
    ) -> list[tuple[Bool[np.ndarray, "h w"], float]]:
        height, width = size = image.shape[:2]
        frames = np.zeros((2, self.image_size, self.image_size, 3), np.uint8)
        frames[0, :height, :width], frames[1, :height, :width] = image, image[:, ::-1]
        embeddings = self._encode(frames, np.full((2, 2), size, np.int32))
        boxes = self._propose(embeddings[:1], size, points, areas, rng)
        # Where the part ends and the window goes on, things go on too.
        inner = np.array([place[1] > 0, place[0] > 0, place[3] < window_size[1], place[2] < window_size[0]])
        room = np.stack([boxes[:, 0], boxes[:, 1], width - 1 - boxes[:, 2], height - 1 - boxes[:, 3]], -1)
        boxes = boxes[((room >= _MARGIN) | ~inner).all(-1)]
        logits = np.asarray(self._decode(embeddings, _prompts(boxes, width), False)[0])[:, : len(boxes), 0]
        logits = logits[..., : height // CELL, : width // CELL]
        answers = np.stack([logits[0], logits[1, ..., ::-1]])
        found = []
        for box, pair in zip(boxes, answers.swapaxes(0, 1), strict=True):
            score = float(iou(pair[0] > 0, pair[1] > 0))
            mask, pixels = np.zeros(size, bool), _resized(pair.mean(0), size, Image.Resampling.BILINEAR)
            mask[_within(box, 1)] = pixels[_within(box, 1)] > 0
            mask = _without_crumbs(mask)
            good = score >= AGREEMENT and areas[0] <= mask.sum() <= areas[1]
            if good and _seen(image, mask, box) >= SEEN:
                found.append((mask, score))
        return found

    def _propose(
        self,
        embedding: Float[jax.Array, "1 h w c"],
        size: tuple[int, int],
        points: int,
        areas: tuple[float, float],
        rng: np.random.Generator,
    ) -> Float[np.ndarray, "n 4"]:
        """Boxes XYXY around the largest pieces of masks for a grid of points, those with the best masks first."""
        grid = point_grid(points) + rng.uniform(-0.3, 0.3, (points**2, 2)) / points
        coords = (grid * (np.array(size)[::-1] - 1)).reshape(1, -1, 1, 2).astype(np.float32)
        labels = np.full(coords.shape[:3], FOREGROUND, np.int32)
        logits, scores = self._decode(embedding, Prompts(coords, labels, np.ones(labels.shape, bool)), True)
        height, width = (side // CELL for side in size)
        masks = np.asarray(logits)[0, ..., :height, :width].reshape(-1, height, width) > 0
        order = np.argsort(-np.asarray(scores).ravel(), kind="stable")
        found = masks[order].sum((1, 2)) * CELL**2
        masks = masks[order[(found >= areas[0]) & (found <= areas[1])]]
        boxes = [_box(_largest_piece(masks[i])) * CELL + [1, 1, CELL - 2, CELL - 2] for i in _distinct(masks)[:MOST]]
        return np.array(boxes, np.float32).reshape(-1, 4)


# Compiled once for all labellers of a model.
@partial(jax.jit, static_argnums=(0, 4))
def _decode(
    model: Sam, params: Params, embeddings: jax.Array, prompts: Prompts, multimask_output: bool
) -> tuple[jax.Array, jax.Array]:
    return model.decode(params, embeddings, prompts, multimask_output)


def _in_cells(side: float) -> int:
    return max(round(side / CELL), 1) * CELL


def _prompts(boxes: Float[np.ndarray, "n 4"], width: int) -> Prompts:
    """Boxes as prompts for an image and its mirror image, `MOST` of them."""
    corners = np.zeros((2, MOST, 2, 2), np.float32)
    corners[0, : len(boxes)] = boxes.reshape(-1, 2, 2)
    mirrored = np.stack([width - 1 - boxes[:, 2], boxes[:, 1], width - 1 - boxes[:, 0], boxes[:, 3]], -1)
    corners[1, : len(boxes)] = mirrored.reshape(-1, 2, 2)
    labels = np.broadcast_to(np.array([TOP_LEFT, BOTTOM_RIGHT], np.int32), corners.shape[:3])
    valid = np.broadcast_to((np.arange(MOST) < len(boxes))[:, None], corners.shape[:3])
    return Prompts(corners, labels, valid)


def _distinct(masks: Bool[np.ndarray, "n h w"]) -> list[int]:
    """Numbers of masks without those that overlap one before."""
    count, height, width = masks.shape
    flat, areas = masks.reshape(count, height * width).astype(np.float32), masks.sum((1, 2))
    kept: list[int] = []
    for i in range(count):
        intersections = flat[kept] @ flat[i]
        if (intersections <= OVERLAP * (areas[kept] + areas[i] - intersections)).all():
            kept.append(i)
    return kept


def _resized(
    array: Float[np.ndarray, "h w"], size: tuple[int, int], kind: Image.Resampling
) -> Float[np.ndarray, "h2 w2"]:
    return np.asarray(Image.fromarray(array.astype(np.float32)).resize((size[1], size[0]), kind))


def _box(mask: Bool[np.ndarray, "h w"]) -> Float[np.ndarray, "4"]:
    return np.array(box_of(mask), float)


def _within(box: Float[np.ndarray, "4"], margin: int) -> tuple[slice, slice]:
    """The pixels that a box XYXY touches, and a margin around it."""
    left, top, right, bottom = np.floor(box).astype(int)
    return slice(max(top - margin, 0), bottom + 1 + margin), slice(max(left - margin, 0), right + 1 + margin)


def _largest_piece(mask: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    pieces, count = ndimage.label(mask)
    return pieces == 1 + np.argmax(np.bincount(pieces.ravel(), minlength=count + 1)[1:])


def _without_crumbs(mask: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    """Without the pieces that have less than a twentieth of the largest one's area."""
    pieces, count = ndimage.label(mask)
    areas = np.bincount(pieces.ravel(), minlength=count + 1)
    areas[0] = 0
    return (areas >= 0.05 * max(areas.max(), 1))[pieces]


def _seen(image: UInt8[np.ndarray, "h w 3"], mask: Bool[np.ndarray, "h w"], box: Float[np.ndarray, "4"]) -> float:
    """The share of a mask's outline with another colour on the other side; the image's own border is none."""
    part = _within(box, _NEARBY)
    mask, colours = mask[part], image[part].astype(np.float32)
    outline = mask & ~ndimage.binary_erosion(mask, border_value=1)
    means, variances = [], []
    for side in (mask, ~mask):
        share, sums, squares = (
            ndimage.uniform_filter(values * side[..., None], (_NEARBY, _NEARBY, 0))[outline]
            for values in (np.ones_like(colours[..., :1]), colours, colours**2)
        )
        means.append(sums / np.maximum(share, 1e-6))
        variances.append(np.maximum(squares / np.maximum(share, 1e-6) - means[-1] ** 2, 0))
    deviation = np.sqrt((variances[0] + variances[1]) / 2 + _NOISE**2)
    contrast = (np.abs(means[0] - means[1]) / deviation).max(-1)
    return float((contrast > CONTRAST).mean()) if outline.any() else 0.0

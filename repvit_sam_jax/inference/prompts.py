"""What a person gives as prompts, in pixels of the photo, checked and packed into `Prompts` of few static shapes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Num

from .. import transforms
from ..config import SamConfig
from ..models.prompt_encoder import BOTTOM_RIGHT, NOT_A_POINT, TOP_LEFT, Prompts


@dataclasses.dataclass(frozen=True)
class Prompt:
    """One prompt on one image, in the resized frame: points, and a box as its two corners."""

    coords: Float[np.ndarray, "n 2"]
    labels: Int[np.ndarray, "n"]
    mask: Float[np.ndarray, "h w"] | None


def append_not_a_point(
    coords: Float[np.ndarray, "*p n 2"], labels: Num[np.ndarray, "*p n"]
) -> tuple[Float[np.ndarray, "*p n1 2"], Num[np.ndarray, "*p n1"]]:
    """What SAM appends where points come without a box, for decoders to which it is a point like any other."""
    none = labels.shape[:-1]
    coords = np.concatenate([coords, np.zeros((*none, 1, 2), coords.dtype)], axis=-2)
    return coords, np.concatenate([labels, np.full((*none, 1), NOT_A_POINT, labels.dtype)], axis=-1)


def read_prompts(
    point_coords: Any,
    point_labels: Any,
    box: Any,
    mask_input: Any,
    original_size: tuple[int, int],
    config: SamConfig,
) -> tuple[list[Prompt], bool]:
    """Check prompts in SAM's argument forms and map them into the resized frame.

    Args:
      point_coords: [N, 2] (x, y) in pixels of the photo for one prompt; [P, N, 2], or P arrays [N_i, 2], for many.
      point_labels: [N], [P, N] or P arrays: 1 foreground, 0 background, -1 not a point.
      box: [4] or [1, 4] XYXY for one prompt, [P, 4] for many.
      mask_input: [1, S/4, S/4] logits for one prompt, [P, 1, S/4, S/4] for many.
      original_size: (height, width) of the photo in pixels.
      config: the model's.

    Returns:
      The prompts, and whether the arguments had the form of a single one.

    Raises:
      ValueError: nothing was given, counts or shapes do not fit, a coordinate is NaN, a point lies outside the
        photo, a box is inverted or lies wholly outside, or a label is unknown.
    """
    points, many_points = _read_points(point_coords, point_labels)
    boxes, many_boxes = _read_boxes(box)
    masks, many_masks = _read_masks(mask_input, config.low_res_size)
    counts = {
        name: len(given)
        for name, given in (("point_coords", points), ("box", boxes), ("mask_input", masks))
        if given is not None
    }
    if not counts:
        raise ValueError("no prompt was given; pass point_coords with point_labels, box or mask_input")
    if len(set(counts.values())) > 1:
        raise ValueError(f"the prompts differ in number: {', '.join(f'{v} in {k}' for k, v in counts.items())}")
    prompts = []
    for i in range(next(iter(counts.values()))):
        where = f" of prompt {i}" if many_points or many_boxes or many_masks else ""
        coords, labels = points[i] if points is not None else (np.zeros((0, 2)), np.zeros(0, np.int32))
        _check_points(coords, labels, original_size, where)
        if boxes is not None:
            _check_box(boxes[i], original_size, where)
            coords = np.concatenate([coords, boxes[i].reshape(2, 2)])
            labels = np.concatenate([labels, [TOP_LEFT, BOTTOM_RIGHT]])
        if not len(labels) and masks is None:
            raise ValueError(f"point_coords{where} is empty, and there is neither a box nor a mask")
        coords = transforms.apply_coords(np.where(labels[:, None] < 0, 0, coords), original_size, config.image_size)
        prompts.append(Prompt(coords, labels.astype(np.int32), None if masks is None else masks[i]))
    return prompts, not (many_points or many_boxes or many_masks)


def pack(prompts: Sequence[Prompt], count: int) -> Prompts:
    """`Prompts` [1, count, N, ...] with N the next power of two; what is added is padding that changes nothing."""
    n = bucket(max(len(prompt.labels) for prompt in prompts), minimum=2)
    coords = np.zeros((1, count, n, 2), np.float32)
    labels = np.zeros((1, count, n), np.int32)
    valid = np.zeros((1, count, n), bool)
    for i, prompt in enumerate(prompts):
        used = len(prompt.labels)
        coords[0, i, :used], labels[0, i, :used], valid[0, i, :used] = prompt.coords, prompt.labels, True
    masks = None
    if prompts[0].mask is not None:
        masks = np.zeros((1, count, *prompts[0].mask.shape), np.float32)
        masks[0, : len(prompts)] = [prompt.mask for prompt in prompts]
    return Prompts(coords, labels, valid, masks=masks)


def bucket(count: int, minimum: int = 1) -> int:
    """The smallest power of two that is at least `count` and `minimum`: few sizes, so few compilations."""
    return 1 << max(count - 1, minimum - 1, 0).bit_length()


def _numeric(value: Any, name: str) -> np.ndarray:
    try:
        return np.asarray(value, np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} is not an array of numbers: {error}") from error


def _read_points(point_coords: Any, point_labels: Any) -> tuple[list[tuple[np.ndarray, np.ndarray]] | None, bool]:
    if point_coords is None:
        if point_labels is not None:
            raise ValueError("point_labels was given without point_coords")
        return None, False
    if point_labels is None:
        raise ValueError("point_labels must be given with point_coords: 1 foreground, 0 background")
    try:
        many = _holds_many(point_coords)
        coord_sets, label_sets = (point_coords, list(point_labels)) if many else ([point_coords], [point_labels])
    except (TypeError, ValueError, LookupError) as error:
        raise ValueError(
            f"point_coords must have shape [N, 2] or [P, N, 2], point_labels [N] or [P, N]: {error}"
        ) from error
    if many and not len(coord_sets):
        raise ValueError(f"point_coords holds no prompts, shape {np.shape(point_coords)}")
    if len(coord_sets) != len(label_sets):
        raise ValueError(f"point_labels has {len(label_sets)} prompts for {len(coord_sets)} in point_coords")
    points = []
    for coords, labels in zip(coord_sets, label_sets, strict=True):
        coords, labels = _numeric(coords, "point_coords"), _numeric(labels, "point_labels")
        if not coords.size:
            coords = coords.reshape(0, 2)
        if coords.ndim != 2 or coords.shape[1] != 2:
            raise ValueError(f"point_coords must have shape [N, 2] or [P, N, 2], got {coords.shape} for a prompt")
        if labels.shape != coords.shape[:1]:
            raise ValueError(
                f"point_labels has shape {labels.shape} for {len(coords)} points, expected ({len(coords)},)"
            )
        points.append((coords, labels))
    return points, many


def _holds_many(point_coords: Any) -> bool:
    """Whether these are the points of several prompts, some of which may have none."""
    if isinstance(point_coords, np.ndarray):
        return point_coords.ndim == 3 or (point_coords.ndim == 2 and len(point_coords) > 0 and not point_coords.size)
    depths = [np.ndim(coords) if len(coords) else None for coords in point_coords]
    return 2 in depths or (len(depths) > 0 and set(depths) == {None})


def _read_boxes(box: Any) -> tuple[list[np.ndarray] | None, bool]:
    if box is None:
        return None, False
    boxes = _numeric(box, "box")
    if boxes.shape[-1:] != (4,) or boxes.ndim not in (1, 2) or not boxes.size:
        raise ValueError(f"box must have shape [4] or [P, 4] (x1, y1, x2, y2), got {boxes.shape}")
    return list(boxes.reshape(-1, 4)), boxes.ndim == 2 and len(boxes) > 1


def _read_masks(mask_input: Any, side: int) -> tuple[list[np.ndarray] | None, bool]:
    if mask_input is None:
        return None, False
    with np.errstate(over="ignore"):  # what float32 can't hold becomes infinite, and is refused
        masks = _numeric(mask_input, "mask_input").astype(np.float32)
    if masks.ndim not in (3, 4) or masks.shape[-3:] != (1, side, side) or not masks.size:
        raise ValueError(
            "mask_input must hold low-res logits of "
            f"shape [1, {side}, {side}] or [P, 1, {side}, {side}], got {masks.shape}"
        )
    if not np.isfinite(masks).all():
        raise ValueError("mask_input has NaN or infinite values")
    return list(masks.reshape(-1, side, side)), masks.ndim == 4


def _check_points(coords: np.ndarray, labels: np.ndarray, size: tuple[int, int], where: str) -> None:
    height, width = size
    for i, ((x, y), label) in enumerate(zip(coords, labels, strict=True)):
        if label not in (-1, 0, 1):
            raise ValueError(f"label {i}{where} is {label:g}; labels are 1 foreground, 0 background, -1 not a point")
        if label >= 0 and not (np.isfinite(x) and np.isfinite(y)):
            raise ValueError(f"point {i}{where} is not finite: ({x}, {y})")
        if label >= 0 and not (0 <= x <= width and 0 <= y <= height):
            raise ValueError(
                f"point {i}{where}, ({x:g}, {y:g}), lies outside the image of width {width}, height {height}"
            )


def _check_box(box: np.ndarray, size: tuple[int, int], where: str) -> None:
    height, width = size
    x1, y1, x2, y2 = box
    shown = ", ".join(f"{v:g}" for v in box)
    if not (np.abs(box) < 1e30).all():
        raise ValueError(f"the box{where} is not finite: ({shown})")
    if x2 < x1 or y2 < y1:
        raise ValueError(f"the box{where} is inverted: ({shown}); expected x1 <= x2 and y1 <= y2")
    if x2 < 0 or y2 < 0 or x1 > width or y1 > height:
        raise ValueError(f"the box{where}, ({shown}), lies outside the image of width {width}, height {height}")

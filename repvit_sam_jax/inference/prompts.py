"""What a person gives as prompts, in pixels of the photo, checked and packed into `Prompts`."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Num
from numpy.typing import ArrayLike

from .. import transforms
from ..config import SamConfig
from ..models.prompt_encoder import BACKGROUND, BOTTOM_RIGHT, FOREGROUND, NOT_A_POINT, TOP_LEFT, Prompts

MASK_LOGIT = 10.0
"""What a pixel of a binary `mask_input` becomes, and its negative outside."""


@dataclasses.dataclass(frozen=True, eq=False, init=False)
class Prompt:
    """Points, a box and a mask, which together are one prompt, in pixels of the photo."""

    points: Float[np.ndarray, "n 2"]
    """(x, y) each."""
    labels: Int[np.ndarray, "n"]
    """1 foreground, 0 background, -1 not a point, one a point."""
    box: Float[np.ndarray, "4"] | None
    """XYXY."""
    mask: Float[np.ndarray, "h w"] | None
    """Low-res logits, [S/4, S/4]."""

    def __init__(
        self, points: ArrayLike = (), labels: ArrayLike = (), box: ArrayLike | None = None, mask: Any = None
    ) -> None:
        """Raises ValueError if these have other shapes, or a label is none of the three."""
        coords, classes = np.asarray(points, np.float64), np.asarray(labels)
        if coords.size and coords.shape[1:] != (2,):
            raise ValueError(f"points are (x, y) each, [n, 2], got {list(coords.shape)}")
        if classes.shape != (coords.size // 2,):
            raise ValueError(f"{coords.size // 2} points have a label each, got labels of {list(classes.shape)}")
        _check_labels(classes, "")
        corners = None if box is None else np.asarray(box, np.float64)
        if corners is not None and corners.shape != (4,):
            raise ValueError(f"a box is [x1, y1, x2, y2], got {list(corners.shape)}")
        values = {"points": coords.reshape(-1, 2), "labels": classes.astype(np.int32), "box": corners, "mask": mask}
        for name, value in values.items():
            object.__setattr__(self, name, value)

    @property
    def is_ambiguous(self) -> bool:
        """A single point alone: of three masks, the one with the best predicted IoU is taken. Others give one mask."""
        return len(self.points) == 1 and self.box is None and self.mask is None

    @property
    def num_points(self) -> int:
        """Points, of which a box is two."""
        return len(self.points) + 2 * (self.box is not None)

    def check(self, size: tuple[int, int], where: str = "") -> None:
        """Hold the prompt against a photo of `size` (height, width); `where` is which prompt an error means.

        Raises:
          ValueError: it is empty, a coordinate is NaN, a point lies outside the photo, or a box is inverted or lies
            wholly outside.
        """
        if not self.num_points and self.mask is None:
            raise ValueError(f"point_coords{where} is empty, and there is neither a box nor a mask")
        _check_points(self.points, self.labels, size, where)
        if self.box is not None:
            _check_box(self.box, size, where)
        elif self.mask is None and BACKGROUND in self.labels and FOREGROUND not in self.labels:
            warnings.warn(
                f"the points{where} are all background, without a box or a mask: SAM was not trained on such prompts, "
                "and its masks for them mean little; add a foreground point or a box",
                stacklevel=2,
            )


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
    size: tuple[int, int],
    config: SamConfig,
) -> tuple[list[Prompt], bool]:
    """Check prompts in SAM's argument forms.

    Args:
      point_coords: [N, 2] (x, y) in pixels of the photo for one prompt; [P, N, 2], or P arrays [N_i, 2], for many.
      point_labels: [N], [P, N] or P arrays: 1 foreground, 0 background, -1 not a point.
      box: [4] or [1, 4] XYXY for one prompt, [P, 4] for many.
      mask_input: [1, S/4, S/4] logits for one prompt, [P, 1, S/4, S/4] for many. A binary mask (booleans, or zeros and
        ones, or zeros and 255) may have these shapes, or [H, W] or its like in pixels of the photo: it is scaled to
        the model's frame, and becomes logits from -`MASK_LOGIT` to `MASK_LOGIT` by its share of each low-res pixel.
      size: (height, width) of the photo in pixels.
      config: the model's.

    Returns:
      The prompts, and whether the arguments had the form of a single one.

    Raises:
      ValueError: nothing was given, counts or shapes do not fit, a number is not real or not finite, a point lies
        outside the photo, a box is inverted or lies wholly outside, or a label is unknown.
    """
    points, many_points = _read_points(point_coords, point_labels)
    boxes, many_boxes = _read_boxes(box)
    masks, many_masks = _read_masks(mask_input, size, config)
    counts = {
        name: len(given)
        for name, given in (("point_coords", points), ("box", boxes), ("mask_input", masks))
        if given is not None
    }
    if not counts:
        raise ValueError("no prompt was given; pass point_coords with point_labels, box or mask_input")
    if len(set(counts.values())) > 1:
        raise ValueError(f"the prompts differ in number: {', '.join(f'{v} in {k}' for k, v in counts.items())}")
    many = many_points or many_boxes or many_masks
    prompts = []
    for i in range(next(iter(counts.values()))):
        where = f" of prompt {i}" if many else ""
        coords, labels = (np.zeros((0, 2)), np.zeros(0)) if points is None else points[i]
        _check_labels(labels, where)
        box, mask = (None if given is None else given[i] for given in (boxes, masks))
        prompt = Prompt(coords, labels, box, mask)
        prompt.check(size, where)
        prompts.append(prompt)
    return prompts, not many


def pack(prompts: Sequence[Prompt], size: tuple[int, int], image_size: int) -> Prompts:
    """`Prompts` [1, P, N, ...] in the model's frame, a box as two more points; N is the longest one's.

    Args:
      prompts: all with a mask, or none.
      size: (height, width) of the photo that they are on.
      image_size: S.
    """
    shape = (1, len(prompts), max(prompt.num_points for prompt in prompts))
    packed = Prompts(np.zeros((*shape, 2), np.float32), np.zeros(shape, np.int32), np.zeros(shape, bool))
    for i, prompt in enumerate(prompts):
        points, labels = np.where(prompt.labels[:, None] < 0, 0, prompt.points), prompt.labels
        if prompt.box is not None:
            points = np.concatenate([points, prompt.box.reshape(2, 2)])
            labels = np.concatenate([labels, [TOP_LEFT, BOTTOM_RIGHT]])
        used = (0, i, slice(len(labels)))
        packed.point_coords[used] = transforms.apply_coords(points, size, image_size)
        packed.point_labels[used], packed.point_valid[used] = labels, True
    masks = [prompt.mask for prompt in prompts if prompt.mask is not None]
    return dataclasses.replace(packed, masks=np.stack(masks)[None]) if masks else packed


def bucket(count: int, minimum: int = 1) -> int:
    """The smallest power of two that is at least `count` and `minimum`: few sizes, so few compilations."""
    return 1 << max(count - 1, minimum - 1, 0).bit_length()


def _numeric(value: Any, name: str) -> np.ndarray:
    try:
        array = np.asarray(value)
        if array.dtype.kind in "cSUmM":
            raise ValueError(f"its values are {array.dtype}")
        return array.astype(np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{name} is not an array of real numbers: {error}") from error


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
    if boxes.shape == (0, 4):
        raise ValueError("box holds no prompts, shape (0, 4)")
    if boxes.shape[-1:] != (4,) or boxes.ndim not in (1, 2) or not boxes.size:
        raise ValueError(f"box must have shape [4] or [P, 4] (x1, y1, x2, y2), got {boxes.shape}")
    return list(boxes.reshape(-1, 4)), boxes.ndim == 2 and len(boxes) > 1


def _read_masks(
    mask_input: Any, size: tuple[int, int], config: SamConfig
) -> tuple[list[Float[np.ndarray, "h w"]] | None, bool]:
    if mask_input is None:
        return None, False
    with np.errstate(over="ignore"):  # what float32 can't hold becomes infinite, and is refused
        masks = _numeric(mask_input, "mask_input").astype(np.float32)
    side = config.low_res_size
    is_logits = masks.shape[-2:] == (side, side)
    binary = _is_binary(masks, mask_input)
    if binary and masks.ndim == 2:
        masks = masks[None]
    if masks.ndim not in (3, 4) or masks.shape[-3] != 1 or not masks.size or not (is_logits or binary):
        raise ValueError(
            f"mask_input must hold low-res logits of shape [1, {side}, {side}] or [P, 1, {side}, {side}], "
            f"or binary masks; got {masks.shape}"
        )
    if binary and not is_logits and masks.shape[-2:] != size:
        raise ValueError(
            f"a binary mask_input must have the photo's size {size} or be low-res, {(side, side)}; got {masks.shape}"
        )
    if not np.isfinite(masks).all():
        raise ValueError("mask_input has NaN or infinite values")
    if binary:
        cover = masks > 0 if is_logits else transforms.low_res_cover(masks > 0, config.image_size)
        masks = MASK_LOGIT * (2 * cover.astype(np.float32) - 1)
    return list(masks.reshape(-1, side, side)), masks.ndim == 4


def _is_binary(masks: np.ndarray, given: Any) -> bool:
    """Whether these are no logits but masks: zeros are both, and taken as logits unless they are booleans."""
    if np.asarray(given).dtype.kind == "b" or not masks.size:
        return True
    largest = masks.max()
    return largest in (1, 255) and bool(((masks == 0) | (masks == largest)).all())


def _check_labels(labels: Any, where: str) -> None:
    for i, label in enumerate(labels):
        if label not in (-1, 0, 1):
            raise ValueError(f"label {i}{where} is {label:g}; labels are 1 foreground, 0 background, -1 not a point")


def _check_points(coords: np.ndarray, labels: np.ndarray, size: tuple[int, int], where: str) -> None:
    height, width = size
    for i, ((x, y), label) in enumerate(zip(coords, labels, strict=True)):
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

"""Held-out IoU of a segmenter by kind of prompt and size of object, against annotations and against a teacher."""

from __future__ import annotations

import dataclasses
import functools
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt8

from .. import Prompts, Sam, transforms
from ..inference.backends import encode_pixels
from ..inference.masks import box_of
from ..models.model import Params
from ..models.prompt_encoder import BACKGROUND, BOTTOM_RIGHT, FOREGROUND, TOP_LEFT
from .metrics import COCO_SIZES, SIZES, iou, mean_by_size

KINDS = ("box", "centre", "centre_oracle", "points3")
"""Kinds of prompts that `evaluate` asks by default."""

Result = dict[str, dict[str, dict[str, Any]]]
"""{against: {kind of prompt: {"all": mIoU, "small": ..., "medium": ..., "large": ..., "count": {"all": n, ...}}}}.

JSON can hold it; a mean over no objects is None."""


def evaluate(
    model: Sam,
    params: Params,
    batches: Iterable[Mapping[str, np.ndarray]],
    *,
    teacher: tuple[Sam, Params] | None = None,
    size_bounds: tuple[float, float] = COCO_SIZES,
    points: Sequence[int] = (3,),
) -> Result:
    """Mean IoU of masks for prompts that are made of the annotated ones.

    Kinds of prompts:
      `box`: the annotation's box; the decoder's single mask.
      `centre`: the pixel of the annotated mask that is farthest from the mask's complement, in Euclidean distance; of
        the three masks the one with the highest predicted IoU. `centre_oracle` is the best of the three instead.
      `points3`, or others of `points`: the centre, whose mask is `centre`'s, then one more point at a time: the pixel
        of the error region that is farthest from the region's boundary, foreground if the mask lacks it,
        otherwise background. False negatives and false positives are regions of their own, and the centre is that of
        the region with the largest inscribed circle, which need not be the one of the largest area. Each time the mask
        is the decoder's single one, and the logits of the mask before are a prompt beside the points. That points are
        farthest from the boundary, and that logits are passed on, is in SAM's paper (2304.02643, appendices D.1 and A);
        the two kinds of regions are RITM's (2102.06583), whose practice SAM follows. Deliberate differences: RITM's
        code takes background where the two circles are equal, here it is foreground; and it never takes a pixel twice.

    IoUs are those of low-resolution masks, [S/4, S/4], within the photo's content. They are not those of masks in the
    photo's pixels: thin structures and the edges of small objects weigh less. An object without a pixel at that
    resolution is left out.

    Args:
      model: the segmenter, in either form; the training form uses its running statistics.
      params: its parameters, which may lie on several devices of this process.
      batches: of the format that `data` gives, with masks; a short last one is padded to the size of the first.
      teacher: a segmenter of the same image size and its parameters. Its masks for the same prompts, chosen by its own
        predicted IoU, are compared with too; points that correct are those for the student's errors.
      size_bounds: areas, in pixels of the photo, at which medium and large objects begin.
      points: numbers of points after which the mask is looked at, 2 or more each.

    Returns:
      `Result` with the keys `ground_truth` and, if there is a teacher, `teacher`.

    Raises:
      ValueError: no batch holds a valid mask, batches have no masks, image sizes differ, or a number of points is below
        2.
    """
    check_points(points)
    if teacher is not None and teacher[0].config.image_size != model.config.image_size:
        sizes = f"{teacher[0].config.image_size}, the student's {model.config.image_size}"
        raise ValueError(f"the teacher's image_size is {sizes}; load one of them with the other's image_size")
    values: dict[str, dict[str, list[np.ndarray]]] = defaultdict(lambda: defaultdict(list))
    areas: list[np.ndarray] = []
    count = 0
    for given in batches:
        count = max(count, len(given["image"]))
        batch = PromptBatch.read(given, count, model.config.image_size)
        masks, clicks = _segment(model, params, batch, points)
        references = {"ground_truth": dict.fromkeys(masks, batch.targets[:, :, None])}
        if teacher is not None:
            theirs, _ = _segment(*teacher, batch, points, clicks)
            references["teacher"] = {**theirs, "centre_oracle": theirs["centre"]}
        for against, reference in references.items():
            for kind in masks:
                values[against][kind].append(iou(masks[kind], reference[kind]).max(-1)[batch.kept])
        areas.append(batch.areas[batch.kept])
    if not sum(map(len, areas)):
        raise ValueError(_NOTHING)
    return {
        against: {
            kind: mean_by_size(np.concatenate(ious), np.concatenate(areas), size_bounds)
            for kind, ious in by_kind.items()
        }
        for against, by_kind in values.items()
    }


def check_points(points: Sequence[int]) -> None:
    """Raises ValueError unless these are numbers of points after which a mask can be looked at."""
    if not points or min(points) < 2:
        raise ValueError(f"points must be 2 or more each, got {tuple(points)}")


def table(result: Result) -> str:
    """The means of `evaluate` in percent, as a Markdown table."""
    columns = ("all", *SIZES)
    lines = [f"| mIoU against | prompt | {' | '.join(columns)} |", f"|---|---|{'---:|' * len(columns)}"]
    for against, by_kind in result.items():
        for kind, means in by_kind.items():
            cells = ["-" if means[column] is None else f"{100 * means[column]:.1f}" for column in columns]
            lines.append(f"| {against.replace('_', ' ')} | {kind} | {' | '.join(cells)} |")
    counts = next(iter(next(iter(result.values())).values()))["count"]
    return "\n".join([*lines, f"| objects | | {' | '.join(str(counts[column]) for column in columns)} |"])


def farthest_pixel(mask: Bool[np.ndarray, "h w"]) -> tuple[float, int, int]:
    """The pixel of a mask that is farthest from its complement, to which the surroundings of the frame belong.

    Returns:
      The Euclidean distance in pixels, and column and row; of several pixels the first in row order. Zeros for an empty
      mask.
    """
    from scipy import ndimage  # importing it takes as long as all of the library

    box = box_of(mask)
    if box is None:
        return 0.0, 0, 0
    x0, y0, x1, y1 = box
    part = mask[y0 : y1 + 1, x0 : x1 + 1]
    distances = ndimage.distance_transform_edt(np.pad(part, 1))[1:-1, 1:-1]
    row, column = np.unravel_index(np.argmax(distances), distances.shape)
    return float(distances[row, column]), int(x0 + column), int(y0 + row)


def rank_correlation(model: Sam, params: Params, batches: Iterable[Mapping[str, np.ndarray]]) -> float:
    """Spearman's correlation of predicted with true IoUs, over the three masks for the centre of every object.

    Arguments and errors as for `evaluate`. NaN if one of the two is the same everywhere.
    """
    from scipy import stats

    predicted, true = [], []
    for given in batches:
        batch = PromptBatch.read(given, len(given["image"]), model.config.image_size)
        clicks = Clicks(batch, 1)
        clicks.put(0, np.zeros_like(batch.targets))
        embeddings = encode_pixels(model, params, batch.images, batch.sizes)
        _, masks, predictions = _decode(model, params, embeddings, clicks.prompts(1), batch.content, True)
        predicted.append(np.asarray(predictions)[batch.kept])
        true.append(iou(np.asarray(masks), batch.targets[:, :, None])[batch.kept])
    if not sum(map(len, true)):
        raise ValueError(_NOTHING)
    return float(stats.spearmanr(np.concatenate(predicted), np.concatenate(true), axis=None).statistic)


_NOTHING = "no batch holds a valid mask, so there is nothing to evaluate; check the held-out source"


@dataclasses.dataclass(frozen=True)
class PromptBatch:
    """What a protocol needs of a batch."""

    images: UInt8[np.ndarray, "b s s 3"]
    sizes: Int[np.ndarray, "b 2"]
    boxes: Float[np.ndarray, "b k 4"]
    areas: Float[np.ndarray, "b k"]
    content: Bool[np.ndarray, "b h w"]
    """Pixels of the low-resolution masks that lie within the photo."""
    targets: Bool[np.ndarray, "b k h w"]
    kept: Bool[np.ndarray, "b k"]
    """Prompts that count: the valid ones, if something is left of their masks."""

    @classmethod
    def read(cls, given: Mapping[str, np.ndarray], count: int, image_size: int) -> PromptBatch:
        """A batch in the common format, padded to `count` photos."""
        if "masks" not in given:
            raise ValueError(f"the batches have no masks, only {', '.join(given)}; ask their source for masks")
        side = image_size // 4
        if given["masks"].shape[2:] != (side, side):
            raise ValueError(f"masks must have shape [B, K, {side}, {side}] for this model, got {given['masks'].shape}")
        images, sizes, boxes, areas, masks, valid = (
            np.pad(given[key], [(0, count - len(given[key]))] + [(0, 0)] * (given[key].ndim - 1))
            for key in ("image", "size", "boxes", "areas", "masks", "valid")
        )
        content = np.asarray(transforms.valid_positions(sizes, side, image_size))
        targets = masks & content[:, None]
        return cls(images, sizes, boxes, areas, content, targets, valid & targets.any((-2, -1)))


class Clicks:
    """Up to `most` points for each prompt, which fill as the protocol goes on."""

    def __init__(self, batch: PromptBatch, most: int):
        self.batch, self.most = batch, most
        self.coords = np.zeros((*batch.kept.shape, most, 2), np.float32)
        self.labels = np.zeros((*batch.kept.shape, most), np.int32)
        self.valid = np.zeros((*batch.kept.shape, most), bool)

    def put(self, number: int, masks: Bool[np.ndarray, "b k h w"]) -> None:
        """Point number `number` of each prompt that counts, at the centre of what `masks` lack or have too much."""
        targets = self.batch.targets
        lacking, wrong = targets & ~masks, masks & ~targets
        stride = self.batch.images.shape[1] // targets.shape[-1]
        for at in map(tuple, np.argwhere(self.batch.kept)):
            inside, outside = farthest_pixel(lacking[at]), farthest_pixel(wrong[at])
            foreground = inside[0] >= outside[0]
            distance, column, row = inside if foreground else outside
            # SAM counts coordinates from the centre of the first pixel.
            self.coords[at][number] = stride * np.array([column, row]) + (stride - 1) / 2
            self.labels[at][number] = FOREGROUND if foreground else BACKGROUND
            self.valid[at][number] = distance > 0

    def prompts(self, count: int, logits: Array | None = None) -> Prompts:
        """The first `count` points; beside `logits` of earlier masks always in the same shape."""
        if logits is None:
            return Prompts(self.coords[:, :, :count], self.labels[:, :, :count], self.valid[:, :, :count])
        return Prompts(self.coords, self.labels, self.valid & (np.arange(self.most) < count), masks=logits)


def _segment(
    model: Sam, params: Params, batch: PromptBatch, points: Sequence[int], clicks: Clicks | None = None
) -> tuple[dict[str, Bool[np.ndarray, "b k m h w"]], Clicks]:
    """The masks for each kind of prompt, three for the oracle and otherwise one, and the points.

    The points are another segmenter's if given, otherwise they follow this one's errors.
    """
    embeddings = encode_pixels(model, params, batch.images, batch.sizes)

    def decode(prompts: Prompts, multimask_output: bool) -> tuple[Array, np.ndarray, np.ndarray]:
        logits, masks, iou = _decode(model, params, embeddings, prompts, batch.content, multimask_output)
        return logits, np.asarray(masks), np.asarray(iou).argmax(-1)

    b, k = batch.kept.shape
    corners = np.broadcast_to(np.array([TOP_LEFT, BOTTOM_RIGHT], np.int32), (b, k, 2))
    boxes = Prompts(batch.boxes.reshape(b, k, 2, 2), corners, np.repeat(batch.kept[..., None], 2, axis=-1))
    _, box, _ = decode(boxes, False)

    following = clicks is None
    clicks = clicks or Clicks(batch, max(points))
    if following:
        clicks.put(0, np.zeros_like(batch.targets))
    logits, three, best = decode(clicks.prompts(1), True)
    masks = np.take_along_axis(three, best[..., None, None, None], 2)
    found = {"box": box, "centre": masks, "centre_oracle": three}
    for number in range(1, max(points)):
        if following:
            clicks.put(number, masks[:, :, 0])
        logits, masks, _ = decode(clicks.prompts(number + 1, logits), False)
        if number + 1 in points:
            found[f"points{number + 1}"] = masks
    return found, clicks


@functools.partial(jax.jit, static_argnums=(0, 5))
def _decode(
    model: Sam, params: Params, embeddings: Array, prompts: Prompts, content: Array, multimask_output: bool
) -> tuple[Float[Array, "b k h w"], Bool[Array, "b k m h w"], Float[Array, "b k m"]]:
    """Logits of the mask with the highest predicted IoU, all masks within the content, and the predicted IoUs."""
    logits, predictions = model.decode(params, embeddings, prompts, multimask_output)
    best = predictions.argmax(-1)
    chosen = jnp.take_along_axis(logits, best[..., None, None, None], 2)[:, :, 0]
    return chosen, (logits > model.config.mask_threshold) & content[:, None, None], predictions

"""Masks of everything on a photo the plain way, in PyTorch: what `SamAutomaticMaskGenerator` is held against.

Everything in SAM's own order (facebookresearch/segment-anything), step by step and without shortcuts: a batch of points
is decoded, all of its masks are upscaled to the crop's size, and then they are filtered.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from skimage import measure
from torch import Tensor

from convert.torch_models import Sam as TorchSam
from repvit_sam_jax import transforms

Decode = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Points [P, 2] in the resized frame -> low-res logits [P, M, S/4, S/4] and predicted IoUs [P, M]."""


def embed_with(twin: TorchSam) -> Callable[[np.ndarray], Decode]:
    """A crop to the decoder that answers points about it."""

    def embed(crop: np.ndarray) -> Decode:
        images = transforms.preprocess(crop, twin.config.image_size).transpose(0, 3, 1, 2)
        embedding = twin.encode(torch.from_numpy(images.copy()))
        labels = lambda points: torch.ones(len(points), 1, dtype=torch.int64)
        return lambda points: twin.decode(embedding, points[:, None], labels(points))

    return embed


@torch.inference_mode()
def plain_generate(
    embed: Callable[[np.ndarray], Decode],
    image: np.ndarray,
    image_size: int,
    *,
    mask_threshold: float = 0.0,
    points_per_side: int | None = 32,
    points_per_batch: int = 64,
    pred_iou_thresh: float = 0.88,
    stability_score_thresh: float = 0.95,
    stability_score_offset: float = 1.0,
    box_nms_thresh: float = 0.7,
    crop_n_layers: int = 0,
    crop_nms_thresh: float = 0.7,
    crop_overlap_ratio: float = 512 / 1500,
    crop_n_points_downscale_factor: int = 1,
    point_grids: Sequence[np.ndarray] | None = None,
    min_mask_region_area: int = 0,
) -> tuple[list[dict[str, Any]], Counter[str]]:
    """Records as of `SamAutomaticMaskGenerator`, segmentations as arrays, and how many masks passed each filter.

    `embed` is as of `embed_with`, `image` uint8 RGB [H, W, 3], `image_size` and `mask_threshold` are the model's; the
    other arguments are those of `SamAutomaticMaskGenerator`.
    """
    counts: Counter[str] = Counter()
    height, width = image.shape[:2]
    found: list[dict[str, Any]] = []
    for (x1, y1, x2, y2), layer in _crops(height, width, crop_n_layers, crop_overlap_ratio):
        crop = image[y1:y2, x1:x2]
        decode = embed(crop)
        if point_grids is None:
            assert points_per_side is not None
            grid = _grid(int(points_per_side / crop_n_points_downscale_factor**layer))
        else:
            grid = point_grids[layer]
        points = grid * np.array([x2 - x1, y2 - y1])
        in_crop: list[dict[str, Any]] = []
        for start in range(0, len(points), points_per_batch):
            batch = points[start : start + points_per_batch]
            logits, iou = _decode_at_full_size(decode, batch, crop.shape[:2], image_size)
            masks_per_point = iou.shape[1]
            logits, iou = logits.flatten(0, 1), iou.flatten()
            where = np.repeat(batch, masks_per_point, axis=0)
            counts["candidates"] += len(iou)

            if pred_iou_thresh > 0:
                kept = iou > pred_iou_thresh
                logits, iou, where = logits[kept], iou[kept], where[kept.numpy()]
            counts["predicted IoU"] += len(iou)

            above = (logits > mask_threshold + stability_score_offset).flatten(1).sum(1, dtype=torch.int32)
            below = (logits > mask_threshold - stability_score_offset).flatten(1).sum(1, dtype=torch.int32)
            stability = above / below
            if stability_score_thresh > 0:
                kept = stability >= stability_score_thresh
                logits, iou, where, stability = logits[kept], iou[kept], where[kept.numpy()], stability[kept]
            counts["stability score"] += len(iou)

            for mask, mask_iou, point, score in zip(logits > mask_threshold, iou, where, stability, strict=True):
                box = np.add(_box(mask.numpy()), [x1, y1, x1, y1])
                if _touches_inner_edge(box, (x1, y1, x2, y2), (width, height)):
                    continue
                whole = torch.nn.functional.pad(mask, (x1, width - x2, y1, height - y2))
                in_crop.append(
                    {
                        "rle": _to_rle(whole),
                        "predicted_iou": mask_iou.item(),
                        "point_coords": [np.add(point, [x1, y1]).tolist()],
                        "stability_score": score.item(),
                        "box": box,
                        "crop": (x1, y1, x2, y2),
                    }
                )
        counts["crop edge"] += len(in_crop)
        kept_numbers = plain_nms([m["box"] for m in in_crop], [m["predicted_iou"] for m in in_crop], box_nms_thresh)
        found += [in_crop[i] for i in kept_numbers]
    counts["duplicates in a crop"] = len(found)
    if crop_n_layers > 0:
        areas = [(m["crop"][2] - m["crop"][0]) * (m["crop"][3] - m["crop"][1]) for m in found]
        scores = (1 / torch.tensor(areas)).tolist()
        found = [found[i] for i in plain_nms([m["box"] for m in found], scores, crop_nms_thresh)]
    counts["duplicates of crops"] = len(found)
    for mask in found:
        mask["segmentation"] = _from_rle(mask.pop("rle"), height, width)
    if min_mask_region_area > 0:
        unchanged = []
        for mask in found:
            mask["segmentation"], changed = _without_small_regions(mask["segmentation"], min_mask_region_area)
            if changed:
                mask["box"] = np.array(_box(mask["segmentation"]))
            unchanged.append(float(not changed))
        kept_numbers = plain_nms([m["box"] for m in found], unchanged, max(box_nms_thresh, crop_nms_thresh))
        found = [found[i] for i in kept_numbers]
    counts["records"] = len(found)
    return [_record(mask) for mask in found], counts


def _decode_at_full_size(
    decode: Decode, points: np.ndarray, crop_size: tuple[int, int], image_size: int
) -> tuple[Tensor, Tensor]:
    resized = transforms.resized_shape(*crop_size, image_size)
    low_res, iou = decode(torch.from_numpy(transforms.apply_coords(points, crop_size, image_size)))
    square = _resize(low_res, (image_size, image_size))
    return _resize(square[..., : resized[0], : resized[1]], crop_size), iou


def _resize(logits: Tensor, size: tuple[int, int]) -> Tensor:
    return torch.nn.functional.interpolate(logits, size, mode="bilinear", align_corners=False)


def _grid(side: int) -> np.ndarray:
    centres = np.linspace(1 / (2 * side), 1 - 1 / (2 * side), side)
    return np.array([[x, y] for y in centres for x in centres])


def _crops(height: int, width: int, layers: int, overlap_ratio: float) -> list[tuple[tuple[int, int, int, int], int]]:
    crops = [((0, 0, width, height), 0)]
    for layer in range(1, layers + 1):
        n = 2**layer
        overlap = int(overlap_ratio * min(height, width) * 2 / n)
        w, h = math.ceil((width + (n - 1) * overlap) / n), math.ceil((height + (n - 1) * overlap) / n)
        for x in (i * (w - overlap) for i in range(n)):
            for y in (i * (h - overlap) for i in range(n)):
                crops.append(((x, y, min(x + w, width), min(y + h, height)), layer))
    return crops


def _box(mask: np.ndarray) -> list[int]:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return [columns[0], rows[0], columns[-1], rows[-1]] if len(rows) else [0, 0, 0, 0]


def _to_rle(mask: Tensor) -> list[int]:
    flat = mask.t().flatten()
    changes = (flat[1:] ^ flat[:-1]).nonzero()[:, 0] + 1
    bounds = torch.cat([torch.tensor([0]), changes, torch.tensor([len(flat)])])
    return [0] * bool(flat[0]) + bounds.diff().tolist()


def _from_rle(counts: list[int], height: int, width: int) -> np.ndarray:
    inside = np.arange(len(counts)) % 2 == 1
    return np.repeat(inside, counts).reshape(width, height).T


def _touches_inner_edge(box: np.ndarray, crop: tuple[int, int, int, int], photo_size: tuple[int, int]) -> bool:
    photo = (0, 0, *photo_size)
    near = [abs(v - edge) <= 20 and not abs(v - end) <= 20 for v, edge, end in zip(box, crop, photo, strict=True)]
    return any(near)


def plain_nms(boxes: Sequence[np.ndarray], scores: Sequence[float], threshold: float) -> list[int]:
    """Box after box in the order of the scores, ties as they come, as torchvision does on CPU."""
    left = np.array(boxes, np.float32).reshape(-1, 4)
    area = (left[:, 2] - left[:, 0]) * (left[:, 3] - left[:, 1])
    kept: list[int] = []
    for i in torch.tensor(scores).sort(descending=True, stable=True).indices.tolist():
        low, high = np.maximum(left[i, :2], left[kept, :2]), np.minimum(left[i, 2:], left[kept, 2:])
        shared = np.maximum(high - low, 0).prod(1)
        union = area[i] + area[kept] - shared
        iou = np.divide(shared, union, out=np.zeros_like(union), where=union > 0)
        if not (iou.astype(np.float64) > threshold).any():
            kept.append(i)
    return kept


def _without_small_regions(mask: np.ndarray, min_area: int) -> tuple[np.ndarray, bool]:
    regions = [r for r in measure.regionprops(measure.label(~mask, connectivity=2)) if r.area < min_area]
    mask = mask.copy()
    for region in regions:
        mask[tuple(region.coords.T)] = True
    islands = measure.regionprops(measure.label(mask, connectivity=2))
    small = [island for island in islands if island.area < min_area]
    spared = max(islands, key=lambda island: island.area) if islands and len(small) == len(islands) else None
    for island in small:
        if island is not spared:
            mask[tuple(island.coords.T)] = False
    return mask, bool(regions or small)


def _record(mask: dict[str, Any]) -> dict[str, Any]:
    (x1, y1, x2, y2), (cx1, cy1, cx2, cy2) = (int(v) for v in mask["box"]), mask["crop"]
    return {
        "segmentation": mask["segmentation"],
        "area": int(mask["segmentation"].sum()),
        "bbox": [x1, y1, x2 - x1, y2 - y1],
        "predicted_iou": mask["predicted_iou"],
        "point_coords": mask["point_coords"],
        "stability_score": mask["stability_score"],
        "crop_box": [cx1, cy1, cx2 - cx1, cy2 - cy1],
    }

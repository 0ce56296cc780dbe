"""What the page of `repvit-sam export web` must compute, by Pillow, pycocotools and this library; small, as JSON.

`python -m tests.helpers.page_golden` writes the file that the page's unit tests read.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from repvit_sam_jax import transforms
from repvit_sam_jax.inference import masks, rle
from repvit_sam_jax.inference.polygons import mask_to_polygons
from tests.helpers.processes import ROOT

GOLDEN = ROOT / "convert" / "export" / "page" / "tests" / "golden.json"


def golden() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {
        "sizes": [_size(*size) for size in ((480, 640, 512), (333, 1000, 1024), (1001, 3, 512), (4000, 3000, 1024))],
        "resized": [
            _resized(rng, *case)
            for case in ((5, 7, 12, 16), (23, 17, 9, 6), (16, 16, 16, 8), (16, 9, 5, 9), (3, 40, 2, 16))
        ],
        "preprocessed": _preprocessed(rng),
        "upscaled": [_upscaled(rng, *size) for size in ((20, 31), (40, 25), (3, 50), (32, 32))],
        "runs": [_runs(mask) for mask in _some_masks(rng)],
        "nms": _nms(rng),
    }


def _size(height: int, width: int, image_size: int) -> dict[str, Any]:
    point = [width / 3, height / 7]
    return {
        "photo": [height, width],
        "image_size": image_size,
        "resized": transforms.resized_shape(height, width, image_size),
        "point": point,
        "in_frame": transforms.apply_coords(np.array(point), (height, width), image_size).tolist(),
    }


def _resized(rng: np.random.Generator, height: int, width: int, new_height: int, new_width: int) -> dict[str, Any]:
    pixels = rng.integers(0, 256, (height, width, 3), np.uint8)
    pixels[: height // 2] = np.where(pixels[: height // 2] > 128, 255, 0)  # where rounding could leave the range
    resized = Image.fromarray(pixels).resize((new_width, new_height), Image.Resampling.BILINEAR)
    return {"pixels": pixels.tolist(), "resized": np.asarray(resized).tolist()}


def _preprocessed(rng: np.random.Generator) -> dict[str, Any]:
    pixels = rng.integers(0, 256, (20, 13, 3), np.uint8)
    values = transforms.preprocess(pixels, 16)[0].transpose(2, 0, 1)
    about = {"mean": list(transforms.PIXEL_MEAN), "std": list(transforms.PIXEL_STD), "image_size": 16}
    return {**about, "pixels": pixels.tolist(), "values": values.tolist()}


def _upscaled(rng: np.random.Generator, height: int, width: int) -> dict[str, Any]:
    """Smooth logits with a few specks, S = 32."""
    y, x = np.mgrid[:8, :8]
    logits = (6 - np.hypot(y - 3, x - 2) * 2 + rng.normal(0, 1, (8, 8))).round(2).astype(np.float32)
    upscaled = transforms.postprocess_masks(logits, (height, width), 32)
    mask = masks.Upscaler((height, width), 32, 8)(logits, 0.0, 1.0)
    runs = mask.runs()
    return {
        "photo": [height, width],
        "logits": logits.tolist(),
        "upscaled": np.asarray(upscaled, np.float32).round(4).tolist(),
        "counts": masks.runs_to_counts(*runs, (height, width)).tolist(),
        "extent": masks.runs_to_box(*runs),
        "stability": float(mask.stability_score),
    }


def _some_masks(rng: np.random.Generator) -> list[np.ndarray]:
    disc = np.hypot(*np.mgrid[-20:21, -30:31]) < 15
    noise = rng.random((9, 7)) > 0.5, rng.random((24, 31)) > 0.35
    return [disc, ~disc, np.zeros((4, 5), bool), np.ones((4, 5), bool), *noise]


def _runs(mask: np.ndarray) -> dict[str, Any]:
    counts = rle.mask_to_counts(mask)
    packed = rle.counts_to_coco(counts, (mask.shape[0], mask.shape[1]))
    polygons = mask_to_polygons(mask)
    return {"mask": mask.astype(int).tolist(), "counts": counts.tolist(), "coco": packed, "polygons": polygons}


def _nms(rng: np.random.Generator) -> dict[str, Any]:
    corner = rng.integers(0, 20, (30, 2))
    boxes = np.concatenate([corner, corner + rng.integers(0, 20, (30, 2))], axis=1)
    scores = (rng.integers(0, 10, 30) / 10).astype(np.float32)
    return {"boxes": boxes.tolist(), "scores": scores.tolist(), "kept": masks.nms(boxes, scores, 0.5).tolist()}


def read(path: Path = GOLDEN) -> Any:
    return json.loads(path.read_text())


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps(golden(), separators=(",", ":")) + "\n")

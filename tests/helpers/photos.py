"""Small photos with masks, in the layouts that are read."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

from repvit_sam_jax.inference.rle import counts_to_coco, mask_to_counts


def jpeg(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=90)
    return file.getvalue()


def annotation(mask: np.ndarray) -> dict:
    return {"segmentation": counts_to_coco(mask_to_counts(mask), mask.shape), "area": int(mask.sum())}


def annotations(size: tuple[int, int], *masks: np.ndarray) -> bytes:
    image = {"height": size[0], "width": size[1], "file_name": "x.jpg"}
    return json.dumps({"image": image, "annotations": [annotation(mask) for mask in masks]}).encode()


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def photo_and_masks(number: int) -> tuple[np.ndarray, list[np.ndarray]]:
    """A photo whose size and masks depend on its number: boxes, the later the smaller."""
    rng = np.random.default_rng(number)
    height, width = 40 + 3 * (number % 5), 60 - 7 * (number % 4)
    masks = []
    for i in range(5):
        mask = np.zeros((height, width), bool)
        y, x = rng.integers(0, 20, 2)
        mask[y : y + 20 - 3 * i, x : x + 18 - 2 * i] = True
        masks.append(mask)
    return rng.integers(0, 256, (height, width, 3), dtype=np.uint8), masks


def smooth_mask(rng, size):
    """A mask with regions and holes of several sizes."""
    coarse = Image.fromarray(rng.integers(0, 256, (5, 6), dtype=np.uint8))
    return np.asarray(coarse.resize(size[::-1], Image.Resampling.BICUBIC)) > rng.integers(60, 200)


def photo(height, width, seed=0):
    """Noise of these many pixels."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)

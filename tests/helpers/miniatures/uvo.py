"""UVO in miniature."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from repvit_sam_jax.inference import rle

from . import photo_of


def write(folder: Path, videos: Mapping[str, np.ndarray]) -> Path:
    """The data set's folder, from labels [T, h, w] by name; ids fall, and masks have two forms, or none."""
    root = folder / "UVOv1.0"
    (root / "VideoDenseSet").mkdir(parents=True)
    content: dict = {"videos": [], "annotations": [], "categories": [{"id": 1, "name": "object"}]}
    for number, (name, labels) in enumerate(videos.items()):
        place = root / "uvo_videos_dense_frames" / name
        place.mkdir(parents=True)
        for t, frame in enumerate(labels):
            Image.fromarray(photo_of(frame)).save(place / f"{t}.png")
        frames, height, width = labels.shape
        video = {"id": 90 - number, "ytid": name, "width": width, "height": height, "length": frames}
        content["videos"].append(video | {"file_names": [f"{name}/{t}.png" for t in range(frames)]})
        for of in range(1, labels.max() + 1):
            masks = [_as_rle(frame == of, of) for frame in labels]
            content["annotations"].append(
                {
                    "id": len(content["annotations"]),
                    "video_id": video["id"],
                    "category_id": 1,
                    "iscrowd": 0,
                    "segmentations": masks,
                }
            )
    (root / "VideoDenseSet/UVO_video_val_dense.json").write_text(json.dumps(content))
    return root


def _as_rle(mask: np.ndarray, number: int) -> dict | None:
    if not mask.any():
        return None
    counts = rle.mask_to_counts(mask)
    return (rle.counts_to_coco if number % 2 else rle.counts_to_rle)(counts, mask.shape)

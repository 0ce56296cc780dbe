"""`repvit-sam everything`."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Annotated

import tyro

from ..config import Dtype
from ..files import check_new_folder
from .common import COMPILE_CACHE, Stopwatch, load_segmenter, save_picture, setting, size_of, use_compile_cache


def everything(
    photo: Annotated[Path, tyro.conf.Positional],
    *,
    weights: Path | None = None,
    out: Path,
    points_per_side: int = 32,
    pred_iou_thresh: float = 0.88,
    stability_score_thresh: float = 0.95,
    crop_n_layers: int = 0,
    min_mask_region_area: int = 0,
    pngs: bool = False,
    dtype: Dtype = "float32",
    compile_cache: str | None = COMPILE_CACHE,
    as_json: Annotated[bool, tyro.conf.arg(name="json")] = False,
) -> None:
    """Masks of everything on a photo, found with a grid of points.

    Into the folder go `records.json`, SAM's records with masks as COCO's RLE (`pycocotools.mask.decode` reads it), and
    `overlay.png`, the photo with each mask in a colour of its own.

    Args:
      photo: The image file.
      weights: A .safetensors file from the converter's `from-torch`; if not given, the embedded demonstration model,
        trained on synthetic scenes and by itself.
      out: A folder that is new or empty.
      points_per_side: Points along a side of the photo.
      pred_iou_thresh: Masks must have a higher predicted IoU.
      stability_score_thresh: Masks must be at least as stable under a change of the threshold.
      crop_n_layers: Layers of overlapping crops, 2 x 2, 4 x 4 and so on, that are searched besides the photo.
      min_mask_region_area: Fill holes and drop islands of fewer pixels.
      pngs: Also write each mask as a black and white PNG, named by its number in the records.
      dtype: Precision of the arithmetic.
      compile_cache: Folder that keeps compiled programs for the next run; None keeps none.
      as_json: Print the result as JSON.
    """
    check_new_folder(out, "--out")
    if photo.is_dir():
        raise ValueError(f"{photo} is a folder; `everything` takes one photo")

    from tqdm import tqdm

    from ..files import write_atomically
    from ..inference.mask_generator import SamAutomaticMaskGenerator
    from ..inference.overlay import draw_masks
    from ..inference.rle import counts_to_coco, counts_to_mask
    from ..transforms import load_image

    use_compile_cache(compile_cache)
    image = load_image(photo)
    seconds: dict[str, float] = {}
    with Stopwatch(seconds, "load"):
        model, params = load_segmenter(weights, dtype)
    generator = SamAutomaticMaskGenerator(
        model,
        params,
        points_per_side=points_per_side,
        pred_iou_thresh=pred_iou_thresh,
        stability_score_thresh=stability_score_thresh,
        crop_n_layers=crop_n_layers,
        min_mask_region_area=min_mask_region_area,
        output_mode="uncompressed_rle",
    )
    points = generator.count_points(image)
    out.mkdir(parents=True, exist_ok=True)  # if that fails, then before the long part
    with Stopwatch(seconds, "compile"):
        generator.warmup()
    with Stopwatch(seconds, "generate"), tqdm(total=points, unit="point", disable=None) as bar:
        (records,) = generator.generate_batch([image], progress=bar.update)

    size = image.shape[:2]
    runs = [record["segmentation"]["counts"] for record in records]
    for record, counts in zip(records, runs, strict=True):
        record["segmentation"] = counts_to_coco(counts, size)
        if math.isnan(record["stability_score"]):  # an empty mask, and JSON has no NaN
            record["stability_score"] = None
    text = json.dumps(records, indent=1, allow_nan=False)
    write_atomically(out / "records.json", lambda temporary: temporary.write_text(text))
    largest_first = sorted(range(len(records)), key=lambda i: -records[i]["area"])
    overlay = draw_masks(image, (counts_to_mask(runs[i], size) for i in largest_first))
    save_picture(overlay, out / "overlay.png")
    for i, counts in enumerate(runs if pngs else ()):
        save_picture(counts_to_mask(counts, size), out / f"mask_{i:04d}.png")
    result = {
        **size_of(photo, image),
        **setting(weights, model),
        "out": str(out),
        "points": points,
        "masks": len(records),
        "seconds": seconds,
    }
    if as_json:
        print(json.dumps(result, indent=1))
        return
    print(
        f"{photo}: {image.shape[1]} x {image.shape[0]} pixels, {model.config.name} in {dtype} on {result['device']}\n"
        f"{len(records)} masks from {points} points in {seconds['generate']:.1f} s, "
        f"before that: load {seconds['load']:.2f} s, compile {seconds['compile']:.2f} s\n"
        f"wrote {out}/records.json, overlay.png" + (f" and {len(records)} mask files" if pngs else "")
    )

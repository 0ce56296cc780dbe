"""The `repvit-sam` command."""

from __future__ import annotations

import json
import math
import sys
import time
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

app = tyro.extras.SubcommandApp()


@app.command(name="segment")
def segment(
    photo: Annotated[Path, tyro.conf.Positional],
    *,
    weights: Path,
    point: tyro.conf.UseAppendAction[tuple[str, ...]] = (),
    box: str | None = None,
    out: Path = Path("mask.png"),
    overlay: Path | None = None,
    dtype: Literal["float32", "bfloat16"] = "float32",
    as_json: Annotated[bool, tyro.conf.arg(name="json")] = False,
) -> None:
    """Segment what points and a box on a photo mean.

    All points and the box are one prompt. A single point is ambiguous: of the three masks that the model gives,
    the one with the highest predicted IoU is taken. Any other prompt gives one mask.

    Args:
      photo: The image file.
      weights: A .safetensors file from `python -m convert from-torch`.
      point: X,Y or X,Y,LABEL in pixels; label 1 (the default) is foreground, 0 background. May be repeated.
      box: X1,Y1,X2,Y2 in pixels.
      out: The mask, a black and white PNG of the photo's size.
      overlay: Also write the photo with mask and prompts drawn over it.
      dtype: Precision of the arithmetic.
      as_json: Print the result as JSON.
    """
    points = [_numbers(text, "--point", (2, 3)) for text in point]
    coords, labels = [p[:2] for p in points], [p[2] if len(p) == 3 else 1.0 for p in points]
    corners = None if box is None else _numbers(box, "--box", (4,))
    if any(label not in (0, 1) for label in labels):
        raise ValueError("labels of --point are 1 (foreground) or 0 (background)")
    if not points and corners is None:
        raise ValueError("nothing to segment: give --point or --box")
    for path in filter(None, (out, overlay)):
        _check_picture_path(path)
    if len({path.resolve() for path in (photo, out, overlay) if path}) < 2 + (overlay is not None):
        raise ValueError("photo, --out and --overlay must be different files")

    import jax
    import numpy as np
    from PIL import Image

    from .loading import load
    from .overlay import draw_overlay
    from .predictor import SamPredictor
    from .transforms import load_image

    image = load_image(photo)
    seconds: dict[str, float] = {}
    with _Stopwatch(seconds, "load"):
        model, params = load(weights, dtype=dtype)
    predictor = SamPredictor(model, params)
    multimask = len(points) == 1 and corners is None
    with _Stopwatch(seconds, "compile"):
        predictor.warmup(len(points) + 2 * (corners is not None), multimask_output=multimask)
    with _Stopwatch(seconds, "encode"):
        predictor.set_image(image)
        jax.block_until_ready(predictor.get_image_embedding())
    with _Stopwatch(seconds, "decode"):
        masks, iou, _ = predictor.predict(coords or None, labels or None, corners, multimask_output=multimask)

    best = int(np.argmax(iou))
    mask = masks[best]
    Image.fromarray(mask).save(out)
    if overlay is not None:
        Image.fromarray(draw_overlay(image, mask, coords, [int(v) for v in labels], corners)).save(overlay)
    result = {
        **_about(photo, image, weights, model),
        "mask": str(out),
        "overlay": None if overlay is None else str(overlay),
        "predicted_iou": float(iou[best]),
        "area": int(mask.sum()),
        "box": _bounding_box(mask),
        "seconds": seconds,
    }
    print(json.dumps(result, indent=1) if as_json else _report(result))


@app.command(name="everything")
def everything(
    photo: Annotated[Path, tyro.conf.Positional],
    *,
    weights: Path,
    out: Path,
    points_per_side: int = 32,
    pred_iou_thresh: float = 0.88,
    stability_score_thresh: float = 0.95,
    crop_n_layers: int = 0,
    min_mask_region_area: int = 0,
    pngs: bool = False,
    dtype: Literal["float32", "bfloat16"] = "float32",
    as_json: Annotated[bool, tyro.conf.arg(name="json")] = False,
) -> None:
    """Masks of everything on a photo, found with a grid of points.

    Into the folder go `records.json`, SAM's records with masks as COCO's RLE (`pycocotools.mask.decode` reads it), and
    `overlay.png`, the photo with each mask in a colour of its own.

    Args:
      photo: The image file.
      weights: A .safetensors file from `python -m convert from-torch`.
      out: A folder that is new or empty.
      points_per_side: Points along a side of the photo.
      pred_iou_thresh: Masks must have a higher predicted IoU.
      stability_score_thresh: Masks must be at least as stable under a change of the threshold.
      crop_n_layers: Layers of overlapping crops, 2 x 2, 4 x 4 and so on, that are searched besides the photo.
      min_mask_region_area: Fill holes and drop islands of fewer pixels.
      pngs: Also write each mask as a black and white PNG, named by its number in the records.
      dtype: Precision of the arithmetic.
      as_json: Print the result as JSON.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"--out {out} exists and is no empty folder; give a new one")

    from PIL import Image
    from tqdm import tqdm

    from .loading import load
    from .mask_generator import SamAutomaticMaskGenerator
    from .masks import counts_to_coco, counts_to_mask
    from .overlay import draw_masks
    from .transforms import load_image

    image = load_image(photo)
    seconds: dict[str, float] = {}
    with _Stopwatch(seconds, "load"):
        model, params = load(weights, dtype=dtype)
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
    with _Stopwatch(seconds, "generate"), tqdm(total=points, unit="point", disable=None) as bar:
        (records,) = generator.generate_batch([image], progress=bar.update)

    out.mkdir(parents=True, exist_ok=True)
    size = image.shape[:2]
    runs = [record["segmentation"]["counts"] for record in records]
    for record, counts in zip(records, runs, strict=True):
        record["segmentation"] = counts_to_coco(counts, size)
        if math.isnan(record["stability_score"]):  # an empty mask, and JSON has no NaN
            record["stability_score"] = None
    (out / "records.json").write_text(json.dumps(records, indent=1, allow_nan=False))
    largest_first = sorted(range(len(records)), key=lambda i: -records[i]["area"])
    overlay = draw_masks(image, (counts_to_mask(runs[i], size) for i in largest_first))
    Image.fromarray(overlay).save(out / "overlay.png")
    for i, counts in enumerate(runs if pngs else ()):
        Image.fromarray(counts_to_mask(counts, size)).save(out / f"mask_{i:04d}.png")
    result = {
        **_about(photo, image, weights, model),
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
        f"{len(records)} masks from {points} points in {seconds['generate']:.1f} s, compilation included\n"
        f"wrote {out}/records.json, overlay.png" + (f" and {len(records)} mask files" if pngs else "")
    )


@app.command(name="classify")
def classify(
    photo: Annotated[Path, tyro.conf.Positional],
    *,
    weights: Path,
    names: Path | None = None,
    as_json: Annotated[bool, tyro.conf.arg(name="json")] = False,
) -> None:
    """The five likeliest ImageNet classes of a photo, by a RepViT classifier.

    Args:
      photo: The image file.
      weights: A .safetensors file from `python -m convert from-torch repvit_m2_3_distill_450e.pth`.
      names: A text file with a name a line, in the order of the classes; without it classes are numbers.
      as_json: Print the result as JSON.
    """
    import jax
    import numpy as np

    from .classifier import preprocess
    from .loading import load_classifier
    from .transforms import load_image

    image = load_image(photo)
    model, params = load_classifier(weights)
    labels = _class_names(names, model.config.num_classes)
    logits = jax.jit(model.classify)(params, preprocess(image, model.config.image_size))[0]
    probabilities = np.asarray(jax.nn.softmax(logits))
    top = [
        {"class": int(i), "name": labels[i], "probability": float(probabilities[i])}
        for i in np.argsort(-probabilities)[:5]
    ]
    if as_json:
        print(json.dumps({"photo": str(photo), "model": model.config.name, "top": top}, indent=1))
        return
    print(f"{photo}, {model.config.name}")
    for entry in top:
        print(f"  {entry['probability']:6.1%}  {entry['name']}")


def _class_names(path: Path | None, count: int) -> list[str]:
    if path is None:
        return [f"class {i}" for i in range(count)]
    if not path.is_file():
        raise FileNotFoundError(f"no file of names at {path}")
    names = path.read_text().splitlines()
    if len(names) != count:
        raise ValueError(f"{path} has {len(names)} lines, the classifier has {count} classes")
    return names


def _about(photo: Path, image: Any, weights: Path, model: Any) -> dict[str, Any]:
    """What every result says about its input."""
    import jax

    return {
        "photo": str(photo),
        "width": image.shape[1],
        "height": image.shape[0],
        "weights": str(weights),
        "model": model.config.name,
        "dtype": model.dtype,
        "device": str(jax.devices()[0]),
    }


def _report(result: dict[str, Any]) -> str:
    seconds = result["seconds"]
    share = 100 * result["area"] / (result["width"] * result["height"])
    lines = [
        f"{result['photo']}: {result['width']} x {result['height']} pixels, "
        f"{result['model']} in {result['dtype']} on {result['device']}",
        f"mask: {result['area']} pixels ({share:.1f}% of the photo), box {result['box']}, "
        f"predicted IoU {result['predicted_iou']:.3f}",
        f"encode {seconds['encode']:.2f} s, decode {seconds['decode']:.2f} s, "
        f"before that: load {seconds['load']:.2f} s, compile {seconds['compile']:.2f} s",
        f"wrote {result['mask']}" + (f" and {result['overlay']}" if result["overlay"] else ""),
    ]
    return "\n".join(lines)


def _numbers(text: str, flag: str, counts: tuple[int, ...]) -> list[float]:
    """Comma-separated numbers. Raises ValueError, naming the flag, for anything else."""
    form = "X1,Y1,X2,Y2" if counts == (4,) else "X,Y or X,Y,LABEL"
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError as error:
        raise ValueError(f"{flag} {text}: expected {form}") from error
    if len(values) not in counts:
        raise ValueError(f"{flag} {text}: expected {form}")
    return values


def _check_picture_path(path: Path) -> None:
    if path.suffix.lower() != ".png":
        raise ValueError(f"{path}: masks and overlays are written as .png")
    if not path.parent.is_dir():
        raise ValueError(f"{path}: there is no folder {path.parent}")
    if path.is_dir():
        raise ValueError(f"{path} is a folder")


def _bounding_box(mask: Any) -> list[int] | None:
    """XYXY of the mask's pixels, the last ones included; None for an empty mask."""
    rows, columns = mask.any(1).nonzero()[0], mask.any(0).nonzero()[0]
    return None if not len(rows) else [int(columns[0]), int(rows[0]), int(columns[-1]), int(rows[-1])]


class _Stopwatch:
    def __init__(self, seconds: dict[str, float], name: str):
        self._seconds, self._name = seconds, name

    def __enter__(self) -> None:
        self._start = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self._seconds[self._name] = time.perf_counter() - self._start


def main() -> None:
    """Entry point: expected errors become one line and exit code 1."""
    try:
        app.cli(
            prog="repvit-sam",
            description="Segment photos with RepViT-SAM in JAX.",
            config=(tyro.conf.FlagCreatePairsOff,),
        )
    except (ValueError, OSError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from error


if __name__ == "__main__":
    main()

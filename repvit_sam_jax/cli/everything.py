"""`repvit-sam everything`: a photo, or a folder of photos."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from ..config import Dtype
from ..files import check_new_folder, new_folder
from ..parts import Parts, write_json
from ..terminal import COMPILE_CACHE, use_compile_cache
from .common import Stopwatch, load_segmenter, save_picture, setting, size_of

if TYPE_CHECKING:
    import numpy as np

    from ..inference.mask_generator import SamAutomaticMaskGenerator


@dataclasses.dataclass(frozen=True)
class Search:
    """Arguments of the mask generator, under their names in SAM; thresholds not given are the model's own."""

    points_per_side: tuple[int, ...] = (32,)
    """Points along each side of the photo; two numbers for those along its width and its height."""
    points_per_batch: int = 64
    """Points that are answered at once."""
    pred_iou_thresh: float | None = None
    """Masks must have a higher predicted IoU."""
    stability_score_thresh: float | None = None
    """Masks must be at least as stable under a change of the threshold."""
    stability_score_offset: float | None = None
    """That change, in logits."""
    box_nms_thresh: float = 0.7
    """Masks whose boxes have a higher IoU are duplicates."""
    crop_n_layers: int = 0
    """Layers of overlapping crops, 2 x 2, 4 x 4 and so on, that are searched besides the photo."""
    crop_nms_thresh: float = 0.7
    """Likewise of masks of different crops."""
    crop_overlap_ratio: float = 512 / 1500
    """Overlap of the crops, as a fraction of the photo's shorter side."""
    crop_n_points_downscale_factor: int = 1
    """Layer n of the crops has points_per_side / factor^n points a side."""
    min_mask_region_area: int = 0
    """Fill holes and drop islands of fewer pixels."""

    @property
    def arguments(self) -> dict[str, Any]:
        """Of `SamAutomaticMaskGenerator`."""
        sides = self.points_per_side
        return {**dataclasses.asdict(self), "points_per_side": sides[0] if len(sides) == 1 else sides}


def everything(
    photo: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="PHOTO")],
    *,
    weights: Path | None = None,
    out: Path,
    search: Annotated[Search, tyro.conf.arg(name="")] = Search(),
    pngs: bool = False,
    max_pixels: int | None = None,
    dtype: Dtype = "float32",
    compile_cache: str | None = COMPILE_CACHE,
    as_json: Annotated[bool, tyro.conf.arg(name="json")] = False,
) -> None:
    """Masks of everything on a photo or on each photo of a folder, found with a grid of points.

    Into the folder go `records.json`, in COCO's form with SAM's records as annotations and masks as COCO's RLE
    (`pycocotools.mask.decode` reads it), and `overlay.png`, the photo with each mask in a colour of its own; for a
    folder, `overlays/`. A folder that was interrupted goes on where it was when the same command is given again.

    Args:
      photo: The image file, or a folder of them.
      weights: A checkpoint of this library, of PyTorch or of transformers, or a name such as repvit_sam; if not given,
        the embedded demonstration model, trained on synthetic scenes and by itself.
      out: A folder that is new or empty, or holds an unfinished search of the same folder.
      search: Arguments of the mask generator.
      pngs: Also write each mask as a black and white PNG, named by its number in the records.
      max_pixels: Largest width times height of a photo, so that memory is bounded; 89 million if not given.
      dtype: Precision of the arithmetic.
      compile_cache: Folder that keeps compiled programs for the next run; None keeps none.
      as_json: Print the result as JSON.
    """
    is_folder = photo.is_dir()
    about = {"photos": str(photo.resolve()), "weights": str(weights or "demo"), "dtype": dtype, "pngs": pngs}
    about |= {"the file of weights": _stamp(weights)} if weights is not None and weights.is_file() else {}
    about |= search.arguments
    parts = Parts(out, about)
    if not is_folder or not parts.check():
        check_new_folder(out, "--out")

    from .. import transforms
    from ..inference.mask_generator import SamAutomaticMaskGenerator
    from ..inference.photos import list_photos

    load = functools.partial(transforms.load_image, max_pixels=max_pixels or transforms.MAX_PIXELS)
    photos = list_photos(photo) if is_folder else [photo]
    if not photos:
        raise ValueError(f"{photo} holds no file with an extension that Pillow reads")
    image = None if is_folder else load(photo)
    use_compile_cache(compile_cache)
    seconds: dict[str, float] = {}
    with Stopwatch(seconds, "load"):
        model, params = load_segmenter(weights, dtype)
    generator = SamAutomaticMaskGenerator(model, params, **search.arguments, output_mode="coco_rle")
    result: dict[str, Any] = {**setting(weights, model), "out": str(out), "seconds": seconds}
    with Stopwatch(seconds, "compile"):
        if image is not None:
            generator.count_points(image)  # an error comes before the long part
        generator.warmup()
    with Stopwatch(seconds, "generate"):
        if image is not None:
            with new_folder(out) as folder:
                found = _search_photo(generator, photo, image, folder, folder / "overlay.png", pngs)
                _write_records(folder, [found])
            result |= {**size_of(photo, image), "points": generator.count_points(image), "dropped": generator.dropped}
            found_of, failures = [found], list[dict[str, str]]()
        else:
            found_of, failures = _search_folder(generator, photos, load, out, parts, pngs)
            result |= {"photos": len(found_of), "failures": failures}
    result["masks"] = sum(len(found["annotations"]) for found in found_of)
    print(json.dumps(result, indent=1) if as_json else _report(photo, generator, result))
    if failures:
        raise SystemExit("\n".join(f"error: {failure['error']}" for failure in failures))


def _search_photo(
    generator: SamAutomaticMaskGenerator, photo: Path, image: np.ndarray, folder: Path, overlay: Path, pngs: bool
) -> dict[str, Any]:
    """Write the pictures of a photo; the photo and its masks in SA-1B's form."""
    from tqdm import tqdm

    from ..inference.overlay import draw_masks
    from ..inference.rle import counts_to_mask, read_segmentation

    with tqdm(total=generator.count_points(image), unit="point", desc=photo.name, leave=False, disable=None) as bar:
        (records,) = generator.generate_batch([image], progress=bar.update)
    size = image.shape[:2]
    for record in records:
        if math.isnan(record["stability_score"]):  # an empty mask, and JSON has no NaN
            record["stability_score"] = None
    masks = [read_segmentation(record["segmentation"], size) for record in records]
    largest_first = sorted(range(len(records)), key=lambda i: -records[i]["area"])
    save_picture(draw_masks(image, (counts_to_mask(masks[i], size) for i in largest_first)), overlay)
    for i, counts in enumerate(masks if pngs else ()):
        save_picture(counts_to_mask(counts, size), folder / f"mask_{i:04d}.png")
    about = {"file_name": photo.name, "width": image.shape[1], "height": image.shape[0]}
    return {"image": about, "annotations": records}


def _stamp(path: Path) -> list[Any]:
    """What changes if a file is replaced."""
    status = path.stat()
    return [path.name, status.st_size, status.st_mtime_ns]


def _search_folder(
    generator: SamAutomaticMaskGenerator,
    photos: Sequence[Path],
    load: Callable[[Path], np.ndarray],
    out: Path,
    parts: Parts,
    pngs: bool,
) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    """Photos with their masks, and photos that failed; each photo is kept as soon as it is done."""
    from tqdm import tqdm

    from ..inference.photos import mask_names

    parts.start()
    (out / "overlays").mkdir(exist_ok=True)
    found: list[dict[str, Any]] = []
    failures: list[dict[str, str]] = []
    for path, (name,) in tqdm(mask_names(dict.fromkeys(photos, 1)).items(), unit="photo", disable=None):
        try:
            source = [*_stamp(path), name]
            done = parts.read(path.name) or {}
            if done.get("source") != source:
                folder = out / "masks" / name
                if pngs:
                    folder.mkdir(parents=True, exist_ok=True)
                done = _search_photo(generator, path, load(path), folder, out / "overlays" / f"{name}.png", pngs)
                parts.write(path.name, {"source": source, **done})
            found.append({key: done[key] for key in ("image", "annotations")})
        except (ValueError, OSError) as error:
            failures.append(
                {"photo": str(path), "error": str(error) if str(path) in str(error) else f"{path}: {error}"}
            )
    _write_records(out, found)
    if not failures:
        parts.finish()
    return found, failures


def _write_records(folder: Path, found: Sequence[dict[str, Any]]) -> None:
    from ..inference.rle import coco_file

    write_json(folder / "records.json", coco_file(found))


def _report(photo: Path, generator: SamAutomaticMaskGenerator, result: dict[str, Any]) -> str:
    seconds = result["seconds"]
    where = f"{result['width']} x {result['height']} pixels" if "width" in result else f"{result['photos']} photos"
    lines = [
        f"{photo}: {where}, {result['model']} in {result['dtype']} on {result['device']}",
        f"{result['masks']} masks"
        + (f" from {result['points']} points" if "points" in result else "")
        + f" in {seconds['generate']:.1f} s, "
        f"before that: load {seconds['load']:.2f} s, compile {seconds['compile']:.2f} s",
    ]
    if not result["masks"] and "dropped" in result:
        lines.append(_why_nothing(generator, result))
    overlays = "overlay.png" if "width" in result else "overlays"
    return "\n".join([*lines, f"wrote {result['out']}/records.json and {overlays}"])


def _why_nothing(generator: SamAutomaticMaskGenerator, result: dict[str, Any]) -> str:
    dropped = ", ".join(f"{count} by {name}" for name, count in result["dropped"].items() if count)
    return (
        f"none of {3 * result['points']} candidates passed: {dropped}; lower --pred-iou-thresh (now "
        f"{generator.pred_iou_thresh:g}) or --stability-score-thresh (now {generator.stability_score_thresh:g})"
    )

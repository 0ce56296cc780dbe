"""`repvit-sam everything`: a photo, or a folder of photos."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from ..config import Format
from ..files import check_new_folder, new_folder
from ..parts import Parts
from ..terminal import COMPILE_CACHE, use_compile_cache
from .common import DEMO, NOTHING_STORED, Model, Stopwatch, Stored, save_picture, size_of

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
    out: Path,
    forms: Annotated[tuple[Format, ...], tyro.conf.arg(name="format")] = ("coco",),
    search: Annotated[Search, tyro.conf.arg(name="")] = Search(),
    model: Annotated[Model, tyro.conf.arg(name="")] = DEMO,
    stored: Annotated[Stored, tyro.conf.arg(name="")] = NOTHING_STORED,
    max_pixels: int | None = None,
    compile_cache: str | None = COMPILE_CACHE,
    as_json: Annotated[bool, tyro.conf.arg(name="json")] = False,
) -> None:
    """Masks of everything on a photo or on each photo of a folder, found with a grid of points.

    Into the folder go the masks, with SAM's records in the forms that have room for them, and `overlay.png`, the photo
    with each mask in a colour of its own; for a folder, `overlays/`. A folder that was interrupted goes on where it was
    when the same command is given again.

    Args:
      photo: The image file, or a folder of them.
      out: A folder that is new or empty, or holds an unfinished search of the same folder.
      forms: One or several. coco: records.json in COCO's form, with COCO's runs (pycocotools reads it). polygons: the
        same with polygons. rle: rle/NAME.json of each photo, as in SA-1B. png: masks/NAME/mask_0000.png and so on,
        black and white. yolo: labels/NAME.txt of each photo, and data.yaml.
      search: Arguments of the mask generator.
      model: What computes.
      stored: Embeddings.
      max_pixels: Largest width times height of a photo, so that memory is bounded; 89 million if not given.
      compile_cache: Folder that keeps compiled programs for the next run; None keeps none.
      as_json: Print the result as JSON.
    """
    model.check()
    if stored.embedding is not None and search.crop_n_layers:
        raise ValueError("--embedding is of the whole photo, and --crop-n-layers searches crops, which have their own")
    if not forms or {"coco", "polygons"} <= set(forms):
        raise ValueError("--format: give one at least, and of coco and polygons one, for both are called records.json")
    weights = model.weights
    about: dict[str, Any] = {"photos": str(photo.resolve()), "weights": str(weights or "demo"), "dtype": model.dtype}
    about |= {"runtime": model.runtime} | {name: str(path) for name, path in dataclasses.asdict(stored).items()}
    about |= {"the file of weights": _stamp(weights)} if weights is not None and weights.is_file() else {}
    parts = Parts(out, about | search.arguments)
    if not photo.is_dir() or not parts.check():
        check_new_folder(out, "--out")
        stored.check(photo.is_dir())
    if stored.save_embedding is not None and stored.save_embedding.resolve().is_relative_to(out.resolve()):
        raise ValueError(f"--save-embedding {stored.save_embedding} is in --out, which is for masks")

    from .. import transforms

    load = functools.partial(transforms.load_image, max_pixels=max_pixels or transforms.MAX_PIXELS)
    task = _Task(photo, out, forms, search, model, stored)
    result, failures = task.folder(load, parts, compile_cache) if photo.is_dir() else task.one(load, compile_cache)
    print(json.dumps(result, indent=1) if as_json else _report(photo, forms, result))
    if failures:
        raise SystemExit("\n".join(f"error: {failure['error']}" for failure in failures))


@dataclasses.dataclass(frozen=True)
class _Task:
    """A call of the command."""

    photo: Path
    out: Path
    forms: tuple[Format, ...]
    search: Search
    model: Model
    stored: Stored

    def one(self, load: Callable[[Path], np.ndarray], compile_cache: str | None) -> tuple[dict[str, Any], list[Any]]:
        """Search one photo; the result, and no failures."""
        image = load(self.photo)
        use_compile_cache(compile_cache)
        generator, result = self._open()
        points = generator.count_points(image)  # an error comes before the long part
        with Stopwatch(result["seconds"], "compile"):
            generator.warmup()
        with Stopwatch(result["seconds"], "generate"), new_folder(self.out) as folder:
            read, save = self.stored.embedding, self.stored.save_embedding
            found = self._search(generator, self.photo, image, folder / "overlay.png", read, save)
            self._write(folder, {self.photo.stem: found}, self.photo.absolute().parent)
        result |= {**size_of(self.photo, image), "points": points, "dropped": generator.dropped}
        result["masks"] = len(found["annotations"])
        if not result["masks"]:
            result["why"] = _why_nothing(generator, result)
        return result, []

    def folder(
        self, load: Callable[[Path], np.ndarray], parts: Parts, compile_cache: str | None
    ) -> tuple[dict[str, Any], list[dict[str, str]]]:
        """Search the photos of a folder, each of which is kept as soon as it is done; the result, and what failed."""
        from tqdm import tqdm

        from ..inference.photos import list_photos, photo_names

        photos = list_photos(self.photo)
        if not photos:
            raise ValueError(f"{self.photo} holds no file with an extension that Pillow reads")
        for form in self.forms:
            names = photo_names(photos, form)
        use_compile_cache(compile_cache)
        generator, result = self._open()
        with Stopwatch(result["seconds"], "compile"):
            generator.warmup()
        found: dict[str, Any] = {}
        failures: list[dict[str, str]] = []
        with Stopwatch(result["seconds"], "generate"):
            parts.start()
            (self.out / "overlays").mkdir(exist_ok=True)
            for path, name in tqdm(names.items(), unit="photo", disable=None):
                try:
                    read, save = (
                        at and at / f"{name}.npz" for at in (self.stored.embedding, self.stored.save_embedding)
                    )
                    source = [*_stamp(path), name, *([] if read is None else _stamp(read))]
                    done = parts.read(path.name) or {}
                    if done.get("source") != source:
                        overlay = self.out / "overlays" / f"{name}.png"
                        done = self._search(generator, path, load(path), overlay, read, save)
                        parts.write(path.name, {"source": source, **done})
                    found[name] = {key: done[key] for key in ("image", "annotations")}
                except (ValueError, OSError) as error:
                    text = str(error) if str(path) in str(error) else f"{path}: {error}"
                    failures.append({"photo": str(path), "error": text})
            self._write(self.out, found, self.photo)
            if not failures:
                parts.finish()
        masks = sum(len(of_photo["annotations"]) for of_photo in found.values())
        return result | {"photos": len(found), "failures": failures, "masks": masks}, failures

    def _open(self) -> tuple[SamAutomaticMaskGenerator, dict[str, Any]]:
        """The generator, and what the result says of it."""
        from ..inference.mask_generator import SamAutomaticMaskGenerator

        seconds: dict[str, float] = {}
        with Stopwatch(seconds, "load"):
            predictor = self.model.open()
        arguments = self.search.arguments
        generator = SamAutomaticMaskGenerator(predictor.backend, **arguments, output_mode="coco_rle")
        return generator, {**self.model.setting(predictor), "out": str(self.out), "seconds": seconds}

    def _search(
        self,
        generator: SamAutomaticMaskGenerator,
        photo: Path,
        image: np.ndarray,
        overlay: Path,
        read: Path | None,
        save: Path | None,
    ) -> dict[str, Any]:
        """The photo and its masks, drawn over it; its embedding is read or saved, or neither."""
        from tqdm import tqdm

        from ..inference.formats import found_in, masks_of
        from ..inference.overlay import draw_masks
        from ..inference.photos import other_size

        size, points = image.shape[:2], generator.count_points(image)
        embedded = None if read is None else generator.predictor.read_embedding(read)
        if embedded is not None and embedded.size != size:
            raise ValueError(f"{photo}: {other_size(embedded.size, size)}")
        with tqdm(total=points, unit="point", desc=photo.name, leave=False, disable=None) as bar:
            if embedded is None:
                (records,) = generator.generate_batch([image], progress=bar.update)
            else:
                records = generator.generate_embedded(embedded, progress=bar.update)
        if save is not None:
            generator.predictor.save_embedding(save)
        found = found_in(photo.name, size, records)
        masks, areas = list(masks_of(found)), [record["area"] for record in records]
        largest_first = sorted(range(len(masks)), key=lambda i: -areas[i])
        save_picture(draw_masks(image, (masks[i] for i in largest_first)), overlay)
        return found

    def _write(self, folder: Path, found: dict[str, Any], photos: Path) -> None:
        from ..inference.formats import relative, write_folder

        for form in self.forms:
            write_folder(folder, found, form, photos=relative(photos, self.out))


def _stamp(path: Path) -> list[Any]:
    """What changes if a file is replaced."""
    status = path.stat()
    return [path.name, status.st_size, status.st_mtime_ns]


def _report(photo: Path, forms: Sequence[Format], result: dict[str, Any]) -> str:
    seconds, places = (
        result["seconds"],
        {"coco": "records.json", "polygons": "records.json", "png": "masks", "yolo": "labels"},
    )
    where = f"{result['width']} x {result['height']} pixels" if "width" in result else f"{result['photos']} photos"
    lines = [
        f"{photo}: {where}, {result['model']} in {result['dtype']} on {result['device']}",
        f"{result['masks']} masks"
        + (f" from {result['points']} points" if "points" in result else "")
        + f" in {seconds['generate']:.1f} s, "
        f"before that: load {seconds['load']:.2f} s, compile {seconds['compile']:.2f} s",
        *([result["why"]] if "why" in result else []),
    ]
    written = [places.get(form, form) for form in forms] + ["overlay.png" if "width" in result else "overlays"]
    return "\n".join([*lines, f"wrote {result['out']}/{' and '.join(written)}"])


def _why_nothing(generator: SamAutomaticMaskGenerator, result: dict[str, Any]) -> str:
    dropped = ", ".join(f"{count} by {name}" for name, count in result["dropped"].items() if count)
    return (
        f"none of {3 * result['points']} candidates passed: {dropped}; lower --pred-iou-thresh (now "
        f"{generator.pred_iou_thresh:g}) or --stability-score-thresh (now {generator.stability_score_thresh:g})"
    )

"""`repvit-sam segment`: a photo, or a folder of photos."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from ..config import Dtype
from ..files import check_new_file, check_new_folder
from ..terminal import COMPILE_CACHE, use_compile_cache
from .common import (
    Stopwatch,
    is_same_file,
    load_segmenter,
    read_numbers,
    save_picture,
    setting,
    size_of,
)

if TYPE_CHECKING:
    import numpy as np

    from ..inference.predictor import SamPredictor
    from ..inference.prompts import Prompt


def segment(
    photo: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="PHOTO")],
    *,
    weights: Path | None = None,
    point: tyro.conf.UseAppendAction[tuple[str, ...]] = (),
    box: str | None = None,
    prompts: Path | None = None,
    out: Path | None = None,
    overlay: Path | None = None,
    overwrite: bool = False,
    max_pixels: int | None = None,
    dtype: Dtype = "float32",
    runtime: Literal["jax", "onnx"] = "jax",
    compile_cache: str | None = COMPILE_CACHE,
    as_json: Annotated[bool, tyro.conf.arg(name="json")] = False,
) -> None:
    """Segment what points and a box on a photo mean.

    All points and the box are one prompt. A single point is ambiguous: of the three masks that the model gives,
    the one with the highest predicted IoU is taken. Any other prompt gives one mask.

    With a folder in place of a photo, the points and the box are those of each photo in it, or --prompts gives each
    its own. A photo that can't be read or that its prompt does not fit is named at the end, and the exit code is 1.

    Args:
      photo: The image file, or a folder of them.
      weights: A checkpoint of this library, of PyTorch or of transformers, or a name such as repvit_sam; if not given,
        the embedded demonstration model, trained on synthetic scenes and by itself.
        For the runtime onnx, a folder from `repvit-sam export onnx`.
      point: X,Y or X,Y,LABEL in pixels; label 1 (the default) is foreground, 0 background. May be repeated.
      box: X1,Y1,X2,Y2 in pixels.
      prompts: For a folder, a JSON file with prompts of the photos to segment: {"photo.jpg": {"points": [[X, Y], [X, Y,
        LABEL]], "box": [X1, Y1, X2, Y2]}}. In place of an object, a list of several, each with a mask of its own.
      out: The mask, a black and white PNG of the photo's size; mask.png if not given. For a folder, a folder that is
        new or empty, for masks that are called as their photos; masks if not given.
      overlay: Also write the photo with mask and prompts drawn over it; for a folder, into another such folder.
      overwrite: Replace the mask and the overlay of one photo if they are there.
      max_pixels: Largest width times height of a photo, so that memory is bounded; 89 million if not given.
      dtype: Precision of the arithmetic.
      runtime: What computes: JAX, or ONNX Runtime on the CPU in float32.
      compile_cache: Folder that keeps compiled programs for the next run; None keeps none.
      as_json: Print the result as JSON.
    """
    points = [read_numbers(text, "--point", (2, 3)) for text in point]
    corners = None if box is None else read_numbers(box, "--box", (4,))
    labels = [p[2] if len(p) == 3 else 1.0 for p in points]
    if any(label not in (0, 1) for label in labels):
        raise ValueError("labels of --point are 1 (foreground) or 0 (background)")
    if not points and corners is None and prompts is None:
        raise ValueError("nothing to segment: give --point or --box, or with a folder --prompts")
    if prompts is not None and (points or corners is not None):
        raise ValueError("give either --prompts, or --point and --box for all photos")
    if runtime == "onnx" and dtype != "float32":
        raise ValueError("--runtime onnx computes in float32; --dtype is for the runtime jax")
    if runtime == "onnx" and weights is None:
        raise ValueError("--runtime onnx needs --weights, a folder from `repvit-sam export onnx`")
    is_folder = photo.is_dir()
    if prompts is not None and not is_folder:
        raise ValueError(f"--prompts is for a folder of photos, and {photo} is none; give --point or --box")
    out = out or Path("masks" if is_folder else "mask.png")
    if is_folder:
        _check_folders(out, overlay)
    else:
        _check_pictures(photo, out, overlay, overwrite)

    from .. import transforms
    from ..inference.photos import list_photos, read_prompts_file
    from ..inference.prompts import Prompt

    load = functools.partial(transforms.load_image, max_pixels=max_pixels or transforms.MAX_PIXELS)

    prompt = Prompt([p[:2] for p in points], [int(label) for label in labels], corners)
    if not is_folder:
        use_compile_cache(compile_cache)
        result = _segment_photo(load(photo), photo, prompt, Weights(weights, runtime, dtype), out, overlay)
        print(json.dumps(result, indent=1) if as_json else _report(result))
        return
    photos = list_photos(photo)
    if not photos:
        raise ValueError(f"{photo} holds no file with an extension that Pillow reads")
    chosen = {path: [prompt] for path in photos} if prompts is None else read_prompts_file(prompts, photos)
    if not chosen:
        raise ValueError(f"{prompts} names no photo")
    use_compile_cache(compile_cache)
    result = _segment_folder(chosen, load, Weights(weights, runtime, dtype), out, overlay)
    print(json.dumps(result, indent=1) if as_json else _report_folder(photo, out, overlay, result))
    if result["failures"]:
        raise SystemExit("\n".join(f"error: {failure['error']}" for failure in result["failures"]))


@dataclasses.dataclass(frozen=True)
class Weights:
    """What is to be loaded, and what computes with it."""

    path: Path | None
    runtime: Literal["jax", "onnx"]
    dtype: Dtype

    def open(self) -> SamPredictor:
        """The predictor."""
        if self.runtime == "onnx":
            from ..inference.onnx import OnnxPredictor

            assert self.path is not None
            return OnnxPredictor(self.path)
        from ..inference.predictor import SamPredictor

        return SamPredictor(*load_segmenter(self.path, self.dtype))

    def setting(self, predictor: SamPredictor) -> dict[str, Any]:
        """What a result says about how it was computed."""
        found = setting(self.path, predictor.backend)
        return found if self.runtime == "jax" else {**found, "device": "cpu, ONNX Runtime"}


def _segment_photo(
    image: np.ndarray, photo: Path, prompt: Prompt, weights: Weights, out: Path, overlay: Path | None
) -> dict[str, Any]:
    import jax

    from ..inference.photos import Segmented, best_mask

    prompt.check(image.shape[:2])
    seconds: dict[str, float] = {}
    with Stopwatch(seconds, "load"):
        predictor = weights.open()
    with Stopwatch(seconds, "compile"):
        predictor.warmup(prompt.num_points, multimask_output=prompt.is_ambiguous)
    with Stopwatch(seconds, "encode"):
        predictor.set_image(image)
        jax.block_until_ready(predictor.get_image_embedding())
    with Stopwatch(seconds, "decode"):
        prediction = predictor.predict(prompt.points, prompt.labels, prompt.box, multimask_output=prompt.is_ambiguous)
    found = _write(Segmented(photo, image, 0, prompt, *best_mask(prediction)), out, overlay)
    return {**size_of(photo, image), **weights.setting(predictor), **found, "seconds": seconds}


def _segment_folder(
    prompts: dict[Path, list[Prompt]],
    load: Callable[[Path], np.ndarray],
    weights: Weights,
    out: Path,
    overlay: Path | None,
) -> dict[str, Any]:
    from tqdm import tqdm

    from ..inference.photos import Failure, mask_names, segment_photos

    seconds: dict[str, float] = {}
    with Stopwatch(seconds, "load"):
        predictor = weights.open()
    for folder in filter(None, (out, overlay)):
        folder.mkdir(parents=True, exist_ok=True)
    names = mask_names({path: len(of_photo) for path, of_photo in prompts.items()})
    every = [prompt for of_photo in prompts.values() for prompt in of_photo]
    with Stopwatch(seconds, "compile"):
        for num_points, ambiguous in {(prompt.num_points, prompt.is_ambiguous) for prompt in every}:
            predictor.warmup(num_points, multimask_output=ambiguous, num_images=len(prompts))
    results, failures = [], []
    with Stopwatch(seconds, "segment"), tqdm(total=len(every), unit="mask", disable=None) as bar:
        for done in segment_photos(predictor, prompts, load):
            try:
                if isinstance(done, Failure):
                    raise ValueError(done.error)
                name = names[done.path][done.number] + ".png"
                found = _write(done, out / name, overlay and overlay / name)
                results.append({**size_of(done.path, done.image), **found})
            except (ValueError, OSError) as error:  # such as a name that is too long: the others are written
                failures.append({"photo": str(done.path), "error": str(error)})
            bar.update()
    return {
        **weights.setting(predictor),
        "results": sorted(results, key=lambda result: result["photo"]),
        "failures": failures,
        "seconds": seconds,
    }


def _write(done: Any, out: Path, overlay: Path | None) -> dict[str, Any]:
    """Write the mask and, if asked for, the overlay of a `Segmented`; what a result says about them."""
    from ..inference.masks import box_of
    from ..inference.overlay import draw_overlay

    save_picture(done.mask, out)
    box = box_of(done.mask)
    if overlay is not None:
        prompt = done.prompt
        drawn = draw_overlay(done.image, done.mask, prompt.points, prompt.labels, prompt.box)
        save_picture(drawn, overlay)
    return {
        "mask": str(out),
        "overlay": None if overlay is None else str(overlay),
        "predicted_iou": done.predicted_iou,
        "area": int(done.mask.sum()),
        "box": None if box is None else list(box),
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


def _report_folder(folder: Path, out: Path, overlay: Path | None, result: dict[str, Any]) -> str:
    seconds, count = result["seconds"], len(result["results"])
    lines = [
        f"{folder}: {count} of {count + len(result['failures'])} photos segmented, "
        f"{result['model']} in {result['dtype']} on {result['device']}",
        f"{seconds['segment']:.1f} s, {seconds['segment'] / max(count, 1):.2f} s a photo, "
        f"before that: load {seconds['load']:.2f} s, compile {seconds['compile']:.2f} s",
        f"wrote {count} masks into {out}" + (f", overlays into {overlay}" if overlay else ""),
    ]
    return "\n".join(lines)


def _check_pictures(photo: Path, out: Path, overlay: Path | None, overwrite: bool) -> None:
    if any(is_same_file(*pair) for pair in itertools.combinations(filter(None, (photo, out, overlay)), 2)):
        raise ValueError("photo, --out and --overlay must be different files")
    check_new_file(out, "--out", [".png"], overwrite)
    if overlay is not None:
        check_new_file(overlay, "--overlay", [".png"], overwrite)


def _check_folders(out: Path, overlay: Path | None) -> None:
    check_new_folder(out, "--out")
    if overlay is not None:
        check_new_folder(overlay, "--overlay")
        if overlay.resolve() == out.resolve():
            raise ValueError("--out and --overlay must be different folders")

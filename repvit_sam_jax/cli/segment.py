"""`repvit-sam segment`: a photo, or a folder of photos."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from ..config import Choice, Format
from ..terminal import COMPILE_CACHE, use_compile_cache
from .common import DEMO, NOTHING_STORED, Model, Stopwatch, Stored, read_numbers, size_of
from .masks import Target

if TYPE_CHECKING:
    import numpy as np

    from ..inference.predictor import SamPredictor
    from ..inference.prompts import Prompt


@dataclasses.dataclass(frozen=True)
class Asked:
    """What to segment, as flags."""

    point: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """X,Y or X,Y,LABEL in pixels; label 1 (the default) is foreground, 0 background. May be repeated."""
    box: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """X1,Y1,X2,Y2 in pixels. Several are prompts of their own, with a mask each, and take no points."""
    mask_input: Path | None = None
    """A mask to start from, for one photo: a black and white PNG of its size, or low-res logits in a file .npy."""
    prompts: Path | None = None
    """For a folder, a JSON file with prompts of the photos to segment: {"photo.jpg": {"points": [[X, Y], [X, Y,
    LABEL]], "box": [X1, Y1, X2, Y2]}}. In place of an object, a list of several, each with a mask of its own."""
    mask: Choice = "auto"
    """Of the model's masks for a prompt: single, its single one; of its three, best, the one with the highest predicted
    IoU, all, or 0, 1 or 2; auto is best for a single point, and single for any other prompt."""

    def check(self, photo: Path) -> None:
        """Raises ValueError for flags that do not fit each other or the photo."""
        flags = {"--point": self.point, "--box": self.box, "--mask-input": self.mask_input, "--prompts": self.prompts}
        given = [flag for flag, value in flags.items() if value]
        if not given:
            raise ValueError("nothing to segment: give --point or --box, or with a folder --prompts")
        if self.prompts is not None and len(given) > 1:
            raise ValueError("give either --prompts, or --point and --box for all photos")
        if len(self.box) > 1 and len(given) > 1:
            raise ValueError(
                f"several boxes are prompts of their own; leave out {' and '.join(set(given) - {'--box'})}"
            )
        is_folder = photo.is_dir()
        if self.prompts is not None and not is_folder:
            raise ValueError(f"--prompts is for a folder of photos, and {photo} is none; give --point or --box")
        if self.mask_input is not None and is_folder:
            raise ValueError(f"--mask-input is for one photo, and {photo} is a folder")
        self.numbers()

    def numbers(self) -> tuple[list[list[float]], list[int], list[list[float]]]:
        """Points, their labels, and boxes. Raises ValueError, naming the flag, if they are none."""
        points = [read_numbers(text, "--point", (2, 3)) for text in self.point]
        labels = [p[2] if len(p) == 3 else 1.0 for p in points]
        if any(label not in (0, 1) for label in labels):
            raise ValueError("labels of --point are 1 (foreground) or 0 (background)")
        boxes = [read_numbers(text, "--box", (4,)) for text in self.box]
        return [p[:2] for p in points], [int(label) for label in labels], boxes


def segment(
    photo: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="PHOTO")],
    *,
    asked: Annotated[Asked, tyro.conf.arg(name="")] = Asked(),
    out: Path | None = None,
    form: Annotated[Format, tyro.conf.arg(name="format")] = "png",
    overlay: Path | None = None,
    overwrite: bool = False,
    model: Annotated[Model, tyro.conf.arg(name="")] = DEMO,
    stored: Annotated[Stored, tyro.conf.arg(name="")] = NOTHING_STORED,
    max_pixels: int | None = None,
    compile_cache: str | None = COMPILE_CACHE,
    as_json: Annotated[bool, tyro.conf.arg(name="json")] = False,
) -> None:
    """Segment what points, boxes and a mask on a photo mean.

    All points and the box are one prompt. A single point is ambiguous: of the three masks that the model gives,
    the one with the highest predicted IoU is taken. Any other prompt gives one mask.

    With a folder in place of a photo, the points and the box are those of each photo in it, or --prompts gives each
    its own. A photo that can't be read or that its prompt does not fit is named at the end, and the exit code is 1.

    Args:
      photo: The image file, or a folder of them.
      asked: What to segment.
      out: The mask; mask.png, mask.json or mask.txt if not given, numbered where several masks are several files.
        For a folder, a folder that is new or empty; masks if not given.
      form: png, black and white; rle, SA-1B's JSON; coco, COCO's JSON with runs; polygons, the same with polygons;
        yolo, YOLO's label text.
      overlay: Also write the photo with mask and prompts drawn over it, a PNG; for a folder, into another such folder.
      overwrite: Replace the files of one photo if they are there.
      model: What computes.
      stored: Embeddings.
      max_pixels: Largest width times height of a photo, so that memory is bounded; 89 million if not given.
      compile_cache: Folder that keeps compiled programs for the next run; None keeps none.
      as_json: Print the result as JSON.
    """
    asked.check(photo)
    model.check()
    is_folder = photo.is_dir()
    target = Target.of(photo, out, form, overlay)
    stored.check(is_folder, overwrite)
    count = max(len(asked.box), 1) * (3 if asked.mask == "all" else 1)
    target.check(
        count, overwrite, [path for path in (asked.mask_input, stored.embedding, stored.save_embedding) if path]
    )

    from .. import transforms

    load = functools.partial(transforms.load_image, max_pixels=max_pixels or transforms.MAX_PIXELS)
    task = Task(photo, asked, target, model, stored)
    result = task.folder(load, compile_cache) if is_folder else task.photo_alone(load, compile_cache)
    print(json.dumps(result, indent=1) if as_json else _report(photo, target, result))
    if result.get("failures"):
        raise SystemExit("\n".join(f"error: {failure['error']}" for failure in result["failures"]))


@dataclasses.dataclass(frozen=True)
class Task:
    """A call of the command."""

    photo: Path
    asked: Asked
    target: Target
    model: Model
    stored: Stored

    def photo_alone(self, load: Callable[[Path], np.ndarray], compile_cache: str | None) -> dict[str, Any]:
        """Segment one photo; the result."""
        import jax

        from ..inference.photos import answer, other_size, wants_three

        image = load(self.photo)
        start = None if self.asked.mask_input is None else _read_mask(self.asked.mask_input)
        prompts = self._prompts()
        for prompt in prompts if start is None else ():
            prompt.check(image.shape[:2])
        use_compile_cache(compile_cache)
        seconds: dict[str, float] = {}
        with Stopwatch(seconds, "load"):
            predictor = self.model.open()
        if start is not None:
            prompts = [_with_mask(prompts[0], start, self.asked.mask_input, image.shape[:2], predictor)]
        with Stopwatch(seconds, "compile"):
            for prompt in prompts[:1] if start is None else ():
                predictor.warmup(prompt.num_points, multimask_output=wants_three(prompt, self.asked.mask))
        with Stopwatch(seconds, "encode"):
            if self.stored.embedding is None:
                predictor.set_image(image)
            else:
                predictor.load_embedding(self.stored.embedding)
                if predictor.original_size != image.shape[:2]:
                    raise ValueError(f"{self.photo}: {other_size(predictor.original_size, image.shape[:2])}")
            jax.block_until_ready(predictor.get_image_embedding())
        with Stopwatch(seconds, "decode"):
            done = list(answer(predictor, [(self.photo, image, predictor.embedded, prompts)], self.asked.mask))
        if self.stored.save_embedding is not None:
            predictor.save_embedding(self.stored.save_embedding)
        written = self.target.write_photo(done)
        found = written[0] if len(written) == 1 else {"results": written}
        return {**size_of(self.photo, image), **self.model.setting(predictor), **found, "seconds": seconds}

    def folder(self, load: Callable[[Path], np.ndarray], compile_cache: str | None) -> dict[str, Any]:
        """Segment the photos of a folder; the result, with `failures`."""
        from tqdm import tqdm

        from ..inference.photos import Failure, count_masks, list_photos, photo_names, segment_photos, wants_three

        photos = list_photos(self.photo)
        prompts = self._prompts_of(photos)
        names, choice = photo_names(photos, self.target.form), self.asked.mask
        use_compile_cache(compile_cache)
        seconds: dict[str, float] = {}
        with Stopwatch(seconds, "load"):
            predictor = self.model.open()
        counts = {path: count_masks(of_photo, choice) for path, of_photo in prompts.items()}
        writer = self.target.open_folder(counts)
        every = [prompt for of_photo in prompts.values() for prompt in of_photo]
        with Stopwatch(seconds, "compile"):
            for num_points, three in {(prompt.num_points, wants_three(prompt, choice)) for prompt in every}:
                predictor.warmup(num_points, multimask_output=three, num_images=len(prompts))
        read, save = self.stored.embedding, self.stored.save_embedding
        known = None if read is None else lambda path: predictor.read_embedding(read / f"{names[path]}.npz")
        failures = []
        try:
            with Stopwatch(seconds, "segment"), tqdm(total=sum(counts.values()), unit="mask", disable=None) as bar:
                for done in segment_photos(predictor, prompts, load, choice=choice, stored=known):
                    try:
                        if isinstance(done, Failure):
                            raise ValueError(done.error)
                        if save is not None and done.number == 0:
                            predictor.save_embedding(save / f"{names[done.path]}.npz", done.embedded)
                        writer.add(done)
                    except (ValueError, OSError) as error:  # such as a name that is too long: the others are written
                        failures.append({"photo": str(done.path), "error": str(error)})
                    bar.update()
        finally:  # what is done is written when the command is stopped, too
            results = writer.finish(self.photo, names)
        return {**self.model.setting(predictor), "results": results, "failures": failures, "seconds": seconds}

    def _prompts(self) -> list[Prompt]:
        """Those of the flags."""
        from ..inference.prompts import Prompt

        points, labels, boxes = self.asked.numbers()
        return [Prompt(box=box) for box in boxes] if len(boxes) > 1 else [Prompt(points, labels, *boxes)]

    def _prompts_of(self, photos: list[Path]) -> dict[Path, list[Prompt]]:
        from ..inference.photos import read_prompts_file

        if not photos:
            raise ValueError(f"{self.photo} holds no file with an extension that Pillow reads")
        if self.asked.prompts is None:
            return dict.fromkeys(photos, self._prompts())
        chosen = read_prompts_file(self.asked.prompts, photos)
        if not chosen:
            raise ValueError(f"{self.asked.prompts} names no photo")
        return chosen


def _read_mask(path: Path) -> np.ndarray:
    """Logits [1, h, w] of a file .npy, or a mask [h, w] of a picture, black or white."""
    import numpy as np
    from PIL import Image, UnidentifiedImageError

    if not path.is_file():
        raise FileNotFoundError(f"no mask at --mask-input {path}")
    try:
        if path.suffix.lower() == ".npy":
            logits = np.load(path, allow_pickle=False)
            return logits if logits.ndim == 3 else logits[None]
        with Image.open(path) as picture:
            return np.asarray(picture.convert("L")) >= 128
    except (ValueError, EOFError, UnidentifiedImageError, OSError) as error:
        raise ValueError(f"--mask-input {path} is neither a picture nor an array .npy: {error}") from error


def _with_mask(
    prompt: Prompt, mask: np.ndarray, path: Path | None, size: tuple[int, int], predictor: SamPredictor
) -> Prompt:
    """A prompt that starts from a mask, checked."""
    from ..inference.prompts import read_prompts

    points, labels = (prompt.points, prompt.labels) if len(prompt.points) else (None, None)
    try:
        (found,), _ = read_prompts(points, labels, prompt.box, mask, size, predictor.config)
    except ValueError as error:
        raise ValueError(f"--mask-input {path}: {error}" if "mask_input" in str(error) else str(error)) from error
    return found


def _report(photo: Path, target: Target, result: dict[str, Any]) -> str:
    seconds, by = result["seconds"], f"{result['model']} in {result['dtype']} on {result['device']}"
    before = f"before that: load {seconds['load']:.2f} s, compile {seconds['compile']:.2f} s"
    if "failures" in result:
        count = len(result["results"])
        return "\n".join(
            [
                f"{photo}: {count} of {count + len(result['failures'])} photos segmented, {by}",
                f"{seconds['segment']:.1f} s, {seconds['segment'] / max(count, 1):.2f} s a photo, {before}",
                f"wrote {count} masks into {target.out}"
                + (f", overlays into {target.overlay}" if target.overlay else ""),
            ]
        )
    masks = result.get("results", [result])
    lines = [f"{result['photo']}: {result['width']} x {result['height']} pixels, {by}"]
    for mask in masks:
        share = 100 * mask["area"] / (result["width"] * result["height"])
        lines.append(
            f"mask: {mask['area']} pixels ({share:.1f}% of the photo), box {mask['box']}, "
            f"predicted IoU {mask['predicted_iou']:.3f}"
        )
    files = dict.fromkeys(mask[what] for what in ("mask", "overlay") for mask in masks if mask[what])
    lines.append(f"encode {seconds['encode']:.2f} s, decode {seconds['decode']:.2f} s, {before}")
    return "\n".join([*lines, f"wrote {' and '.join(files)}"])

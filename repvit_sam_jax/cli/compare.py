"""`repvit-sam compare`: models side by side, as Figure 1 of RepViT-SAM's paper (arXiv 2312.05760) shows them."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from ..config import Dtype
from ..files import check_new_file, write_atomically
from ..terminal import COMPILE_CACHE, counted, use_compile_cache
from .common import Stopwatch, is_same_file, read_numbers

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

    from ..evals.segmenters import Segmenter
    from ..inference.prompts import Prompt

HEIGHT, NARROWEST, GAP, LINE = 300, 240, 8, 18
"""Pixels of a panel's height, of a column's width at least, between panels, and of a line of text."""


def compare(
    photos: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="PHOTO...")],
    *,
    weights: tuple[str, ...] = ("demo",),
    point: tyro.conf.UseAppendAction[tuple[str, ...]] = (),
    box: tyro.conf.UseAppendAction[tuple[str, ...]] = (),
    prompts: Path | None = None,
    out: Path = Path("comparison.png"),
    overwrite: bool = False,
    dtype: Dtype = "float32",
    compile_cache: str | None = COMPILE_CACHE,
) -> None:
    """Draw the masks of several models, a column each, with the predicted IoU and the time under each.

    The points are one prompt and have a row for each photo; each box is another one, in the rows below. A single point
    is ambiguous: of the three masks that a model gives, the one with the highest predicted IoU is drawn. Times are
    those of a photo or a prompt alone, once programs are compiled: encode from the photo to its embedding, decode from
    the prompt to a mask of the photo's size.

    Args:
      photos: Image files.
      weights: Models: what `repvit-sam segment --weights` takes, or folders of `repvit-sam export onnx`. One at a time
        is in memory.
      point: X,Y or X,Y,LABEL in pixels; label 1 (the default) is foreground, 0 background. May be repeated.
      box: X1,Y1,X2,Y2 in pixels. May be repeated.
      prompts: A JSON file with prompts of each photo, as `repvit-sam segment --prompts` takes it.
      out: The picture, a PNG.
      overwrite: Replace the picture if it is there.
      dtype: Precision of the arithmetic.
      compile_cache: Folder that keeps compiled programs for the next run; None keeps none.
    """
    points = [read_numbers(text, "--point", (2, 3)) for text in point]
    corners = [read_numbers(text, "--box", (4,)) for text in box]
    labels = [p[2] if len(p) == 3 else 1 for p in points]
    if any(label not in (0, 1) for label in labels):
        raise ValueError("labels of --point are 1 (foreground) or 0 (background)")
    if bool(points or corners) == (prompts is not None):
        raise ValueError("give prompts: --point, --box or both for all photos, or --prompts with those of each")
    if not photos or not weights:
        raise ValueError("nothing to compare: give photos, and --weights of models")
    check_new_file(out, "--out", [".png"], overwrite)
    if any(is_same_file(photo, out) for photo in photos):
        raise ValueError(f"--out {out} is one of the photos")

    from .. import transforms
    from ..evals.segmenters import find_segmenter
    from ..inference.prompts import Prompt

    images = {photo: transforms.load_image(photo) for photo in photos}
    if prompts is None:
        clicks = [Prompt([p[:2] for p in points], [int(label) for label in labels])] if points else []
        given = [*clicks, *(Prompt(box=four) for four in corners)]
        chosen: Mapping[Path, Sequence[Prompt]] = dict.fromkeys(photos, given)
    else:
        chosen = _read_prompts(prompts, photos)
    rows = [(photo, prompt) for photo, of_photo in chosen.items() for prompt in of_photo]
    for photo, prompt in rows:
        try:
            prompt.check(images[photo].shape[:2])
        except ValueError as error:
            raise ValueError(f"{photo}: {error}") from error
    for path in weights:
        find_segmenter(path)
    use_compile_cache(compile_cache)
    _draw_all(images, sorted(rows, key=lambda row: row[1].box is not None), weights, dtype, out)


@dataclasses.dataclass(frozen=True)
class _Panel:
    """A model's answer to a prompt."""

    picture: Image.Image
    predicted_iou: float
    encode: float
    """Seconds, and so is `decode`."""
    decode: float

    @property
    def lines(self) -> tuple[str, str]:
        """What is written under it."""
        times = f"encode {_shown(self.encode)}, decode {_shown(self.decode)}"
        return f"predicted IoU {self.predicted_iou:.3f}", times


def _draw_all(
    images: Mapping[Path, np.ndarray],
    rows: Sequence[tuple[Path, Prompt]],
    weights: Sequence[str],
    dtype: Dtype,
    out: Path,
) -> None:
    """Write the picture of checked rows, and print what is under its panels."""
    from ..evals import segmenters

    names, columns = segmenters.names_of(weights), []
    for path, name in zip(weights, names, strict=True):
        segmenter = segmenters.open_segmenter(path, dtype, name)
        columns.append(_answers(segmenter, images, rows))
        print(f"{name}: {segmenter.about['model']} in {segmenter.about['dtype']}, {segmenter.about['runtime']}")
        for (photo, prompt), panel in zip(rows, columns[-1], strict=True):
            kind = "box" if prompt.box is not None else counted(len(prompt.points), "point")
            print(f"  {photo.name}, {kind}: {', '.join(panel.lines)}")
        del segmenter  # before the next one is loaded
    sheet = _sheet(names, columns)
    write_atomically(out.resolve(), lambda temporary: sheet.save(temporary, "PNG"))
    print(f"wrote {out}")


def _answers(
    segmenter: Segmenter, images: Mapping[Path, np.ndarray], rows: Sequence[tuple[Path, Prompt]]
) -> list[_Panel]:
    """A model's panels, a row each."""
    import jax

    from ..inference.overlay import draw_overlay
    from ..inference.photos import best_mask

    predictor = segmenter.predictor
    (warm,) = predictor.embed([images[rows[0][0]]])  # the first calls compile
    for prompt in {(prompt.num_points, prompt.is_ambiguous): prompt for _, prompt in rows}.values():
        predictor.fetch(predictor.dispatch(warm, [prompt], prompt.is_ambiguous))
    seconds: dict[str, float] = {}
    embedded = {}
    for photo in dict.fromkeys(photo for photo, _ in rows):
        with Stopwatch(seconds, "encode"):
            (found,) = predictor.embed([images[photo]])
            jax.block_until_ready(found.embedding)
        embedded[photo] = found, seconds["encode"]
    panels = []
    for photo, prompt in rows:
        found, encode = embedded[photo]
        with Stopwatch(seconds, "decode"):
            prediction = predictor.fetch(predictor.dispatch(found, [prompt], prompt.is_ambiguous, single=True))
        mask, predicted_iou = best_mask(prediction)
        box = None if prompt.box is None else prompt.box.tolist()
        drawn = draw_overlay(images[photo], mask, prompt.points.tolist(), prompt.labels.tolist(), box)
        panels.append(_Panel(_scaled(drawn), predicted_iou, encode, seconds["decode"]))
    return panels


def _scaled(picture: np.ndarray) -> Image.Image:
    from PIL import Image

    height, width = picture.shape[:2]
    size = max(1, round(width * HEIGHT / height)), HEIGHT
    return Image.fromarray(picture).resize(size, Image.Resampling.LANCZOS)


def _sheet(names: Sequence[str], columns: Sequence[Sequence[_Panel]]) -> Image.Image:
    """Names on top, then the rows, each panel over its lines."""
    from PIL import Image, ImageDraw

    width = max(NARROWEST, *(panel.picture.width for column in columns for panel in column))
    step = HEIGHT + 2 * LINE + GAP
    sheet = Image.new("RGB", (len(columns) * (width + GAP) - GAP, LINE + 4 + len(columns[0]) * step), "white")
    pen = ImageDraw.Draw(sheet)
    for i, (name, column) in enumerate(zip(names, columns, strict=True)):
        middle = i * (width + GAP) + width // 2
        pen.text((middle, 2), name, fill="black", font_size=15, anchor="ma")
        for j, panel in enumerate(column):
            top = LINE + 4 + j * step
            sheet.paste(panel.picture, (middle - panel.picture.width // 2, top))
            for k, line in enumerate(panel.lines):
                pen.text((middle, top + HEIGHT + 2 + k * LINE), line, fill="black", font_size=13, anchor="ma")
    return sheet


def _read_prompts(file: Path, photos: Sequence[Path]) -> Mapping[Path, Sequence[Prompt]]:
    """Those of each photo. Raises ValueError if one has none, or two have the same name."""
    from ..inference.photos import read_prompts_file

    if repeated := [name for name, count in collections.Counter(p.name for p in photos).items() if count > 1]:
        raise ValueError(f"--prompts tells photos by their names, and several are called {repeated[0]}")
    chosen = read_prompts_file(file, photos)
    if absent := [photo for photo in photos if photo not in chosen]:
        raise ValueError(f"{file} has no prompt for {absent[0].name}")
    return {photo: chosen[photo] for photo in photos}


def _shown(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.1f} ms"

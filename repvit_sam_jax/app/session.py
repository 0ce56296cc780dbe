"""What one visitor of the page has: a photo that is embedded once, and prompts on it with their masks."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image

from .. import transforms
from ..inference.mask_generator import SamAutomaticMaskGenerator
from ..inference.predictor import EmbeddedImage, SamPredictor
from ..inference.prompts import Prompt

SHOWN = 1280
"""Pixels of the longer side of what is shown, at most. Prompts and results are in pixels of the photo."""
MOST_POINTS = 64
"""Points of a prompt: every power of two is a program of its own."""
MOST_STEPS = 50
"""Steps that can be undone, each of which keeps its masks."""
REACH = 0.03
"""How near to a point a click must be that removes it, as a share of the photo's longer side."""


@dataclasses.dataclass(frozen=True, eq=False)
class Photo:
    """A photo, and what the encoder made of it."""

    name: str
    image: UInt8[np.ndarray, "h w 3"]
    shown: UInt8[np.ndarray, "h2 w2 3"]
    """The same, with `SHOWN` pixels at most."""
    embedded: EmbeddedImage
    seconds: float
    """Which the encoder took."""

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.embedded.size


@dataclasses.dataclass(frozen=True, eq=False)
class Answer:
    """The masks of a prompt."""

    low_res: Float[np.ndarray, "c s4 s4"]
    """Logits: three, or one."""
    predicted_iou: Float[np.ndarray, "c"]
    seconds: float
    """Which the decoder took."""


@dataclasses.dataclass(frozen=True, eq=False)
class Step:
    """Points and a box, in pixels of the photo, which together are one prompt, and its answer."""

    points: tuple[tuple[float, float], ...] = ()
    labels: tuple[int, ...] = ()
    """1 for what is meant, 0 for what is not, one a point."""
    box: tuple[float, float, float, float] | None = None
    """XYXY."""
    answer: Answer | None = None
    """None without a prompt that means something: points that are all of what is not meant do not."""
    chosen: int = 0
    """Which of the masks."""
    refined: int = 0
    """How often the chosen mask went back into the decoder."""


class Session:
    """A visitor's photo and prompts. Calls of several threads wait for each other.

    Every method that asks for masks raises ValueError without a photo, or for a prompt that does not fit it.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self.predictor: SamPredictor | None = None
        """The model that embedded the photo."""
        self._steps = [Step()]
        self.photo: Photo | None = None
        self.records: list[dict[str, Any]] | None = None
        """Masks of everything, largest first, with COCO's RLE; None if prompts are answered."""
        self.seconds_of_everything = 0.0

    @property
    def now(self) -> Step:
        """The prompt as it is."""
        return self._steps[-1]

    def open(self, predictor: SamPredictor, image: UInt8[np.ndarray, "h w 3"], name: str) -> None:
        """Embed a photo, and forget the one before.

        Raises:
          ValueError: it is no RGB image, has more than `transforms.MAX_PIXELS`, or is too narrow; the one before stays.
        """
        transforms.check_scalable(image, predictor.config.image_size)
        height, width = image.shape[:2]
        if height * width > transforms.MAX_PIXELS:
            raise ValueError(f"{name} has {width} x {height} pixels, more than {transforms.MAX_PIXELS}: scale it down")
        with self._lock:
            start = time.perf_counter()
            (embedded,) = predictor.embed([image])
            jax.block_until_ready(embedded.embedding)
            seconds = time.perf_counter() - start
            self.photo = Photo(name, image, _shown(image), embedded, seconds)
            self.predictor, self.records = predictor, None
            self._steps = [Step()]

    def use(self, predictor: SamPredictor) -> None:
        """Another model: the photo is embedded anew, and the prompt asked again; steps before it are forgotten."""
        with self._lock:
            if self.photo is None or predictor is self.predictor:
                return
            now = self.now
            self.open(predictor, self.photo.image, self.photo.name)
            self._ask(now)
            self._steps = self._steps[-1:]

    def close(self) -> None:
        """Forget everything."""
        with self._lock:
            self.photo = self.predictor = self.records = None
            self._steps = [Step()]

    def add_point(self, x: float, y: float, label: int) -> None:
        """A point of what is meant (1), or of what is not (0)."""
        with self._lock:
            now = self.now
            if len(now.points) == MOST_POINTS:
                raise ValueError(f"a prompt has {MOST_POINTS} points at most; remove one, or refine the mask")
            self._ask(dataclasses.replace(now, points=(*now.points, (x, y)), labels=(*now.labels, label)))

    def draw_box(self, x1: float, y1: float, x2: float, y2: float) -> None:
        """A box in place of the one before, by any two opposite corners."""
        with self._lock:
            box = min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)
            self._ask(dataclasses.replace(self.now, box=box))

    def remove(self, x: float, y: float) -> None:
        """The point that is nearest, or without one within `REACH` the box around. Raises ValueError for neither."""
        with self._lock:
            now, photo = self.now, self._photo()
            distances = [np.hypot(px - x, py - y) for px, py in now.points]
            nearest = int(np.argmin(distances)) if distances else 0
            if distances and distances[nearest] <= REACH * max(photo.size):
                rest = [i for i in range(len(distances)) if i != nearest]
                points, labels = tuple(now.points[i] for i in rest), tuple(now.labels[i] for i in rest)
                self._ask(dataclasses.replace(now, points=points, labels=labels))
            elif now.box is not None and now.box[0] <= x <= now.box[2] and now.box[1] <= y <= now.box[3]:
                self._ask(dataclasses.replace(now, box=None))
            else:
                raise ValueError("there is no point to remove: click on one, or within the box")

    def refine(self) -> None:
        """The same prompt together with the chosen mask. Raises ValueError without a mask."""
        with self._lock:
            now = self.now
            if now.answer is None or self.records is not None:
                raise ValueError("there is no mask to refine; click on an object first")
            self._ask(now, now.answer.low_res[now.chosen])

    def undo(self) -> None:
        """One step back, without asking the model; back from everything to the prompt."""
        with self._lock:
            if self.records is not None:
                self.records = None
            elif len(self._steps) > 1:
                self._steps.pop()

    def clear(self) -> None:
        """No prompt; this can be undone."""
        with self._lock:
            self.records = None
            if self.now.points or self.now.box is not None:
                self._push(Step())

    def choose(self, number: int) -> None:
        """Another one of the masks. Raises ValueError if there is none of this number."""
        with self._lock:
            if self.now.answer is None or not 0 <= number < len(self.now.answer.predicted_iou):
                raise ValueError(f"there is no mask {number + 1} to choose")
            self._steps[-1] = dataclasses.replace(self.now, chosen=number)

    def search(self, settings: Mapping[str, Any], progress: Callable[[int, int], Any]) -> dict[str, int]:
        """Masks of everything, into `records`; the embedding is that of the prompts.

        Args:
          settings: arguments of `SamAutomaticMaskGenerator`.
          progress: called with points that are answered, and all.

        Returns:
          How many candidates each filter dropped.

        Raises:
          ValueError: no photo, or an invalid setting.
        """
        with self._lock:
            photo, predictor = self._photo(), self.predictor
            assert predictor is not None
            generator = SamAutomaticMaskGenerator(predictor.backend, **settings, output_mode="coco_rle")
            total, done = sum(map(len, generator.point_grids)), 0

            def count(points: int) -> None:
                nonlocal done
                done += points
                progress(done, total)

            start = time.perf_counter()
            records = generator.generate_embedded(photo.embedded, count)
            self.seconds_of_everything = time.perf_counter() - start
            self.records = sorted(records, key=lambda record: -record["area"])
            return generator.dropped

    def mask(self, size: tuple[int, int] | None = None) -> Bool[np.ndarray, "h w"]:
        """The chosen mask; nothing where there is none.

        Args:
          size: (height, width) of a scaled photo, in place of the photo's own.

        Raises:
          ValueError: there is no photo.
        """
        with self._lock:
            size, step = size or self._photo().size, self.now
            if step.answer is None:
                return np.zeros(size, bool)
            assert self.predictor is not None
            config = self.predictor.config
            logits = transforms.postprocess_masks(step.answer.low_res[step.chosen], size, config.image_size)
            return logits > config.mask_threshold

    def _photo(self) -> Photo:
        if self.photo is None:
            raise ValueError("there is no photo; upload one, or take an example")
        return self.photo

    def _ask(self, step: Step, mask: Float[np.ndarray, "s4 s4"] | None = None) -> None:
        """This step next, with its answer; `mask` goes into the decoder too."""
        photo, predictor = self._photo(), self.predictor
        assert predictor is not None
        prompt = Prompt(step.points, step.labels, step.box, mask)
        answer, chosen = None, 0
        if step.box is not None or 1 in step.labels:
            prompt.check(photo.size)
            start = time.perf_counter()
            pending = predictor.dispatch(photo.embedded, [prompt], prompt.is_ambiguous, single=True)
            _, predicted_iou, low_res = predictor.fetch(pending, return_low_res_only=True)
            answer = Answer(low_res, predicted_iou, time.perf_counter() - start)
            chosen = int(np.argmax(predicted_iou))
        self.records = None
        refined = 0 if mask is None else step.refined + 1
        self._push(dataclasses.replace(step, answer=answer, chosen=chosen, refined=refined))

    def _push(self, step: Step) -> None:
        self._steps = [*self._steps, step][-MOST_STEPS - 1 :]


def _shown(image: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h2 w2 3"]:
    """The image, or where it is larger, scaled to `SHOWN` pixels."""
    if max(image.shape[:2]) <= SHOWN:
        return image
    height, width = transforms.resized_shape(image.shape[0], image.shape[1], SHOWN)
    return np.array(Image.fromarray(image).resize((max(width, 1), max(height, 1)), Image.Resampling.BILINEAR))

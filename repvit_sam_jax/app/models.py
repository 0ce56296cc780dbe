"""The models that the page offers, loaded when they are chosen first."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

import numpy as np

from ..config import Dtype, SamConfig, get_model_config
from ..evals import segmenters
from ..inference.mask_generator import SamAutomaticMaskGenerator
from ..inference.overlay import draw_overlay
from ..inference.predictor import EmbeddedImage, SamPredictor
from ..inference.prompts import Prompt
from ..weights import hub

_PROMPTS = (Prompt([(1, 1)], [1]), Prompt(box=(1, 1, 9, 9)), *(Prompt([(1, 1)] * n, [1] * n) for n in (2, 3)))
"""One of each kind that a first click may be, by what is compiled for it."""


class Menu:
    """Models by what they are called on the page. All that were chosen stay in memory, for all visitors."""

    def __init__(self, weights: Sequence[str] = (), dtype: Dtype = "float32") -> None:
        """Nothing is loaded yet.

        Args:
          weights: what `open_segmenter` takes, the first one chosen at first; `demo` without any.
          dtype: of the arithmetic in JAX.

        Raises:
          FileNotFoundError: there is no such file.
        """
        for path in weights:
            if not hub.is_name(path):
                segmenters.find_segmenter(path)
        given = dict.fromkeys([*weights, "demo"])
        self.names = dict(zip(segmenters.names_of(list(given)), given, strict=True))
        """Names on the page -> weights; those that would be downloaded last."""
        named = (name for name in hub.PUBLISHED if isinstance(get_model_config(name), SamConfig))
        self.names |= {name: name for name in named if name not in given and name not in self.names}
        self._dtype = dtype
        self._locks = {name: threading.Lock() for name in self.names}
        self._loaded: dict[str, SamPredictor] = {}
        self._states: dict[str, str] = {}
        self._begun: set[str] = set()

    @property
    def first(self) -> str:
        """The name that is chosen when the page opens."""
        return next(iter(self.names))

    @property
    def choices(self) -> list[tuple[str, str]]:
        """What the menu says for each name, and the name."""
        return [(f"{name} (to be downloaded)" if self._is_afar(name) else name, name) for name in self.names]

    def _is_afar(self, name: str) -> bool:
        weights = self.names[name]
        afar = name not in self._loaded and hub.is_name(weights)
        return afar and not (weights in hub.PUBLISHED and (hub.cache() / hub.file_name(weights)).is_file())

    def get(self, name: str) -> SamPredictor:
        """The model, loaded once for all.

        Raises:
          ValueError: the page offers no such model.
          FileNotFoundError, DownloadError, CheckpointError: as `open_segmenter`.
        """
        if name not in self.names:
            raise ValueError(f"there is no model {name!r} here")
        with self._locks[name]:
            if name not in self._loaded:
                self._loaded[name] = segmenters.open_segmenter(self.names[name], self._dtype).predictor
            return self._loaded[name]

    def name_of(self, predictor: SamPredictor | None) -> str:
        """What a loaded model is called here; `first` for none."""
        return next((name for name, loaded in self._loaded.items() if loaded is predictor), self.first)

    def state(self, name: str) -> tuple[str, bool]:
        """A word about how far `warmup` is, and whether it is over."""
        word = self._states.get(name, "")
        return word, not word.endswith("...")

    def warmup(self, name: str) -> None:
        """Load a model and compile what clicks need, the first click's first; what goes wrong is its state."""
        start = time.perf_counter()
        try:
            predictor = self.get(name)
            for word, step in _steps(predictor):
                self._states[name] = f"{name}: compiling {word} ..."
                step()
            self._states[name] = f"{name}: ready; compiled in {time.perf_counter() - start:.1f} s"
        except (ValueError, OSError, RuntimeError) as error:
            self._states[name] = f"{name}: {error}"
            self._begun.discard(name)

    def start_warmup(self, name: str) -> None:
        """`warmup` in a thread, unless it is under way or done."""
        if name in self.names and name not in self._begun:
            self._begun.add(name)
            self._states[name] = f"{name}: loading ..."
            threading.Thread(target=self.warmup, args=(name,), daemon=True).start()


def _steps(predictor: SamPredictor) -> tuple[tuple[str, Callable[[], None]], ...]:
    """What is compiled, with its name, in the order in which it is needed."""
    found: list[EmbeddedImage] = []

    def encode() -> None:
        found.extend(predictor.embed([np.zeros((64, 64, 3), np.uint8)]))

    def decode() -> None:
        mask = np.zeros((predictor.config.low_res_size,) * 2, np.float32)
        refined = [Prompt(prompt.points, prompt.labels, prompt.box, mask) for prompt in _PROMPTS]
        for prompt in (*_PROMPTS, *refined):
            pending = predictor.dispatch(found[0], [prompt], prompt.is_ambiguous)
            predictor.fetch(pending, return_low_res_only=True)
        draw_overlay(np.zeros((8, 8, 3), np.uint8), np.eye(8, dtype=bool))  # for what it imports

    def search() -> None:
        SamAutomaticMaskGenerator(predictor.backend).warmup()

    return ("the encoder", encode), ("the decoder", decode), ("the search for everything", search)

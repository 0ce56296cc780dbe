"""How long one waits before anything happens: imports, the command line, and compilation without and with a cache."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from convert.synthetic import synthetic_image
from repvit_sam_jax.config import SamConfig
from repvit_sam_jax.models.model import Params
from repvit_sam_jax.weights import checkpoint

from .harness import Candidate, interleave

IMPORT_JAX = "import jax; from flax import nnx"
IMPORT_OURS = f"{IMPORT_JAX}; from repvit_sam_jax import Sam, SamAutomaticMaskGenerator, SamPredictor, load, transforms"


def startup(config: SamConfig, params: Params, rounds: int) -> dict[str, Any]:
    """Time fresh processes: imports, `repvit-sam --help`, and `repvit-sam segment` of one photo.

    Returns:
      a section of the report; its `milliseconds` are those of whole processes.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        weights, photo, warm = folder / "weights.safetensors", folder / "photo.png", folder / "warm"
        checkpoint.save(weights, params, checkpoint.Metadata(config, "deploy"))
        Image.fromarray(synthetic_image(config.image_size * 3 // 4, config.image_size)).save(photo)
        command = [sys.executable, "-m", "repvit_sam_jax.cli"]
        segment = [
            *command,
            "segment",
            str(photo),
            "--point",
            f"{config.image_size // 4},{config.image_size // 4}",
            "--out",
            str(folder / "mask.png"),
        ]
        segment += ["--weights", str(weights)]

        def without_cache() -> float:
            with tempfile.TemporaryDirectory() as empty:
                return _run(segment, empty)

        candidates = [
            Candidate("python", lambda: _run([sys.executable, "-c", ""])),
            Candidate("import_jax_and_nnx", lambda: _run([sys.executable, "-c", IMPORT_JAX])),
            Candidate("import_repvit_sam_jax_too", lambda: _run([sys.executable, "-c", IMPORT_OURS])),
            Candidate("help", lambda: _run([*command, "--help"])),
            Candidate("segment_empty_cache", without_cache),
            Candidate("segment_warm_cache", lambda: _run(segment, str(warm))),
        ]
        times = interleave(candidates, rounds)
    for value in times.values():
        value["peak_megabytes"] = None  # it is this process's, and the work is done in others
    extra = times["import_repvit_sam_jax_too"]["median"] - times["import_jax_and_nnx"]["median"]
    return {"milliseconds": times, "notes": [f"importing repvit_sam_jax adds {extra:.0f} ms to JAX and flax.nnx"]}


def _run(command: Sequence[str], cache: str | None = None) -> float:
    environment = dict(os.environ) if cache is None else {**os.environ, "JAX_COMPILATION_CACHE_DIR": cache}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr}")
    return 0.0

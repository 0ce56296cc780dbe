"""What a run has learnt, as the file that `repvit_sam_jax.load` and the converter take."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

import jax
import numpy as np

from repvit_sam_jax import __version__, checkpoint, reparam
from repvit_sam_jax.config import Form

from .checkpoints import Checkpoints
from .optim import make_optimizer
from .recipe import from_json
from .state import abstract_state, make_student


def export(
    run: Path,
    out: Path,
    *,
    form: Form = "deploy",
    which: Literal["best", "latest"] | int = "latest",
    dtype: Literal["float32", "bfloat16"] = "float32",
) -> int:
    """Write a run's segmenter to a safetensors file.

    Args:
      run: the run's folder.
      out: the file.
      form: `deploy` for inference, `train` to start another run from.
      which: the checkpoint: the latest, the best by held-out IoU, or that of a step.
      dtype: `bfloat16` for a file of half the size (`checkpoint.save`).

    Returns:
      the checkpoint's step.

    Raises:
      FileNotFoundError: the folder is no run's.
      ValueError: there is no such checkpoint.
    """
    if not (run / "recipe.json").is_file():
        raise FileNotFoundError(f"{run} is no run: it has no recipe.json")
    recipe = from_json((run / "recipe.json").read_text())
    student = make_student(recipe)
    target = abstract_state(recipe, student, make_optimizer(recipe, recipe.steps or 1))
    with Checkpoints(run / "checkpoints", recipe.keep) as checkpoints:
        step = {"best": checkpoints.best, "latest": checkpoints.latest}.get(which, which)  # type: ignore[arg-type]
        if not isinstance(step, int):
            raise ValueError(f"{run} has no {which} checkpoint" + (", for it never was evaluated" * (which == "best")))
        here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        target = dataclasses.replace(target, opt_state=())  # not needed, so not read
        target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), target)
        params = jax.tree.map(np.asarray, checkpoints.restore(target, step).result)
    if form == "deploy" and student.config.has_batch_norm:
        params = reparam.fuse(params)
    about = checkpoint.Metadata(student.config, form, converter=f"repvit_sam_jax train {__version__}")
    checkpoint.save(out, params, about, dtype)
    return step

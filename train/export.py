"""What a run has learnt, as the file that `repvit_sam_jax.load` and the converter take."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import jax
import numpy as np

from repvit_sam_jax import Sam, __version__
from repvit_sam_jax.config import Dtype, Form, ModelConfig
from repvit_sam_jax.models.model import Params
from repvit_sam_jax.weights import checkpoint, reparam
from repvit_sam_jax.weights.loading import read_params

from .checkpoints import Checkpoints
from .optim import make_optimizer
from .recipe import from_json
from .state import abstract_state, make_student


def export(
    run: Path,
    out: Path,
    *,
    mean_with: Sequence[Path] = (),
    form: Form = "deploy",
    which: Literal["best", "latest"] | int = "latest",
    dtype: Dtype = "float32",
) -> int:
    """Write a run's segmenter to a safetensors file.

    Args:
      run: the run's folder.
      out: the file.
      mean_with: folders of other runs of the same student from the same start, or files in training form such as that
        start itself, whose weights are averaged with this one's: the mean often segments better than each of them
        (model soups, arXiv 2203.05482). BatchNorm's running statistics are averaged too.
      form: `deploy` for inference, `train` to start another run from.
      which: the checkpoint: the latest, the best by held-out IoU, or that of a step.
      dtype: `bfloat16` for a file of half the size (`checkpoint.save`).

    Returns:
      the step of the first run's checkpoint.

    Raises:
      FileNotFoundError: a folder is no run's, or there is no such file.
      CheckpointError: as `repvit_sam_jax.load`.
      ValueError: there is no such checkpoint, the students differ, or the file is not to be called
        .safetensors; or the training form of an encoder that did not learn is asked for, and the file that the run
        began with, which alone has it, is another one now.
    """
    if out.suffix != ".safetensors":
        raise ValueError(f"{out}: the file's name must end in .safetensors")
    student, params, step = _read(run, which)
    config, encoder = student.config, params["image_encoder"]
    for other in mean_with:
        if other.is_dir():
            them, theirs, _ = _read(other, which)
            their_config: ModelConfig = them.config
        else:
            their_config, _, theirs = read_params(other, student.form)
        if their_config != config:
            raise ValueError(f"{other} has another student than {run}, so their weights have no mean")
        params = jax.tree.map(np.add, params, theirs)
    params = jax.tree.map(lambda x: (x / (1 + len(mean_with))).astype(x.dtype), params)
    if config.has_batch_norm and form != student.form:
        params = reparam.fuse(params) if form == "deploy" else _with_branches(run, params, encoder)
    about = checkpoint.Metadata(config, form, converter=f"repvit_sam_jax train {__version__}")
    checkpoint.save(out, params, about, dtype)
    return step


def _with_branches(run: Path, params: Params, encoder: Params) -> Params:
    """The training form, with the encoder of the file that the run began with; it did not learn, and ran fused.

    `encoder` is the run's own; that of a mean may be rounded.
    """
    init = from_json((run / "recipe.json").read_text()).init
    if init is None:
        raise ValueError(f"the encoder of {run} did not learn and was drawn fused: export it in deploy form")
    _, _, start = read_params(init, "train")
    fused = reparam.fuse(start)["image_encoder"]
    now, then = (dict(checkpoint.flatten(each)) for each in (fused, encoder))
    if now.keys() != then.keys() or not all(np.array_equal(now[name], then[name]) for name in now):
        raise ValueError(f"{init} holds another encoder than {run} began with: export it in deploy form")
    return {**params, "image_encoder": start["image_encoder"], "batch_stats": start["batch_stats"]}


def _read(run: Path, which: Literal["best", "latest"] | int) -> tuple[Sam, Params, int]:
    """The student, the parameters in its form, and the checkpoint's step."""
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
    return student, params, step

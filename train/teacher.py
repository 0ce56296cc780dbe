"""The teacher: a frozen segmenter beside the student, or its image embeddings on disk."""

from __future__ import annotations

import dataclasses
import hashlib

import jax
import numpy as np

from repvit_sam_jax import Sam
from repvit_sam_jax.config import Dtype, SamConfig, get_config
from repvit_sam_jax.files import sha256
from repvit_sam_jax.models.model import Params
from repvit_sam_jax.weights.formats import transformers
from repvit_sam_jax.weights.loading import find_weights, read_params

RANDOM = "random:"


@dataclasses.dataclass(frozen=True)
class Teacher:
    """A segmenter in deploy form and its params on the host.

    `identity` tells it from every other: the SHA-256 of its file, or what it was drawn from.
    """

    model: Sam
    params: Params
    identity: str


def load_teacher(spec: str, image_size: int, dtype: Dtype = "bfloat16") -> Teacher:
    """Read a teacher.

    Args:
      spec: a .safetensors file, `demo` for the package's own, or `random:PRESET` for random weights, which teach
        nothing but serve to try things out.
      image_size: S in pixels.
      dtype: of the arithmetic. The encoder's kernels are stored in it, which changes nothing in the results
        (`Model.compact`); prompt encoder and mask decoder, which a student may take over, stay as they are.

    Raises:
      FileNotFoundError, CheckpointError: as `repvit_sam_jax.load`.
      ValueError: the file holds a classifier, or there is no such preset.
    """
    identity = teacher_identity(spec)
    if spec.startswith(RANDOM):
        model = Sam(get_config(spec.removeprefix(RANDOM), image_size), "deploy", dtype)
        params = model.init(jax.random.key(0))
    else:
        config, _, params = read_params(spec, "deploy")
        if not isinstance(config, SamConfig):
            raise ValueError(f"the teacher {spec} is the classifier {config.name}, and not a segmenter")
        model = Sam(dataclasses.replace(config, image_size=image_size), "deploy", dtype)
    return Teacher(model, _compact_encoder(model, jax.tree.map(np.asarray, params)), identity)


def teacher_identity(spec: str) -> str:
    """What tells a teacher from every other, without loading it. Raises FileNotFoundError if there is no such file."""
    if spec.startswith(RANDOM):
        return spec
    path = find_weights(spec)
    if path.is_dir():
        digests = [sha256(file) for file in transformers.files(path)]
        return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}")
    return sha256(path)


def abstract_teacher(preset: str, image_size: int, dtype: Dtype = "bfloat16") -> tuple[Sam, Params]:
    """A teacher without weights: shapes and dtypes of what `load_teacher` gives."""
    model = Sam(get_config(preset, image_size), "deploy", dtype)
    return model, jax.eval_shape(lambda params: _compact_encoder(model, params), model.abstract_params())


def _compact_encoder(model: Sam, params: Params) -> Params:
    return {**params, "image_encoder": model.compact(params)["image_encoder"]}


def needed_params(params: Params, *, encoder: bool, decoder: bool) -> Params | None:
    """A teacher's params for running its encoder, decoding with it, or both; scalars stand for an idle encoder."""
    if encoder or not decoder:
        return params if encoder else None
    return {**params, "image_encoder": jax.tree.map(lambda leaf: np.zeros((), leaf.dtype), params["image_encoder"])}

"""What a model's PyTorch state dict looks like, derived from its abstract JAX params and the rule table."""

from __future__ import annotations

import dataclasses
import fnmatch
import functools
import re
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from ...config import (
    MODELS,
    ClassifierConfig,
    Form,
    ModelConfig,
    RepViTConfig,
    SamConfig,
    TinyViTConfig,
    ViTConfig,
    get_model_config,
)
from ...models.factory import model_of
from ...models.model import Params
from .. import checkpoint
from ..checkpoint import CheckpointError
from ..reparam import ReparamError, fuse
from .layouts import Layout
from .mapped import owned, release_pages
from .official import jax_to_torch, torch_to_jax


@dataclasses.dataclass(frozen=True)
class Entry:
    """One tensor: its path in params, the layout between the two, and its PyTorch shape and NumPy dtype."""

    path: str
    layout: Layout
    shape: tuple[int, ...]
    dtype: np.dtype


@functools.lru_cache(maxsize=64)
def state_dict_entries(config: ModelConfig, form: Form) -> dict[str, Entry]:
    """PyTorch key -> entry, for every array of the model."""
    entries = {}
    for path, leaf in checkpoint.flatten(model_of(config, form).abstract_params()):
        matches = jax_to_torch(path)
        if len(matches) != 1:
            raise LookupError(
                f"{len(matches)} rules of official.py match the parameter {path}, which needs exactly one"
            )
        key, layout = matches[0]
        example = layout.to_torch(np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape))
        entries[key] = Entry(path, layout, example.shape, example.dtype)
    return entries


def identify(state: Mapping[str, np.ndarray], preset: str | None = None) -> tuple[ModelConfig, Form]:
    """Which preset and form a state dict is of: the one with the fewest missing, unexpected and misshapen keys.

    Args:
      state: PyTorch key -> array.
      preset: consider this preset alone.

    Raises:
      CheckpointError: it belongs to another family of models, or `preset` names one that it does not fit.
    """
    if family := _foreign_family(state):
        raise CheckpointError(f"these are the weights of {family}")
    form: Form = "train" if any(".bn." in key for key in state) else "deploy"
    try:
        insisted = None if preset is None else get_model_config(preset)
    except ValueError as error:
        raise CheckpointError(str(error)) from error
    best = _closest(state, form)
    config = best if insisted is None else _at_its_grid(insisted, state)
    if config != best and _distance(state, best, form) < _distance(state, config, form):
        raise CheckpointError(f"these are weights of {best.name}, not of {preset} as --preset says")
    return config, form


_BLOCK = re.compile(r"((?:image_encoder\.)?(?:features|blocks|layers\.\d+\.blocks)\.\d+)\.")


def _outline(config: ModelConfig) -> tuple[str, int]:
    """What the keys of the encoder's blocks are like, without numbers, and how many blocks there are."""
    if isinstance(config, ClassifierConfig):
        return "features", _repvit_blocks(config.backbone)
    encoder = config.image_encoder
    if isinstance(encoder, RepViTConfig):
        return "image_encoder.features", _repvit_blocks(encoder)
    if isinstance(encoder, TinyViTConfig):
        return "image_encoder.layers.blocks", sum(encoder.depths)
    return "image_encoder.blocks", encoder.depth


def _repvit_blocks(config: RepViTConfig) -> int:
    """With the stem, and the downsampling blocks between stages."""
    return sum(config.depths) + len(config.depths)


def _likely(state: Mapping[str, np.ndarray]) -> list[ModelConfig]:
    """The models whose encoders have such blocks, of these the ones with as many if there are any.

    Only their arrays are then listed: those of all models take half a minute.
    """
    blocks = {match[1] for key in state if (match := _BLOCK.match(key))}
    counts = Counter(re.sub(r"\.\d+", "", block) for block in blocks)
    alike = {config: outline for config in MODELS.values() if (outline := _outline(config))[0] in counts}
    equal = [config for config, (kind, count) in alike.items() if counts[kind] == count]
    return equal or list(alike) or list(MODELS.values())


def _closest(state: Mapping[str, np.ndarray], form: Form) -> ModelConfig:
    distances: dict[ModelConfig, int] = {}
    for preset in _likely(state):
        config = _at_its_grid(preset, state)
        distances[config] = _distance(state, config, form)
        if not distances[config]:
            break
    return min(distances, key=distances.__getitem__)


def _at_its_grid(config: ModelConfig, state: Mapping[str, np.ndarray]) -> ModelConfig:
    """A ViT whose table of positions is of the file's size, for it was trained at another input side."""
    if not isinstance(config, SamConfig) or not isinstance(config.image_encoder, ViTConfig):
        return config
    shape = state["image_encoder.pos_embed"].shape if "image_encoder.pos_embed" in state else ()
    grid = shape[1] if len(shape) == 4 and shape[1] == shape[2] else config.image_encoder.grid_size
    if grid == config.image_encoder.grid_size:
        return config
    encoder = dataclasses.replace(config.image_encoder, grid_size=grid)
    return dataclasses.replace(config, image_encoder=encoder, image_size=grid * encoder.patch_size)


def _distance(state: Mapping[str, np.ndarray], config: ModelConfig, form: Form) -> int:
    entries = state_dict_entries(config, form)
    fitting = sum(key in entries and value.shape == entries[key].shape for key, value in state.items())
    return len(entries) + len(state) - 2 * fitting


_NOT_OURS = ", which this library has no model for"
_FAMILIES = {
    "image_encoder.fuse_stage2.": f"EdgeSAM{_NOT_OURS}",
    "spatial_perceiver.": f"EdgeTAM{_NOT_OURS}",
    "memory_attention.": f"SAM 2{_NOT_OURS}",
    "mask_decoder.hf_token.": f"HQ-SAM{_NOT_OURS}",
    "vision_encoder.backbone.": f"SAM 2 or a relative, in the layout of transformers{_NOT_OURS}",
}
"""How keys of files that people hold begin, and whose they are."""


def _foreign_family(state: Mapping[str, np.ndarray]) -> str | None:
    """The name of the model that the keys belong to, where it is none of ours, and what to do."""
    for prefix, family in _FAMILIES.items():
        if any(key.startswith(prefix) for key in state):
            return family
    # Neck, prompt encoder and mask decoder do not count: every SAM-like model has them.
    encoders = ("image_encoder.", "features.")
    encoder = [key for key in state if key.startswith(encoders) and not key.startswith("image_encoder.neck.")]
    if any(torch_to_jax(key) for key in encoder):
        return None
    if any(key.startswith("image_encoder.") for key in state):
        return f"another SAM-like model{_NOT_OURS}"
    examples = ", ".join(list(state)[:3]) or "none at all"
    return f"no model of this library (its first keys: {examples})"


def to_params(state: Mapping[str, np.ndarray], config: ModelConfig, form: Form) -> Params:
    """Params of a state dict, one tensor after the other: of a mapped file, no more than that is in memory twice.

    Raises:
      CheckpointError: listing every missing, unexpected, misshapen and non-finite tensor.
    """
    entries = state_dict_entries(config, form)
    flat, problems = {}, checkpoint.shape_problems(state, entries)
    for key, entry in entries.items():
        if key not in state or tuple(state[key].shape) != entry.shape:
            continue
        array = checkpoint.widen(state[key])
        problem = checkpoint.value_problem(key, array, entry.dtype)
        try:
            if not problem:
                flat[entry.path] = owned(entry.layout.to_jax(array))
        except ValueError as error:
            problem = f"{key}: {error}"
        problems += [problem] if problem else []
        release_pages(state[key])
    checkpoint.raise_for(problems, f"state dict of {config.name} ({form} form)")
    return checkpoint.unflatten(flat)


def convert(
    state: Mapping[str, np.ndarray],
    *,
    preset: str | None = None,
    form: Form | None = None,
    image_size: int | None = None,
    ignore: Sequence[str] = (),
) -> tuple[ModelConfig, Form, Params]:
    """The model that a state dict is of, and its params.

    Args:
      state: official key -> array.
      preset: insist on this model; by default it is recognised from the keys.
      form: `train` keeps every branch, `deploy` fuses. By default the state dict's.
      image_size: the input side in pixels, if not the preset's.
      ignore: patterns of keys to leave out, such as `adapter.*`.

    Raises:
      CheckpointError: a pattern matches no key; it is not of a known model (all offending keys are listed), or can't
        have that form.
      ValueError: a bad image size.
    """
    for pattern in ignore:
        kept = {key: value for key, value in state.items() if not fnmatch.fnmatchcase(key, pattern)}
        if len(kept) == len(state):
            raise CheckpointError(f"no key matches {pattern!r}, which is to be ignored")
        state = kept
    config, found = identify(state, preset)
    try:
        params = to_params(state, config, found)
    except CheckpointError as error:
        if "\n  unexpected: " not in str(error):
            raise
        advice = "unexpected ones are left out by --ignore PATTERN of from-torch, or load(..., ignore=['PATTERN'])"
        raise CheckpointError(f"{error}\n{advice}") from error
    if form is not None and not config.has_batch_norm:
        found = form
    if form == "train" and found == "deploy":
        raise CheckpointError("the checkpoint is fused: its BatchNorms can't be had back; use --form deploy")
    if form == "deploy" and found == "train":
        try:
            params, found = fuse(params), "deploy"
        except ReparamError as error:
            raise CheckpointError(f"it can't be fused: {error}") from error
    return dataclasses.replace(config, image_size=image_size or config.image_size), found, params


def to_state(params: Params, config: ModelConfig, form: Form) -> dict[str, np.ndarray]:
    """The PyTorch state dict, as NumPy arrays, of params that have been checked against the model."""
    flat = dict(checkpoint.flatten(params))
    entries = state_dict_entries(config, form)
    return {key: entry.layout.to_torch(np.asarray(flat[entry.path])) for key, entry in entries.items()}

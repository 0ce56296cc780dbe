"""What a run carries from step to step, and how it lies on the devices."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Int

from repvit_sam_jax import Sam, split_batch_stats
from repvit_sam_jax.config import ViTConfig, get_config
from repvit_sam_jax.models.model import Params
from repvit_sam_jax.weights.loading import read_params

from . import lora
from .recipe import LORA, Recipe
from .teacher import Teacher

AXES = ("data", "fsdp")
BATCH = P(AXES)

SPLIT_FROM = 1 << 16
"""Elements of an array from which on it is split over the `fsdp` axis; smaller ones are replicated."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything that a step changes, and the student's parts that it does not.

    Attributes:
      step: steps done, which is also the number of batches consumed.
      seed: of the step's random draws; the recipe's. Here, so that one compiled program serves all seeds.
      trained: params that learn, by part of the student.
      frozen: the other parts.
      batch_stats: BatchNorm's running statistics; empty for students without.
      opt_state: optax's.
      average: moving average of (trained, batch_stats), or None.
    """

    step: Int[Array, ""]
    seed: Int[Array, ""]
    trained: Params
    frozen: Params
    batch_stats: Params
    opt_state: optax.OptState
    average: tuple[Params, Params] | None

    @property
    def result(self) -> Params:
        """The params to evaluate and to export: the average if there is one."""
        trained, batch_stats = (self.trained, self.batch_stats) if self.average is None else self.average
        return join(trained, self.frozen, batch_stats)


def join(trained: Params, frozen: Params, batch_stats: Params) -> Params:
    """The params of a whole segmenter, with LoRA's updates in their kernels."""
    params = {**trained, **frozen, **({"batch_stats": batch_stats} if batch_stats else {})}
    if LORA in params:
        params["image_encoder"] = lora.apply_updates(params["image_encoder"], params.pop(LORA))
    return params


def make_student(recipe: Recipe) -> Sam:
    """The segmenter that learns: in training form, or if its image encoder stays as it is in deploy form, a faster one.

    Raises ValueError if LoRA is asked of an encoder that is no ViT of SAM's.
    """
    config = get_config(recipe.student, recipe.image_size)
    if LORA in recipe.trained and not isinstance(config.image_encoder, ViTConfig):
        raise ValueError(
            f"recipe {recipe.name}: lora is for the attention of SAM's ViTs, and the encoder of {config.name} is a "
            f"{type(config.image_encoder).__name__.removesuffix('Config')}; train mask_decoder or image_encoder"
        )
    return Sam(config, "train" if recipe.encoder_learns else "deploy", recipe.dtype)


def initial_params(recipe: Recipe, student: Sam, teacher: Teacher | None) -> Params:
    """The student's params before the first step.

    Raises:
      ValueError: the `init` file is of another model, or the teacher's decoder does not fit the student's embeddings.
    """
    if recipe.init is None:
        params = student.init(jax.random.key(recipe.seed))
    else:
        config, _, params = read_params(recipe.init, student.form)
        if dataclasses.replace(config, image_size=student.config.image_size) != student.config:
            raise ValueError(f"init {recipe.init} holds {config.name}, and the student is {student.config.name}")
    if teacher is None or recipe.decoder == "init":
        return params
    if teacher.model.config.mask_decoder != student.config.mask_decoder:
        raise ValueError(
            f"the mask decoder of the teacher {teacher.model.config.name} is not built as that of the student "
            f"{student.config.name}: it can't be taken over; train a decoder of its own, with decoder=init"
        )
    parts = ("prompt_encoder", "mask_decoder")
    return {**params, **{part: jax.tree.map(jnp.array, teacher.params[part]) for part in parts}}


def create(recipe: Recipe, params: Params, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first step; `jax.eval_shape` of it gives shapes alone."""
    params, batch_stats = split_batch_stats(params)
    if LORA in recipe.trained:
        key = jax.random.key(recipe.seed)
        params = {**params, LORA: lora.updates(params["image_encoder"], recipe.lora_rank, key)}
    trained = {part: params[part] for part in recipe.trained}
    frozen = {part: value for part, value in params.items() if part not in trained}
    keep = recipe.optimizer.ema_decay is not None
    average = jax.tree.map(jnp.array, (trained, batch_stats)) if keep else None
    step, seed = jnp.zeros((), jnp.int32), jnp.asarray(recipe.seed, jnp.int32)
    return TrainState(step, seed, trained, frozen, batch_stats, optimizer.init(trained), average)


def abstract_state(recipe: Recipe, student: Sam, optimizer: optax.GradientTransformation) -> TrainState:
    """Shapes of the state."""
    return jax.eval_shape(lambda params: create(recipe, params, optimizer), student.abstract_params())


def abstract_batch(recipe: Recipe, student: Sam, cached: Sam | None = None) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of a batch, in `data`'s format; `cached` is the teacher whose embeddings come with it, if any do."""
    size, count, side = student.config.image_size, recipe.num_masks, student.config.embedding_size
    shapes: dict[str, tuple[tuple[int, ...], Any]] = {
        "image": ((size, size, 3), np.uint8),
        "size": ((2,), np.int32),
        "index": ((), np.int32),
        "skipped": ((), np.int32),
    }
    if count:
        shapes |= {
            "masks": ((count, size // 4, size // 4), bool),
            "boxes": ((count, 4), np.float32),
            "areas": ((count,), np.float32),
            "valid": ((count,), bool),
        }
    if cached is not None:
        shapes["embeddings"] = ((side, side, cached.config.mask_decoder.embed_dim), np.float16)
    struct = lambda shape, dtype: jax.ShapeDtypeStruct((recipe.batch_size, *shape), dtype)
    return {name: struct(*about) for name, about in shapes.items()}


def make_mesh(recipe: Recipe, devices: Any = None) -> Mesh:
    """All devices as (data, fsdp).

    Raises:
      ValueError: fsdp does not divide the number of devices, or these the photos that are at work at once.
    """
    devices = jax.devices() if devices is None else devices
    # Blocks of a batch lie in the order of the processes that read them.
    devices = np.array(sorted(devices, key=lambda device: (device.process_index, device.id)))
    if devices.size % recipe.fsdp:
        raise ValueError(f"fsdp={recipe.fsdp} does not divide {devices.size} devices")
    if recipe.batch_size // recipe.micro_batches % devices.size:
        raise ValueError(
            f"batch_size {recipe.batch_size} in {recipe.micro_batches} part(s) can't be split over {devices.size} "
            f"devices; batch_size must be a multiple of {recipe.micro_batches * devices.size}"
        )
    return Mesh(devices.reshape(-1, recipe.fsdp), AXES, axis_types=(AxisType.Auto, AxisType.Auto))


def shardings(mesh: Mesh, tree: Any) -> Any:
    """For each leaf of a tree of arrays, or of shapes: large ones are split over `fsdp` along their longest axis."""

    def one(leaf: Any) -> NamedSharding:
        size = mesh.shape["fsdp"]
        axes = [axis for axis, length in enumerate(leaf.shape) if length % size == 0]
        if size == 1 or not axes or np.prod(leaf.shape) < SPLIT_FROM:
            return NamedSharding(mesh, P())
        longest = max(axes, key=lambda axis: leaf.shape[axis])
        return NamedSharding(mesh, P(*[None] * longest, "fsdp"))

    return jax.tree.map(one, tree)


def place(mesh: Mesh, tree: Any) -> Any:
    """The arrays of a tree, which every process holds whole, on the mesh."""
    put = lambda leaf, sharding: jax.make_array_from_callback(leaf.shape, sharding, np.asarray(leaf).__getitem__)
    return jax.tree.map(put, tree, shardings(mesh, tree))


def abstract(mesh: Mesh, tree: Mapping[str, Any] | TrainState) -> Any:
    """Shapes, dtypes and shardings of a tree of shapes: the target that a checkpoint is restored to."""
    struct = lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
    return jax.tree.map(struct, tree, shardings(mesh, tree))

"""A recipe's real step compiled for a TPU slice, on a machine without a TPU: memory, collectives, estimated time."""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from . import tpu
from .optim import make_optimizer
from .recipe import Recipe
from .state import BATCH, abstract, abstract_state, make_mesh, make_student
from .step import make_step
from .teacher import abstract_teacher, needed_params

STEPS = 1000
"""Length of the learning rate's schedule, which changes nothing in the program."""


@dataclasses.dataclass(frozen=True)
class Estimate:
    """What the compiler says of a step; bytes are those of one chip.

    Attributes:
      recipe, topology, chips, batch_size: what was compiled.
      arguments: bytes of the state, the teacher and the batch.
      temporaries: bytes besides.
      collectives: kind -> (number, bytes) a step.
      milliseconds: estimated cycles of all operations at the clock of `tpu.clock`; what runs beside others is counted
        in full, and collectives hardly count. None if JAX can't read the compiled program back.
      flops: of all chips together, a step.
      parts: share of the cycles by part of the program.
    """

    recipe: str
    topology: str
    chips: int
    batch_size: int
    arguments: int
    temporaries: int
    collectives: dict[str, tuple[int, int]]
    milliseconds: float | None
    flops: float
    parts: dict[str, float]


def estimate(recipe: Recipe, topology: str, *, teacher: str = "sam_vit_h", cached: bool = False) -> Estimate:
    """Compile a step ahead of time.

    Args:
      recipe: its batch must be divisible by the number of chips.
      topology: a slice, such as `v5e:4x4`.
      teacher: the teacher's preset, if the recipe needs one; no weights are read.
      cached: whether embeddings come with the batch, from a cache.

    Raises:
      FileNotFoundError, ValueError: as `tpu.devices` and `state.make_mesh`; and if the program does not fit the chips.
    """
    chip = topology.partition(":")[0]
    tpu.chip_info(chip)
    devices = tpu.devices(topology)
    mesh = make_mesh(recipe, devices)
    student = make_student(recipe)
    model, teacher_params = None, None
    if recipe.needs_teacher:
        model, shapes = abstract_teacher(teacher, student.config.image_size, recipe.dtype)
        needed = needed_params(shapes, encoder=not cached, decoder=recipe.asks_teacher)
        teacher_params = None if needed is None else abstract(mesh, needed)
    state = abstract(mesh, abstract_state(recipe, student, make_optimizer(recipe, STEPS)))
    placed = jax.tree.map(lambda leaf: leaf.sharding, state), NamedSharding(mesh, PartitionSpec())
    batch = _abstract_batch(recipe, student.config.image_size, NamedSharding(mesh, BATCH), cached, student)
    step = jax.jit(make_step(recipe, student, model, STEPS), donate_argnums=0, out_shardings=placed)
    try:
        compiled: Any = step.lower(state, teacher_params, batch).compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise ValueError(f"{recipe.name} does not fit {topology}: {str(error).splitlines()[0]}") from error
    memory = compiled.memory_analysis()
    milliseconds, collectives = None, {}
    parts: dict[str, float] = {}
    try:
        text = compiled.as_text()
    except jax.errors.JaxRuntimeError:  # jaxlib 0.10.2 can't read some programs of a v6e back
        text = None
    if text is not None:
        collectives = tpu.collectives(text)
        found = list(tpu.operations(text))
        cycles = sum(op.cycles for op in found)
        milliseconds = 1e3 * cycles / tpu.clock(devices[0], chip)
        for op in found:
            part = _part(op.source)
            parts[part] = parts.get(part, 0) + op.cycles / cycles
    return Estimate(
        recipe.name,
        topology,
        len(devices),
        recipe.batch_size,
        memory.argument_size_in_bytes,
        memory.temp_size_in_bytes + max(0, memory.output_size_in_bytes - memory.alias_size_in_bytes),
        collectives,
        milliseconds,
        compiled.cost_analysis()["flops"] * len(devices),
        dict(sorted(parts.items(), key=lambda item: -item[1])),
    )


def _abstract_batch(
    recipe: Recipe, size: int, sharding: NamedSharding, cached: bool, student: Any
) -> dict[str, jax.ShapeDtypeStruct]:
    shapes: dict[str, tuple[tuple[int, ...], Any]] = {
        "image": ((size, size, 3), np.uint8),
        "size": ((2,), np.int32),
        "index": ((), np.int32),
        "skipped": ((), np.int32),
    }
    if count := recipe.num_masks:
        shapes |= {
            "masks": ((count, size // 4, size // 4), bool),
            "boxes": ((count, 4), np.float32),
            "areas": ((count,), np.float32),
            "valid": ((count,), bool),
        }
    if cached:
        side = student.config.embedding_size
        shapes["embeddings"] = ((side, side, student.config.mask_decoder.embed_dim), np.float16)
    return {
        name: jax.ShapeDtypeStruct((recipe.batch_size, *shape), dtype, sharding=sharding)
        for name, (shape, dtype) in shapes.items()
    }


def _part(source: str) -> str:
    """The part of a step that an operation belongs to, by JAX's name stack."""
    if "transpose(" in source:
        return "gradients"
    if "adam" in source or "scale_by" in source:
        return "optimizer"
    return "forward"


def describe(found: Estimate) -> str:
    """An estimate in words."""
    gib = 1 / 2**30
    lines = [
        f"{found.recipe} on {found.topology}: {found.chips} chips, {found.batch_size} photos a step, "
        f"{found.batch_size // found.chips} a chip",
        f"  HBM a chip: {found.arguments * gib:.2f} GiB of state, teacher and batch, "
        f"{found.temporaries * gib:.2f} GiB of temporaries",
        f"  {found.flops / 1e12:.1f} TFLOP a step",
    ]
    for kind, (count, size) in found.collectives.items():
        lines.append(f"  {count} {kind}, {size / 1e6:.1f} MB a chip")
    if found.milliseconds is None:
        lines.append("  no estimate of time: JAX can't read this program back")
    else:
        rate = found.batch_size / found.milliseconds * 1e3
        parts = ", ".join(f"{name} {share:.0%}" for name, share in found.parts.items())
        lines.append(f"  estimated {found.milliseconds:.0f} ms a step, {rate:.0f} photos/s; {parts}")
    return "\n".join(lines)


def per_chip(recipe: Recipe, topology: str, photos: int) -> Recipe:
    """The recipe with so many photos a chip."""
    if not re.fullmatch(r"\w+:\d+(x\d+)+", topology):
        raise ValueError(f"a topology is a chip and the sides of a slice, such as v5e:4x4, got {topology!r}")
    return dataclasses.replace(recipe, batch_size=photos * math.prod(map(int, topology.partition(":")[2].split("x"))))

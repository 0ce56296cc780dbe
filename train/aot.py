"""A recipe's real step compiled for a TPU slice, on a machine without a TPU: memory, collectives, estimated time."""

from __future__ import annotations

import collections
import dataclasses
import math
import re

import jax
from jax.sharding import NamedSharding, PartitionSpec

from . import flops, tpu
from .optim import make_optimizer
from .recipe import Recipe
from .state import BATCH, abstract, abstract_batch, abstract_state, make_mesh, make_student
from .step import make_step
from .teacher import abstract_teacher, needed_params

STEPS = 1000
"""Length of the learning rate's schedule, which changes nothing in the program."""

PARTS = ("student", "decoder", "teacher", "teacher_decoder", "prompts", "losses", "optimizer")
"""Scopes of a step's forward pass and of its update."""


@dataclasses.dataclass(frozen=True)
class Estimate:
    """What the compiler says of a step; bytes are those of one chip.

    Attributes:
      recipe, topology, chips, batch_size: what was compiled.
      arguments: bytes of the state, the teacher and the batch.
      temporaries: bytes besides.
      capacity: bytes of the chip.
      collectives: kind -> (number, bytes) a step.
      milliseconds: estimated cycles of all operations at the clock of `tpu.clock`; what runs beside others is counted
        in full, and collectives hardly count.
      flops: of all chips together, a step, as `flops.step_flops` counts them.
      mfu: share of the chips' peak that these are in the estimated time.
      parts: milliseconds by part of the step; what belongs to none is `other`.
    """

    recipe: str
    topology: str
    chips: int
    batch_size: int
    arguments: int
    temporaries: int
    capacity: int
    collectives: dict[str, tuple[int, int]]
    milliseconds: float
    flops: int
    mfu: float
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
    info = tpu.chip_info(chip)
    devices = tpu.devices(topology)
    if recipe.batch_size // recipe.micro_batches % len(devices):
        each = max(1, round(recipe.batch_size / len(devices)))
        raise ValueError(
            f"{recipe.name} has {recipe.batch_size} photos a step in {recipe.micro_batches} part(s), which can't be "
            f"split over the {len(devices)} chips of {topology}; give --photos-per-chip {each}, or --set batch_size="
        )
    mesh = make_mesh(recipe, devices)
    student = make_student(recipe)
    model, teacher_params = None, None
    if recipe.needs_teacher:
        model, shapes = abstract_teacher(teacher, student.config.image_size, recipe.dtype)
        needed = needed_params(shapes, encoder=not cached, decoder=recipe.asks_teacher)
        teacher_params = None if needed is None else abstract(mesh, needed)
    state = abstract(mesh, abstract_state(recipe, student, make_optimizer(recipe, STEPS)))
    placed = jax.tree.map(lambda leaf: leaf.sharding, state), NamedSharding(mesh, PartitionSpec())
    split = NamedSharding(mesh, BATCH)
    batch = {
        name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=split)
        for name, leaf in abstract_batch(recipe, student, model if cached else None).items()
    }
    step = jax.jit(make_step(recipe, student, model, STEPS), donate_argnums=0, out_shardings=placed)
    try:
        compiled, text = tpu.compile_to_text(step.lower(state, teacher_params, batch))
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise ValueError(
            f"{recipe.name} does not fit {topology} with {recipe.batch_size // len(devices)} photos a chip; try "
            f"remat=dots or all, micro_batches or a smaller batch_size: {str(error).splitlines()[0]}"
        ) from error
    memory = compiled.memory_analysis()
    clock = tpu.clock(devices[0], chip) / 1e3
    parts: dict[str, float] = collections.defaultdict(float)
    for op in tpu.operations(text):
        parts[_part(op.source)] += op.cycles / clock
    milliseconds = sum(parts.values())
    work = flops.step_flops(recipe, student, model, (state, teacher_params, batch))
    peak = info.bf16_ops_per_second * len(devices)
    return Estimate(
        recipe.name,
        topology,
        len(devices),
        recipe.batch_size,
        memory.argument_size_in_bytes,
        memory.temp_size_in_bytes + max(0, memory.output_size_in_bytes - memory.alias_size_in_bytes),
        info.hbm_capacity_bytes,
        tpu.collectives(text),
        milliseconds,
        work,
        1e3 * work / (peak * milliseconds),
        dict(sorted(parts.items(), key=lambda item: -item[1])),
    )


def _part(source: str) -> str:
    """The part of a step that an operation belongs to, by the scopes of `step` in JAX's name stack."""
    source = source.partition(";")[0]
    if "rematted_computation" in source:
        return "recomputation"
    if "transpose(" in source:
        return "gradients"
    named = re.findall(rf"\b({'|'.join(PARTS)})\b", source)
    return named[0] if named else "other"


def describe(found: Estimate) -> str:
    """An estimate in words."""
    gib = 1 / 2**30
    lines = [
        f"{found.recipe} on {found.topology}: {found.chips} chips, {found.batch_size} photos a step, "
        f"{found.batch_size // found.chips} a chip",
        f"  HBM a chip: {found.arguments * gib:.2f} GiB of state, teacher and batch, "
        f"{found.temporaries * gib:.2f} GiB of temporaries, "
        f"of {found.capacity * gib:.0f} GiB",
        f"  {found.flops / 1e12:.1f} TFLOP a step, recomputation left out",
    ]
    for kind, (count, size) in found.collectives.items():
        lines.append(f"  {count} {kind}, {size / 1e6:.1f} MB a chip")
    rate = found.batch_size / found.milliseconds * 1e3
    parts = ", ".join(f"{name} {time:.1f}" for name, time in found.parts.items())
    lines.append(f"  estimated {found.milliseconds:.1f} ms a step, {rate:.0f} photos/s, MFU {found.mfu:.0%}")
    lines.append(f"  ms by part: {parts}")
    return "\n".join(lines)


def per_chip(recipe: Recipe, topology: str, photos: int) -> Recipe:
    """The recipe with so many photos a chip."""
    if not re.fullmatch(r"\w+:\d+(x\d+)+", topology):
        raise ValueError(f"a topology is a chip and the sides of a slice, such as v5e:4x4, got {topology!r}")
    return dataclasses.replace(recipe, batch_size=photos * math.prod(map(int, topology.partition(":")[2].split("x"))))

"""Floating-point operations of a step, and what devices can do at most: model FLOPs utilisation (arXiv 2204.02311).

Counted are matrix products and convolutions, as is usual, from the traced step: forward pass of student and teacher,
and gradients. What rematerialisation computes again is not counted, so that the utilisation is that of useful work.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import jax
from jax.extend import core

from repvit_sam_jax import Sam

from .recipe import Recipe
from .step import make_step

PEAKS = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5p": 459e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "A100": 312e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "H200": 989e12,
}
"""Dense operations a second in bfloat16, of the makers' data sheets, by part of JAX's `device_kind`.

The longest name that fits counts.
"""


def peak(device: jax.Device) -> float | None:
    """Operations a second that a device can do in bfloat16; None where it is not known, such as on CPUs."""
    names = [name for name in PEAKS if name in device.device_kind] if device.platform in ("tpu", "gpu") else []
    return PEAKS[max(names, key=len)] if names else None


def step_flops(recipe: Recipe, student: Sam, teacher: Sam | None, arguments: tuple[Any, ...]) -> int:
    """Operations of a step on a whole batch; `arguments` are those of the step, arrays or their shapes."""
    step = make_step(dataclasses.replace(recipe, remat="none"), student, teacher, 1)
    return count(jax.make_jaxpr(step)(*arguments).jaxpr)


def count(jaxpr: core.Jaxpr) -> int:
    """Operations of the products and convolutions of a program, loops multiplied; of branches, the dearest.

    A loop whose number of iterations is not known counts once.
    """
    total = 0
    for equation in jaxpr.eqns:
        name, shapes = equation.primitive.name, [getattr(var.aval, "shape", ()) for var in equation.invars]
        if name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            total += 2 * _size(equation) * math.prod(shapes[0][axis] for axis in contracted)
        elif name == "conv_general_dilated":
            total += _convolution(equation, shapes[1])
        elif name == "cond":
            total += max(count(branch.jaxpr) for branch in equation.params["branches"])
        else:
            times = equation.params["length"] if name == "scan" else 1
            total += times * sum(count(inner) for inner in _inner(equation.params))
    return total


def _inner(params: dict[str, Any]) -> Iterator[core.Jaxpr]:
    """The programs that an operation holds."""
    for value in params.values():
        for one in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(one, core.ClosedJaxpr):
                yield one.jaxpr
            elif isinstance(one, core.Jaxpr):
                yield one


def _size(equation: Any) -> int:
    return math.prod(equation.outvars[0].aval.shape)


def _convolution(equation: Any, kernel: tuple[int, ...]) -> int:
    """Products with zeros that dilation puts between the values of an input are not counted."""
    numbers = equation.params["dimension_numbers"]
    # Kernels are [out, in / groups, *window] in the order of rhs_spec.
    inputs, window = kernel[numbers.rhs_spec[1]], math.prod(kernel[axis] for axis in numbers.rhs_spec[2:])
    skipped = math.prod(equation.params["lhs_dilation"])
    return 2 * _size(equation) * inputs * window // skipped

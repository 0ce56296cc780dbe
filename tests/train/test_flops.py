"""Operations of a step, counted from its trace."""

import dataclasses
import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from repvit_sam_jax.ops.convolutions import conv3x3, depthwise_conv3x3
from tests.helpers.micro import ENCODER, PROMPTS
from tests.helpers.training import arguments_of
from train import flops, state
from train.teacher import abstract_teacher


def count(f, *shapes):
    return flops.count(jax.make_jaxpr(f)(*(jax.ShapeDtypeStruct(shape, np.float32) for shape in shapes)).jaxpr)


def test_products():
    one = 2 * 5 * 7 * 11
    assert count(jnp.matmul, (5, 7), (7, 11)) == one
    assert count(jnp.matmul, (3, 5, 7), (3, 7, 11)) == 3 * one
    loss = lambda x, w: jnp.square(x @ w).sum()
    assert count(jax.grad(loss), (5, 7), (7, 11)) == 2 * one
    assert count(jax.grad(loss, argnums=(0, 1)), (5, 7), (7, 11)) == 3 * one


@pytest.mark.parametrize("stride", [1, 2])
def test_convolutions(stride):
    """A gradient costs as much as the convolution itself, whatever the stride."""
    one = 2 * (2 * (8 // stride) ** 2 * 6) * 9 * 4
    convolve = lambda x, kernel: conv3x3(x, kernel, stride)
    loss = lambda x, kernel: jnp.square(convolve(x, kernel)).sum()
    shapes = (2, 8, 8, 4), (3, 3, 4, 6)
    assert count(convolve, *shapes) == one
    assert count(jax.grad(loss), *shapes) == 2 * one
    assert count(jax.grad(loss, argnums=(0, 1)), *shapes) == 3 * one


def test_of_platforms_the_dearest_counts():
    """On CPU there are no convolutions in it, but the count does not depend on where it is made."""
    assert count(depthwise_conv3x3, (2, 8, 8, 4), (3, 3, 4)) == 2 * (2 * 8 * 8 * 4) * 9


def test_loops_and_calls():
    one = 2 * 5**3
    square = jax.jit(lambda x: x @ x)
    assert count(lambda x: lax.scan(lambda x, _: (square(x), None), x, length=6)[0], (5, 5)) == 6 * one
    assert count(jax.checkpoint(square), (5, 5)) == one
    assert count(lambda x: lax.cond(x[0, 0] > 0, square, lambda x: x, x), (5, 5)) == one


@functools.cache
def of_step(**changes):
    recipe = dataclasses.replace(ENCODER, **changes)
    teacher, _ = abstract_teacher("micro_vit", 64, recipe.dtype)
    return flops.step_flops(recipe, state.make_student(recipe), teacher, arguments_of(recipe))


@pytest.mark.slow(group="train")
def test_a_step():
    """Gradients cost twice the forward pass, but for that of the first layer's input; parts are added up."""
    student = state.make_student(ENCODER)
    images = jax.ShapeDtypeStruct((16, 64, 64, 3), np.float32)
    forward = flops.count(jax.make_jaxpr(student.encode)(student.abstract_params(), images).jaxpr)
    teacher, params = abstract_teacher("micro_vit", 64, "float32")
    theirs = flops.count(jax.make_jaxpr(teacher.encode)(params, images).jaxpr)
    found = of_step(batch_size=16, micro_batches=2, remat="all")  # what is computed again does not count
    assert theirs + 2.5 * forward < found <= theirs + 3 * forward


@pytest.mark.slow(group="train")
def test_what_does_not_matter_and_what_does():
    """Proportional to photos, but for what is done once; the same in parts, and with anything computed again."""
    assert of_step(batch_size=16, micro_batches=2, remat="all") == pytest.approx(2 * of_step(), rel=0.01)
    assert of_step(batch_size=16) == pytest.approx(2 * of_step(), rel=0.01)
    assert of_step(micro_batches=2) == pytest.approx(of_step(), rel=0.01)
    assert of_step(remat="all") == of_step()
    assert of_step(trained=PROMPTS.trained, losses=PROMPTS.losses, prompting=PROMPTS.prompting) > of_step()


@pytest.mark.parametrize(
    ("platform", "kind", "expected"),
    [
        ("gpu", "NVIDIA H100 80GB HBM3", 989e12),
        ("gpu", "NVIDIA H100 PCIe", 756e12),
        ("gpu", "NVIDIA A100-SXM4-40GB", 312e12),
        ("tpu", "TPU v5 lite", 197e12),
        ("tpu", "TPU v5p", 459e12),
        ("tpu", "TPU v6 lite", 918e12),
        ("gpu", "NVIDIA GeForce RTX 3090", None),
        ("cpu", "cpu", None),
    ],
)
def test_peaks(platform, kind, expected):
    assert flops.peak(types.SimpleNamespace(platform=platform, device_kind=kind)) == expected

"""Products and convolutions against PyTorch's, and the forms of different platforms against each other."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from repvit_sam_jax.ops import convolutions

pytestmark = pytest.mark.torch


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [(8, 8), (7, 9)])
def test_both_depthwise_forms_equal_pytorch(rng, stride, size):
    x = rng.normal(size=(2, *size, 5)).astype(np.float32)
    kernel = rng.normal(size=(3, 3, 5)).astype(np.float32)
    weight = torch.from_numpy(kernel.transpose(2, 0, 1)[:, None].copy())
    expected = torch.nn.functional.conv2d(
        torch.from_numpy(x.transpose(0, 3, 1, 2).copy()), weight, None, stride, 1, groups=5
    )
    expected = expected.numpy().transpose(0, 2, 3, 1)
    forms = (convolutions._depthwise_conv, convolutions._depthwise_shifts, convolutions.depthwise_conv3x3)
    for found in jax.jit(lambda x, kernel: [form(x, kernel, stride) for form in forms])(x, kernel):
        np.testing.assert_allclose(found, expected, atol=2e-6)


def test_depthwise_gradients_agree(rng):
    x = rng.normal(size=(2, 6, 6, 4)).astype(np.float32)
    kernel = rng.normal(size=(3, 3, 4)).astype(np.float32)
    weights = rng.normal(size=(2, 6, 6, 4)).astype(np.float32)
    gradients = [
        jax.jit(jax.grad(lambda x, k, form=form: (form(x, k, 1) * weights).sum(), (0, 1)))(x, kernel)
        for form in (convolutions._depthwise_conv, convolutions._depthwise_shifts, convolutions.depthwise_conv3x3)
    ]
    for other in gradients[1:]:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), gradients[0], other)


@pytest.mark.parametrize("shape", [(5,), (3, 5), (2, 3, 4, 5)])
def test_product_and_its_gradients(shape, rng):
    """On CPU the kernel's gradient is one product of matrices, whatever the axes of its input."""
    x, kernel = (jnp.asarray(rng.normal(size=size), jnp.float32) for size in (shape, (5, 7)))
    loss = lambda multiply: lambda x, kernel: jnp.sin(multiply(x, kernel)).sum()
    ours = jax.jit(jax.value_and_grad(loss(convolutions.product), argnums=(0, 1)))
    plain = jax.value_and_grad(loss(jnp.matmul), argnums=(0, 1))(x, kernel)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5), ours(x, kernel), plain)
    products = [line for line in ours.lower(x, kernel).as_text().splitlines() if "dot_general" in line]
    assert products
    assert all(re.search(r"contracting_dims = \[\d\] x \[\d\]", line) for line in products)
    assert convolutions.product(x.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16)).dtype == jnp.float32

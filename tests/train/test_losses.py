"""Losses against PyTorch in float64 and optax, values and gradients; extremes; what is left out."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.test_util import check_grads

from repvit_sam_jax.transforms import valid_positions
from train import losses
from train.losses import embedding_mse

B, P, M, H, W, C = 3, 4, 3, 8, 6, 5
SIZES = np.array([[128, 96], [60, 128], [128, 128]])
WEIGHTS = np.array([[1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 1, 0]], bool)


@pytest.fixture
def embeddings(rng):
    return rng.normal(size=(2, B, 8, 8, C)).astype(np.float32)


@pytest.fixture
def masks(rng):
    """Logits, targets and pixels that lie within the photo."""
    logits = 3 * rng.normal(size=(B, P, M, H, W)).astype(np.float32)
    pixels = np.arange(H)[:, None] < np.array([8, 5, 3])[:, None, None]
    return logits, rng.random((B, P, M, H, W)) < 0.4, np.broadcast_to(pixels, (B, H, W))


def bce(logits, targets, weights, pixels=None):
    return mean(losses.mask_bce(logits, targets, pixels), weights)


def dice(logits, targets, weights, pixels=None):
    return mean(losses.mask_dice(logits, targets, pixels), weights)


def mean(values, weights):
    """Over masks, then prompts."""
    return losses.weighted_mean(values, jnp.broadcast_to(weights[..., None], values.shape))


MASK_LOSSES = [bce, dice]


def torch_mask_loss(loss, logits, targets, weights, pixels):
    """Prompt by prompt and mask by mask."""
    import torch
    from torch.nn import functional

    found = []
    for b, p in np.argwhere(weights):
        values = []
        for m in range(logits.shape[2]):
            x = logits[b, p, m][pixels[b]]
            y = targets[b, p, m if targets.shape[2] > 1 else 0][pixels[b]]
            if loss is bce:
                values.append(functional.binary_cross_entropy_with_logits(x, y))
            else:
                values.append(1 - (2 * (x.sigmoid() * y).sum() + 1) / (x.sigmoid().sum() + y.sum() + 1))
        found.append(torch.stack(values).mean())
    return torch.stack(found).mean()


def close_to_torch(found, expected, leaf, atol=1e-6):
    """The loss and its gradient."""
    expected.backward()
    np.testing.assert_allclose(found[0], expected.detach().numpy(), rtol=2e-5)
    np.testing.assert_allclose(found[1], leaf.grad.numpy(), rtol=2e-4, atol=atol)


@pytest.mark.torch
@pytest.mark.parametrize("masked", [True, False])
def test_embedding_loss_equals_torch(embeddings, masked):
    import torch

    student, teacher = embeddings
    valid = valid_positions(SIZES, 8, 128) if masked else None
    found = jax.jit(jax.value_and_grad(embedding_mse))(student, teacher, valid)
    leaf = torch.tensor(student, dtype=torch.float64, requires_grad=True)
    chosen = torch.tensor(np.array(valid) if masked else np.ones((B, 8, 8), bool))
    expected = torch.nn.functional.mse_loss(leaf[chosen], torch.tensor(teacher).double()[chosen])
    close_to_torch(found, expected, leaf)


@pytest.mark.torch
@pytest.mark.parametrize("loss", MASK_LOSSES)
@pytest.mark.parametrize("shared_target", [True, False])
@pytest.mark.parametrize("masked", [True, False])
def test_mask_losses_equal_torch(masks, loss, shared_target, masked):
    import torch

    logits, targets, pixels = masks
    targets = targets[:, :, :1] if shared_target else targets
    found = jax.jit(jax.value_and_grad(loss))(logits, targets, WEIGHTS, pixels if masked else None)
    leaf = torch.tensor(logits, dtype=torch.float64, requires_grad=True)
    chosen = torch.tensor(pixels if masked else np.ones_like(pixels))
    close_to_torch(found, torch_mask_loss(loss, leaf, torch.tensor(targets).double(), WEIGHTS, chosen), leaf)


def test_bce_of_probabilities_equals_optax(masks, rng):
    logits, _, _ = masks
    targets = rng.random(logits.shape).astype(np.float32)
    expected = optax.sigmoid_binary_cross_entropy(logits, targets).mean((2, 3, 4))[WEIGHTS].mean()
    np.testing.assert_allclose(bce(logits, targets, WEIGHTS), expected, rtol=1e-6)


def test_gradients_equal_finite_differences(embeddings, masks):
    logits, targets, pixels = masks
    valid = valid_positions(SIZES, 8, 128)
    check_grads(lambda x: embedding_mse(x, embeddings[1], valid), (embeddings[0],), 1, ["rev"], rtol=2e-2)
    for loss in MASK_LOSSES:
        check_grads(lambda x, loss=loss: loss(x, targets, WEIGHTS, pixels), (logits,), 1, ["rev"], rtol=2e-2)


@pytest.mark.parametrize("sign", [1, -1])
def test_extreme_logits(masks, sign):
    """Right by far costs nothing, wrong by far is finite; gradients are finite and point the right way."""
    _, targets, pixels = masks
    targets[...] = targets[:, :, :1]
    logits = sign * jnp.where(targets, 1e4, -1e4)
    for loss, wrong in zip(MASK_LOSSES, (1e4, 1), strict=True):
        value, gradient = jax.value_and_grad(loss)(logits, targets, WEIGHTS, pixels)
        assert np.isfinite(gradient).all()
        if sign > 0:
            assert value == pytest.approx(0, abs=1e-6)
            assert not np.any(gradient)
        else:
            assert value == pytest.approx(wrong, rel=0.1)  # a dice of nothing right is 1 - 1 / (pixels + 1)
    if sign < 0:
        gradient = jax.grad(bce)(logits, targets, WEIGHTS, pixels)
        counted = WEIGHTS[:, :, None, None, None] & pixels[:, None, None]
        np.testing.assert_array_equal(np.sign(gradient), np.where(counted, np.where(targets, -1, 1), 0))


def test_nothing_that_counts_gives_zeros(embeddings, masks):
    logits, targets, pixels = masks
    student, teacher = embeddings
    value, gradient = jax.value_and_grad(embedding_mse)(student, teacher, np.zeros((B, 8, 8), bool))
    assert value == 0
    assert not np.any(gradient)
    for loss in MASK_LOSSES:
        for weights, inside in ((np.zeros_like(WEIGHTS), pixels), (WEIGHTS, np.zeros_like(pixels))):
            value, gradient = jax.value_and_grad(loss)(logits, targets, weights, inside)
            assert value == 0
            assert not np.any(gradient)


def test_what_does_not_count_changes_nothing(embeddings, masks, rng):
    student, teacher = embeddings
    valid = np.array(valid_positions(SIZES, 8, 128))
    garbage = np.where(valid[..., None], student, 1e3 * rng.normal(size=student.shape)).astype(np.float32)
    expected = embedding_mse(student, teacher, valid)
    assert embedding_mse(garbage, teacher, valid) == expected != embedding_mse(student, teacher, None)
    logits, targets, pixels = masks
    counted = WEIGHTS[:, :, None, None, None] & pixels[:, None, None]
    garbage = np.where(counted, logits, 1e3 * rng.normal(size=logits.shape)).astype(np.float32)
    for loss in MASK_LOSSES:
        expected = loss(logits, targets, WEIGHTS, pixels)
        assert loss(garbage, targets | ~counted, WEIGHTS, pixels) == expected != loss(logits, targets, WEIGHTS)


def test_means_are_global(embeddings):
    """The mean over the batch is that over its halves weighted by what counts in them, whoever holds which."""
    student, teacher = embeddings
    valid = np.array(valid_positions(SIZES, 8, 128))
    halves = (slice(i, i + 1) for i in range(B))
    parts = [embedding_mse(student[i], teacher[i], valid[i]) * valid[i].sum() for i in halves]
    np.testing.assert_allclose(embedding_mse(student, teacher, valid), sum(parts) / valid.sum(), rtol=1e-5)


def test_half_precision_is_computed_in_float32(embeddings, masks):
    student, teacher = jnp.asarray(embeddings, jnp.bfloat16)
    found = embedding_mse(student, teacher, None)
    assert found.dtype == jnp.float32
    assert found == embedding_mse(student.astype(jnp.float32), teacher.astype(jnp.float32), None)
    logits, targets, _ = masks
    half = jnp.asarray(logits, jnp.bfloat16)
    for loss in MASK_LOSSES:
        assert loss(half, targets, WEIGHTS) == loss(half.astype(jnp.float32), targets, WEIGHTS)


def test_shapes_that_do_not_fit(embeddings, masks):
    logits, targets, pixels = masks
    with pytest.raises(ValueError, match=r"student's embeddings have shape \(3, 8, 8, 5\), the teacher's \(1, 8"):
        losses.embedding_mse(embeddings[0], embeddings[1][:1], None)
    for loss in MASK_LOSSES:
        with pytest.raises(ValueError, match=r"targets must have shape .* its 3 masks, .* got \(3, 4, 2, 8, 6\)"):
            loss(logits, targets[:, :, :2], WEIGHTS, pixels)

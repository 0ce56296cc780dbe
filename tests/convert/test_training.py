"""Training mode and gradients against the PyTorch twin, from equal weights and an equal batch."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from convert.torch_models import Sam as TorchSam
from repvit_sam_jax import PRESETS, Prompts, Sam, split_batch_stats
from repvit_sam_jax.config import RepViTConfig
from repvit_sam_jax.weights import reparam
from repvit_sam_jax.weights.formats import mapping
from tests.helpers.measures import relative_rms
from tests.helpers.models import random_params

pytestmark = pytest.mark.torch
TINY = PRESETS["tiny"]
SHALLOW = dataclasses.replace(
    TINY,
    image_encoder=RepViTConfig((8, 16, 24), (1, 1, 1), last_stride=2),
    mask_decoder=dataclasses.replace(TINY.mask_decoder, depth=1),
    image_size=64,
)
"""A block a stage, a layer in the decoder: gradients take long to trace, and every kind of block is there."""


@pytest.fixture(scope="module")
def shallow_train():
    model = Sam(SHALLOW, "train")
    return model, random_params(model)


@pytest.fixture(scope="module")
def shallow(shallow_train):
    return Sam(SHALLOW), reparam.fuse(shallow_train[1])


@pytest.fixture
def twin(shallow_train):
    twin = TorchSam(SHALLOW)
    state = mapping.to_state(shallow_train[1], SHALLOW, "train")
    twin.load_state_dict({key: torch.from_numpy(value.copy()) for key, value in state.items()}, strict=True)
    return twin


def channels_first(images):
    return torch.from_numpy(np.asarray(images).transpose(0, 3, 1, 2).copy())


def assert_same_gradients(found: dict, module: torch.nn.Module, prefix: str = "", least: int = 80) -> None:
    """Each parameter's gradient to a thousandth of its largest entry.

    Some gradients are zero but for rounding (a shift in front of BatchNorm, a bias of attention keys), so the scale
    is at least a thousandth of the largest gradient of all.
    """
    expected = {f"{prefix}{name}": p.grad for name, p in module.named_parameters() if p.grad is not None}
    assert len(expected) > least
    largest = max(gradient.abs().max().item() for gradient in expected.values())
    for key, gradient in expected.items():
        scale = max(gradient.abs().max().item(), 1e-3 * largest)
        np.testing.assert_allclose(found[key], gradient, atol=1e-3 * scale, rtol=1e-3, err_msg=key)


def test_one_training_step(shallow_train, twin):
    """The same loss, the same gradient for every parameter, the same running statistics and counters."""
    model, params = shallow_train
    trained, stats = split_batch_stats(params)
    rng = np.random.default_rng(0)
    images = rng.normal(0.5, 1.5, (3, 64, 64, 3)).astype(np.float32)
    target = rng.normal(size=(3, 4, 4, 32)).astype(np.float32)

    def loss_fn(trained):
        embeddings, new_stats = model.encode_train({**trained, "batch_stats": stats}, images)
        return jnp.square(embeddings - target).mean(), new_stats

    step = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))
    (loss, new_stats), gradients = step(trained)

    twin.train()
    expected = torch.square(twin.encode(channels_first(images)) - channels_first(target)).mean()
    expected.backward()
    assert float(loss) == pytest.approx(expected.item(), rel=1e-5)

    entries = mapping.state_dict_entries(SHALLOW, "train")
    found = mapping.to_state({**gradients, "batch_stats": new_stats}, SHALLOW, "train")
    assert_same_gradients(found, twin.image_encoder, "image_encoder.")
    assert not any(found[key].any() for key in found if not key.startswith("image_encoder."))
    for key, buffer in twin.named_buffers():
        if key.startswith("image_encoder."):
            assert entries[key].path.startswith("batch_stats/")
            np.testing.assert_allclose(found[key], buffer, rtol=1e-4, atol=1e-5, err_msg=key)


def test_gradients_of_the_decoder(shallow, twin):
    """With respect to its params, the embedding, coordinates, boxes and mask prompts."""
    model, params = shallow
    rng = np.random.default_rng(1)
    embedding = rng.normal(size=(1, 4, 4, 32)).astype(np.float32)
    coords = rng.uniform(5, 55, (1, 2, 3, 2)).astype(np.float32)
    labels = np.int32([[[1, 0, 1], [0, 1, 1]]])
    boxes = np.float32([[[5, 10, 35, 45], [2, 25, 50, 60]]])
    masks = rng.normal(size=(1, 2, 16, 16)).astype(np.float32)
    weights = rng.normal(size=(1, 2, 3, 16, 16)).astype(np.float32)

    def loss(params, embedding, coords, boxes, masks):
        prompts = Prompts(coords, labels, np.ones((1, 2, 3), bool), boxes, masks)
        logits, iou = model.decode(params, embedding, prompts)
        return (logits * weights).mean() + iou.mean()

    value, gradients = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2, 3, 4)))(
        params, embedding, coords, boxes, masks
    )

    twin.eval().fuse()
    given = [
        torch.from_numpy(a).requires_grad_() for a in (embedding.transpose(0, 3, 1, 2).copy(), coords[0], boxes[0])
    ]
    mask = torch.from_numpy(masks[0][:, None].copy()).requires_grad_()
    logits, iou = twin.decode(given[0], given[1], torch.from_numpy(labels[0]), given[2], mask)
    expected = (logits * torch.from_numpy(weights[0])).mean() + iou.mean()
    expected.backward()
    assert float(value) == pytest.approx(expected.item(), rel=1e-4, abs=1e-6)

    assert relative_rms(gradients[1], given[0].grad.permute(0, 2, 3, 1)) < 1e-4
    assert relative_rms(gradients[2][0], given[1].grad) < 1e-4
    assert relative_rms(gradients[3][0], given[2].grad) < 1e-4
    assert relative_rms(gradients[4][0], mask.grad[:, 0]) < 1e-4
    found = mapping.to_state(gradients[0], SHALLOW, "deploy")
    assert_same_gradients(found, twin)


def test_deploy_form_gradients_of_the_encoder(shallow, twin):
    model, params = shallow
    images = np.random.default_rng(2).normal(size=(1, 64, 64, 3)).astype(np.float32)
    gradients, image_gradient = jax.jit(
        jax.grad(lambda params, images: jnp.square(model.encode(params, images)[..., :3]).mean(), argnums=(0, 1))
    )(params, images)
    twin.eval().fuse()
    state = mapping.to_state(params, SHALLOW, "deploy")
    twin.load_state_dict({key: torch.from_numpy(value.copy()) for key, value in state.items()}, strict=True)
    given = channels_first(images).requires_grad_()
    torch.square(twin.encode(given)[:, :3]).mean().backward()
    assert relative_rms(image_gradient, given.grad.permute(0, 2, 3, 1)) < 1e-4
    found = mapping.to_state(gradients, SHALLOW, "deploy")
    assert_same_gradients(found, twin.image_encoder, "image_encoder.", least=50)


def test_training_form_in_evaluation_uses_running_statistics(shallow_train, twin):
    model, params = shallow_train
    images = np.random.default_rng(3).normal(size=(1, 64, 64, 3)).astype(np.float32)
    with torch.no_grad():
        expected = twin.eval().encode(channels_first(images)).permute(0, 2, 3, 1)
    assert relative_rms(jax.jit(model.encode)(params, images), expected) < 1e-5

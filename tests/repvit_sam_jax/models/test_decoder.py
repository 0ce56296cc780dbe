"""The mask decoder takes its products in a cheap order and few prompts at a time; a plain one must agree with it."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from repvit_sam_jax import Prompts, Sam
from repvit_sam_jax.models import sam, transformer
from repvit_sam_jax.ops import attention, chunks, upscaling
from tests.helpers.measures import close, relative_rms
from tests.helpers.models import decode, decode_with_intermediates, make_prompts, tiny_with
from tests.helpers.programs import equations

SLOW = pytest.mark.slow(group="models")

KINDS = {
    "point": {"n": 1},
    "box and points": {"n": 2, "boxes": True},
    "many points, one prompt": {"n": 12, "p": 1},
    "masks": {"masks": True},
    "masks alone, one prompt": {"n": 0, "p": 1, "masks": True},
    "masks and many points": {"n": 12, "boxes": True, "masks": True},
    "many prompts": {"n": 1, "p": 9},
}
"""Few and many tokens, image tokens that prompts share and that differ by prompt, one prompt and several: in pairs."""


@pytest.fixture(scope="module")
def embeddings():
    return np.random.default_rng(5).normal(size=(2, 8, 8, 32)).astype(np.float32)


def twin_of(model, params):
    from convert.to_torch import to_state_dict
    from convert.torch_models import Sam as TorchSam

    twin = TorchSam(model.config).fuse().eval()
    twin.load_state_dict(to_state_dict(params, model), strict=True)
    return twin


@pytest.fixture(scope="module")
def twin(tiny):
    return twin_of(*tiny)


@pytest.fixture
def plain(monkeypatch):
    """A method of `Sam` jitted with everything multiplied out in the order of the paper, all prompts at once."""

    def decode(model, *arguments, method="decode"):
        with monkeypatch.context() as patch:
            patch.setattr(attention, "tokens_first", lambda *_: False)
            patch.setattr(transformer.TwoWayTransformer, "share", lambda *_: {})
            patch.setattr(sam, "over_prompts", lambda f, *arrays: f(*arrays))
            # A function of its own: a cached trace would be that of the fast path.
            return jax.jit(lambda *arguments: getattr(model, method)(*arguments))(*arguments)

    return decode


def uneven(prompts: Prompts) -> Prompts:
    """Another number of points for every prompt; the padding holds NaN."""
    b, p, n = prompts.point_valid.shape
    valid = np.arange(n) < 1 + (np.arange(b * p) % n).reshape(b, p, 1)
    coords = np.where(valid[..., None], prompts.point_coords, np.nan).astype(np.float32)
    return dataclasses.replace(prompts, point_coords=coords, point_valid=valid)


@pytest.mark.torch
@pytest.mark.parametrize(
    ("kind", "multimask_output"),
    [
        ("point", True),
        ("box and points", False),
        ("many points, one prompt", True),
        ("masks alone, one prompt", True),
        ("masks and many points", True),
    ],
)
def test_equals_pytorch(tiny, twin, embeddings, kind, multimask_output):
    check_pytorch(*tiny, twin, embeddings, make_prompts(**KINDS[kind]), multimask_output)


def check_pytorch(model, params, twin, embeddings, prompts, multimask_output):
    import torch

    masks, iou = decode(model, params, embeddings, prompts, multimask_output=multimask_output)
    for b in range(2):
        one = jax.tree.map(lambda leaf, b=b: torch.from_numpy(np.asarray(leaf[b])), prompts)
        points = (one.point_coords, one.point_labels) if one.point_coords.shape[1] else (None, None)
        with torch.inference_mode():
            expected_masks, expected_iou = twin.decode(
                torch.from_numpy(embeddings[b : b + 1].transpose(0, 3, 1, 2).copy()),
                *points,
                one.boxes,
                None if one.masks is None else one.masks[:, None],
                multimask_output,
            )
        assert relative_rms(masks[b], expected_masks) < 1e-5
        np.testing.assert_allclose(iou[b], expected_iou, atol=1e-5)
        assert np.mean((np.asarray(masks[b]) > 0) == (expected_masks.numpy() > 0)) >= 0.9999


@pytest.mark.torch
def test_uneven_prompts_equal_pytorch(tiny, twin, embeddings):
    """PyTorch gets every prompt alone and without padding."""
    import torch

    model, params = tiny
    prompts = uneven(make_prompts(n=4))
    masks, iou = decode(model, params, embeddings, prompts)
    for b, p in np.ndindex(2, 3):
        valid = prompts.point_valid[b, p]
        points = (torch.from_numpy(x[b, p][None, valid]) for x in (prompts.point_coords, prompts.point_labels))
        with torch.inference_mode():
            expected = twin.decode(torch.from_numpy(embeddings[b : b + 1].transpose(0, 3, 1, 2).copy()), *points)
        assert relative_rms(masks[b, p], expected[0][0]) < 1e-5
        np.testing.assert_allclose(iou[b, p], expected[1][0], atol=1e-5)


@pytest.mark.parametrize("kind", ["masks", "uneven"])
def test_equals_the_plain_order_stage_by_stage(tiny, plain, embeddings, kind):
    model, params = tiny
    prompts = uneven(make_prompts(n=4)) if kind == "uneven" else make_prompts(**KINDS[kind])
    found = decode_with_intermediates(model, params, embeddings, prompts)
    expected = plain(model, params, embeddings, prompts, method="decode_with_intermediates")
    assert set(found[1]) == {
        *("prompt_tokens", "image_pe", "dense_prompt", "transformer.0.tokens", "transformer.0.image"),
        *("transformer.1.tokens", "transformer.1.image", "transformer.final", "low_res_masks", "iou_predictions"),
    }
    close(found, expected, bound=1e-5)


@pytest.mark.parametrize("kind", ["point", pytest.param("masks and many points", marks=SLOW)])
def test_bfloat16_equals_the_plain_order(tiny, plain, embeddings, kind):
    """As near to float32 as the plain order is, and not further from that than half precision explains."""
    model, params = tiny
    half = Sam(model.config, dtype="bfloat16")
    prompts = make_prompts(**KINDS[kind])
    exact, _ = decode(model, params, embeddings, prompts)
    fast, _ = decode(half, params, embeddings, prompts)
    slow, _ = plain(half, params, embeddings, prompts)
    assert fast.dtype == jnp.float32
    assert relative_rms(fast, slow) < 3e-2
    assert relative_rms(fast, exact) < 1.5 * relative_rms(slow, exact)


@pytest.mark.parametrize("kind", ["point", pytest.param("masks and many points", marks=SLOW)])
def test_gradients_equal_those_of_the_plain_order(plain, embeddings, kind):
    """Of one layer: that has all there is in the two."""
    model, params = tiny_with(depth=1)
    prompts = make_prompts(**KINDS[kind])
    directions = np.random.default_rng(1).normal(size=(2, 3, 3, 32, 32)).astype(np.float32)

    class Gradient:
        """What `plain` calls in place of the model."""

        @staticmethod
        def decode(params, embeddings, prompts):
            def loss(params, embeddings, coords):
                masks, iou = model.decode(params, embeddings, dataclasses.replace(prompts, point_coords=coords))
                return jnp.vdot(directions, masks) + iou.sum()

            return jax.grad(loss, argnums=(0, 1, 2))(params, embeddings, prompts.point_coords)

    found = jax.jit(Gradient.decode)(params, embeddings, prompts)
    expected = plain(Gradient, params, embeddings, prompts)
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected[0]))
    # A bias of attention keys has no gradient but rounding.
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4 * max(float(np.abs(b).max()), 1e-3 * largest))
    chex.assert_tree_all_finite(found)


@pytest.mark.parametrize(("kind", "size"), [("many prompts", 2), ("masks", 64)])
def test_any_number_of_prompts_at_a_time(tiny, embeddings, monkeypatch, kind, size):
    """2 does not divide 9; 64 is what accelerators take."""
    model, params = tiny
    prompts = make_prompts(**KINDS[kind])
    expected = decode_with_intermediates(model, params, embeddings, prompts)
    monkeypatch.setattr(sam, "over_prompts", lambda f, *arrays: chunks.prompts_in_chunks(f, size, *arrays))
    found = jax.jit(lambda *given: model.decode_with_intermediates(*given))(params, embeddings, prompts)
    close(found, expected, bound=1e-5)


def test_work_on_an_image_is_done_once_an_image(tiny, embeddings):
    """What prompts share is multiplied out once for all of them; a single point's tokens meet the weights first."""
    model, params = tiny

    def products(**kinds):
        """Shapes of the products in which 64 image tokens of 32 channels meet weights of the inner width 16."""
        traced = jax.make_jaxpr(model.decode)(params, embeddings, make_prompts(**kinds))
        shapes = []
        for equation in equations(traced.jaxpr):
            if equation.primitive.name == "dot_general":
                left, right = (v.aval.shape for v in equation.invars)
                if len(left) > 2 and left[-2:] == (64, 32) and right == (32, 16):  # the form for CPU has two axes
                    shapes.append(left[:-2])
        return shapes

    # Keys, values and queries of the first block; positions for the keys and queries after it.
    assert products(n=1, p=5) == [(2, 1)] * 3 + [(1, 1)] * 3
    assert products(n=1, p=1) == []


@pytest.mark.parametrize(
    ("at_once", "kinds"), [(1, {"n": 1, "p": 20}), (64, {"n": 1, "p": 20}), (64, {"p": 3, "masks": True})]
)
def test_masks_of_prompts_with_a_promising_one(tiny, embeddings, monkeypatch, at_once, kinds):
    """One prompt at a time, as on CPU, and 64 with their masks in chunks of 8, as elsewhere."""
    model, params = tiny
    prompts = make_prompts(**kinds)
    masks, iou = map(np.asarray, decode(model, params, embeddings, prompts))
    monkeypatch.setattr(sam, "over_prompts", lambda f, *arrays: chunks.prompts_in_chunks(f, at_once, *arrays))
    best = np.sort(iou.max(-1), axis=None)[::-1]
    decode_above = jax.jit(lambda *given: model.decode(*given[:-1], iou_threshold=given[-1]))
    for count in (0, round(0.3 * best.size), best.size):
        threshold = np.float32(best[count - 1] - 1e-4 if count else best[0] + 1e-4)
        found, predicted = map(np.asarray, decode_above(params, embeddings, prompts, threshold))
        close(predicted, iou)
        passed = (iou > threshold).any(-1)
        if count:
            close(found[passed], masks[passed])
        upscaled = found.any((2, 3, 4)).sum(1).max()
        most = passed.sum(1).max()
        assert upscaled <= (min(8, passed.shape[1]) * -(-most // 8) if at_once > 1 else passed.any(0).sum())
    traced = jax.make_jaxpr(decode_above)(params, embeddings, prompts, threshold)
    chosen_here = [e for e in equations(traced.jaxpr) if not e.params.get("branches_platforms")]
    branches = {equation.primitive.name for equation in chosen_here} & {"cond", "while"}
    assert branches == {"cond" if at_once == 1 else "while"}, "both branches would be computed"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_masks_with_pixels_among_the_channels(tiny, rng, dtype):
    """The form for accelerators, run here; a misplaced pixel or a mean over other channels is 0.1 off."""
    modules = dataclasses.replace(tiny[0], dtype=dtype)._merge(tiny[1]).mask_decoder.output_upscaling
    dim = tiny[0].config.mask_decoder.embed_dim
    image, weights = (rng.normal(size=(2, 3, *shape)) for shape in ((16, dim), (4, dim // 8)))
    norm = upscaling.Norm(modules.norm.scale[...], modules.norm.bias[...], modules.norm.epsilon)
    given = (
        jnp.asarray(image, dtype),
        jnp.asarray(weights, dtype),
        modules.conv1.weights(),
        norm,
        modules.conv2.weights(),
    )
    found, expected = jax.jit(upscaling.packed)(*given), jax.jit(upscaling.plain)(*given)
    assert relative_rms(found, expected) < (1e-6 if dtype == "float32" else 1e-2)


def test_memory_does_not_grow_with_the_number_of_prompts(tiny, embeddings):
    """Beyond what goes in and comes out: at full size, 64 prompts at once would take more than a gigabyte."""
    model, params = tiny
    compiled = [jax.jit(model.decode).lower(params, embeddings, make_prompts(n=1, p=p)).compile() for p in (4, 64)]
    few, many = (c.memory_analysis() for c in compiled)
    grown = many.temp_size_in_bytes - few.temp_size_in_bytes
    assert grown < 2 * (many.output_size_in_bytes - few.output_size_in_bytes)


@SLOW
@pytest.mark.torch
def test_full_size_masks(plain):
    """Points at full size: masks and their signs against the plain order."""
    from convert.synthetic import manifest, synthetic_state_dict
    from repvit_sam_jax import PRESETS
    from repvit_sam_jax.weights import reparam
    from repvit_sam_jax.weights.formats import mapping

    model = Sam(PRESETS["repvit_sam"])
    params = reparam.fuse(
        mapping.to_params(synthetic_state_dict(manifest(model.config), seed=3), model.config, "train")
    )
    embeddings = np.random.default_rng(0).normal(0, 0.2, (1, 64, 64, 256)).astype(np.float32)
    rng = np.random.default_rng(1)
    prompts = Prompts(
        rng.uniform(0, 1024, (1, 8, 1, 2)).astype(np.float32), np.ones((1, 8, 1), np.int32), np.ones((1, 8, 1), bool)
    )
    masks, iou = jax.jit(model.decode)(params, embeddings, prompts)
    expected_masks, expected_iou = plain(model, params, embeddings, prompts)
    assert relative_rms(masks, expected_masks) < 1e-5
    np.testing.assert_allclose(iou, expected_iou, atol=1e-5)
    assert np.mean((np.asarray(masks) > 0) == (np.asarray(expected_masks) > 0)) >= 0.9999

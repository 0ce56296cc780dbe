"""The functional API: jit, grad, vmap, sharding, many images and prompts, exact padding."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from repvit_sam_jax import PRESETS, Prompts, Sam, split_batch_stats, transforms
from tests.helpers.measures import close, relative_rms
from tests.helpers.models import (
    decode,
    decode_with_intermediates,
    encode,
    encode_train,
    encode_with_intermediates,
    make_prompts,
    random_params,
)
from tests.helpers.processes import EIGHT_DEVICES, run_python
from tests.helpers.programs import equations

SLOW = pytest.mark.slow(group="models")


@pytest.fixture(scope="module")
def images():
    return jnp.asarray(np.random.default_rng(3).normal(size=(2, 128, 128, 3)), jnp.float32)


@pytest.fixture(scope="module")
def embeddings(tiny, images):
    return encode(*tiny, images)


def test_model_is_a_static_value(tiny):
    model, params = tiny
    assert hash(model) == hash(Sam(model.config))
    assert model == Sam(model.config)
    assert model != Sam(model.config, dtype="bfloat16")
    images = jnp.zeros((1, 128, 128, 3))
    np.testing.assert_array_equal(encode(model, params, images), jax.jit(model.encode)(params, images))


def test_stages_come_from_the_same_computation(tiny, images):
    model, params = tiny
    embeddings, intermediates = encode_with_intermediates(model, params, images)
    close(encode(model, params, images), embeddings)
    np.testing.assert_array_equal(intermediates["embedding"], embeddings)
    assert set(intermediates) == {"stem", "neck", "embedding", *(f"blocks.{i}" for i in range(1, 16))}


def test_scanned_blocks_equal_blocks_one_by_one(tiny_train, images, monkeypatch):
    """In training form, their new statistics too; the deploy form scans nothing."""
    from repvit_sam_jax.models.encoders import repvit

    model, params = tiny_train
    expected = encode_train(model, params, images)
    monkeypatch.setattr(repvit, "_runs", lambda config: ([(block.index,)] for block in config.blocks()))
    # A function of its own: a cached trace would be that of the scan.
    embeddings, stats = jax.jit(lambda params, images: model.encode_train(params, images))(params, images)
    close(embeddings, expected[0], bound=1e-5)
    for found, wanted in zip(jax.tree.leaves(stats), jax.tree.leaves(expected[1]), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-6)


def test_many_prompts_equal_single_ones(tiny, embeddings):
    model, params = tiny
    for kinds in ({}, {"boxes": True, "masks": True}):
        prompts = make_prompts(**kinds)
        together = decode(model, params, embeddings, prompts)
        for b in range(2):
            for p in range(3):
                one = jax.tree.map(lambda leaf, b=b, p=p: leaf[b : b + 1, p : p + 1], prompts)
                alone = decode(model, params, embeddings[b : b + 1], one)
                close(jax.tree.map(lambda leaf, b=b, p=p: leaf[b : b + 1, p : p + 1], together), alone)


def test_padding_changes_nothing(tiny, embeddings):
    """Padded points may hold anything, NaN included; padded prompts leave the others alone."""
    model, params = tiny
    for kinds in ({}, {"boxes": True, "masks": True}):
        prompts = make_prompts(**kinds)
        expected = decode(model, params, embeddings, prompts)
        pad = ((0, 0), (0, 0), (0, 5))
        padded = Prompts(
            np.pad(prompts.point_coords, (*pad, (0, 0)), constant_values=np.nan),
            np.pad(prompts.point_labels, pad, constant_values=1),
            np.pad(prompts.point_valid, pad),
            prompts.boxes,
            prompts.masks,
        )
        more = jax.tree.map(lambda leaf: np.pad(leaf, ((0, 0), (0, 2), *(((0, 0),) * (leaf.ndim - 2)))), padded)
        found = decode(model, params, embeddings, more)
        close(jax.tree.map(lambda leaf: leaf[:, :3], found), expected)
        assert np.isfinite(found[0]).all()  # also where a prompt has nothing valid at all


def test_not_a_point_is_no_padding(tiny, embeddings):
    """Label -1 adds a token, as in SAM: using it to pad would change the masks."""
    model, params = tiny
    prompts = make_prompts()
    labelled = Prompts(
        np.pad(prompts.point_coords, ((0, 0), (0, 0), (0, 1), (0, 0))),
        np.pad(prompts.point_labels, ((0, 0), (0, 0), (0, 1)), constant_values=-1),
        np.pad(prompts.point_valid, ((0, 0), (0, 0), (0, 1)), constant_values=True),
    )
    masks, _ = decode(model, params, embeddings, prompts)
    assert relative_rms(decode(model, params, embeddings, labelled)[0], masks) > 1e-4


def test_corner_labels_say_what_boxes_say(tiny, embeddings):
    model, params = tiny
    prompts = make_prompts(boxes=True)
    corners = Prompts(
        np.concatenate([prompts.point_coords, prompts.boxes.reshape(2, 3, 2, 2)], axis=2),
        np.concatenate([prompts.point_labels, np.broadcast_to(np.int32([2, 3]), (2, 3, 2))], axis=2),
        np.ones((2, 3, 4), bool),
    )
    close(decode(model, params, embeddings, corners), decode(model, params, embeddings, prompts))


def test_single_mask_is_not_one_of_the_three(tiny, embeddings):
    model, params = tiny
    prompts = make_prompts()
    single, single_iou = decode(model, params, embeddings, prompts, multimask_output=False)
    multi, multi_iou = decode(model, params, embeddings, prompts)
    assert single.shape == (2, 3, 1, 32, 32)
    assert multi.shape == (2, 3, 3, 32, 32)
    assert single_iou.shape == (2, 3, 1)
    assert multi_iou.shape == (2, 3, 3)
    assert all(relative_rms(multi[:, :, i], single[:, :, 0]) > 1e-2 for i in range(3))
    for flag, expected in ((np.False_, single), (0, single), (np.True_, multi), (1, multi)):
        shape = jax.eval_shape(lambda e, flag=flag: model.decode(params, e, prompts, flag)[0], embeddings)
        assert shape.shape == expected.shape


@SLOW
def test_gradients_reach_params_images_and_coordinates(tiny, images):
    """All of them at once; their values are compared with PyTorch's in tests/convert/test_training.py."""
    model, params = tiny
    prompts = make_prompts(boxes=True, masks=True)

    def loss(params, images, coords, boxes, mask):
        given = Prompts(coords, prompts.point_labels, prompts.point_valid, boxes, mask)
        masks, iou = model.decode(params, model.encode(params, images), given)
        return jnp.square(masks).mean() + iou.mean()

    inputs = (params, images, prompts.point_coords, prompts.boxes, prompts.masks)
    gradients = jax.jit(jax.grad(loss, argnums=(0, 1, 2, 3, 4)))(*inputs)
    chex.assert_tree_all_finite(gradients)
    assert all(np.any(gradient) for gradient in gradients[1:])
    leaves = jax.tree_util.tree_leaves_with_path(gradients[0])
    untouched = {jax.tree_util.keystr(path, simple=True, separator="/") for path, leaf in leaves if not np.any(leaf)}
    assert untouched == {
        "prompt_encoder/position/gaussian_matrix",  # a buffer in PyTorch
        "prompt_encoder/no_mask",  # for prompts without a mask
        "prompt_encoder/not_a_point",  # for prompts without a box
        *(f"mask_decoder/hypernetworks/0/layers/{i}/{name}" for i in range(3) for name in ("kernel", "bias")),
    }


@SLOW
def test_training_form_gradients_with_statistics_taken_out(tiny_train, images):
    model, params = tiny_train
    trained, stats = split_batch_stats(params)
    gradient = jax.grad(lambda p: model.encode({**p, "batch_stats": stats}, images).sum())
    assert jax.tree.structure(jax.eval_shape(gradient, trained)) == jax.tree.structure(trained)


def test_vmap_equals_a_batch(tiny, images, embeddings):
    model, params = tiny
    one_by_one = jax.vmap(lambda image: encode(model, params, image[None])[0])(images)
    close(one_by_one, embeddings)
    prompts = make_prompts()
    mapped = jax.vmap(
        lambda e, p: jax.tree.map(lambda x: x[0], decode(model, params, e[None], jax.tree.map(lambda x: x[None], p)))
    )(embeddings, prompts)
    close(mapped, decode(model, params, embeddings, prompts))


@SLOW
def test_several_models_at_once_by_vmap_over_params(tiny, images):
    model, params = tiny
    stacked = jax.tree.map(lambda a: jnp.stack([a, 0.5 * a]), params)
    both = jax.vmap(model.encode, (0, None))(stacked, images)
    close(both[0], encode(model, params, images))


def test_bfloat16_masks_agree(tiny, images):
    """Random weights put many pixels near the threshold, so the bar is on those that are clear of it."""
    model, params = tiny
    half = Sam(model.config, dtype="bfloat16")
    prompts = make_prompts(boxes=True)
    embeddings, half_embeddings = encode(model, params, images), encode(half, params, images)
    assert half_embeddings.dtype == jnp.float32
    assert relative_rms(half_embeddings, embeddings) < 5e-2
    masks, _ = decode(model, params, embeddings, prompts)
    half_masks, half_iou = decode(half, params, embeddings, prompts)
    assert (half_masks.dtype, half_iou.dtype) == (jnp.float32, jnp.float32)
    assert relative_rms(half_masks, masks) < 5e-2
    clear = np.abs(masks) > 0.1 * np.std(masks)
    assert np.mean(((half_masks > 0) == (masks > 0))[clear]) > 0.999


def test_bfloat16_computes_in_float32_what_must_be():
    """Softmax, norms, GELU, gates and positions see float32, sums and products accumulate in it."""
    half = Sam(PRESETS["tiny"], dtype="bfloat16")
    params = half.abstract_params()
    images = jax.ShapeDtypeStruct((1, 128, 128, 3), np.float32)
    embeddings = jax.ShapeDtypeStruct((1, 8, 8, 32), np.float32)
    prompts = make_prompts(b=1, boxes=True, masks=True)
    sensitive = {"exp", "rsqrt", "sqrt", "logistic", "sin", "cos", "reduce_sum", "reduce_max", "integer_pow"}
    sensitive |= {"erf", "_normal_cdf"}  # in GELU; the second in half precision
    seen, products = set(), 0
    for traced in (
        jax.make_jaxpr(half.encode)(params, images),
        jax.make_jaxpr(half.decode)(params, embeddings, prompts),
    ):
        for equation in equations(traced.jaxpr):
            name = equation.primitive.name
            if name == "custom_jvp_call":
                name = equation.params["call_jaxpr"].jaxpr.debug_info.func_name
            dtypes = {v.aval.dtype for v in equation.invars if jnp.issubdtype(v.aval.dtype, jnp.floating)}
            if name in sensitive and dtypes:
                assert dtypes == {jnp.dtype("float32")}, equation
                seen.add(name)
            if name == "dot_general":
                assert equation.outvars[0].aval.dtype == jnp.float32, equation
                products += dtypes == {jnp.dtype("bfloat16")}
    assert seen >= {"exp", "_normal_cdf", "rsqrt", "logistic", "sin", "cos", "reduce_sum"}
    assert products > 50  # and they are half-precision products


@pytest.mark.parametrize(
    "preset", ["tiny", *(pytest.param(f"tiny_{name}_sam", marks=SLOW) for name in ("vit", "mobile"))]
)
def test_compact_params_change_no_bit(preset):
    model = Sam.from_preset(preset, dtype="bfloat16")
    params = random_params(model)
    kept = jax.jit(model.compact)(params)
    sizes = [sum(leaf.nbytes for leaf in jax.tree.leaves(tree)) for tree in (params, kept)]
    assert sizes[1] < 0.7 * sizes[0]
    size = model.config.image_size
    images = np.random.default_rng(1).normal(size=(1, size, size, 3)).astype(np.float32)
    prompts = Prompts(np.full((1, 2, 1, 2), 40.0, np.float32), np.ones((1, 2, 1), np.int32), np.ones((1, 2, 1), bool))

    @jax.jit
    def segment(params):
        embeddings = model.encode(params, images)
        return embeddings, model.decode(params, embeddings, prompts)

    chex.assert_trees_all_equal(segment(kept), segment(params))
    assert Sam.from_preset(preset).compact(params) is params


def test_positional_encoding_against_float64(tiny):
    """At full precision in both modes: 2 pi times a Gaussian frequency amplifies what is rounded before it."""
    matrix = np.asarray(tiny[1]["prompt_encoder"]["position"]["gaussian_matrix"], np.float64)
    prompts = make_prompts(b=1, p=1, n=1)
    place = 2 * (prompts.point_coords[0, 0, 0].astype(np.float64) + 0.5) / 128 - 1
    angles = 2 * np.pi * place @ matrix
    kind = np.asarray(tiny[1]["prompt_encoder"]["point_embeddings"][str(prompts.point_labels[0, 0, 0])])
    expected = np.concatenate([np.sin(angles), np.cos(angles)]) + kind
    for dtype in ("float32", "bfloat16"):
        model = Sam(tiny[0].config, dtype=dtype)
        _, intermediates = decode_with_intermediates(model, tiny[1], jnp.zeros((1, 8, 8, 32)), prompts)
        np.testing.assert_allclose(intermediates["prompt_tokens"][0, 0, 0], expected, atol=1e-5)
        assert intermediates["image_pe"].dtype == jnp.float32


def test_prompt_dtypes(tiny, embeddings):
    """Integer coordinates do not truncate boxes; labels that are no integers are refused."""
    model, params = tiny
    prompts = make_prompts(boxes=True)
    whole = dataclasses.replace(prompts, point_coords=prompts.point_coords.round())
    integers = dataclasses.replace(whole, point_coords=whole.point_coords.astype(np.int32))
    close(decode(model, params, embeddings, integers), decode(model, params, embeddings, whole))
    for name, dtype, message in (("point_labels", bool, "integers"), ("point_valid", np.int32, "boolean")):
        spoilt = dataclasses.replace(prompts, **{name: getattr(prompts, name).astype(dtype)})
        with pytest.raises(ValueError, match=f"{name} must be {message}"):
            model.decode(params, embeddings, spoilt)
    with pytest.raises(TypeError, match="static"):
        jax.jit(model.decode)(params, embeddings, prompts, True)


def test_jitting_the_unbound_method_compiles_once(tiny, images):
    jitted = jax.jit(Sam.encode, static_argnums=0)
    jitted(tiny[0], tiny[1], images)
    before = jitted._cache_size()
    again = Sam(tiny[0].config)  # an equal model, made anew
    jitted(again, tiny[1], images)
    assert jitted._cache_size() == before


def test_float32_stays_float32_under_x64():
    dtypes = lambda tree: {str(leaf.dtype) for leaf in jax.tree.leaves(tree)}
    with jax.enable_x64(True):
        for form in ("train", "deploy"):
            model = Sam.from_preset("tiny", form=form)
            params = jax.eval_shape(model.init, jax.random.key(0))
            assert dtypes(params) <= {"float32", "int32"}
            images = jax.ShapeDtypeStruct((1, 128, 128, 3), np.float32)
            embeddings = jax.eval_shape(model.encode, params, images)
            pixels, sizes = (jax.ShapeDtypeStruct(*about) for about in ((images.shape, np.uint8), ((1, 2), np.int32)))
            prompts = Prompts(np.zeros((1, 1, 1, 2)), np.ones((1, 1, 1), int), np.ones((1, 1, 1), bool))
            found = jax.eval_shape(model.decode, params, embeddings, prompts)
            assert dtypes((embeddings, found, jax.eval_shape(transforms.normalize, pixels, sizes))) == {"float32"}


def test_encode_train_returns_statistics_and_leaves_params(tiny_train, images):
    model, params = tiny_train
    before = jax.tree.map(np.array, params)
    _, stats = encode_train(model, params, images)
    jax.tree.map(np.testing.assert_array_equal, params, before)
    assert jax.tree.structure(stats) == jax.tree.structure(params["batch_stats"])
    counts = [(path, leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(stats) if path[-1].key == "count"]
    old = dict(jax.tree_util.tree_leaves_with_path(params["batch_stats"]))
    assert counts
    assert all(int(leaf) == int(old[path]) + 1 for path, leaf in counts)


def test_encode_train_needs_the_training_form(tiny, images):
    with pytest.raises(ValueError, match="training form"):
        tiny[0].encode_train(tiny[1], images)


@SLOW
def test_sharded_jit_equals_one_device():
    """Eight simulated devices, batch sharded: encode, decode, and statistics, which are those of the whole batch."""
    program = """
        import jax, numpy as np
        from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
        from repvit_sam_jax import PRESETS, Prompts, Sam
        from tests.helpers.models import random_params

        jax.config.update("jax_default_matmul_precision", "highest")
        assert jax.device_count() == 8
        mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
        batch, whole = NamedSharding(mesh, P("data")), NamedSharding(mesh, P())
        rng = np.random.default_rng(0)
        images = rng.normal(size=(8, 128, 128, 3)).astype(np.float32)
        prompts = Prompts(
            rng.uniform(0, 128, (8, 2, 2, 2)).astype(np.float32), np.ones((8, 2, 2), np.int32), np.ones((8, 2, 2), bool)
        )

        def run(model, params, images, prompts):
            embeddings, stats = model.encode_train(params, images)
            return model.decode(params, embeddings, prompts), stats

        model = Sam(PRESETS["tiny"], "train")
        params = random_params(model)
        expected = jax.jit(lambda *a: run(model, *a))(params, images, prompts)
        sharded = jax.jit(lambda *a: run(model, *a), in_shardings=(whole, batch, batch))
        found = sharded(params, images, prompts)
        jax.block_until_ready(found)
        assert found[0][0].sharding.spec[0] == "data", found[0][0].sharding
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected)):
            np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-4)
        print("equal")
    """
    assert run_python(program, EIGHT_DEVICES) == ["equal"]

"""Presets against the block tables of the official classifiers, and configs through JSON."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from repvit_sam_jax import CLASSIFIERS, PRESETS, Classifier, Sam, get_config
from repvit_sam_jax.config import (
    FORMS,
    MODELS,
    RepViTConfig,
    ViTConfig,
    config_from_dict,
    get_classifier_config,
    get_model_config,
)
from tests.helpers.measures import GOLDEN

VARIANTS = ["m0_6", "m0_9", "m1_0", "m1_1", "m1_5", "m2_3"]


def smallest_first(names, *first):
    """One of each family in the default run; the others, built alike, take seconds each to trace."""
    slow = pytest.mark.slow(group="models")
    return [name if name in first else pytest.param(name, marks=slow) for name in names]


@pytest.mark.parametrize("variant", VARIANTS)
def test_blocks_are_those_of_the_official_classifier(variant):
    """Widths, squeeze-excite positions and downsampling blocks, read off the official state dict's shapes."""
    manifest = json.loads((GOLDEN / f"repvit_{variant}.json").read_text())
    config = PRESETS["repvit_sam" if variant == "m2_3" else f"repvit_sam_{variant}"].image_encoder
    found = []
    for block in config.blocks():
        mixer = f"features.{block.index}.token_mixer"
        downsample = f"{mixer}.2.c.weight" in manifest
        width = manifest[f"{mixer}.2.c.weight" if downsample else f"{mixer}.0.conv.c.weight"][0][0]
        se = manifest.get(f"{mixer}.1.fc1.weight")
        found.append((block.downsample, block.out_channels, block.use_se))
        assert found[-1] == (downsample, width, se is not None), f"features.{block.index}"
    assert len(found) + 1 == len({key.split(".")[1] for key in manifest if key.startswith("features.")})


def test_only_the_last_downsampling_block_is_stride_adjusted():
    encoders = [config.image_encoder for config in PRESETS.values() if isinstance(config.image_encoder, RepViTConfig)]
    assert len(encoders) == 8
    for encoder in encoders:
        assert [b.stride for b in encoder.blocks() if b.downsample] == [2, 2, 1]
        assert all(b.stride == 1 for b in encoder.blocks() if not b.downsample)


@pytest.mark.parametrize(("name", "groups"), [("b", 4), ("l", 4), ("h", 4)])
def test_vit_blocks_are_grouped_for_the_scan(name, groups):
    encoder = PRESETS[f"sam_vit_{name}"].image_encoder
    (run,) = encoder.runs()
    assert len(run) == groups
    assert [i for group in run for i in group] == list(range(encoder.depth))
    assert [group[-1] for group in run] == list(encoder.global_attn_indexes)
    assert ViTConfig(8, 5, 2, (1, 3)).runs() == [[(0, 1), (2, 3)], [(4,)]]
    assert ViTConfig(8, 3, 2, ()).runs() == [[(0, 1, 2)]]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", smallest_first(PRESETS, "tiny", "tiny_vit_sam", "tiny_mobile_sam"))
def test_every_preset_initialises_and_runs_abstractly(name, form):
    model = Sam.from_preset(name, form=form)
    params = jax.eval_shape(model.init, jax.random.key(0))
    assert jax.tree.structure(params) == jax.tree.structure(model.abstract_params())
    size = model.config.image_size
    out = jax.eval_shape(model.encode, params, jax.ShapeDtypeStruct((2, size, size, 3), np.float32))
    dim = model.config.mask_decoder.embed_dim
    assert (out.shape, out.dtype) == ((2, size // 16, size // 16, dim), np.float32)


def test_published_size():
    """27.2 M parameters, as the published checkpoint has (BatchNorm statistics not counted, the PE buffer included)."""
    params = Sam.from_preset("repvit_sam", form="train").abstract_params()
    params.pop("batch_stats")
    manifest = json.loads((GOLDEN / "repvit.json").read_text())
    official = sum(
        np.prod(shape) for key, (shape, dtype) in manifest.items() if "running" not in key and dtype != "int64"
    )
    assert sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(params)) == official == 27_223_736


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", smallest_first(CLASSIFIERS, "tiny_repvit_distill"))
def test_every_classifier_initialises_and_runs_abstractly(name, form):
    model = Classifier.from_preset(name, form=form)
    size = model.config.image_size
    images = jax.ShapeDtypeStruct((2, size, size, 3), np.float32)
    out = jax.eval_shape(lambda key, x: model.classify(model.init(key), x), jax.random.key(0), images)
    assert (out.shape, out.dtype) == ((2, model.config.num_classes), np.float32)
    assert ("head_dist" in model.abstract_params()) == (form == "train" and name.endswith("_distill"))


@pytest.mark.parametrize("name", list(MODELS))
def test_config_survives_json(name):
    config = get_model_config(name, 512)
    again = config_from_dict(json.loads(json.dumps(dataclasses.asdict(config))))
    assert again == config
    assert again.image_size == 512
    assert hash(Sam(again)) == hash(Sam(config))


def test_image_size_may_be_an_integer_of_numpy():
    config = get_config("tiny", np.int64(256))
    assert config == get_config("tiny", 256)
    assert type(config.image_size) is int
    with pytest.raises(ValueError, match=r"image_size must be a positive multiple of 16, got 256\.0"):
        get_config("tiny", 256.0)


def test_segmenters_and_classifiers_are_not_mixed_up():
    with pytest.raises(ValueError, match="repvit_m2_3 is a classifier; the segmenters are repvit_sam, "):
        get_config("repvit_m2_3")
    with pytest.raises(ValueError, match="vit_b is a segmenter; the classifiers are repvit_m0_6, "):
        get_classifier_config("vit_b")
    with pytest.raises(ValueError, match="multiple of 32, got 240"):
        get_classifier_config("repvit_m2_3", 240)


def test_damaged_config_is_an_error():
    values = dataclasses.asdict(PRESETS["tiny"])
    del values["image_encoder"]
    with pytest.raises(ValueError, match="image_encoder"):
        config_from_dict(values)
    with pytest.raises(ValueError, match="colour"):
        config_from_dict({**dataclasses.asdict(PRESETS["tiny"]), "colour": 1})


def test_files_of_version_0_1():
    """Their configs had fields that no published model varies, and two extensions of SAM."""
    values = dataclasses.asdict(PRESETS["mobile_sam"])
    decoder = {**values["mask_decoder"], "drawing_channels": 0, "crf_channels": 0, "num_multimask_outputs": 3}
    encoder = {**values["image_encoder"], "expansion": 4}
    assert config_from_dict({**values, "mask_decoder": decoder, "image_encoder": encoder}) == PRESETS["mobile_sam"]
    with pytest.raises(ValueError, match=r"mask_decoder has \{'crf_channels': 8\}, which only version 0.1 could run"):
        config_from_dict({**values, "mask_decoder": {**decoder, "crf_channels": 8}})
    with pytest.raises(ValueError, match=r"tiny_vit has \{'expansion': 6\}"):
        config_from_dict({**values, "image_encoder": {**encoder, "expansion": 6}})


def test_mlps_of_files_of_version_0_1():
    """Their width was a multiple of the embedding's."""
    values = dataclasses.asdict(PRESETS["sam_vit_b"])
    encoder = {**values["image_encoder"], "mlp_ratio": 4}
    del encoder["mlp_dim"]
    assert config_from_dict({**values, "image_encoder": encoder}) == PRESETS["sam_vit_b"]
    assert (PRESETS["slimsam_50"].image_encoder.mlp_dim, PRESETS["slimsam_77"].image_encoder.mlp_dim) == (1536, 696)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("image_encoder", "depths"), [7, 7, 10_000, 2], "depths must be an integer from 1 to 128"),
        (("image_encoder", "channels"), [80, 160, 320], "channels, depths must have one entry for each of"),
        (("image_encoder", "last_stride"), True, "last_stride must be an integer from 1 to 2, got True"),
        (("mask_decoder", "embed_dim"), 10**7, "embed_dim must be an integer from 8 to 8192"),
        (("image_size",), 2**40, "image_size must be an integer from 16 to 16384"),
        (("mask_threshold",), float("nan"), "mask_threshold must be a number from"),
        (("generator_defaults", "pred_iou_thresh"), "0.88", "pred_iou_thresh must be a number"),
        (("name",), "x" * 1000, "a model's name must have 1 to 100 printable characters"),
    ],
)
def test_bounds_of_fields(path, value, message):
    """A crafted file can't ask for all memory, or for ever."""
    values = dataclasses.asdict(PRESETS["repvit_sam"])
    node = values
    for name in path[:-1]:
        node = node[name]
    node[path[-1]] = value
    with pytest.raises(ValueError, match=message):
        config_from_dict(values)

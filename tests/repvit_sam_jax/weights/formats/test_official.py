"""The rule table is a bijection that covers the official manifest and the abstract JAX params exactly."""

import json
import re

import numpy as np
import pytest
import torch

from convert.torch_models import twin_of
from repvit_sam_jax import CLASSIFIERS, CheckpointError
from repvit_sam_jax.config import FORMS, MODELS, get_model_config
from repvit_sam_jax.models.factory import model_of
from repvit_sam_jax.weights import checkpoint
from repvit_sam_jax.weights.formats import mapping
from repvit_sam_jax.weights.formats.layouts import LAYOUTS
from repvit_sam_jax.weights.formats.official import RULES, jax_to_torch, torch_to_jax
from tests.helpers.measures import GOLDEN

pytestmark = pytest.mark.torch


OFFICIAL = [
    "repvit",
    "vit_b",
    "vit_l",
    "vit_h",
    "vit_t",
    *(name for name in CLASSIFIERS if not name.startswith("tiny")),
]


def slow_but(names, quick):
    """The names, those that no quick one is like but for its size among the slow tests: JAX lists their arrays."""
    return [name if name in quick else pytest.param(name, marks=pytest.mark.slow(group="models")) for name in names]


@pytest.mark.parametrize("file", slow_but(OFFICIAL, {"repvit", "vit_b", "vit_t", "repvit_m0_6_distill"}))
def test_table_covers_the_official_manifest_exactly(file):
    entries = mapping.state_dict_entries(get_model_config(file), "train")
    assert {key: [list(entry.shape), str(entry.dtype)] for key, entry in entries.items()} == manifest_of(file)


def manifest_of(file):
    return json.loads((GOLDEN / f"{file}.json").read_text())


@pytest.mark.parametrize("file", OFFICIAL)
def test_twin_has_the_official_manifest(file):
    entries = entries_of_the_twin(get_model_config(file), "train")
    assert {key: [list(shape), dtype] for key, (shape, dtype) in entries.items()} == manifest_of(file)


def entries_of_the_twin(config, form):
    with torch.device("meta"):  # shapes alone: ViT-H is 2.6 GB
        state = twin_of(config, form).state_dict()
    return {key: (tuple(value.shape), str(value.dtype).removeprefix("torch.")) for key, value in state.items()}


QUICK = {"demo", "tiny_vit_sam", "tiny_mobile_sam", "tiny_repvit_distill"}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", slow_but(MODELS, QUICK))
def test_table_is_a_bijection(name, form):
    """Each parameter has one key and each key one parameter, and the way back leads home with the same layout."""
    paths = [path for path, _ in checkpoint.flatten(model_of(MODELS[name], form).abstract_params())]
    keys = []
    for path in paths:
        ((key, layout),) = jax_to_torch(path)
        assert torch_to_jax(key) == [(path, layout)]
        keys.append(key)
    assert len(set(keys)) == len(paths)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", slow_but(MODELS, QUICK))
def test_twin_has_the_same_entries(name, form):
    entries = mapping.state_dict_entries(MODELS[name], form)
    expected = {key: (entry.shape, str(entry.dtype)) for key, entry in entries.items()}
    assert entries_of_the_twin(MODELS[name], form) == expected


def test_no_rule_is_idle():
    """Every rule serves some array of some preset and form, so that none is left over from a rename."""
    used = set()
    for name in ("tiny", "demo", "repvit_sam_m0_6", "tiny_vit_sam", "tiny_mobile_sam", "repvit_m0_6_distill"):
        for form in FORMS:
            used |= set(mapping.state_dict_entries(MODELS[name], form))
    idle = [rule.torch for rule in RULES if not any(_matches(rule.torch, key) for key in used)]
    assert idle == []


def _matches(template: str, key: str) -> bool:
    parts, found = template.split("."), key.split(".")
    return len(parts) == len(found) and all(
        a == b or (a.startswith("{") and b.isdigit()) for a, b in zip(parts, found, strict=True)
    )


def test_foreign_keys_match_nothing():
    for key in ("", "image_encoder", "image_encoder.features.0.0.c.weight.x", "xmask_decoder.iou_token.weight"):
        assert torch_to_jax(key) == []
        assert jax_to_torch(key) == []


@pytest.mark.parametrize("name", list(LAYOUTS))
def test_layouts_are_invertible_and_keep_every_bit(name):
    shapes = {
        "linear": (3, 5),
        "pointwise": (3, 5, 1, 1),
        "conv": (3, 5, 2, 4),
        "depthwise": (3, 1, 2, 4),
        "scale": (3, 1, 1, 1),
        "conv_transpose": (3, 5, 2, 4),
        "embedding": (1, 7),
        "counter": (),
        "same": (2, 3),
    }
    rng = np.random.default_rng(0)
    if name == "counter":
        value = np.asarray(2**31 - 1, np.int64)
    else:
        value = rng.integers(0, 2**32, shapes[name], dtype=np.uint32).view(np.float32)  # any bits, NaNs among them
    layout = LAYOUTS[name]
    back = layout.to_torch(layout.to_jax(value))
    assert back.dtype == value.dtype
    assert back.shape == value.shape
    assert back.tobytes() == value.tobytes()


def test_conv_layouts_put_axes_where_they_belong():
    value = np.arange(3 * 5 * 2 * 4).reshape(3, 5, 2, 4)  # (out, in, h, w)
    assert LAYOUTS["conv"].to_jax(value)[1, 3, 4, 2] == value[2, 4, 1, 3]
    assert LAYOUTS["conv_transpose"].to_jax(value)[2, 1, 3, 4] == value[2, 4, 1, 3]  # here (in, out, h, w)
    assert LAYOUTS["depthwise"].to_jax(value[:, :1])[1, 3, 2] == value[2, 0, 1, 3]
    assert LAYOUTS["linear"].to_jax(value[:, :, 0, 0])[4, 2] == value[2, 4, 0, 0]


def test_counter_that_does_not_fit_is_an_error():
    with pytest.raises(ValueError, match="32 bits"):
        LAYOUTS["counter"].to_jax(np.asarray(2**31, np.int64))


@pytest.mark.parametrize("file", slow_but(OFFICIAL, {"vit_b", "repvit", "vit_t", "repvit_m0_6_distill"}))
def test_models_are_recognised_by_their_keys_and_shapes(file):
    state = zeros(file)
    name = get_model_config(file).name
    assert mapping.identify(state)[0].name == name
    assert mapping.identify(state, file)[0].name == name  # the official name serves as well
    other = "vit_t" if file != "vit_t" else "vit_b"
    with pytest.raises(CheckpointError, match=f"weights of {name}, not of {other}"):
        mapping.identify(state, other)


def zeros(file):
    return {key: np.broadcast_to(np.zeros((), dtype), shape) for key, (shape, dtype) in manifest_of(file).items()}


def test_models_are_recognised_at_once(monkeypatch):
    """To list the arrays of all of them takes half a minute."""
    listed, entries = set(), mapping.state_dict_entries

    def listing(config, form):
        listed.add(config.name)
        return entries(config, form)

    monkeypatch.setattr(mapping, "state_dict_entries", listing)
    assert mapping.identify(zeros("repvit_m0_6_distill"))[0].name == "repvit_m0_6_distill"
    assert listed == {"repvit_m0_6", "repvit_m0_6_distill"}


def test_models_are_recognised_with_a_block_less():
    """So that what is missing can be named."""
    block = "image_encoder.layers.2.blocks.3."
    state = {key: value for key, value in zeros("vit_t").items() if not key.startswith(block)}
    with pytest.raises(CheckpointError, match=rf"(?s)state dict of mobile_sam .*missing: {re.escape(block)}"):
        mapping.to_params(state, *mapping.identify(state))

"""The rule table is a bijection that covers the official manifest and the abstract JAX params exactly."""

import json

import numpy as np
import pytest
import torch

from convert import mapping
from convert.keymap import RULES, jax_to_torch, torch_to_jax
from convert.layouts import LAYOUTS
from convert.torch_models import twin_of
from repvit_sam_jax import CLASSIFIERS, CheckpointError, checkpoint
from repvit_sam_jax.config import FORMS, MODELS, get_model_config
from repvit_sam_jax.loading import model_of
from tests.helpers.measures import GOLDEN

pytestmark = pytest.mark.torch


@pytest.mark.parametrize(
    "file",
    ["repvit", "vit_b", "vit_l", "vit_h", "vit_t"] + [name for name in CLASSIFIERS if not name.startswith("tiny")],
)
def test_table_covers_the_official_manifest_exactly(file):
    manifest = json.loads((GOLDEN / f"{file}.json").read_text())
    entries = mapping.state_dict_entries(get_model_config(file), "train")
    assert {key: [list(entry.shape), str(entry.dtype)] for key, entry in entries.items()} == manifest


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", list(MODELS))
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
@pytest.mark.parametrize("name", list(MODELS))
def test_twin_has_the_same_entries(name, form):
    with torch.device("meta"):  # shapes alone: ViT-H is 2.6 GB
        twin = twin_of(MODELS[name], form)
    entries = mapping.state_dict_entries(MODELS[name], form)
    found = {
        key: (tuple(value.shape), str(value.dtype).removeprefix("torch.")) for key, value in twin.state_dict().items()
    }
    assert found == {key: (entry.shape, str(entry.dtype)) for key, entry in entries.items()}


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


@pytest.mark.parametrize("file", ["vit_b", "vit_l", "vit_h", "repvit", "vit_t", "repvit_m0_6", "repvit_m2_3_distill"])
def test_models_are_recognised_by_their_keys_and_shapes(file):
    manifest = json.loads((GOLDEN / f"{file}.json").read_text())
    state = {key: np.broadcast_to(np.zeros((), dtype), shape) for key, (shape, dtype) in manifest.items()}
    name = get_model_config(file).name
    assert mapping.identify(state)[0].name == name
    assert mapping.identify(state, file)[0].name == name  # the official name serves as well
    other = "vit_h" if file != "vit_h" else "vit_b"
    with pytest.raises(CheckpointError, match=f"weights of {name}, not of {other}"):
        mapping.identify(state, other)

"""torch -> JAX -> torch bit for bit, in both forms, through files."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

import repvit_sam_jax
from convert.from_torch import from_torch, read_state_dict
from convert.synthetic import manifest, synthetic_state_dict, write
from convert.to_torch import to_torch
from convert.torch_models import Sam as TorchSam
from repvit_sam_jax import PRESETS, Sam, load
from repvit_sam_jax.config import MODELS
from repvit_sam_jax.weights import checkpoint, reparam
from repvit_sam_jax.weights.checkpoint import Metadata
from repvit_sam_jax.weights.formats import mapping
from repvit_sam_jax.weights.loading import read_params
from tests.helpers.measures import relative_rms

pytestmark = pytest.mark.torch
TINY = PRESETS["tiny"]


@pytest.fixture(scope="module")
def state():
    return synthetic_state_dict(manifest(TINY), seed=1)


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "tiny.pt"
    write(path, TINY, seed=1)
    return path


@pytest.mark.parametrize("name", ["tiny.pt", "photo.jpg"])
def test_random_weights_replace_nothing(source, tmp_path, name):
    """The published file has the name that one would give."""
    (tmp_path / "photo.jpg").write_bytes(b"a photo")
    before = (tmp_path / name).read_bytes()
    with pytest.raises(ValueError, match=rf"{name}( exists|: the target is a \.pt)"):
        write(tmp_path / name, TINY)
    assert (tmp_path / name).read_bytes() == before


def assert_same_bits(found, expected):
    assert set(found) == set(expected)
    for key, value in expected.items():
        assert found[key].dtype == value.dtype, key
        assert found[key].shape == value.shape, key
        assert found[key].tobytes() == value.tobytes(), key


def test_round_trip_through_files_is_bit_exact(source, state, tmp_path):
    """Every counter has its own value, so that a mix-up would show."""
    counters = [int(value) for key, value in state.items() if key.endswith("num_batches_tracked")]
    assert len(set(counters)) == len(counters) > 40
    from_torch(source, tmp_path / "a.safetensors")
    assert to_torch(tmp_path / "a.safetensors", tmp_path / "b.pt") == "train"
    back = torch.load(tmp_path / "b.pt", weights_only=True)
    assert_same_bits({key: value.numpy() for key, value in back.items()}, state)
    TorchSam(TINY).load_state_dict(back, strict=True)


LARGER = ("m0_9", "m1_0", "m1_1", "m1_5", "m2_3", "sam_vit_")
"""Presets that are as others are, but larger."""
QUICK = ("tiny_vit_sam", "tiny_mobile_sam", "tiny_repvit_distill")
"""One of each family; the tests around this one have a RepViT segmenter."""


@pytest.mark.parametrize(
    "name",
    [
        name if name in QUICK else pytest.param(name, marks=pytest.mark.slow(group="models"))
        for name in MODELS
        if not any(variant in name for variant in LARGER)
    ],
)
def test_every_preset_round_trips(name):
    config = MODELS[name]
    original = synthetic_state_dict(manifest(config))
    found, form = mapping.identify(original)
    assert (found, form) == (config, "train" if config.has_batch_norm else "deploy")
    assert_same_bits(mapping.to_state(mapping.to_params(original, config, form), config, form), original)


def test_loaded_params_are_those_of_the_file(source, state, tmp_path):
    from_torch(source, tmp_path / "a.safetensors")
    model, params = load(tmp_path / "a.safetensors", form="train")
    assert model == Sam(TINY, "train")
    stem = params["image_encoder"]["stem"]["conv1"]["conv"]["kernel"]
    np.testing.assert_array_equal(stem, state["image_encoder.features.0.0.c.weight"].transpose(2, 3, 1, 0))
    count = params["batch_stats"]["image_encoder"]["stem"]["conv1"]["bn"]["count"]
    assert int(count) == state["image_encoder.features.0.0.bn.num_batches_tracked"]


def test_metadata(source, tmp_path):
    metadata = from_torch(source, tmp_path / "a.safetensors", image_size=256)
    with safe_open(tmp_path / "a.safetensors", framework="numpy") as file:
        strings = file.metadata()
    assert strings["preset"] == "tiny"
    assert strings["form"] == "train"
    assert strings["source_sha256"] == hashlib.sha256(source.read_bytes()).hexdigest()
    assert strings["converter"] == f"repvit_sam_jax {repvit_sam_jax.__version__}"
    assert json.loads(strings["config"])["image_size"] == 256
    assert Metadata.from_strings(strings) == metadata
    assert load(tmp_path / "a.safetensors")[0].config.image_size == 256
    assert load(tmp_path / "a.safetensors", image_size=64)[0].config.image_size == 64


def test_deploy_form_goes_back_to_the_fused_twin(source, tmp_path):
    """The fused twin loads it strictly, and its own fuse gives the same weights."""
    from_torch(source, tmp_path / "deploy.safetensors", form="deploy")
    assert checkpoint.read(tmp_path / "deploy.safetensors")[1].form == "deploy"
    assert to_torch(tmp_path / "deploy.safetensors", tmp_path / "fused.pt") == "deploy"
    fused = torch.load(tmp_path / "fused.pt", weights_only=True)
    twin = TorchSam(TINY)
    twin.load_state_dict(torch.load(source, weights_only=True), strict=True)
    own = twin.fuse().state_dict()
    twin.load_state_dict(fused, strict=True)
    for key, value in own.items():
        np.testing.assert_allclose(fused[key], value, rtol=1e-6, atol=1e-7, err_msg=key)


def test_fused_checkpoint_is_read_and_round_trips(source, tmp_path):
    twin = TorchSam(TINY)
    twin.load_state_dict(torch.load(source, weights_only=True), strict=True)
    torch.save(twin.fuse().state_dict(), tmp_path / "fused.pt")
    metadata = from_torch(tmp_path / "fused.pt", tmp_path / "fused.safetensors")
    assert (metadata.form, metadata.config.name) == ("deploy", "tiny")
    to_torch(tmp_path / "fused.safetensors", tmp_path / "again.pt")
    assert_same_bits(read_state_dict(tmp_path / "again.pt"), read_state_dict(tmp_path / "fused.pt"))


def test_to_torch_fuses_on_request(source, tmp_path):
    from_torch(source, tmp_path / "a.safetensors")
    from_torch(source, tmp_path / "deploy.safetensors", form="deploy")
    to_torch(tmp_path / "a.safetensors", tmp_path / "one.pt", form="deploy")
    to_torch(tmp_path / "deploy.safetensors", tmp_path / "two.pt")
    assert_same_bits(read_state_dict(tmp_path / "one.pt"), read_state_dict(tmp_path / "two.pt"))


def test_load_fuses_a_training_file(source, tmp_path):
    from_torch(source, tmp_path / "a.safetensors")
    _, trained = load(tmp_path / "a.safetensors", form="train")
    model, params = load(tmp_path / "a.safetensors")
    assert model.form == "deploy"
    expected = dict(checkpoint.flatten(reparam.fuse(trained)))
    for path, leaf in checkpoint.flatten(params):
        np.testing.assert_array_equal(leaf, expected[path], err_msg=path)


def test_bfloat16_file_goes_back_to_torch(source, state, tmp_path):
    """Convolutions and matrices as torch rounds them, statistics and biases bit for bit."""
    from_torch(source, tmp_path / "full.safetensors")
    params = read_params(tmp_path / "full.safetensors")[2]
    checkpoint.save(tmp_path / "half.safetensors", params, Metadata(TINY, "train"), "bfloat16")
    to_torch(tmp_path / "half.safetensors", tmp_path / "back.pt")
    back = torch.load(tmp_path / "back.pt", weights_only=True)
    for key, array in state.items():
        if array.ndim < 2:
            assert back[key].numpy().tobytes() == array.tobytes(), key
        elif array.squeeze().ndim >= 2:  # the others may be vectors here
            assert torch.equal(back[key], torch.from_numpy(array).bfloat16().float()), key


def test_demo_to_torch(demo, tmp_path):
    to_torch(demo, tmp_path / "a.pt")
    to_torch(Path("demo"), tmp_path / "b.pt")
    found, expected = (torch.load(tmp_path / name, weights_only=True) for name in ("b.pt", "a.pt"))
    assert_same_bits({k: v.numpy() for k, v in found.items()}, {k: v.numpy() for k, v in expected.items()})


def test_twin_fuse_keeps_the_function(source):
    twin = TorchSam(TINY).eval()
    twin.load_state_dict(torch.load(source, weights_only=True), strict=True)
    images = torch.randn(1, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = twin.encode(images)
        assert relative_rms(twin.fuse().encode(images), expected) < 1e-5
    assert not any("bn" in key for key in twin.state_dict())


def test_save_is_all_or_nothing(tiny, tmp_path, monkeypatch):
    target = tmp_path / "model.safetensors"
    target.write_bytes(b"older")

    def fail(arrays, path, metadata):
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(checkpoint, "save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        checkpoint.save(target, tiny[1], Metadata(TINY, "deploy"))
    assert target.read_bytes() == b"older"
    assert list(tmp_path.iterdir()) == [target]

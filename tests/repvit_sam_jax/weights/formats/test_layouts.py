"""Names of transformers and of timm against maps that the foreign code itself proved; and files of every form."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from convert.synthetic import manifest, synthetic_image, synthetic_state_dict
from repvit_sam_jax import PRESETS, CheckpointError, SamPredictor, load, load_classifier
from repvit_sam_jax.config import CLASSIFIERS, get_model_config
from repvit_sam_jax.models.factory import model_of
from repvit_sam_jax.weights import checkpoint
from repvit_sam_jax.weights.formats import mapping, timm, transformers
from repvit_sam_jax.weights.loading import read_params
from tests.helpers.measures import relative_rms
from tests.helpers.models import TINY_CLASSIFIERS
from tests.helpers.processes import ROOT

MAPS = Path(__file__).parents[3] / "golden" / "layouts"


def test_names_of_transformers():
    """All of ViT-B's, both ways; and a bijection on the larger ones."""
    names = json.loads((MAPS / "hf_sam_vit_b.json").read_text())
    assert transformers.official({name: name for name in names}) == {ours: name for name, ours in names.items()}
    for preset in ("sam_vit_b", "sam_vit_h"):
        official = list(manifest(get_model_config(preset)))
        layout = [transformers.from_official(key) for key in official]
        assert None not in layout
        assert [transformers.to_official(key) for key in layout] == official


@pytest.mark.parametrize("name", [name for name in CLASSIFIERS if name.endswith("_distill") and "tiny" not in name])
def test_names_of_timm(name):
    """A bijection on each classifier with two heads; and on one of them the names that timm has."""
    config = CLASSIFIERS[name]
    official = {key: key for key in manifest(config)}
    layout = timm.from_official(official, config)
    assert not set(layout) & set(official)
    assert timm.official(layout) == official
    if name == "repvit_m1_1_distill":
        assert layout == json.loads((MAPS / "timm_repvit_m1_1.json").read_text())


@pytest.fixture(scope="module")
def vit():
    """A ViT's official state dict, and the params that it converts to."""
    state = synthetic_state_dict(manifest(PRESETS["tiny_vit_sam"]))
    return state, mapping.to_params(state, PRESETS["tiny_vit_sam"], "train")


def layout_of(state):
    return {transformers.from_official(key): value for key, value in state.items()}


def assert_params(found, expected):
    found, expected = dict(checkpoint.flatten(found)), dict(checkpoint.flatten(expected))
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


@pytest.mark.torch
def test_forms_of_transformers(vit, tmp_path):
    """A file, a folder, a sharded one, and what `torch.save` makes of `state_dict()`, with positions twice."""
    import torch

    state, expected = vit
    theirs = layout_of(state)
    names = list(theirs)
    for folder in ("whole", "sharded", "bin"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "config.json").write_text('{"model_type": "sam"}')
    save_file(theirs, tmp_path / "whole" / "model.safetensors", {"format": "pt"})
    # The second has one layer's alone, whose names all begin alike.
    is_layer = lambda key: key.startswith("vision_encoder.layers.1.attn.")
    halves = {"model-1.safetensors": [key for key in names if not is_layer(key)]}
    halves["model-2.safetensors"] = list(filter(is_layer, names))
    for name, part in halves.items():
        save_file({key: theirs[key] for key in part}, tmp_path / "sharded" / name, {"format": "pt"})
    index = {"weight_map": {key: name for name, part in halves.items() for key in part}}
    (tmp_path / "sharded" / "model.safetensors.index.json").write_text(json.dumps(index))
    both = {**theirs, transformers.SECOND_POSITIONS: theirs[transformers.POSITIONS]}
    torch.save({key: torch.from_numpy(value) for key, value in both.items()}, tmp_path / "bin" / "pytorch_model.bin")
    for path in (tmp_path / "whole", tmp_path / "whole" / "model.safetensors", tmp_path / "sharded", tmp_path / "bin"):
        config, form, params = read_params(path)
        assert (config, form) == (PRESETS["tiny_vit_sam"], "deploy")
        assert_params(params, expected)
    both[transformers.SECOND_POSITIONS] = both[transformers.POSITIONS] + 1
    torch.save({key: torch.from_numpy(value) for key, value in both.items()}, tmp_path / "bin" / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"bin: shared_image_embedding.* differ, and SAM has one matrix"):
        load(tmp_path / "bin")


@pytest.mark.parametrize("name", ["model.safetensors", "sam.pt"])
def test_params_are_not_the_file(vit, tmp_path, name):
    """Who trains on writes to the file that was read, and a map of it would change, or crash the process."""
    path = tmp_path / name
    if name == "sam.pt":
        import torch

        torch.save({key: torch.from_numpy(value) for key, value in vit[0].items()}, path)
    else:
        save_file(vit[0], path)
    _, _, read = read_params(path)
    loaded = load(path)[1]
    with path.open("r+b") as file:
        file.write(bytes(path.stat().st_size))
    for found in (read, loaded):
        assert_params(found, vit[1])
    assert all(array.flags.writeable for _, array in checkpoint.flatten(read))


def test_options_that_a_file_has_no_use_for(vit, tmp_path):
    save_file(vit[0], tmp_path / "sam.safetensors")
    with pytest.raises(CheckpointError, match=r"sam\.safetensors has no state dict 'ema': a safetensors file is one"):
        load(tmp_path / "sam.safetensors", key="ema")
    for options in ({"key": "ema"}, {"ignore": ["x*"]}):
        with pytest.raises(CheckpointError, match="a file of this library, which has neither another key nor keys to"):
            load("demo", **options)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "is a folder without model.safetensors or pytorch_model.bin"),
        (
            {"config.json": '{"model_type": "sam2"}'},
            "holds a model of the type 'sam2'; this library has those of the type 'sam'",
        ),
        ({"config.json": '{"architecture": "vit_small"}'}, "holds a model 'vit_small'; this library has"),
        ({"config.json": "["}, r"config\.json is damaged"),
        ({"model.safetensors.index.json": '{"weight_map": [1]}'}, r"index\.json is damaged: its weight_map"),
        ({"model.safetensors.index.json": '{"weight_map": {}}'}, r"index\.json is damaged: its weight_map"),
        ({"model.safetensors.index.json": '{"weight_map": {"a": ["x"]}}'}, r"index\.json is damaged: its weight_map"),
        ({"model.safetensors.index.json": '{"weight_map": {"a": "../x"}}'}, r"index\.json is damaged: its weight_map"),
        (
            {"model.safetensors.index.json": '{"weight_map": {"a": "one.safetensors"}}'},
            r"lacks one\.safetensors, which model\.safetensors\.index\.json lists",
        ),
    ],
)
def test_folders_that_hold_no_sam(tmp_path, files, message):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(CheckpointError, match=message):
        load(tmp_path)


def test_all_that_is_wrong_in_a_layout(vit, tmp_path):
    theirs = layout_of(vit[0])
    theirs["vision_encoder.extra"] = np.zeros(2, np.float32)
    del theirs["mask_decoder.iou_token.weight"]
    save_file(theirs, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"tiny_vit_sam .*: 2 problem") as caught:
        load(tmp_path / "model.safetensors")
    assert "unexpected: vision_encoder.extra (2,)" in str(caught.value)
    assert "missing: mask_decoder.iou_token.weight (1, 32)" in str(caught.value)


def test_files_of_timm(tmp_path):
    """A classifier with two heads, in half precision; one with timm's other blocks is refused by name."""
    config = TINY_CLASSIFIERS[1]
    state = synthetic_state_dict(manifest(config))
    half = {key: value.astype(np.float16) if value.ndim > 1 else value for key, value in state.items()}
    save_file(timm.from_official(half, config), tmp_path / "model.safetensors")
    model, params = load_classifier(tmp_path / "model.safetensors", form="train")
    assert model.config == config
    widened = {key: value.astype(state[key].dtype) for key, value in half.items()}
    assert_params(jax.tree.map(np.asarray, params), mapping.to_params(widened, config, "train"))
    theirs = timm.from_official(state, config)
    theirs["stages.0.blocks.0.token_mixer.conv1.c.weight"] = np.zeros(3, np.float32)
    save_file(theirs, tmp_path / "legacy.safetensors")
    with pytest.raises(CheckpointError, match=r"legacy\.safetensors: these are the weights of timm's repvit_m1, m2"):
        load_classifier(tmp_path / "legacy.safetensors")


@pytest.mark.torch
def test_pytorch_files_are_loaded_without_pytorch(tmp_path):
    """Bit for bit what the converter makes of them, in a process that can't import torch."""
    import torch

    from convert.from_torch import from_torch

    state = synthetic_state_dict(manifest(PRESETS["tiny"]))
    torch.save({"model": {key: torch.from_numpy(value) for key, value in state.items()}}, tmp_path / "sam.pt")
    from_torch(tmp_path / "sam.pt", tmp_path / "sam.safetensors", form="deploy")
    program = f"""
import sys
sys.modules["torch"] = None
import numpy as np
from repvit_sam_jax import load
from repvit_sam_jax.weights import checkpoint
from repvit_sam_jax.config import PRESETS
(a, x), (b, y) = load({str(tmp_path / "sam.pt")!r}), load({str(tmp_path / "sam.safetensors")!r})
x, y = dict(checkpoint.flatten(x)), dict(checkpoint.flatten(y))
assert a == b and x.keys() == y.keys() and all((np.asarray(x[k]) == np.asarray(y[k])).all() for k in x)
print("equal")
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.stdout == "equal\n", done.stderr


def test_key_of_several_state_dicts(tmp_path):
    pytest.importorskip("torch")
    import torch

    state = {key: torch.from_numpy(value) for key, value in synthetic_state_dict(manifest(PRESETS["tiny"])).items()}
    torch.save(
        {"ema": state, "online": {**state, "mask_decoder.iou_token.weight": torch.zeros(1, 32)}}, tmp_path / "a.pt"
    )
    with pytest.raises(CheckpointError, match="holds several state dicts: ema, online"):
        load(tmp_path / "a.pt")
    assert not np.asarray(load(tmp_path / "a.pt", key="online")[1]["mask_decoder"]["iou_token"]).any()
    assert np.asarray(load(tmp_path / "a.pt", key="ema")[1]["mask_decoder"]["iou_token"]).any()


@pytest.mark.slow(group="models")
def test_slimsam_against_transformers():
    """Weights drawn by transformers' own names, and what its `SamModel` computes with them."""
    golden = np.load(MAPS / "hf_slimsam77_seed0_600x900.npz")
    official = manifest(PRESETS["slimsam_77"])
    state = synthetic_state_dict({str(transformers.from_official(key)): about for key, about in official.items()})
    config, form, params = mapping.convert(transformers.official(state))
    assert config.name == "slimsam_77"
    predictor = SamPredictor(model_of(config, form), params)
    predictor.set_image(synthetic_image(600, 900))
    embedding = np.asarray(predictor.get_image_embedding()).transpose(0, 3, 1, 2)
    assert relative_rms(sample(embedding), sample(golden["image_embedding"])) < 5e-6
    _, iou, low_res = predictor.predict(np.array([[270, 240]], np.float32), [1])
    assert relative_rms(sample(low_res), sample(golden["point/multi/low_res"])) < 1e-5
    np.testing.assert_allclose(iou, golden["point/multi/iou"], atol=1e-5)


def sample(values: np.ndarray, count: int = 4096) -> np.ndarray:
    """As the numbers are stored."""
    if values.size <= count:
        return values.reshape(-1)
    return values.reshape(-1)[np.random.Generator(np.random.PCG64([0, values.size])).integers(0, values.size, count)]

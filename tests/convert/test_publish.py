"""Folders for transformers, timm and the hub: read back bit for bit, and loaded by the real packages."""

import json

import jax
import numpy as np
import pytest

from convert.publish import to_hf, to_timm, transformers_config
from convert.synthetic import manifest, synthetic_state_dict, write
from repvit_sam_jax import PRESETS, CheckpointError, Prompts, load, load_classifier, transforms
from repvit_sam_jax.weights import checkpoint
from repvit_sam_jax.weights.formats import mapping
from repvit_sam_jax.weights.loading import read_params
from tests.helpers.models import TINY_CLASSIFIERS

pytestmark = pytest.mark.torch


def same(a, b):
    a, b = dict(checkpoint.flatten(a)), dict(checkpoint.flatten(b))
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(("name", "library"), [("tiny_vit_sam", "transformers"), ("tiny", "repvit_sam_jax")])
def test_segmenters(tmp_path, name, library):
    write(tmp_path / "source.pt", PRESETS[name])
    assert to_hf(tmp_path / "source.pt", tmp_path / "out") == library
    config, _, params = read_params(tmp_path / "out")
    expected = read_params(tmp_path / "source.pt")
    assert config == expected[0] == PRESETS[name]
    assert same(params, expected[2])
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"library_name: {library}\npipeline_tag: mask-generation" in card
    assert checkpoint.digest(dict(checkpoint.flatten(params))) in card
    assert "within tolerance" in card
    again = tmp_path / "again"
    to_hf(tmp_path / "source.pt", again)
    assert all((tmp_path / "out" / path.name).read_bytes() == path.read_bytes() for path in again.iterdir())


def test_classifiers(tmp_path):
    write(tmp_path / "source.pt", TINY_CLASSIFIERS[1])
    assert to_timm(tmp_path / "source.pt", tmp_path / "out") == "tiny_repvit"
    assert json.loads((tmp_path / "out" / "config.json").read_text())["architecture"] == "tiny_repvit"
    config, form, params = read_params(tmp_path / "out")
    assert (config, form) == (TINY_CLASSIFIERS[1], "train")
    assert same(params, read_params(tmp_path / "source.pt")[2])


def test_what_a_library_has_not(tmp_path):
    write(tmp_path / "one.pt", TINY_CLASSIFIERS[0])
    write(tmp_path / "sam.pt", PRESETS["tiny"])
    for convert, source, message in (
        (to_hf, "one.pt", "holds the classifier tiny_repvit; `repvit-sam convert to-timm` takes it"),
        (to_timm, "sam.pt", "holds the segmenter tiny; `repvit-sam convert to-hf` takes it"),
        (to_timm, "one.pt", "holds tiny_repvit in train form; timm has m0_9 to m2_3 with two heads"),
    ):
        with pytest.raises(CheckpointError, match=message):
            convert(tmp_path / source, tmp_path / "out")
        assert not (tmp_path / "out").exists()


def test_config_of_transformers():
    """What their hub has for facebook/sam-vit-base, where it is not a default."""
    vision = transformers_config(PRESETS["sam_vit_b"])["vision_config"]
    assert (vision["hidden_size"], vision["num_hidden_layers"], vision["mlp_dim"], vision["image_size"]) == (
        768,
        12,
        3072,
        1024,
    )
    assert vision["global_attn_indexes"] == [2, 5, 8, 11]


@pytest.mark.slow(group="export")
@pytest.mark.parametrize("name", ["tiny_vit_sam", "sam_vit_b"])
def test_masks_of_transformers(tmp_path, name):
    """`pip install transformers`: with the decoder's epsilon in the config, its masks are ours."""
    transformers = pytest.importorskip("transformers")
    import torch

    write(tmp_path / "source.pt", PRESETS[name])
    to_hf(tmp_path / "source.pt", tmp_path / "out")
    theirs, about = transformers.SamModel.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not about["missing_keys"]
    assert not about["unexpected_keys"]
    model, params = load(tmp_path / "source.pt")
    size = model.config.image_size
    image = np.random.default_rng(0).integers(0, 256, (size * 3 // 4, size, 3), dtype=np.uint8)
    images, point = transforms.preprocess(image, size), np.array([[[[0.3 * size, 0.4 * size]]]], np.float32)
    embedding = jax.jit(model.encode)(params, images)
    prompts = Prompts(point, np.ones((1, 1, 1), np.int32), np.ones((1, 1, 1), bool))
    masks, iou = jax.jit(model.decode)(params, embedding, prompts)
    with torch.no_grad():
        found = theirs.eval()(
            pixel_values=torch.from_numpy(images.transpose(0, 3, 1, 2).copy()),
            input_points=torch.from_numpy(point),
            input_labels=torch.ones(1, 1, 1, dtype=torch.int64),
            multimask_output=True,
        )
    assert np.sqrt(np.square(found.pred_masks.numpy() - masks).mean()) / np.std(masks) < 1e-5
    np.testing.assert_allclose(found.iou_scores.numpy(), iou, atol=1e-5)


@pytest.mark.slow(group="export")
def test_logits_of_timm(tmp_path):
    """`pip install timm`."""
    timm = pytest.importorskip("timm")
    import torch

    from repvit_sam_jax.config import CLASSIFIERS

    write(tmp_path / "source.pt", CLASSIFIERS["repvit_m1_0_distill"])
    to_timm(tmp_path / "source.pt", tmp_path / "out")
    theirs = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    model, params = load_classifier(tmp_path / "source.pt", form="train")
    images = np.random.default_rng(0).normal(size=(1, 224, 224, 3)).astype(np.float32)
    logits = jax.jit(model.classify)(params, images)
    with torch.no_grad():
        found = theirs(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()
    assert np.sqrt(np.square(found - logits).mean()) / np.std(logits) < 1e-5


def test_extra_heads_are_named_and_left_out_on_demand(tmp_path):
    import torch

    state = synthetic_state_dict(manifest(PRESETS["tiny"]))
    extra = {"adapter.weight": np.zeros((2, 2), np.float32), "head.bias": np.zeros(2, np.float32)}
    torch.save({key: torch.from_numpy(value) for key, value in {**state, **extra}.items()}, tmp_path / "tuned.pt")
    with pytest.raises(CheckpointError, match=r"unexpected: head\.bias \(2,\)") as caught:
        load(tmp_path / "tuned.pt")
    assert "unexpected: adapter.weight (2, 2)" in str(caught.value)
    assert "ignore=['PATTERN']" in str(caught.value)
    with pytest.raises(CheckpointError, match=r"1 problem\(s\)\s+unexpected: head\.bias"):
        load(tmp_path / "tuned.pt", ignore=["adapter.*"])
    _, _, params = read_params(tmp_path / "tuned.pt", ignore=["adapter.*", "head.*"])
    assert same(params, mapping.convert(state, form=None)[2])
    with pytest.raises(CheckpointError, match=r"no key matches 'heads\.\*'"):
        load(tmp_path / "tuned.pt", ignore=["heads.*"])

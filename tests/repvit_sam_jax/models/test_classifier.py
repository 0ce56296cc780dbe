"""RepViT classifiers: parity, fusing of the heads, pictures, files, and the image encoder that starts from one."""

import functools
import json

import jax
import numpy as np
import pytest
import torch
from PIL import Image

from convert.backbone import backbone
from convert.from_torch import from_torch
from convert.parity import parity
from convert.synthetic import manifest, synthetic_image, synthetic_state_dict, write
from convert.to_torch import to_torch
from repvit_sam_jax import CLASSIFIERS, PRESETS, Classifier, cli, load, load_classifier
from repvit_sam_jax.models.classifier import preprocess
from repvit_sam_jax.weights import checkpoint, reparam
from repvit_sam_jax.weights.checkpoint import CheckpointError
from repvit_sam_jax.weights.formats import mapping
from tests.helpers.measures import relative_rms

pytestmark = pytest.mark.torch
TINY = CLASSIFIERS["tiny_repvit_distill"]
classify = jax.jit(Classifier.classify, static_argnums=0)


@pytest.fixture
def source(tmp_path):
    """As published: nested under `model`."""
    state = {key: torch.from_numpy(value) for key, value in synthetic_state_dict(manifest(TINY)).items()}
    torch.save({"model": state, "epoch": 3}, tmp_path / "tiny.pth")
    return tmp_path / "tiny.pth"


@pytest.mark.parametrize("name", ["tiny_repvit", "tiny_repvit_distill"])
def test_parity_per_stage(tmp_path, name):
    write(tmp_path / "model.pt", CLASSIFIERS[name])
    report = parity(tmp_path / "model.pt")
    assert report.preset == name
    assert {row.name for row in report.rows} == {"stem", "logits", *(f"blocks.{i}" for i in range(1, 16))}
    assert {row.form for row in report.rows} == {"train", "deploy"}
    assert report.passed, report.to_text()
    assert "34 of 34" in report.to_text()


def test_a_wrong_head_fails_parity(tmp_path, monkeypatch):
    """The second head left out."""
    write(tmp_path / "model.pt", TINY)
    original, method = Classifier._merge, Classifier.classify_with_intermediates

    def without_second_head(self, params):
        modules = original(self, params)
        modules.head_dist = None
        return modules

    monkeypatch.setattr(Classifier, "_merge", without_second_head)
    traced_anew = functools.wraps(method)(lambda *given, **options: method(*given, **options))
    monkeypatch.setattr(Classifier, "classify_with_intermediates", traced_anew)  # JAX knows functions by identity
    report = parity(tmp_path / "model.pt")
    assert [(row.form, row.name) for row in report.rows if not row.passed] == [("train", "logits")]
    assert report.noise is not None


def test_fused_heads_answer_with_their_mean(source):
    """Against the two heads by hand, in float64."""
    state = synthetic_state_dict(manifest(TINY))
    params = mapping.to_params(state, TINY, "train")
    fused = reparam.fuse(params)
    assert set(fused) == {"backbone", "head"}
    x = np.random.default_rng(0).normal(size=(3, 32))
    expected = 0
    for name in ("head", "head_dist"):
        head, stats = params[name], params["batch_stats"][name]["bn"]
        normalised = (x - stats["mean"]) / np.sqrt(stats["var"] + 1e-5) * head["bn"]["scale"] + head["bn"]["bias"]
        expected = expected + (normalised @ head["linear"]["kernel"] + head["linear"]["bias"]) / 2
    found = x @ np.asarray(fused["head"]["kernel"], np.float64) + np.asarray(fused["head"]["bias"], np.float64)
    assert relative_rms(found, expected) < 1e-7


@pytest.mark.parametrize("damage", ["statistics", "bias", "extra"])
def test_damaged_heads_are_an_error(damage):
    params = mapping.to_params(synthetic_state_dict(manifest(TINY)), TINY, "train")
    if damage == "statistics":
        del params["batch_stats"]["head_dist"]
    elif damage == "bias":
        del params["head"]["linear"]["bias"]
    else:
        params["head_dist"]["more"] = np.zeros(3)
    with pytest.raises(reparam.ReparamError, match="head"):
        reparam.fuse(params)


@pytest.mark.parametrize(("height", "width"), [(300, 200), (200, 301), (64, 64)])
def test_preprocess_resizes_the_short_side_and_crops_the_centre(height, width):
    found = preprocess(synthetic_image(height, width), 64)
    assert found.shape == (1, 64, 64, 3)
    short = int(64 * 256 / 224)
    scale = short / min(height, width)
    size = (int(width * scale) if width > height else short, int(height * scale) if height > width else short)
    resized = Image.fromarray(synthetic_image(height, width)).resize(size, Image.Resampling.BICUBIC)
    left, top = (round((side - 64) / 2) for side in size)
    crop = np.asarray(resized.crop((left, top, left + 64, top + 64)), np.float64) / 255
    expected = (crop - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    np.testing.assert_allclose(found[0], expected, atol=2e-6)


def test_files_there_and_back(source, tiny, tmp_path):
    metadata = from_torch(source, tmp_path / "a.safetensors")
    assert (metadata.config.name, metadata.form) == ("tiny_repvit_distill", "train")
    to_torch(tmp_path / "a.safetensors", tmp_path / "back.pth")
    back = torch.load(tmp_path / "back.pth", weights_only=True)
    expected = torch.load(source, weights_only=True)["model"]
    assert set(back) == set(expected)
    assert all(torch.equal(back[key], value) for key, value in expected.items())

    images = preprocess(synthetic_image(64, 64), 64)
    model, params = load_classifier(tmp_path / "a.safetensors")
    trained = load_classifier(tmp_path / "a.safetensors", form="train")
    assert relative_rms(classify(model, params, images), classify(*trained, images)) < 1e-6
    with pytest.raises(ValueError, match=r"\[B, 64, 64, 3\].*got \(1, 32, 64, 3\)"):
        model.classify(params, images[:, :32])
    with pytest.raises(CheckpointError, match="holds the classifier tiny_repvit_distill, no segmenter; `repvit-sam"):
        load(tmp_path / "a.safetensors")
    checkpoint.save(tmp_path / "sam.safetensors", tiny[1], checkpoint.Metadata(PRESETS["tiny"], "deploy"))
    with pytest.raises(CheckpointError, match="holds the segmenter tiny, no classifier; `repvit-sam segment`"):
        load_classifier(tmp_path / "sam.safetensors")


def test_backbone_carries_over_and_says_what(source, tmp_path, capsys, monkeypatch):
    from convert import __main__ as command

    target = tmp_path / "start.safetensors"
    monkeypatch.setattr("sys.argv", ["convert", "backbone", str(source), str(target), "--into", "tiny"])
    command.main()
    printed = capsys.readouterr().out
    _, params = load(target, form="train")
    given = mapping.to_params(synthetic_state_dict(manifest(TINY)), TINY, "train")
    flat = dict(checkpoint.flatten(params))
    carried = {
        path.replace("backbone", "image_encoder", 1): leaf
        for path, leaf in checkpoint.flatten(given)
        if "backbone/" in path
    }
    for path, leaf in carried.items():
        np.testing.assert_array_equal(flat[path], leaf, err_msg=path)
    new = set(flat) - set(carried)
    assert {path.split("/")[0] for path in new} == {"image_encoder", "prompt_encoder", "mask_decoder"}
    assert all(path.startswith("image_encoder/neck/") for path in new if path.startswith("image_encoder"))
    for line in (
        "tiny_repvit_distill -> tiny",
        f"carried over  {sum('stem' in p for p in carried):5d} tensors  image_encoder/stem",
        f"carried over  {sum('blocks' in p for p in carried):5d} tensors  image_encoder/blocks",
        "new, random       6 tensors  image_encoder/neck",
        "left behind       7 tensors  head_dist",
    ):
        assert line in printed, printed


def test_backbone_refuses_what_does_not_fit(source, tmp_path):
    target = tmp_path / "start.safetensors"
    with pytest.raises(
        CheckpointError, match=r"weights of tiny_repvit_distill; the encoder of repvit_sam is repvit_m2_3 or"
    ):
        backbone(source, target, into="repvit_sam")
    with pytest.raises(CheckpointError, match="the encoder of sam_vit_b is no RepViT classifier's"):
        backbone(source, target, into="vit_b")
    with pytest.raises(ValueError, match="repvit_m2_3 is a classifier"):
        backbone(source, target, into="repvit_m2_3")
    write(tmp_path / "sam.pt", PRESETS["tiny"])
    with pytest.raises(CheckpointError, match=r"sam\.pt: these are weights of tiny, a segmenter"):
        backbone(tmp_path / "sam.pt", target, into="tiny")
    from_torch(source, tmp_path / "fused.safetensors", form="deploy")
    to_torch(tmp_path / "fused.safetensors", tmp_path / "fused.pt")
    with pytest.raises(CheckpointError, match="the classifier is fused"):
        backbone(tmp_path / "fused.pt", target, into="tiny")
    with pytest.raises(ValueError, match=r"the target is a \.safetensors file"):
        backbone(source, tmp_path / "start.pt", into="tiny")
    assert not target.exists()


def test_classify_command(source, tmp_path, capsys, monkeypatch):
    from_torch(source, tmp_path / "model.safetensors")
    Image.fromarray(synthetic_image(90, 120)).save(tmp_path / "photo.png")
    (tmp_path / "names.txt").write_text("\n".join(f"animal {i}" for i in range(10)))
    arguments = [
        "repvit-sam",
        "classify",
        str(tmp_path / "photo.png"),
        "--weights",
        str(tmp_path / "model.safetensors"),
    ]

    def run(*more):
        monkeypatch.setattr("sys.argv", [*arguments, *more])
        cli.main()
        return capsys.readouterr().out

    top = json.loads(run("--json", "--names", str(tmp_path / "names.txt")))["top"]
    model, params = load_classifier(tmp_path / "model.safetensors")
    logits = classify(model, params, preprocess(synthetic_image(90, 120), 64))[0]
    probabilities = np.asarray(jax.nn.softmax(logits))
    assert [entry["class"] for entry in top] == list(np.argsort(-probabilities)[:5])
    assert [entry["name"] for entry in top] == [f"animal {entry['class']}" for entry in top]
    np.testing.assert_allclose([entry["probability"] for entry in top], np.sort(probabilities)[:-6:-1], rtol=1e-4)
    assert f"{top[0]['probability']:6.1%}  class {top[0]['class']}\n" in run()
    (tmp_path / "names.txt").write_text("one\ntwo\n")
    with pytest.raises(SystemExit):
        run("--names", str(tmp_path / "names.txt"))
    assert "has 2 lines, the classifier has 10 classes" in capsys.readouterr().err

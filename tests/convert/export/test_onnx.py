"""ONNX files: what they compute, what they say about themselves, and the predictor that runs them."""

import json
import shutil
import sys

import numpy as np
import pytest
import torch
from PIL import Image

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

from convert.export import onnx as exporter  # noqa: E402
from convert.export import web  # noqa: E402
from convert.export.source import read_source  # noqa: E402
from convert.synthetic import synthetic_image, write  # noqa: E402
from repvit_sam_jax import PRESETS, CheckpointError, cli  # noqa: E402
from repvit_sam_jax.files import sha256  # noqa: E402
from repvit_sam_jax.inference import rle  # noqa: E402
from repvit_sam_jax.inference.onnx import OnnxPredictor  # noqa: E402
from tests.helpers.examples import EXAMPLES, agreement, run  # noqa: E402
from tests.helpers.measures import relative_rms  # noqa: E402

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def programs():
    """What PyTorch's exporter makes of the encoder and the decoder, in this order, when `onnx_folder` is there."""
    return []


@pytest.fixture(scope="module")
def onnx_folder(shallow, programs, tmp_path_factory):
    def recorded(*given, **options):
        programs.append(export(*given, **options))
        return programs[-1]

    export, folder = torch.onnx.export, tmp_path_factory.mktemp("onnx") / "onnx"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.onnx, "export", recorded)
        return folder, exporter.export_onnx(shallow, folder, full_size=True)


def test_report_and_metadata(onnx_folder, shallow):
    folder, report = onnx_folder
    assert report.passed
    assert {row.case for row in report.rows} >= {"point", "box", "points, mask", "5 prompts", "96 x 128", "161 x 64"}
    for name in ("encoder", "decoder"):
        session = onnxruntime.InferenceSession(folder / f"{name}.onnx")
        about = session.get_modelmeta().custom_metadata_map
        assert about["preset"] == "tiny"
        assert about["source_sha256"] == sha256(shallow)
        assert about["image_size"] == "128"
        assert all(name in folder_names(folder) for name in ("encoder.onnx", "decoder.onnx"))


def folder_names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_every_convolution_is_fused(onnx_folder, shallow):
    import onnx

    model = onnx.load(onnx_folder[0] / "encoder.onnx")
    assert model.ir_version == 8
    nodes = [node.op_type for node in model.graph.node]
    twin = read_source(shallow).twin()
    assert nodes.count("Conv") == sum(type(m).__name__ == "Conv2d" for m in twin.image_encoder.modules())
    assert nodes.count("BatchNormalization") == 0


def test_gate_catches_other_weights(onnx_folder, other, tmp_path, monkeypatch):
    """And a failed export leaves nothing."""
    for part in ("encoder", "decoder"):
        copy = lambda twin, path, *_, **__: path.write_bytes((onnx_folder[0] / path.name).read_bytes())
        monkeypatch.setattr(exporter, f"export_{part}", copy)
    message = r"tiny in onnx, float64 is past tolerance in .* where rounding alone is \d.*; --allow-past-tolerance"
    with pytest.raises(ValueError, match=message):
        exporter.export_onnx(other, tmp_path / "out")
    assert folder_names(tmp_path) == ["other.safetensors"]
    report = exporter.export_onnx(other, tmp_path / "out", allow_past_tolerance=True)
    assert not report.passed
    assert all(row.tolerance <= 3e-5 for row in report.rows)  # rounding moves these weights by little
    table = (tmp_path / "out" / "past_tolerance.md").read_text()
    assert "rounding alone" in table
    assert table.startswith("tiny in onnx, float64 is past tolerance in")
    import onnx

    for part in ("encoder", "decoder"):
        props = {prop.key: prop.value for prop in onnx.load(tmp_path / "out" / f"{part}.onnx").metadata_props}
        assert props["past_tolerance"] in table
        assert props["config"]


def test_weights_beside_the_file(shallow, onnx_folder, programs, tmp_path, monkeypatch):
    """As ViT-H's are, whose encoder is larger than a file of ONNX may be; they move with it."""
    monkeypatch.setattr(exporter, "LARGEST", 1000)
    made = iter(programs)
    monkeypatch.setattr(torch.onnx, "export", lambda *_, **__: next(made))
    assert exporter.export_onnx(shallow, tmp_path / "out").passed
    names = ["decoder.onnx", "decoder.onnx.data", "encoder.onnx", "encoder.onnx.data"]
    assert folder_names(tmp_path / "out") == names
    (tmp_path / "out").rename(tmp_path / "moved")
    predictor = OnnxPredictor(tmp_path / "moved")
    predictor.set_image(synthetic_image(60, 80))
    assert predictor.predict([[20, 30]], [1])[0].shape == (3, 60, 80)


@pytest.fixture(scope="module")
def predictors(onnx_folder, predictor):
    return OnnxPredictor(onnx_folder[0]), predictor


PROMPTS = {
    "point": {"point_coords": [[20, 30]], "point_labels": [1]},
    "points": {"point_coords": [[20, 30], [50, 40], [60, 10]], "point_labels": [1, 0, -1]},
    "box": {"box": [5, 5, 70, 50]},
    "both": {"point_coords": [[20, 30]], "point_labels": [0], "box": [5, 5, 70, 50]},
    "many": {"point_coords": [[[20, 30]], [[1, 2], [50, 40]], [[9, 9]]], "point_labels": [[1], [1, 0], [1]]},
    "mask": {"mask_input": np.linspace(-3, 3, 32 * 32, dtype=np.float32).reshape(1, 32, 32)},
    "masks": {
        "point_coords": [[[20, 30]], [[50, 40]]],
        "point_labels": [[1], [1]],
        "mask_input": np.linspace(-3, 3, 2 * 32 * 32, dtype=np.float32).reshape(2, 1, 32, 32),
    },
}
OFTEN = {("point", True), ("box", False), ("many", True), ("masks", False)}
"""Each kind of prompt and each number of masks; every pair is asked among the slow tests."""


@pytest.mark.parametrize(
    ("prompt", "multimask_output"),
    [
        pytest.param(
            PROMPTS[name],
            several,
            id=f"{name}-{several}",
            marks=() if (name, several) in OFTEN else pytest.mark.slow(group="export"),
        )
        for name in PROMPTS
        for several in (True, False)
    ],
)
def test_predictor_gives_what_jax_gives(predictors, prompt, multimask_output):
    found, expected = [], []
    for predictor, results in zip(predictors, (found, expected), strict=True):
        predictor.set_image(synthetic_image(60, 80))
        results += predictor.predict(**prompt, multimask_output=multimask_output, return_logits=True)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.shape == theirs.shape
        np.testing.assert_allclose(ours, theirs, atol=2e-5)


def test_many_images(predictors):
    photos = [synthetic_image(60, 80), synthetic_image(80, 50), synthetic_image(40, 40)]
    results = []
    for predictor in predictors:
        predictor.set_image_batch(photos)
        results.append(predictor.predict_batch([[[20, 30]]] * 3, [[1]] * 3))
    for ours, theirs in zip(*results, strict=True):
        np.testing.assert_allclose(ours[2], theirs[2], atol=2e-5)


def test_predictor_refuses(onnx_folder, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no encoder.onnx at .*repvit-sam export onnx WEIGHTS --out DIR"):
        OnnxPredictor(tmp_path)
    for name in ("encoder", "decoder"):
        (tmp_path / f"{name}.onnx").write_bytes((onnx_folder[0] / f"{name}.onnx").read_bytes())
    rewrite_metadata(tmp_path / "decoder.onnx", source_sha256="other")
    with pytest.raises(CheckpointError, match="from different weights"):
        OnnxPredictor(tmp_path)
    rewrite_metadata(tmp_path / "decoder.onnx", format="none")
    with pytest.raises(CheckpointError, match=r"decoder.onnx was not written by repvit-sam export onnx"):
        OnnxPredictor(tmp_path)
    (tmp_path / "encoder.onnx").write_text("text")
    with pytest.raises(CheckpointError, match=r"encoder.onnx is no ONNX file"):
        OnnxPredictor(tmp_path)


def rewrite_metadata(path, **changes):
    import onnx

    model = onnx.load(path)
    onnx.helper.set_model_props(model, {prop.key: prop.value for prop in model.metadata_props} | changes)
    onnx.save(model, path)


def test_segment_command(onnx_folder, shallow, tmp_path, monkeypatch, capsys):
    Image.fromarray(synthetic_image(60, 80)).save(tmp_path / "photo.png")
    monkeypatch.chdir(tmp_path)
    results = []
    for weights, runtime in ((shallow, "jax"), (onnx_folder[0], "onnx")):
        given = ["photo.png", "--point", "20,30", "--weights", str(weights), "--runtime", runtime, "--json"]
        monkeypatch.setattr(sys, "argv", ["repvit-sam", "segment", *given, "--out", f"{runtime}.png"])
        cli.main()
        results.append(json.loads(capsys.readouterr().out))
    assert results[0]["area"] == results[1]["area"] > 0
    assert results[1]["device"] == "cpu, ONNX Runtime"
    assert (tmp_path / "onnx.png").read_bytes() == (tmp_path / "jax.png").read_bytes()
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--dtype", "bfloat16"])
    with pytest.raises(SystemExit):
        cli.main()
    assert "--dtype is for the runtime jax" in capsys.readouterr().err


def test_example(onnx_folder, tmp_path, photo, predictor):
    """Pillow's resizing of logits is not PyTorch's to the last digit."""
    (tmp_path / "onnx").symlink_to(onnx_folder[0])
    # These files have a decoder for photos' sizes as well, which wants to know them.
    code = EXAMPLES["onnx"].replace('"has_mask_input":', '"orig_im_size": np.ones(2, np.float32), "has_mask_input":')
    run(code, tmp_path)
    assert agreement(predictor, photo, tmp_path) > 0.999


def test_missing_extra(shallow, tmp_path, monkeypatch):
    monkeypatch.setattr("convert.export.onnx.PACKAGES", ("onnx", "no_such_package"))
    with pytest.raises(ValueError, match=r"no_such_package not installed; .*pip install 'repvit-sam-jax\[export\]'"):
        exporter.export_onnx(shallow, tmp_path / "out")


@pytest.mark.slow(group="export")
@pytest.mark.filterwarnings("ignore")
def test_against_a_converter_of_jax(onnx_folder, shallow, tmp_path, monkeypatch):
    """The JAX encoder itself, without PyTorch, through jax2onnx where that is installed."""
    jax2onnx = pytest.importorskip("jax2onnx")
    import jax
    import onnx

    # It knows no choice by platform: take what runs on accelerators.
    monkeypatch.setattr(jax.lax, "platform_dependent", lambda *args, default, **_: default(*args))
    source = read_source(shallow)
    images = np.random.default_rng(0).normal(size=(1, 128, 128, 3)).astype(np.float32)
    model = jax2onnx.to_onnx(lambda images: source.model.encode(source.params, images), [images.shape])
    onnx.save(model, tmp_path / "jax.onnx")
    ours = onnxruntime.InferenceSession(onnx_folder[0] / "encoder.onnx")
    theirs = onnxruntime.InferenceSession(tmp_path / "jax.onnx")
    (found,) = theirs.run(None, {theirs.get_inputs()[0].name: images})
    (expected,) = ours.run(None, {"images": images.transpose(0, 3, 1, 2)})
    assert relative_rms(found, expected.transpose(0, 2, 3, 1)) < 1e-5


@pytest.mark.slow(group="export")
@pytest.mark.parametrize("full_size", [False, True])
def test_tiny(checkpoint, tmp_path, full_size):
    assert exporter.export_onnx(checkpoint, tmp_path / "out", full_size=full_size).passed


@pytest.mark.slow(group="export")
def test_full_size(tmp_path):
    write(tmp_path / "weights.pt", PRESETS["repvit_sam"], seed=3)
    assert exporter.export_onnx(tmp_path / "weights.pt", tmp_path / "out").passed


def test_outputs_by_position(onnx_folder):
    """Programs that were written for SAM's export unpack `masks, iou_predictions, low_res_masks`."""
    decoder = exporter.session(onnx_folder[0] / "decoder.onnx")
    given = ["image_embeddings", "point_coords", "point_labels", "mask_input", "has_mask_input", "orig_im_size"]
    assert [each.name for each in decoder.get_inputs()] == given
    shapes = [(1, 32, 8, 8), (1, 2, 2), (1, 2), (1, 1, 32, 32), (1,), (2,)]
    values = {name: np.ones(shape, np.float32) for name, shape in zip(given, shapes, strict=True)}
    masks, iou, low_res = decoder.run(None, {**values, "orig_im_size": np.array([60, 80], np.float32)})
    assert (masks.shape, iou.shape, low_res.shape) == ((1, 4, 60, 80), (1, 4), (1, 4, 32, 32))


def test_folder_of_a_page(onnx_folder, shallow, tmp_path, monkeypatch):
    (tmp_path / "dist").mkdir()
    for name in web.RUNTIME:
        (tmp_path / "dist" / name).write_text(name)
    export = lambda _, out, image_size: shutil.copytree(onnx_folder[0], out) and onnx_folder[1]
    monkeypatch.setattr(web, "export_onnx", export)
    assert web.export_web(shallow, tmp_path / "out", runtime=tmp_path / "dist").passed
    out = tmp_path / "out"
    about = json.loads((out / "model.json").read_text())
    predictor = OnnxPredictor(out / "model")
    assert (about["image_size"], about["mask_threshold"]) == (128, 0.0)
    assert about["generator"] == vars(predictor.config.generator_defaults)
    entries = [about["encoder"], about["decoder"], *about["runtime"]["files"]]
    for entry in entries:
        assert (out / entry["path"]).stat().st_size == entry["bytes"]
        assert sha256(out / entry["path"]) == entry["sha256"]
    assert {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()} == {
        *(path.name for path in (web.PAGE / "site").iterdir()),
        *(entry["path"] for entry in entries),
        "model.json",
        "example.jpg",
    }
    predictor.set_image(web.test_picture(128))
    low_res = predictor.predict([[64, 64]], [1])[2][about["self_test"]["mask"] - 1]
    expected = rle.counts_to_mask(np.array(about["self_test"]["counts"]), (32, 32)).T
    np.testing.assert_array_equal(low_res > 0, expected)

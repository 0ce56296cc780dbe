"""Core ML packages, read back from disk and executed by the interpreter."""

import json
import re
import shutil
import types

import numpy as np
import pytest
import torch

pytest.importorskip("coremltools")

from convert.export import coreml, mil
from convert.export.coreml import check_structure, export_coreml, pad, summary
from convert.export.mil import MilProgram
from convert.export.modules import Decoder, Encoder
from convert.export.source import read_source
from convert.export.verify import ExportError
from convert.synthetic import synthetic_image, write
from convert.torch_models import Sam as TorchSam
from repvit_sam_jax import PRESETS
from repvit_sam_jax.files import sha256
from repvit_sam_jax.weights import checkpoint as checkpoints
from tests.helpers.examples import EXAMPLES, agreement
from tests.helpers.measures import relative_rms

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def converted():
    """What coremltools makes of the encoder and the decoder, when `coreml_folder` is there."""
    return {}


@pytest.fixture(scope="module")
def coreml_folder(shallow, converted, tmp_path_factory):
    def recording(name):
        convert = getattr(coreml, name)
        return lambda *given: converted.setdefault(name, convert(*given))

    folder = tmp_path_factory.mktemp("coreml") / "coreml"
    with pytest.MonkeyPatch.context() as patch:
        for name in ("_convert_encoder", "_convert_decoder"):
            patch.setattr(coreml, name, recording(name))
        report = export_coreml(shallow, folder)
    assert report.passed
    assert {row.case for row in report.rows} >= {"point", "box, points", "points, mask"}
    assert report.rows[-1].name == "embedding, padded"
    return folder


@pytest.fixture(scope="module")
def encoder(coreml_folder):
    return MilProgram(coreml_folder / "encoder.mlpackage")


@pytest.fixture(scope="module")
def twin(shallow):
    return read_source(shallow).twin()


def test_structure_of_the_saved_encoder(encoder, twin, coreml_folder):
    counts = encoder.op_counts()
    assert counts["conv"] == sum(isinstance(m, torch.nn.Conv2d) for m in twin.image_encoder.modules())
    assert counts["batch_norm"] <= 2  # the neck's LayerNorms
    assert counts["gelu"] == 6
    assert set(encoder.result_types()["conv"]) == {"fp16"}
    assert "encoder.mlpackage: 0." in summary(coreml_folder)


def test_positions_are_float32(coreml_folder):
    types = MilProgram(coreml_folder / "decoder.mlpackage").result_types()
    assert set(types["sin"]) == set(types["cos"]) == {"fp32"}
    assert set(types["softmax"]) == {"fp16"}


def test_metadata_and_inputs(encoder, coreml_folder, shallow):
    decoder = MilProgram(coreml_folder / "decoder.mlpackage")
    for program in (encoder, decoder):
        about = program.metadata
        assert checkpoints.Metadata.from_strings(about).config == read_source(shallow).config
        assert about["source_sha256"] == sha256(shallow)
    assert json.loads(encoder.metadata["inputs"]) == {"image": "RGB image 128 x 128"}
    assert json.loads(decoder.metadata["inputs"])["point_coords"] == "float32 [1, 1..16, 2]"
    image = encoder.spec.description.input[0].type.imageType
    assert (image.width, image.height) == (128, 128)
    assert image.ColorSpace.Name(image.colorSpace) == "RGB"


def test_interpreter_against_pytorch(coreml_folder, twin, encoder):
    """The module that was exported, in float32: float16 is what is left."""
    pixels = pad(synthetic_image(96, 128), 128)
    found = encoder(image=pixels)["image_embeddings"]
    expected = Encoder(twin, normalise=True)(torch.from_numpy(pixels))
    assert 1e-5 < relative_rms(found, expected) < 3e-3
    decoder, module = MilProgram(coreml_folder / "decoder.mlpackage"), Decoder(twin)
    rng = np.random.default_rng(0)
    for points in (1, 2, 16):
        given = {
            "image_embeddings": rng.normal(size=(1, 32, 8, 8)),
            "point_coords": rng.uniform(0, 128, (1, points, 2)),
            "point_labels": rng.integers(-1, 4, (1, points)),
            "mask_input": rng.normal(size=(1, 1, 32, 32)),
            "has_mask_input": np.ones(1),
        }
        given = {name: value.astype(np.float32) for name, value in given.items()}
        masks, iou = module(*(torch.from_numpy(value) for value in given.values()))
        found = decoder(**given)
        assert relative_rms(found["low_res_masks"], masks) < 1e-2
        np.testing.assert_allclose(found["iou_predictions"], iou, atol=1e-2)


def test_interpreter_refuses(encoder, tmp_path):
    with pytest.raises(ValueError, match=r"inputs are \['image'\], got \['pixels'\]"):
        encoder(pixels=np.zeros((1, 3, 128, 128)))
    (tmp_path / "no.mlpackage").mkdir()
    with pytest.raises(ValueError, match="is no Core ML package"):
        MilProgram(tmp_path / "no.mlpackage")


def test_unfused_encoder_is_noticed(coreml_folder, twin, tmp_path):
    unfused = TorchSam(twin.config)
    convolutions = sum(isinstance(module, torch.nn.Conv2d) for module in twin.image_encoder.modules())
    with pytest.raises(ExportError, match=rf"{convolutions} convolutions in place of \d+: it is not fused"):
        check_structure(unfused, coreml_folder, "float16")
    with pytest.raises(ExportError, match="fp32 was asked for"):
        check_structure(twin, coreml_folder, "float32")


def test_gate_and_nothing_left(coreml_folder, other, tmp_path, monkeypatch):
    """Packages of other weights are past tolerance, and so is a colour of padding that is not the mean's."""
    monkeypatch.setattr(coreml, "_convert_encoder", lambda *_: None)
    monkeypatch.setattr(coreml, "_convert_decoder", lambda *_: None)
    monkeypatch.setattr(coreml, "_save", lambda _, path, __: shutil.copytree(coreml_folder / path.name, path))
    with pytest.raises(ExportError, match=r"tiny in coreml, float64 is past tolerance in .* was not written"):
        export_coreml(other, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["other.safetensors"]


def test_unknown_operation_is_refused(coreml_folder, shallow, monkeypatch):
    """Never skipped; the command prints the message as its one line."""
    monkeypatch.delitem(mil.OPS, "gelu")
    with pytest.raises(RuntimeError, match="does not know the operation gelu"):
        coreml.check(read_source(shallow), coreml_folder, bars=coreml.BARS["float16"])


def test_padding_colour_matters(coreml_folder, shallow, monkeypatch):
    monkeypatch.setattr(coreml, "PADDING", (0, 0, 0))
    report = coreml.check(read_source(shallow), coreml_folder, bars=coreml.BARS["float16"])
    assert [row.name for row in report.rows if not row.passed] == ["embedding, padded"]


@pytest.mark.slow(group="export")
def test_weights_of_8_bits(coreml_folder, converted, shallow, tmp_path, monkeypatch):
    """Of the very models that `coreml_folder` was made of."""
    for name, model in converted.items():
        monkeypatch.setattr(coreml, name, lambda *_, model=model: model)
    assert export_coreml(shallow, tmp_path / "out", compress="int8").passed
    assert unpacking(tmp_path / "out") > 0


def unpacking(folder):
    """How many operations of the encoder do nothing but unpack its weights."""
    counts = MilProgram(folder / "encoder.mlpackage").op_counts()
    return sum(count for name, count in counts.items() if name.startswith("constexpr"))


@pytest.mark.slow(group="export")
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"compress": "int8", "target": "iOS18"},
        {"precision": "float32", "input_type": "array", "target": "iOS16"},
    ],
    ids=lambda options: "-".join(options.values()) or "plain",
)
def test_variants(checkpoint, tmp_path, options):
    report = export_coreml(checkpoint.with_suffix(".safetensors"), tmp_path / "out", **options)
    assert report.passed
    if "compress" in options:
        assert unpacking(tmp_path / "out") > 0
    elif options:
        assert report.rows[0].relative < 1e-5


def test_palette_is_near_the_best():
    """Against a long k-means from SciPy."""
    from scipy.cluster.vq import kmeans2

    weight = np.random.default_rng(0).normal(size=(40, 50)).astype(np.float32)
    palette, indices = coreml._palette(weight)
    assert len(palette) == 64
    assert indices.max() < 64
    error = np.mean((palette[indices] - weight.reshape(-1)) ** 2)
    centres, labels = kmeans2(weight.reshape(-1, 1), np.sort(palette)[:, None], iter=100, minit="matrix")
    assert error <= 1.001 * np.mean((centres[labels, 0] - weight.reshape(-1)) ** 2)


@pytest.mark.slow(group="export")
@pytest.mark.parametrize("preset", ["tiny_mobile_sam", "tiny_vit_sam"])
def test_other_encoders(preset, tmp_path):
    write(tmp_path / "weights.pt", PRESETS[preset], seed=3)
    report = export_coreml(tmp_path / "weights.pt", tmp_path / "out")
    if preset == "tiny_vit_sam":  # 3.3e-2 if padding with whole numbers were not made 0 within
        (padded,) = (row for row in report.rows if row.name == "embedding, padded")
        assert padded.relative < coreml.BARS["float16"].embedding


@pytest.mark.slow(group="export")
def test_what_misses_a_bar_is_not_written(checkpoint, tmp_path):
    """Packages that compute something else than the model are refused, and nothing of them is left."""
    with pytest.raises(ExportError, match="flipped mask pixels"):  # 5.2% of this preset's noise, and the bar is 5%
        export_coreml(checkpoint, tmp_path / "out", compress="palette6")
    assert not list(tmp_path.iterdir())


def test_example(coreml_folder, tmp_path, photo, predictor, monkeypatch):
    """coremltools runs models on macOS only: its part is taken by the interpreter."""

    class Model(MilProgram):
        def get_spec(self):
            return self.spec

        def predict(self, inputs):
            image = inputs.pop("image", None)
            if image is not None:
                inputs["image"] = np.asarray(image, np.float32).transpose(2, 0, 1)[None]
            return self(**inputs)

    (tmp_path / "coreml").symlink_to(coreml_folder)
    stand_in = types.SimpleNamespace(models=types.SimpleNamespace(MLModel=lambda path: Model(tmp_path / path)))
    models = {"coreml/encoder.mlpackage", "coreml/decoder.mlpackage"}
    assert models <= set(re.findall(r'MLModel\("(.*?)"\)', EXAMPLES["coreml"]))
    code = EXAMPLES["coreml"].replace("import coremltools\n", "")
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "docs/export.md", "exec"), {"coremltools": stand_in})
    assert agreement(predictor, photo, tmp_path) > 0.98


@pytest.mark.slow(group="export")
@pytest.mark.parametrize("compress", [None, "int8"])
def test_full_size(tmp_path, compress):
    """RepViT-SAM at 1024: 217 convolutions, and what float16 costs; with depthwise kernels of 8 bits it would miss."""
    write(tmp_path / "weights.pt", PRESETS["repvit_sam"], seed=3)
    assert export_coreml(tmp_path / "weights.pt", tmp_path / "out", compress=compress).passed
    counts = MilProgram(tmp_path / "out" / "encoder.mlpackage").op_counts()
    assert (counts["conv"], counts["gelu"]) == (217, 55)
    assert counts["batch_norm"] <= 2

"""Encoders and decoders for annotation tools as modules, small, and asked as tools ask."""

import dataclasses
import re
import types

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

from convert.export import anylabeling, cvat, tools  # noqa: E402
from convert.export.source import read_source  # noqa: E402
from convert.synthetic import synthetic_image  # noqa: E402
from repvit_sam_jax import PRESETS, transforms  # noqa: E402
from tests.helpers import tools as tool_programs  # noqa: E402

pytestmark = pytest.mark.torch
SIZE = (96, 128)
"""Of photos that need no scaling for `shallow`."""
NAMES = ("masks", "iou_predictions", "low_res_masks", "xtl", "ytl", "xbr", "ybr")


def runner(module, order, names=NAMES):
    """A module as a file that is run by names."""

    def run(given):
        with torch.no_grad():
            found = module(*(torch.from_numpy(np.ascontiguousarray(given[name])) for name in order))
        found = found if isinstance(found, tuple) else (found,)
        return dict(zip(names, [tensor.numpy() for tensor in found], strict=False))

    return run


DECODER = ("image_embeddings", "point_coords", "point_labels", "mask_input", "has_mask_input", "orig_im_size")


@pytest.fixture(scope="module")
def twin(shallow):
    return read_source(shallow).twin()


@pytest.fixture(scope="module")
def photo():
    return synthetic_image(*SIZE)


@pytest.fixture(scope="module")
def expected(predictor, photo):
    """Masks of `SamPredictor` for each prompt that is asked for below."""
    predictor.set_image(photo)
    masks, iou, _ = predictor.predict([[40, 50]], [1])
    several = predictor.predict([[40, 50], [90, 20]], [1, 0], multimask_output=False)
    box = predictor.predict(box=[20, 10, 100, 80], multimask_output=False)
    both = predictor.predict([[90, 20]], [0], box=[20, 10, 100, 80], multimask_output=False)
    return {"point": masks[iou.argmax()], "points": several[0][0], "box": box[0][0], "both": both[0][0]}


def assert_same(found, wanted):
    assert wanted.any()
    assert not wanted.all()
    assert (found != wanted).mean() < 1e-3  # of pixels whose logit is near 0


def test_anylabeling_gives_what_the_predictor_gives(twin, photo, expected):
    """Whatever is black beside the photo, and though a box comes with a point that is none."""
    encoder = runner(tools.CanvasEncoder(twin), ("input_image",))
    decoder = runner(tools.CanvasDecoder(twin), DECODER)
    for canvas in ((96, 128), (96, 300), (200, 128)):
        picture = lambda decoder, canvas=canvas: tool_programs.anylabeling(encoder, decoder, photo, canvas)
        ask = picture(lambda given: dict(list(decoder(given).items())[:3]))
        assert_same(ask((40, 50, 1)), expected["point"])
        assert_same(ask((40, 50, 1), (90, 20, 0)), expected["points"])
        assert_same(ask((20, 10, 100, 80)), expected["box"])
        assert_same(ask((90, 20, 0), (20, 10, 100, 80)), expected["both"])


@pytest.mark.parametrize("appends", [False, True])
def test_cvat_gives_what_the_predictor_gives(twin, photo, expected, appends):
    """With and without a point that is none, which CVAT's versions disagree about."""
    encoder = runner(tools.PackedEncoder(twin), ("input_image",))
    (embedding,) = encoder({"input_image": photo.astype(np.float32)}).values()
    assert embedding.shape == tools.EMBEDDING
    decoder = runner(tools.CroppingDecoder(twin), DECODER)
    ask = tool_programs.cvat(embedding, decoder, SIZE, appends=appends)
    first, low_res = ask([(40, 50)])
    assert_same(first, expected["point"])
    assert low_res.shape == tools.MASK
    assert_same(ask([(40, 50)], [(90, 20)])[0], expected["points"])
    assert_same(ask(box=(20, 10, 100, 80))[0], expected["box"])
    assert_same(ask([], [(90, 20)], (20, 10, 100, 80))[0], expected["both"])


def test_cvat_gives_an_answer_back(twin, photo, predictor):
    """The next click comes with the low-res mask of the one before."""
    (embedding,) = runner(tools.PackedEncoder(twin), ("input_image",))(
        {"input_image": photo.astype(np.float32)}
    ).values()
    ask = tool_programs.cvat(embedding, runner(tools.CroppingDecoder(twin), DECODER), SIZE)
    _, low_res = ask([(40, 50)])
    predictor.set_image(photo)
    _, iou, logits = predictor.predict([[40, 50]], [1])
    given = logits[[iou.argmax()]]
    masks, _, _ = predictor.predict([[40, 50], [90, 20]], [1, 0], mask_input=given, multimask_output=False)
    assert_same(ask([(40, 50)], [(90, 20)], low_res=low_res)[0], masks[0])


def test_an_empty_mask_is_one_pixel(twin, photo):
    decoder = tools.CroppingDecoder(twin)
    decoder.threshold = 1e9
    embedding = np.zeros(tools.EMBEDDING, np.float32)
    mask, _ = tool_programs.cvat(embedding, runner(decoder, DECODER), SIZE)([(40, 50)])
    assert not mask.any()


@pytest.mark.parametrize("size", [(60, 80), (300, 200), (128, 50)])
def test_canvas_is_cut_and_scaled_as_pillow_does(twin, size):
    photo = np.maximum(synthetic_image(*size), 1)
    canvas = np.zeros((310, 400, 3), np.float32)
    canvas[: size[0], : size[1]] = photo
    images, height, width = tools.CanvasEncoder(twin).preprocess(torch.from_numpy(canvas))
    assert (float(height), float(width)) == size
    wanted = transforms.preprocess([photo], 128).transpose(0, 3, 1, 2)
    levels = np.abs(images.numpy() - wanted) * np.array(transforms.PIXEL_STD).reshape(1, 3, 1, 1)
    assert levels.max() < 2.01  # Pillow's weights have 22 bits, and each pass rounds
    assert (levels > 0.01).mean() < 0.1
    black = tools.CanvasEncoder(twin)(torch.zeros(20, 30, 3))
    assert torch.isfinite(black).all()


def test_config_yaml():
    yaml = pytest.importorskip("yaml")
    demo = yaml.safe_load(anylabeling.config_yaml(PRESETS["repvit_sam"], int8=True))
    assert demo["type"] == "segment_anything"
    assert (demo["encoder_model_path"], demo["decoder_model_path"]) == ("encoder.onnx", "decoder.onnx")
    assert demo["display_name"] == "RepViT-SAM JAX: repvit_sam (1024, int8)"
    assert (demo["input_size"], demo["max_width"], demo["max_height"]) == (1024, 1024, 682)
    assert re.fullmatch(r"[A-Za-z0-9._-]+", demo["name"])
    assert demo["name"] != yaml.safe_load(anylabeling.config_yaml(PRESETS["repvit_sam"]))["name"]


@pytest.mark.parametrize("export", [anylabeling.export_anylabeling, cvat.export_cvat])
def test_refuses_sizes_that_tools_do_not_know(shallow, tmp_path, export):
    with pytest.raises(ValueError, match=r"no multiple of this model's 24; give --image-size 1024 or 512$"):
        export(shallow, tmp_path / "out", image_size=96)
    assert not list(tmp_path.iterdir())


def test_cvat_refuses_large_embeddings():
    config = PRESETS["repvit_sam"]
    wide = dataclasses.replace(config, mask_decoder=dataclasses.replace(config.mask_decoder, embed_dim=512))
    with pytest.raises(ValueError, match="CVAT takes embeddings of 1048576 values, and this model's has 2097152"):
        cvat._check_embedding(types.SimpleNamespace(config=wide))
    cvat._check_embedding(types.SimpleNamespace(config=config))


def test_function_of_cvat():
    """Its name is the one that CVAT's plugin asks for, and its handler the one of the file beside it."""
    yaml = pytest.importorskip("yaml")
    function = yaml.safe_load((cvat.NUCLIO / "function.yaml").read_text())
    assert function["metadata"]["name"] == "pth-facebookresearch-sam-vit-h"
    assert function["metadata"]["annotations"]["type"] == "interactor"
    module, name = function["spec"]["handler"].split(":")
    assert f"def {name}(" in (cvat.NUCLIO / f"{module}.py").read_text()

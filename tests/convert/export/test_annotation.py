"""Exported files for annotation tools, run by programs that call them as the tools do, on the demonstration model."""

import base64
import importlib.util
import io
import json
import types

import numpy as np
import pytest
from PIL import Image

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
pytest.importorskip("torch")

from convert.export import __main__ as command  # noqa: E402
from repvit_sam_jax import SamPredictor, load  # noqa: E402
from repvit_sam_jax.data.synthetic.scenes import render  # noqa: E402
from repvit_sam_jax.evals.metrics import iou  # noqa: E402
from repvit_sam_jax.inference.masks import box_of  # noqa: E402
from tests.helpers import tools as tool_programs  # noqa: E402

pytestmark = [pytest.mark.torch, pytest.mark.slow(group="export")]
SCENES = [((480, 640), 0), ((640, 480), 2)]


def run(path):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_outputs()]
    return lambda given: dict(zip(names, session.run(None, given), strict=True))


@pytest.fixture(scope="module")
def predictor():
    return SamPredictor(*load("demo"))


@pytest.fixture(scope="module", params=[False, True], ids=["float32", "int8"])
def int8(request):
    return request.param


@pytest.fixture(scope="module")
def exported(tmp_path_factory, int8):
    def export(tool):
        folder = tmp_path_factory.mktemp(tool) / "out"
        command.main([tool, "demo", "--out", str(folder), *["--int8"] * int8])
        return folder

    return export


@pytest.fixture(scope="module")
def anylabeling(exported):
    return exported("anylabeling")


@pytest.fixture(scope="module")
def cvat(exported):
    return exported("cvat")


def prompts(scene):
    """A point in and a box around each thing."""
    rng = np.random.default_rng(0)
    for mask in scene.masks[:5]:
        y, x = rng.choice(np.argwhere(mask))
        left, top, right, bottom = box_of(mask)
        yield (float(x), float(y)), (left, top, right + 1, bottom + 1)


def answers(predictor, point, box):
    masks, scores, _ = predictor.predict([point], [1])
    return masks[scores.argmax()], predictor.predict(box=box, multimask_output=False)[0][0]


def assert_agree(found, wanted, int8):
    """Tools scale photos in another way, which moves outlines by less than a pixel; 8 bits move them a little more."""
    ious = np.array([float(iou(a, b)) for a, b in zip(found, wanted, strict=True)])
    pixels = np.array([(a == b).mean() for a, b in zip(found, wanted, strict=True)])
    assert np.median(ious) >= (0.985 if int8 else 0.99), ious
    assert ious.mean() >= (0.98 if int8 else 0.985), ious
    assert pixels.mean() >= 0.995, pixels


@pytest.mark.parametrize(("size", "number"), SCENES)
def test_anylabeling(anylabeling, predictor, int8, size, number):
    encoder, decoder = (run(anylabeling / f"{part}.onnx") for part in ("encoder", "decoder"))
    scene = render(9001, number, size)
    predictor.set_image(scene.image)
    ask = tool_programs.anylabeling(encoder, decoder, scene.image)
    found, wanted = [], []
    for point, box in prompts(scene):
        found += [ask((*point, 1)), ask(box)]
        wanted += answers(predictor, point, box)
    assert_agree(found, wanted, int8)


def test_folder_of_anylabeling(anylabeling, int8):
    assert sorted(path.name for path in anylabeling.iterdir()) == ["config.yaml", "decoder.onnx", "encoder.onnx"]
    assert ("int8" in (anylabeling / "config.yaml").read_text()) == int8
    session = onnxruntime.InferenceSession(anylabeling / "decoder.onnx")
    assert session.get_modelmeta().custom_metadata_map["preset"] == "demo"


@pytest.mark.parametrize(("size", "number"), SCENES)
def test_cvat(cvat, predictor, int8, size, number):
    """A photo goes to the function as CVAT sends it, and its blob to the page's decoder."""
    scene = render(9001, number, size)
    predictor.set_image(scene.image)
    blob = ask_function(cvat / "nuclio", scene.image)
    ask = tool_programs.cvat(np.frombuffer(base64.b64decode(blob), np.float32), run(cvat / "decoder.onnx"), size)
    found, wanted = [], []
    for point, box in prompts(scene):
        found += [ask([point])[0], ask(box=box)[0]]
        wanted += answers(predictor, point, box)
    assert_agree(found, wanted, int8)


def ask_function(folder, photo):
    """The `blob` of the function's answer, called as Nuclio calls it."""
    spec = importlib.util.spec_from_file_location("nuclio_function", folder / "main.py")
    function = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(function)
    context = types.SimpleNamespace(user_data=types.SimpleNamespace(), Response=types.SimpleNamespace)
    function.init_context(context)
    file = io.BytesIO()
    Image.fromarray(photo).save(file, "png")
    event = types.SimpleNamespace(body={"image": base64.b64encode(file.getvalue()).decode()})
    answer = function.handler(context, event)
    assert (answer.status_code, answer.content_type) == (200, "application/json")
    return json.loads(answer.body)["blob"]


def test_folder_of_cvat(cvat):
    found = sorted(str(path.relative_to(cvat)) for path in cvat.rglob("*") if path.is_file())
    assert found == ["decoder.onnx", "nuclio/encoder.onnx", "nuclio/function.yaml", "nuclio/main.py"]

"""The backend for Label Studio, called as its server does; without its packages, stubs stand for them."""

import dataclasses
import importlib.util
import sys
import types
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from convert.synthetic import manifest, synthetic_image, synthetic_state_dict
from repvit_sam_jax import PRESETS, Sam, SamPredictor
from repvit_sam_jax.weights.formats import mapping

FOLDER = Path(__file__).parents[2] / "examples" / "label_studio"
SIZE = (96, 128)


class Base:
    """What the backend uses of `LabelStudioMLBase` (label-studio-ml 2)."""

    def __init__(self, project_id=None, label_config=None):
        self.project_id, self.kept, self.config = project_id, {}, ElementTree.fromstring(label_config)
        self.setup()

    def setup(self):
        raise NotImplementedError

    def set(self, key, value):
        self.kept[key] = value

    def get(self, key):
        return self.kept.get(key)

    def get_first_tag_occurence(self, control_type, object_type):
        control, shown = (next(self.config.iter(kind)) for kind in (control_type, object_type))
        assert control.get("toName") == shown.get("name")
        return control.get("name"), control.get("toName"), shown.get("value").removeprefix("$")

    def get_local_path(self, url, task_id=None):
        assert task_id == 7
        return url


@dataclasses.dataclass
class Response:
    """What the backend uses of `ModelResponse`."""

    predictions: list
    model_version: str | None = None


@pytest.fixture(scope="module")
def backend():
    """The module `model.py`, over a small model."""
    stubs = {
        "label_studio_ml": {},
        "label_studio_ml.model": {"LabelStudioMLBase": Base},
        "label_studio_ml.response": {"ModelResponse": Response},
    }
    try:
        from label_studio_sdk.converter import brush  # noqa: F401
    except ImportError:
        flat = types.SimpleNamespace(mask2rle=lambda mask: mask.ravel().tolist(), decode_rle=np.array)
        stubs |= {"label_studio_sdk": {}, "label_studio_sdk.converter": {"brush": flat}}
    with pytest.MonkeyPatch.context() as patch:
        for name, members in stubs.items():
            module = types.ModuleType(name)
            vars(module).update(members)
            patch.setitem(sys.modules, name, module)
        spec = importlib.util.spec_from_file_location("label_studio_model", FOLDER / "model.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    config = PRESETS["tiny"]
    params = mapping.to_params(synthetic_state_dict(manifest(config), 3), config, "train")
    predictor = SamPredictor(Sam(config, "train"), params)
    module.predictor = lambda: predictor
    return module


@pytest.fixture
def photo(tmp_path):
    Image.fromarray(synthetic_image(*SIZE)).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def ask(backend, photo, *results):
    """What the server hands on of a request, and the predictions that it gets."""
    model = backend.RepViTSam("1", (FOLDER / "config.xml").read_text())
    task = {"id": 7, "data": {"image": str(photo)}}
    return model.predict([task], context={"result": list(results)}).predictions


def region(kind, label, **value):
    about = {"original_width": SIZE[1], "original_height": SIZE[0], "image_rotation": 0, "type": kind}
    return {**about, "value": {**value, kind: [label]}}


def point(x, y, positive=1, label="Thing"):
    return {
        **region("keypointlabels", label, x=100 * x / SIZE[1], y=100 * y / SIZE[0], width=0.3),
        "is_positive": positive,
    }


def box(left, top, right, bottom, label="Thing"):
    share = {
        "x": left / SIZE[1],
        "y": top / SIZE[0],
        "width": (right - left) / SIZE[1],
        "height": (bottom - top) / SIZE[0],
    }
    return region("rectanglelabels", label, rotation=0, **{name: 100 * value for name, value in share.items()})


def mask_of(prediction):
    """The mask in a prediction with a single region."""
    (found,) = prediction["result"]
    assert (found["type"], found["from_name"], found["to_name"]) == ("brushlabels", "mask", "image")
    assert (found["original_height"], found["original_width"]) == SIZE
    values = np.array(found["value"]["rle"])
    if len(values) != SIZE[0] * SIZE[1]:  # Label Studio's own runs, of RGBA
        from label_studio_sdk.converter import brush

        values = brush.decode_rle(found["value"]["rle"]).reshape(*SIZE, 4)[..., 3]
    assert set(np.unique(values)) <= {0, 255}
    return values.reshape(SIZE) > 0


def test_masks_are_the_predictors(backend, photo):
    predictor = backend.predictor()
    predictor.set_image(photo)
    masks, scores, _ = predictor.predict([[40, 50]], [1])
    several = predictor.predict([[40, 50], [90, 20]], [1, 0], multimask_output=False)[0][0]
    boxed = predictor.predict([[90, 20]], [0], box=[20, 10, 100, 80], multimask_output=False)[0][0]
    (one,) = ask(backend, photo, point(40, 50))
    np.testing.assert_array_equal(mask_of(one), masks[scores.argmax()])
    assert one["score"] == pytest.approx(scores.max())
    assert one["model_version"] == "repvit-sam-jax demo"
    (two,) = ask(backend, photo, point(40, 50), point(90, 20, 0))
    np.testing.assert_array_equal(mask_of(two), several)
    # The newest rectangle and the newest label count.
    (three,) = ask(backend, photo, box(0, 0, 9, 9), point(90, 20, 0), box(20, 10, 100, 80, "Other"))
    np.testing.assert_array_equal(mask_of(three), boxed)
    assert three["result"][0]["value"]["brushlabels"] == ["Other"]
    for mask in (masks[scores.argmax()], several, boxed):
        assert 0 < mask.mean() < 1


def test_what_means_no_thing_has_no_answer(backend, photo):
    assert ask(backend, photo) == []
    assert ask(backend, photo, point(40, 50, 0)) == []
    assert ask(backend, photo, region("brushlabels", "Thing", format="rle", rle=[0])) == []


def test_a_photo_is_embedded_once(backend, photo, monkeypatch):
    """And again when its file is another."""
    embedded, embed = [], SamPredictor.embed
    monkeypatch.setattr(SamPredictor, "embed", lambda self, images: embedded.append(1) or embed(self, images))
    for _ in range(2):
        assert ask(backend, photo, point(128, 96))  # the corner, which is beyond the last pixel
    assert len(embedded) == 1
    Image.fromarray(synthetic_image(*SIZE, 5)).save(photo)
    assert ask(backend, photo, point(1, 1))
    assert len(embedded) == 2


def test_labels_of_the_example_fit_together():
    """Smart regions have the labels that brushes have."""
    config = ElementTree.parse(FOLDER / "config.xml").getroot()
    labels = {
        kind: [label.get("value") for label in next(config.iter(kind))] for kind in ("BrushLabels", "KeyPointLabels")
    }
    assert (
        labels["BrushLabels"]
        == labels["KeyPointLabels"]
        == [e.get("value") for e in next(config.iter("RectangleLabels"))]
    )
    assert all(next(config.iter(kind)).get("smart") == "true" for kind in ("KeyPointLabels", "RectangleLabels"))

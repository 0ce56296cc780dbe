"""Files to save, read again."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from repvit_sam_jax.app.results import result
from repvit_sam_jax.app.session import Session
from tests.helpers.measures import rasterised


def read_png(content):
    with Image.open(io.BytesIO(content)) as image:
        return np.array(image)


@pytest.fixture
def clicked(session, labels):
    """With a click on the second thing."""
    y, x = np.argwhere(labels == 2)[9]
    session.add_point(float(x), float(y), 1)
    return session


@pytest.mark.parametrize("kind", ["coco", "polygons"])
def test_the_mask_in_json(clicked, labels, kind):
    name, content = result(clicked, kind)
    assert name == f"a scene_{kind}.json"
    found = json.loads(content)
    assert found["images"] == [{"id": 1, "file_name": "a scene.jpg", "width": 64, "height": 48}]
    (annotation,) = found["annotations"]
    assert np.array_equal(rasterised(annotation["segmentation"], labels.shape), labels == 2)
    assert annotation["area"] == np.count_nonzero(labels == 2)
    assert annotation["point_labels"] == [1]
    assert annotation["predicted_iou"] == pytest.approx(0.9)
    assert "prompt_box" not in annotation
    rows, columns = np.nonzero(labels == 2)
    x, y, width, height = annotation["bbox"]
    assert (x, y, x + width - 1, y + height - 1) == (columns.min(), rows.min(), columns.max(), rows.max())


def test_the_chosen_mask_as_a_picture(clicked, labels):
    name, content = result(clicked, "png")
    assert name == "a scene_mask.png"
    assert np.array_equal(read_png(content), labels == 2)
    clicked.choose(2)
    assert read_png(result(clicked, "png").content).all()


def test_everything(session, labels):
    session.search({"points_per_side": 8, "pred_iou_thresh": 0.6}, lambda *_: None)
    session.records[0]["stability_score"] = float("nan")
    numbers = read_png(result(session, "png").content)
    of_runs, of_polygons = (json.loads(result(session, kind).content)["annotations"] for kind in ("coco", "polygons"))
    assert of_runs[0]["stability_score"] is None
    assert [annotation["id"] for annotation in of_runs] == list(range(1, len(session.records) + 1))
    found = [rasterised(annotation["segmentation"], labels.shape) for annotation in of_runs]
    for label in range(4):  # the model's masks do not overlap
        (annotation,) = [a for a, mask in zip(of_runs, found, strict=True) if np.array_equal(mask, labels == label)]
        assert np.array_equal(numbers == annotation["id"], labels == label)
        polygons = of_polygons[annotation["id"] - 1]["segmentation"]
        assert np.array_equal(rasterised(polygons, labels.shape), labels == label)


def test_nothing_to_save(session):
    for visitor in (session, Session()):
        with pytest.raises(ValueError, match="no mask to save yet"):
            result(visitor, "png")

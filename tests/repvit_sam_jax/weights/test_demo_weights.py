"""What the demonstration model is worth: IoU on scenes and on photos, the same through every path."""

import functools

import numpy as np
import pytest
from PIL import Image, ImageDraw
from skimage import data

from repvit_sam_jax import SamPredictor, load
from repvit_sam_jax.data.synthetic import scenes
from repvit_sam_jax.evals.metrics import iou
from repvit_sam_jax.evals.protocols import farthest_pixel
from repvit_sam_jax.inference.masks import box_of
from tests.helpers import runtimes

SLOW = pytest.mark.slow(group="models")


@pytest.fixture(
    scope="module",
    params=[
        "float32",
        pytest.param("bfloat16", marks=SLOW),
        *(pytest.param(name, marks=[SLOW, pytest.mark.torch]) for name in runtimes.OTHERS),
    ],
)
def predictor(request, tmp_path_factory):
    if request.param in runtimes.OTHERS:
        return runtimes.OTHERS[request.param](tmp_path_factory.mktemp("demo"))
    return SamPredictor(*load("demo", dtype=request.param))


BOX, CENTRE = 0.8, 0.785
PHOTOS = {"mouth of the cup": 0.94, "rocket": 0.745}
"""Mean IoUs on the scenes, and IoUs for boxes on the photos, that the weights must reach; they have a bit more."""

OUTLINES = {
    ("coffee", "mouth of the cup"): [
        *[
            (172, 105),
            (178, 78),
            (197, 52),
            (230, 29),
            (262, 20),
            (290, 18),
            (320, 22),
            (355, 37),
            (382, 60),
            (399, 84),
        ],
        *[(405, 110), (402, 135), (390, 160), (366, 184), (335, 201), (300, 208), (265, 204), (235, 192), (205, 169)],
        *[(185, 143), (175, 122)],
    ],
    ("rocket", "rocket"): [
        *[(322, 127), (316, 134), (312, 145), (311, 176), (314, 181), (314, 406), (331, 406), (332, 181), (334, 175)],
        *[(334, 147), (330, 137), (326, 130)],
    ],
}
"""Of things on scikit-image's photos, which are CC0, as we see them: (x, y) in pixels."""


def drawn(photo, points):
    height, width = getattr(data, photo)().shape[:2]
    picture = Image.new("1", (width, height))
    ImageDraw.Draw(picture).polygon(points, fill=1)
    return np.array(picture, bool)


TOGETHER = 6
"""Prompts of one call, so that one program serves all photos."""


def ask(predictor, image, masks):
    """IoUs for the box and, the best of three masks, for the centre of each mask."""
    predictor.set_image(image)
    found = [_ask(predictor, masks[start : start + TOGETHER]) for start in range(0, len(masks), TOGETHER)]
    return [np.concatenate(values) for values in zip(*found, strict=True)]


def _ask(predictor, masks):
    wanted, masks = len(masks), [*masks, *masks[:1] * (TOGETHER - len(masks))]
    boxes = [box_of(mask) for mask in masks]
    nothing = [[]] * len(masks)
    from_boxes, _, _ = predictor.predict(nothing, nothing, np.array(boxes, float), multimask_output=False)
    centres = [[[x, y]] for _, x, y in map(farthest_pixel, masks)]
    from_centres, _, _ = predictor.predict(centres, [[1]] * len(masks))
    whole = np.array(masks)[:, None]
    return iou(from_boxes, whole)[:wanted, 0], iou(from_centres, whole).max(1)[:wanted]


@functools.cache
def fixed_scenes():
    return [scenes.render(100, number, (384, 512)) for number in range(8)]


def scores(predictor, some):
    """IoUs for the boxes and for the centres of all masks on some scenes."""
    found = [ask(predictor, scene.image, scene.masks) for scene in some]
    return (np.concatenate(values) for values in zip(*found, strict=True))


FEW = (4, 5, 6)
"""Numbers of scenes whose means are near those of all."""


@pytest.mark.parametrize("predictor", ["float32"], indirect=True)
def test_a_few_scenes(predictor):
    box, centre = scores(predictor, [fixed_scenes()[number] for number in FEW])
    assert len(box) > 20
    assert box.mean() > BOX
    assert centre.mean() > CENTRE


@SLOW
def test_scenes(predictor):
    box, centre = scores(predictor, fixed_scenes())
    assert len(box) > 60
    assert box.mean() > BOX
    assert centre.mean() > CENTRE


@pytest.mark.parametrize(("photo", "name"), OUTLINES)
def test_photos(predictor, photo, name):
    box, _ = ask(predictor, getattr(data, photo)(), [drawn(photo, OUTLINES[photo, name])])
    assert box[0] > PHOTOS[name]

"""What labelme, Label Studio and YOLO's programs write, of shapes that this library does not."""

import base64
import io
import json

import numpy as np
import pytest
from PIL import Image

from tests.helpers.annotations import H, W, block, brushed, labelme, read_coco, region, shape, studio
from tests.helpers.measures import rasterised


def disc(center, radii, degrees=0.0):
    """A slow plain ellipse, (x, y) in pixels."""
    y, x = (axis + 0.5 for axis in np.indices((H, W)))
    angle = np.deg2rad(degrees)
    across = (x - center[0]) * np.cos(angle) + (y - center[1]) * np.sin(angle)
    down = -(x - center[0]) * np.sin(angle) + (y - center[1]) * np.cos(angle)
    return (across / radii[0]) ** 2 + (down / radii[1]) ** 2 <= 1


def png(mask):
    file = io.BytesIO()
    Image.fromarray(mask.astype(np.uint8)).save(file, "PNG")  # as labelme does, zeros and ones
    return base64.b64encode(file.getvalue()).decode()


def iou(mask, other):
    return (mask & other).sum() / (mask | other).sum()


TRIANGLE = [[3, 2], [40.5, 8.2], [12, 30]]


def test_shapes_of_labelme(convert, photos, tmp_path, capsys):
    part = np.array([[1, 0, 1], [1, 1, 0]], bool)
    shapes = [
        shape("a", TRIANGLE),
        shape("b", [[20, 30], [5, 10]], "rectangle"),
        shape("c", [[25, 18], [25, 8]], "circle"),
        shape("d", [[50, 35], [52, 36]], "mask", mask=png(part)),
        shape("a", [[0, 0], [4, 0], [4, 4], [0, 4]], group_id=7),
        shape("a", [[30, 30], [35, 30], [35, 34], [30, 34]], group_id=7),
        shape("b", [[30, 20], [35, 20], [35, 24], [30, 24]], group_id=7),
        shape("e", [[1, 2], [3, 4]]),
        shape("e", [[1, 2]], "point"),
        shape("e", [[1, 2], [8, 9]], "linestrip"),
        shape("e", [[60, 2], [70, 9], [70, 2]]),
    ]
    labelme(photos / "a.json", shapes)
    labelme(photos / "sub" / "b.json", [], imagePath="b.jpg", imageHeight=None)
    printed, noise = convert(photos, "out.json")
    assert printed == "wrote out.json: 2 photos, 6 masks, a, b, c, d\n"
    assert [line.partition(": shape ")[2] for line in noise.splitlines()] == [
        "7 (e) is a polygon of 2 points",
        "8 (e) is a point, which has no area",
        "9 (e) is a linestrip, which has no area",
        "10 (e) has no pixel within the photo",
    ]
    found = read_coco(tmp_path / "out.json", capsys)
    assert found["sub/b.jpg"] == []
    (_, triangle), (_, box), (_, circle), (_, pasted), (label, group), (other, alone) = found["a.png"]
    np.testing.assert_array_equal(triangle, rasterised([np.ravel(TRIANGLE).tolist()], (H, W)))
    np.testing.assert_array_equal(box, block(5, 10, 20, 30))
    assert iou(circle, disc((25, 18), (10, 10))) > 0.97
    np.testing.assert_array_equal(pasted[35:, 50:], part)
    assert pasted.sum() == part.sum()
    np.testing.assert_array_equal(group, block(0, 0, 4, 4) | block(30, 30, 35, 34))
    np.testing.assert_array_equal(alone, block(30, 20, 35, 24))
    assert (label, other) == ("a", "b")


def test_regions_of_label_studio(convert, photos, tmp_path, capsys):
    ring = block(5, 5, 30, 20) & ~block(10, 8, 20, 12)
    in_percent = [[100 * x / W, 100 * y / H] for x, y in TRIANGLE]
    regions = [
        brushed(ring),
        region("polygonlabels", {"points": in_percent, "closed": True, "polygonlabels": ["dog"]}),
        region(
            "ellipselabels",
            {"x": 50, "y": 50, "radiusX": 20, "radiusY": 30, "rotation": 30, "ellipselabels": ["dog", "cat"]},
        ),
        region("polygon", {"points": in_percent}),
        region("rectanglelabels", {"x": 1, "y": 2, "width": 3, "height": 4, "rectanglelabels": ["cat"]}),
        region("polygonlabels", {"points": in_percent[:2], "polygonlabels": ["dog"]}, id="two"),
        {"from_name": "choice", "type": "choices", "value": {"choices": ["good"]}},
    ]
    studio(tmp_path / "export.json", regions)
    printed, noise = convert("export.json", "out.json", "--photos", photos)
    assert printed == "wrote out.json: 1 photo, 4 masks, cat, dog, object\n"
    assert [line.partition(", region ")[2] for line in noise.splitlines()] == [
        "r1 has several classes, of which dog is taken: dog, cat",
        "r1 is a rectangle, which has no mask",
        "two is a polygon of 2 points",
    ]
    (_, brushes), (_, polygon), (_, ellipse), (label, unnamed) = read_coco(tmp_path / "out.json", capsys)["a.png"]
    np.testing.assert_array_equal(brushes, ring)
    np.testing.assert_array_equal(polygon, rasterised([np.ravel(TRIANGLE).tolist()], (H, W)))
    np.testing.assert_array_equal(unnamed, polygon)
    assert label == "object"
    assert iou(ellipse, disc((W / 2, H / 2), (0.2 * W, 0.3 * H), 30)) > 0.97


@pytest.mark.parametrize(
    ("data", "name"),
    [
        ("/data/upload/1/0a1b2c3d-a.png", "a.png"),
        ("/data/local-files/?d=sub/b.jpg", "sub/b.jpg"),
        ("s3://bucket/deep/a.png", "a.png"),
        ("https://example.com/photos/a.png?signature=x", "a.png"),
        ("a.png", "a.png"),
    ],
)
def test_names_of_photos(convert, photos, tmp_path, data, name):
    studio(photos / "export.json", [], data=data)
    convert(photos / "export.json", "out.json")
    content = json.loads((tmp_path / "out.json").read_text())
    assert [image["file_name"] for image in content["images"]] == [name]


def test_the_last_of_several_annotations(convert, photos, tmp_path, capsys):
    studio(photos / "export.json", [brushed(block(0, 0, 5, 5))], [brushed(block(3, 3, 9, 9))])
    _, noise = convert(photos / "export.json", "out.json")
    assert "task 12 has annotations of 2 times, of which the last are taken" in noise
    ((_, mask),) = read_coco(tmp_path / "out.json", capsys)["a.png"]
    np.testing.assert_array_equal(mask, block(3, 3, 9, 9))

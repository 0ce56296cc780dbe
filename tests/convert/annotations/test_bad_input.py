"""One line for what can't be converted, and nothing written."""

import json
import shutil

import pytest
from PIL import Image

from tests.helpers.annotations import block, brushed, labelme, region, shape, studio


def change(path, **changes):
    """Set entries of the first annotation, or of the file."""
    content = json.loads(path.read_text())
    for name, value in changes.items():
        (content if name in content else content["annotations"][0])[name] = value
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"category_id": 9}, "annotation 1 is of a category that is not listed"),
        ({"image_id": 9}, "annotation 1 is of an image that is not listed"),
        ({"segmentation": [["a", 1, 2, 3, 4, 5]]}, "annotation 1: a polygon with points that are no numbers"),
        (
            {"segmentation": {"size": [5, 5], "counts": "0"}},
            "annotation 1: a mask of size [5, 5] in a photo of size [37, 53]",
        ),
        ({"images": []}, "is of an image that is not listed"),
        ({"categories": None}, "has not COCO's form"),
    ],
)
def test_coco(fails, coco, changes, message):
    change(coco, **changes)
    assert f"{coco}: " in (error := fails(coco)) or str(coco) in error
    assert message in error


def test_a_polygon_of_two_points_is_named(convert, coco):
    change(coco, segmentation=[[1, 2, 3, 4]])
    printed, noise = convert(coco, "out.json")
    assert noise == f"left out: {coco}: annotation 1 has no pixel within the photo\n"
    assert "7 masks" in printed


def test_photos_that_lack(fails, coco, photos, tmp_path):
    (photos / "sub" / "b.jpg").unlink()
    assert f"{photos} lacks 1 of the 3 photos that {coco} lists, such as sub/b.jpg" in fails(coco)
    shutil.move(coco, tmp_path / "coco.json")
    assert "lacks 3 of the 3 photos" in fails(tmp_path / "coco.json")
    labelme(tmp_path / "a.json", [shape("a", [[1, 2], [3, 4], [5, 1]])])
    assert fails(tmp_path / "a.json") == f"{tmp_path} lacks 1 photo, first a.png; give their folder with --photos"
    labelme(tmp_path / "a.json", [shape("a", [[1, 2], [3, 4], [5, 1]])], imageHeight=None)
    assert fails(tmp_path / "a.json") == f"{tmp_path} lacks 1 photo, first a.png; give their folder with --photos"
    studio(tmp_path / "b.json", [brushed(block(0, 0, 5, 5))])
    assert fails(tmp_path / "b.json") == f"{tmp_path} lacks 1 photo, first a.png; give their folder with --photos"


def test_a_photo_of_another_size(fails, coco, photos):
    Image.new("RGB", (30, 20)).save(photos / "a.png")
    assert fails(coco) == f"{coco} is of 53 x 37 pixels, and {photos / 'a.png'} has 30 x 20"


def test_a_photo_that_is_none(fails, coco, photos):
    (photos / "a.png").write_text("no photo")
    assert fails(coco) == f"{photos / 'a.png'} is not an image that Pillow can read"


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ([{"label": "a"}], "read as labelme's form: KeyError: 'points'"),
        ([shape("a", [[1, 2], [3, "x"], [4, 5]])], "read as labelme's form: could not convert"),
        ([shape("a", [[1, 2], [3, 4], [4e9, 5]])], "shape 0 (a): a polygon with points that are no numbers, or far"),
        ([shape("a", [[1, 2], [3, 4]], "mask", mask="no picture")], "shape 0 (a): its mask is damaged"),
        ([shape("a", [[1, 2], [3, 4]], "mask", mask=None)], "shape 0 (a): its mask is damaged"),
        (None, "read as labelme's form: TypeError"),
    ],
)
def test_labelme(fails, photos, shapes, message):
    path = labelme(photos / "a.json", shapes)
    error = fails(path)
    assert error.startswith(str(path))
    assert message in error


@pytest.mark.parametrize(
    ("regions", "message"),
    [
        ([region("brushlabels", {"format": "rle", "rle": [1, 2]})], "task 12, region r1: its runs are damaged"),
        ([region("polygonlabels", {"points": [[1], [2], [3]]})], "read as Label Studio's form: not enough values"),
        ([region("polygonlabels", {})], "read as Label Studio's form: KeyError: 'points'"),
        (
            [region("brushlabels", {"format": "rle"}, image_rotation=90)],
            "region r1: the picture is turned by 90 degrees",
        ),
        ([region("brush", {}), region("brush", {}, original_width=5)], "task 12 has regions of pictures of different"),
        ([region("brush", {}, original_width=5)], "task 12 is of 5 x 37 pixels, and"),
    ],
)
def test_label_studio(fails, photos, regions, message):
    path = studio(photos / "export.json", regions)
    error = fails(path)
    assert error.startswith(str(path))
    assert message in error


def test_other_exports_of_label_studio(fails, photos):
    (photos / "export.json").write_text(json.dumps([{"id": 3, "data": {"image": "a.png"}, "tag": []}]))
    assert "task 3 has no annotations; export it as JSON, not as JSON-MIN" in fails(photos / "export.json")
    (photos / "export.json").write_text(json.dumps([{"id": 3, "image": "a.png", "tag": []}]))
    assert fails(photos / "export.json").endswith("none of the forms of COCO, SA-1B, labelme and Label Studio")


@pytest.fixture
def yolo(convert, coco, photos, tmp_path):
    convert(coco, "yolo", "--to", "yolo")
    coco.unlink()
    shutil.move(photos, tmp_path / "yolo" / "images")
    return tmp_path / "yolo"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("2 0 0 1 0 1 1", "line 1: class 2 is not among the 2 that are listed"),
        ("-1 0 0 1 0 1 1", "line 1: class -1 is not among the 2"),
        ("0 0 0 1 0 1", "line 1: 5 coordinates, expected x and y of each corner"),
        ("cat 0 0 1 0 1 1", "read as YOLO's labels: invalid literal for int"),
        ("0 0 0 1 x 1 1", "read as YOLO's labels: could not convert"),
        ("0 0 0 1 nan 1 1", "line 1: a polygon with points that are no numbers"),
        ("0", "line 1 is a polygon of 0 points"),
    ],
)
def test_yolo(fails, convert, yolo, text, message):
    (yolo / "labels" / "a.txt").write_text(f"{text}\n")
    if message.endswith("0 points"):
        assert message in convert(yolo, "out.json").err
        return
    error = fails(yolo)
    assert error.startswith(str(yolo / "labels" / "a.txt"))
    assert message in error


def test_folders_of_yolo(fails, convert, yolo):
    (yolo / "labels" / "a.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    assert "line 1 is a box, which has no mask, or a polygon of 2 points" in convert(yolo, "boxes.json").err
    (yolo / "labels" / "other.txt").write_text("0 0 0 1 0 1 1\n")
    assert (
        fails(yolo)
        == f"{yolo} lacks photos of 1 label, first {yolo / 'labels' / 'other.txt'}; give their folder with --photos"
    )
    (yolo / "data.yaml").write_text("names: [cat\n")
    assert "is no YAML" in fails(yolo)
    (yolo / "data.yaml").unlink()
    assert fails(yolo) == f"{yolo} holds no names of classes: no data.yaml with names, and no classes.txt"


def test_other_sources(fails, tmp_path, photos):
    assert fails("nowhere.json") == "no annotations at nowhere.json"
    (tmp_path / "a.json").write_text("no JSON")
    assert fails("a.json").startswith("a.json is no JSON")
    (tmp_path / "a.json").write_text('{"a": 1}')
    assert fails("a.json") == "a.json has none of the forms of COCO, SA-1B, labelme and Label Studio"
    (tmp_path / "a.tar").touch()
    assert fails("a.tar") == "a.tar is a shard of SA-1B, which training and evaluation read as it is"
    assert fails(photos / "a.png").endswith("annotations are a file .json or a folder")


def test_names_that_lead_elsewhere(convert, coco, tmp_path, capsys):
    change(coco, images=[{"id": 1, "file_name": "../photos/a.png", "width": 53, "height": 37}], annotations=[])
    convert(coco, "out.json")
    with pytest.raises(SystemExit, match="1"):
        convert(coco, "out", "--to", "rle")
    assert "../photos/a.png lies outside of the photos' folder" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_targets(fails, coco, convert, photos, tmp_path, capsys):
    for arguments, message in (
        (["out"], "OUT out: the file is written as .json"),
        (["taken", "--to", "yolo"], "OUT taken exists and is no empty folder"),
    ):
        (tmp_path / "taken").mkdir(exist_ok=True)
        (tmp_path / "taken" / "a").touch()
        with pytest.raises(SystemExit, match="1"):
            convert(coco, *arguments)
        assert message in capsys.readouterr().err
    convert(coco, "out.json")
    before = (tmp_path / "out.json").read_bytes()
    assert "OUT out.json exists; give another name, or --overwrite" in fails(coco)
    assert (tmp_path / "out.json").read_bytes() == before
    shutil.copy(photos / "a.png", photos / "a.bmp")
    content = json.loads(coco.read_text())
    content["images"].append({**content["images"][0], "id": 99, "file_name": "a.bmp"})
    coco.write_text(json.dumps(content))
    with pytest.raises(SystemExit, match="1"):
        convert(coco, "yolo", "--to", "yolo")
    assert "YOLO calls labels by the stems of photos, and these share theirs: a.png, a.bmp" in capsys.readouterr().err
    assert not (tmp_path / "yolo").exists()

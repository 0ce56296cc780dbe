"""Forms of masks, several boxes, a mask to start from, and the choice of masks."""

import json

import numpy as np
import pytest
from PIL import Image

from repvit_sam_jax import SamPredictor, load
from repvit_sam_jax.data.datasets.coco import open_coco
from repvit_sam_jax.data.sources import open_source
from repvit_sam_jax.evals.tasks import prompted
from tests.helpers.measures import rasterised
from tests.helpers.terminal import read, run

BOXES = ["--box", "5,5,70,50", "--box", "10,20,30,40"]


@pytest.fixture
def segment(weights, photo, monkeypatch, capsys):
    """The command on the photo; its JSON."""
    monkeypatch.chdir(photo.parent)

    def call(*arguments, of=photo):
        run(monkeypatch, "segment", of, "--weights", weights, *arguments, "--json")
        return json.loads(capsys.readouterr().out)

    return call


@pytest.fixture
def predictor(weights, photo):
    made = SamPredictor(*load(weights))
    made.set_image(photo)
    return made


def masks_of(path):
    """Of a JSON file, by pycocotools."""
    content = json.loads(path.read_text())
    size = (60, 80)
    return [rasterised(annotation["segmentation"], size) for annotation in content["annotations"]]


@pytest.mark.parametrize("form", ["png", "rle", "coco", "polygons", "yolo"])
def test_boxes_have_a_mask_each(segment, predictor, tmp_path, form):
    expected = [predictor.predict(box=box, multimask_output=False)[0][0] for box in ((5, 5, 70, 50), (10, 20, 30, 40))]
    result = segment(*BOXES, "--format", form)
    names = [str(one["mask"]) for one in result["results"]]
    if form == "png":
        assert names == ["mask_0.png", "mask_1.png"]
        found = [read(tmp_path / name) for name in names]
    elif form == "yolo":
        assert names == ["mask.txt"] * 2
        lines = [line.split() for line in (tmp_path / "mask.txt").read_text().splitlines()]
        corners = [(np.reshape(np.float64(shares), (-1, 2)) * (80, 60)).ravel().tolist() for _, *shares in lines]
        found = [rasterised([one], (60, 80)) for one in corners]
        expected = [mask for mask in expected if mask.any()]
    else:
        assert names == ["mask.json"] * 2
        found = masks_of(tmp_path / "mask.json")
    for one, mask in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, mask)
    assert [one["area"] for one in result["results"]] == [
        predictor.predict(box=box, multimask_output=False)[0][0].sum() for box in ((5, 5, 70, 50), (10, 20, 30, 40))
    ]


def test_the_choice_of_masks(segment, predictor, tmp_path):
    masks, iou, _ = predictor.predict([[20, 30]], [1])
    ((single,), _, _) = predictor.predict([[20, 30]], [1], multimask_output=False)
    given = ["--point", "20,30", "--overwrite"]
    segment(*given, "--mask", "all", "--overlay", "over.png")
    for i, mask in enumerate(masks):
        np.testing.assert_array_equal(read(tmp_path / f"mask_{i}.png"), mask)
        assert (tmp_path / f"over_{i}.png").is_file()
    for choice, mask in {
        "2": masks[2],
        "best": masks[iou.argmax()],
        "single": single,
        "auto": masks[iou.argmax()],
    }.items():
        segment(*given, "--mask", choice)
        np.testing.assert_array_equal(read(tmp_path / "mask.png"), mask)


def test_a_mask_to_start_from(segment, predictor, tmp_path):
    start = np.zeros((60, 80), bool)
    start[10:40, 15:60] = True
    Image.fromarray(start).save(tmp_path / "start.png")
    expected, _, low_res = predictor.predict(box=(5, 5, 70, 50), mask_input=start, multimask_output=False)
    segment("--box", "5,5,70,50", "--mask-input", "start.png")
    np.testing.assert_array_equal(read(tmp_path / "mask.png"), expected[0])
    np.save(tmp_path / "start.npy", low_res)
    expected, iou, _ = predictor.predict([[20, 30]], [1], mask_input=low_res, multimask_output=False)
    result = segment("--point", "20,30", "--mask-input", "start.npy", "--overwrite")
    np.testing.assert_array_equal(read(tmp_path / "mask.png"), expected[0])
    assert result["predicted_iou"] == pytest.approx(float(iou[0]), abs=1e-6)
    expected, *_ = predictor.predict(mask_input=start, multimask_output=False)
    segment("--mask-input", "start.png", "--overwrite")
    np.testing.assert_array_equal(read(tmp_path / "mask.png"), expected[0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([*BOXES, "--point", "3,4"], "several boxes are prompts of their own; leave out --point"),
        ([*BOXES, "--mask-input", "m.png"], "several boxes are prompts of their own; leave out --mask-input"),
        (["--mask-input", "none.png"], "no mask at --mask-input none.png"),
        (["--mask-input", "bad.png"], "--mask-input bad.png is neither a picture nor an array .npy: "),
        (["--mask-input", "bad.npy"], "--mask-input bad.npy is neither a picture nor an array .npy: "),
        (
            ["--mask-input", "small.png"],
            "--mask-input small.png: a binary mask_input must have the photo's size (60, 80)",
        ),
        (["--point", "3,4", "--format", "coco", "--out", "a.png"], "--out a.png: the file is written as .json"),
        (["--point", "3,4", "--format", "yolo", "--out", "a.json"], "--out a.json: the file is written as .txt"),
        ([*BOXES, "--out", "taken.png"], "--out taken_1.png exists; give another name, or --overwrite"),
        (
            ["--mask-input", "small.png", "--out", "small.png", "--overwrite"],
            "photo, --out and --overlay must be different",
        ),
    ],
)
def test_what_can_not_be_asked(segment, photo, tmp_path, capsys, arguments, message):
    (tmp_path / "bad.png").write_bytes(b"no picture")
    (tmp_path / "bad.npy").write_bytes(b"no array")
    Image.new("1", (8, 6), 1).save(tmp_path / "small.png")
    (tmp_path / "taken_1.png").touch()
    before = sorted(tmp_path.iterdir())
    with pytest.raises(SystemExit, match="1"):
        segment(*arguments)
    errors = capsys.readouterr().err
    assert errors.startswith(f"error: {message}")
    assert errors.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == before


@pytest.fixture
def of_two_stems(photos):
    (photos / "a.bmp").unlink()
    return photos


@pytest.mark.parametrize("form", ["rle", "coco", "polygons", "yolo"])
def test_a_folder_in_each_form(segment, of_two_stems, tmp_path, form):
    """The masks of the PNGs; both readers find the photos by what the file says."""
    photos = of_two_stems
    segment("--point", "20,30", "--mask", "all", "--out", "pngs", of=photos)
    segment("--point", "20,30", "--mask", "all", "--out", "out", "--format", form, of=photos)
    expected = {name: [read(tmp_path / "pngs" / f"{name}_{i}.png") for i in range(3)] for name in ("a", "b")}
    if form == "rle":
        contents = {name: json.loads((tmp_path / "out" / "rle" / f"{name}.json").read_text()) for name in expected}
    elif form == "yolo":
        lines = {name: (tmp_path / "out" / "labels" / f"{name}.txt").read_text().splitlines() for name in expected}
        assert {name: len(of) for name, of in lines.items()} == {
            n: sum(m.any() for m in of) for n, of in expected.items()
        }
        return
    else:
        data = open_coco(tmp_path / "out")
        contents = {key[0]: {"annotations": data.annotations(key)} for key in data.keys}
        assert data.photo("a.png").shape == (60, 80, 3)
        assert prompted.open_task(tmp_path / "out").keys == ["a.png", "b.png"]
        source = open_source(tmp_path / "out" / "records.json")
        assert [source[i].photo for i in range(2)] == [(photos / f"{name}.png").read_bytes() for name in "ab"]
    for name, masks in expected.items():
        found = [rasterised(one["segmentation"], masks[0].shape) for one in contents[name]["annotations"]]
        np.testing.assert_array_equal(found, masks)


def test_labels_need_photos_of_different_stems(segment, photos, capsys):
    with pytest.raises(SystemExit, match="1"):
        segment("--point", "2,3", "--format", "yolo", of=photos)
    assert "YOLO calls labels by the stems of photos, and these share theirs: a.bmp, a.png" in capsys.readouterr().err


def test_coco_and_polygons_are_one_file(weights, photo, tmp_path, monkeypatch, capsys):
    with pytest.raises(SystemExit, match="1"):
        run(monkeypatch, "everything", photo, "--out", tmp_path / "out", "--format", "coco", "polygons")
    assert "--format: give one at least, and of coco and polygons one" in capsys.readouterr().err


def test_what_is_done_is_kept_when_the_command_is_stopped(segment, photo, tmp_path, monkeypatch):
    from repvit_sam_jax.inference import photos

    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("a.png", "b.png"):
        Image.open(photo).save(folder / name)
    whole = photos.segment_photos

    def stopped(*given, **options):
        yield next(whole(*given, **options))
        raise KeyboardInterrupt

    monkeypatch.setattr(photos, "segment_photos", stopped)
    with pytest.raises(SystemExit) as end:
        segment(*BOXES[:2], "--format", "coco", "--out", tmp_path / "out", of=folder)
    assert end.value.code == 130
    content = json.loads((tmp_path / "out" / "records.json").read_text())
    assert [image["file_name"] for image in content["images"]] == ["a.png"]
    assert len(content["annotations"]) == 1

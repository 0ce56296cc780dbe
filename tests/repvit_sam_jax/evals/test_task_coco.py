"""Instances on a miniature of COCO."""

import numpy as np
import pytest

from repvit_sam_jax.data.datasets.coco import open_coco
from repvit_sam_jax.evals import run
from repvit_sam_jax.evals.tasks import open_task
from tests.helpers.miniatures import coco, colour_segmenter, shifted
from tests.helpers.precision import precision

SHIFT = (1, 2)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return coco.write(tmp_path_factory.mktemp("coco"))


def measure(data, boxes, tmp_path, segmenter, limit=None, **kwargs):
    path = coco.write_json(tmp_path / "boxes.json", boxes)
    place = run.Place(data, path, tmp_path / "out")
    return run.run(open_task("coco", data, path), segmenter, place, limit, **kwargs)


def test_a_perfect_segmenter_has_an_ap_of_1(data, tmp_path):
    assert open_task("coco", data, coco.write_json(tmp_path / "b.json", coco.boxes())).keys == [
        f"{number:012}.jpg" for number in sorted(coco.IDS)
    ]
    found = measure(data, coco.boxes(), tmp_path, colour_segmenter(), num_pictures=1)
    assert found.numbers["AP"] == found.numbers["AR100"] == 1
    assert found.counts == {"photos": 3, "boxes": 9}
    again = measure(data, coco.boxes(), tmp_path, colour_segmenter())
    assert (again.seconds, again.counts) == (found.seconds, found.counts)  # it was read, settings being the same


def test_a_known_error_has_the_ap_that_plain_loops_give(data, tmp_path):
    """Scores are the boxes' times 0.9, the predicted IoU, for every box, so that they change no order."""
    boxes = coco.boxes()
    boxes += [boxes[0] | {"score": 0.97}, boxes[4] | {"score": 0.1}]  # duplicates find nothing more
    found = measure(data, boxes, tmp_path, colour_segmenter(shift=SHIFT))
    expected = []
    for category in (1, 18):
        objects = [
            (a["image_id"], mask, a["area"])
            for a, mask in zip(coco.annotations(), (m for n in coco.IDS for m in coco.masks_of(n)), strict=False)
            if a["category_id"] == category
        ]
        masks = [
            (b["image_id"], shifted(mask, SHIFT), b["score"], False)
            for b, mask in zip(boxes, [*(m for n in coco.IDS for m in coco.masks_of(n)), *_again()], strict=True)
            if b["category_id"] == category
        ]
        expected.append(precision(objects, masks))
    assert 0.1 < found.numbers["AP"] < 0.9
    assert found.numbers["AP"] == pytest.approx(np.mean(expected))


def _again():
    return coco.masks_of(coco.IDS[0])[0], coco.masks_of(coco.IDS[1])[1]


def test_scores_are_weighted_by_predicted_ious(data, tmp_path):
    task = open_task("coco", data, coco.write_json(tmp_path / "boxes.json", coco.boxes()))
    (answer,) = task.segment(colour_segmenter(), [task.load("000000000139.jpg")])
    of_photo = [box["score"] for box in coco.boxes() if box["image_id"] == 139]
    assert [result["score"] for result in answer] == pytest.approx([0.9 * score for score in of_photo])
    assert {key for result in answer for key in result} == {"image_id", "category_id", "segmentation", "score"}


def test_photos_without_boxes_count_and_those_beyond_the_limit_do_not(data, tmp_path):
    some = [box for box in coco.boxes() if box["image_id"] == 139]
    found = measure(data, some, tmp_path, colour_segmenter())
    # A third of the objects of each category, found first: precision is 1 up to a recall of 1/3.
    assert found.numbers["AP"] == pytest.approx(34 / 101)
    one = measure(data, some, tmp_path / "one", colour_segmenter(), limit=1)
    assert one.numbers["AP"] == 1
    assert one.counts == {"photos": 1, "boxes": 3}


def test_what_a_crowd_holds_is_no_error_and_an_empty_object_is_never_found(data, tmp_path):
    inside = {"image_id": 724, "category_id": 1, "bbox": [0, 0, 64, 48], "score": 0.99}
    task = open_task("coco", data, coco.write_json(tmp_path / "boxes.json", [*coco.boxes(), inside]))
    answers = task.segment(colour_segmenter(), [task.load(key) for key in task.keys])
    region = np.zeros((48, 64), bool)
    region[coco.CROWD] = True
    records = dict(zip(task.keys, answers, strict=True))
    whole = records["000000000724.jpg"]
    assert len(whole) == 4
    whole[0]["segmentation"] = task.data.annotations("000000000724.jpg")[-1]["segmentation"]
    assert task.summarise(records)[0]["AP"] == 1
    given = coco.content()
    given["annotations"].append(given["annotations"][0] | {"id": 1, "segmentation": [[3, 3, 3, 3]], "category_id": 90})
    other = coco.write(tmp_path, given)
    empty = measure(other, coco.boxes(), tmp_path, colour_segmenter())
    assert empty.numbers["AP"] == pytest.approx(2 / 3)  # category 90 has an object now, and finds none


def test_a_folder_with_one_file_and_photos_below_is_read_too(tmp_path):
    folder = tmp_path / "export"
    given = coco.content()
    for entry in given["annotations"]:
        if not entry["iscrowd"]:
            del entry["area"], entry["bbox"], entry["iscrowd"]
    coco.write_json(folder / "records.json", given)
    for number in coco.IDS:
        coco.write_photo(folder / f"photos/{number:012}.jpg", number)
    data = open_coco(folder)
    assert data.photo("000000000139.jpg").shape == (48, 64, 3)
    for mine, official in zip(data.annotations("000000000285.jpg"), coco.annotations()[6:9], strict=True):
        keys = "area", "bbox", "iscrowd"
        assert [mine[key] for key in keys] == [official[key] for key in keys]


def change(of, **values):
    def changed(given):
        given[of][0].update(values)

    return changed


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (change("images", file_name="gone.jpg"), r"val2017 lacks 1 of the 3 photos .* such as gone.jpg"),
        (change("images", id=139), "ids of images must be integers, each there once"),
        (change("images", id="724"), "no|not supported"),
        (change("images", file_name="000000000139.jpg"), "lists a photo twice"),
        (change("images", height=None), "image 724 has no height and width"),
        (change("annotations", category_id=2), "annotation 900 is of a category that is not listed"),
        (change("annotations", image_id=2), "annotation 900 is of an image that is not listed"),
        (lambda given: given.pop("categories"), "has not COCO's form: KeyError: 'categories'"),
        (lambda given: given["images"].clear() or given["annotations"].clear(), "lists no images"),
    ],
)
def test_what_is_wrong_with_annotations_is_said(data, tmp_path, spoil, message):
    given = coco.content()
    spoil(given)
    with pytest.raises(ValueError, match=message):
        open_coco(coco.write(tmp_path, given))


def test_what_is_missing_is_said(data, tmp_path):
    with pytest.raises(ValueError, match=r"give --proposals, a JSON file with boxes in COCO's form of results"):
        open_task("coco", data)
    with pytest.raises(ValueError, match=r"it lacks annotations/instances_val2017.json, val2017"):
        open_coco(tmp_path)
    given = coco.content()
    given["images"][0]["height"] = 40
    given["annotations"][3]["segmentation"] = [[0, 0, 1e9, 0, 0, 1e9]]
    other = open_coco(coco.write(tmp_path, given))
    with pytest.raises(ValueError, match=r"000000000724.jpg is 64 x 48 pixels, but .* says 64 x 40"):
        other.photo("000000000724.jpg")
    with pytest.raises(ValueError, match=r"annotation 903: a polygon with points"):
        other.annotations("000000000139.jpg")

"""Objects from boxes and clicks on miniatures of COCO and LVIS."""

import math

import numpy as np
import pytest

from repvit_sam_jax.evals import result, run
from repvit_sam_jax.evals.metrics import federated
from repvit_sam_jax.evals.tasks import open_task
from repvit_sam_jax.inference import rle
from tests.helpers.miniatures import coco, colour_segmenter, shifted
from tests.helpers.precision import overlap, precision

SHIFT = (1, 2)
KINDS = [f"{kind} {c}" for kind in ("box", "1 click", "3 clicks", "5 clicks") for c in ("single", "best")]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return coco.write(tmp_path_factory.mktemp("coco"))


def objects():
    """Masks of all objects."""
    return [mask for number in sorted(coco.IDS) for mask in coco.masks_of(number)]


def measure(task, data, out, segmenter, proposals=None, **kwargs):
    return run.run(open_task(task, data, proposals), segmenter, run.Place(data, proposals, out), **kwargs)


def test_a_perfect_segmenter_needs_one_click(data, tmp_path):
    found = measure("prompted", data, tmp_path, colour_segmenter(), num_pictures=1)
    for kind in KINDS:
        assert found.numbers[f"{kind} all"] == found.numbers[f"{kind} small"] == 1
        assert math.isnan(found.numbers[f"{kind} large"])
    for name in ("NoC@85 single", "NoC@90 single", "NoC@85 best", "NoC@90 best"):
        assert found.numbers[name] == 1
    assert math.isnan(found.numbers["AP"])
    assert found.counts == {"photos": 3, "objects": 9, "annotations left out": 1}  # the crowd
    assert measure("prompted", data, tmp_path, colour_segmenter()).counts == found.counts
    assert result.table([found]).splitlines()[2].endswith("| 1.000 | 1.000 | - |")


def test_a_known_error_is_measured_by_size_and_clicks_are_counted(data, tmp_path):
    found = measure("prompted", data, tmp_path, colour_segmenter(shift=(0, 1)))
    ious = np.array([overlap(mask, shifted(mask, (0, 1))) for mask in objects()])
    for kind in KINDS:  # whatever is clicked, the segmenter answers with the same mask
        assert found.numbers[f"{kind} all"] == pytest.approx(ious.mean())
    assert 0 < (ious >= 0.85).sum() < len(ious)
    expected = {target: np.where(ious >= target / 100, 1, 20).mean() for target in (85, 90)}
    assert {target: found.numbers[f"NoC@{target} best"] for target in (85, 90)} == expected


def test_sizes_are_those_of_the_annotations(tmp_path):
    given = coco.content()
    for entry, area in zip(given["annotations"], (1, 1023, 1024, 9215, 9216, 0.5, 5, 5, 5), strict=False):
        entry["area"] = area
    given["annotations"][6]["segmentation"] = [[0, 0, 0, 0]]
    data = coco.write(tmp_path, given)
    task = open_task("prompted", data)
    records = {key: task.segment(colour_segmenter(), [task.load(key)])[0].record for key in task.keys}
    values = iter((0.1, 0.2, 0.4, 0.8, 0.0, 0.5, 0.7))  # the photos' order is another than the annotations'
    for key in ("000000000724.jpg", "000000000139.jpg", "000000000285.jpg"):
        records[key]["box"]["best"] = [next(values) for _ in records[key]["areas"]]
    numbers, counts = task.summarise(records)
    assert counts == {"photos": 3, "objects": 7, "annotations left out": 3}
    assert [numbers[f"box best {size}"] for size in ("all", "small", "medium", "large")] == pytest.approx(
        [2.7 / 7, (0.1 + 0.2 + 0.5 + 0.7) / 4, 0.6, 0.0]
    )


def test_each_choice_of_the_mask_has_clicks_of_its_own(data, tmp_path):
    """The single mask is right at once; the best of three is but the lower half, whatever is clicked."""
    segmenter = colour_segmenter()
    segmenter.predictor.backend.IOUS = (0.3, 0.5, 0.25)
    task = open_task("prompted", data, coco.write_json(tmp_path / "boxes.json", coco.boxes()))
    item = task.load("000000000139.jpg")
    (answer,) = task.segment(segmenter, [item])
    assert answer.record["clicks"]["single"] == [[1.0]] * 3
    assert answer.record["box"]["single"] == [1.0] * 3
    found = (answer.record["box"]["best"], answer.record["clicks"]["best"], answer.record["results"])
    for mask, box, after, of_box in zip(coco.masks_of(139), *found, strict=True):
        rows = np.flatnonzero(mask.any(1))
        half = mask & (np.arange(48)[:, None] >= rows.mean())
        assert after == pytest.approx([overlap(mask, half)] * 20)
        assert box == pytest.approx(overlap(mask, half))
        assert of_box["segmentation"] == rle.counts_to_coco(rle.mask_to_counts(half), (48, 64))


def test_numbers_after_clicks_are_those_of_their_count(data):
    """A chain that ended before is as good as at its end."""
    task = open_task("prompted", data)
    values = {choice: [[0.1, 0.2, 0.3, 0.86, 0.5, 0.95], [1.0]] for choice in ("single", "best")}
    values["best"] = [[0.5] * 20, [0.0, 0.9, 0.1, 0.1, 0.2]]
    record = {"areas": [5.0, 6.0], "left_out": 0, "box": {"single": [0.2, 0.4], "best": [1.0, 0.0]}, "clicks": values}
    numbers, _ = task.summarise({"000000000139.jpg": record})
    means = [numbers[f"{count} {choice} all"] for choice in values for count in ("1 click", "3 clicks", "5 clicks")]
    assert means == pytest.approx([0.55, 0.65, 0.75, 0.25, 0.3, 0.35])
    needed = [numbers[f"NoC@{target} {choice}"] for choice in values for target in (85, 90)]
    assert needed == [(4 + 1) / 2, (6 + 1) / 2, (20 + 2) / 2, (20 + 2) / 2]


def test_a_photo_alone_and_in_a_group_has_the_same_record(data, tmp_path):
    task = open_task("prompted", data, coco.write_json(tmp_path / "boxes.json", coco.boxes()))
    segmenter = colour_segmenter(shift=SHIFT)
    items = [task.load(key) for key in task.keys]
    together = [answer.record for answer in task.segment(segmenter, items)]
    assert together == [task.segment(segmenter, [item])[0].record for item in items]


def test_ap_for_a_detectors_boxes_has_the_boxes_scores(data, tmp_path):
    path = coco.write_json(tmp_path / "boxes.json", coco.boxes()[:6])
    found = measure("prompted", data, tmp_path, colour_segmenter(), path)
    assert found.numbers["AP"] == pytest.approx(67 / 101)  # two photos of three
    assert found.counts["boxes"] == 6
    task = open_task("prompted", data, path)
    (answer,) = task.segment(colour_segmenter(), [task.load("000000000724.jpg")])
    assert [one["score"] for one in answer.record["results"]] == [box["score"] for box in coco.boxes()[:3]]


def test_photos_without_objects_are_no_number(data, tmp_path):
    given = coco.content()
    given["annotations"] = given["annotations"][:3]
    other = coco.write(tmp_path, given)
    with pytest.raises(ValueError, match="there is no annotated object on these photos"):
        measure("prompted", other, tmp_path, colour_segmenter(), limit=2)


def test_lvis_lies_in_two_folders_and_its_ap_is_federated(tmp_path):
    data = coco.write_lvis(tmp_path)
    boxes = coco.boxes()
    # Nothing is known of category 90 on photo 285 once it is no negative one; on photo 139 it is an error.
    given = coco.lvis_content()
    given["images"][2]["neg_category_ids"] = []
    given["annotations"].append(given["annotations"][0] | {"id": 1, "category_id": 90})
    coco.write_json(data / "annotations/lvis_v1_val.json", given)
    more = [boxes[0] | {"category_id": 90, "score": 0.5}]
    path = coco.write_json(tmp_path / "boxes.json", boxes + more + [boxes[8] | {"category_id": 90, "score": 0.9}])
    task = open_task("lvis", data, path)
    assert task.keys == ["train2017/000000000139.jpg", "val2017/000000000285.jpg", "val2017/000000000724.jpg"]
    found = measure("lvis", data, tmp_path, colour_segmenter(), path)
    assert [found.numbers[name] for name in ("AP", "APf", "APr", "APc", "box single all")] == pytest.approx([1] * 5)
    coco.write_json(path, boxes + more + [boxes[3] | {"category_id": 90, "score": 0.9}])
    wrong = measure("lvis", data, tmp_path / "wrong", colour_segmenter(), path)
    assert [wrong.numbers[name] for name in ("AP", "APc")] == pytest.approx([2.5 / 3, 0.5])
    del given["images"][1]["not_exhaustive_category_ids"]
    coco.write_json(data / "annotations/lvis_v1_val.json", given)
    with pytest.raises(ValueError, match=r"lvis_v1_val.json is not LVIS': images have neg_category_ids and not"):
        open_task("lvis", data)
    (data / "train2017/000000000139.jpg").unlink()
    with pytest.raises(ValueError, match=r"coco lacks 1 of the 3 photos .* such as train2017/000000000139.jpg"):
        open_task("lvis", data)


@pytest.mark.parametrize("seed", range(3))
def test_federated_precision_is_that_of_plain_loops(seed):
    rng = np.random.default_rng(seed)
    images, objects, found, masks = [], [], [], {}
    for number in (5, 2, 9, 4):
        absent, partly = (rng.permutation(4)[:2].tolist() for _ in range(2))
        about = {"neg_category_ids": absent, "not_exhaustive_category_ids": partly}
        images.append({"id": number, "height": 60, "width": 80, **about})
        for kind in rng.integers(0, 4, 6).tolist():
            x, y = rng.integers(0, 30, 2)
            w, h = rng.integers(15, 50, 2)
            far = int(rng.integers(3, 50))  # perhaps beyond the end
            for entries, moved in ((objects, 0), (found, 1), (found, far)):
                mask = np.zeros((60, 80), bool)
                mask[y : y + h, x + moved : x + w] = True
                segmentation = rle.counts_to_coco(rle.mask_to_counts(mask), (60, 80))
                entry = {"image_id": number, "category_id": kind, "segmentation": segmentation, "iscrowd": 0}
                entry |= {"area": float(mask.sum()), "id": len(entries) + 1, "score": float(rng.integers(1, 9)) / 9}
                masks[id(entry)] = mask
                entries.append(entry)
            entry["category_id"] = int(rng.integers(0, 4))
    categories = [{"id": i, "frequency": "rccf"[i]} for i in range(4)]
    truth = {"images": images, "annotations": objects, "categories": categories}
    present = {(entry["image_id"], entry["category_id"]) for entry in objects}
    values = np.full((4, 4), np.nan)
    for kind in range(4):
        mine = [(a["image_id"], masks[id(a)], a["area"]) for a in objects if a["category_id"] == kind]
        theirs = []
        for image in images:
            for one in found:
                where = one["image_id"], one["category_id"]
                known = where in present or kind in image["neg_category_ids"]
                if where == (image["id"], kind) and known and one["area"]:
                    forgiven = kind in image["not_exhaustive_category_ids"]
                    theirs.append((image["id"], masks[id(one)], one["score"], forgiven))
        theirs.sort(key=lambda one: one[0])
        for i, (low, high) in enumerate(((0, 1e10), (0, 1024), (1024, 9216), (9216, 1e10))):
            values[kind, i] = precision(mine, theirs, low, high)
    numbers = federated.average_precision(truth, found)
    expected = {name: _mean(values[:, i]) for i, name in enumerate(("AP", "APs", "APm", "APl"))}
    expected |= {"APr": values[0, 0], "APc": _mean(values[1:3, 0]), "APf": values[3, 0]}
    assert numbers == pytest.approx(expected, nan_ok=True)
    assert 0.2 < numbers["AP"] < 0.95


def _mean(values):
    return np.nan if np.isnan(values).all() else np.nanmean(values)


def test_more_than_300_results_of_an_image_are_refused():
    truth = coco.lvis_content()
    mask = rle.counts_to_coco(rle.mask_to_counts(np.ones((48, 64), bool)), (48, 64))
    one = {"image_id": 139, "category_id": 1, "segmentation": mask, "score": 0.5}
    with pytest.raises(ValueError, match="an image has more than 300 results"):
        federated.average_precision(truth, [one] * 301)

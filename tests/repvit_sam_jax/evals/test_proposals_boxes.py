"""Boxes of detectors, read and checked."""

import json

import numpy as np
import pytest

from repvit_sam_jax.evals.proposals import boxes

IMAGES = [{"id": 7, "height": 40, "width": 60}, {"id": 3, "height": 60, "width": 40}]
CATEGORIES = [{"id": 1}, {"id": 90}]


def box(image=7, category=1, xywh=(1, 2, 10, 20), score=0.5):
    return {"image_id": image, "category_id": category, "bbox": list(xywh), "score": score}


def group(results, most=300):
    return boxes.group(results, IMAGES, CATEGORIES, most, "FILE")


def test_boxes_are_sorted_by_score_and_ties_stay_in_the_files_order(tmp_path):
    given = [box(score=0.5), box(3, 90, score=0.9), box(category=90, score=0.5), box(score=0.7), box(score=0.5)]
    given[1]["segmentation"] = {"size": [60, 40], "counts": "as Detectron2 has it"}
    path = tmp_path / "boxes.json"
    path.write_text(json.dumps(given))
    found = boxes.read(path, IMAGES, CATEGORIES, 3)
    assert sorted(found) == [3, 7]
    assert found[7].scores.tolist() == [0.7, 0.5, 0.5]
    assert found[7].categories.tolist() == [1, 1, 90]
    assert found[3].corners.tolist() == [[1, 2, 11, 22]]
    assert group(given)[7].scores.tolist() == [0.7, 0.5, 0.5, 0.5]  # duplicates stay


def test_boxes_may_reach_over_the_edge_and_have_no_area():
    found = group([box(xywh=(-5, -5, 5, 5)), box(xywh=(60, 0, 0, 3)), box(xywh=(50, 30, 90, 90))])
    assert found[7].corners[2].tolist() == [50, 30, 140, 120]


@pytest.mark.parametrize(
    ("results", "message"),
    [
        ([], "FILE holds no boxes in COCO's form of results"),
        ({"Cows": []}, "FILE holds no boxes"),
        ([{"image_id": 7}], "KeyError: 'category_id'"),
        ([box(xywh=(1, 2, 3))], "a box is four numbers, ids are integers"),
        ([box(image="7")], "ids are integers"),
        ([box(), box(image=8), box(image=9)], r"2 image_id are not .* such as 8; are these boxes for other photos"),
        ([box(category=0)], r"1 category_id are not .* such as 0; COCO's categories are numbered"),
        ([box(), box(xywh=(np.nan, 0, 1, 1))], r"box 1, .* of image 7, 60 x 40 pixels, .* is not finite"),
        ([box(score=np.inf)], "is not finite"),
        ([box(xywh=(20, 20, -5, 5))], r"negative width or height; a box is \[x, y, w, h\]"),
        ([box(xywh=(61, 0, 5, 5))], "lies outside its photo"),
        ([box(xywh=(-6, 0, 5, 5))], "lies outside its photo"),
        ([box(xywh=(30, 5, 58, 39)), box(xywh=(40, 30, 50, 38))], "100% of the boxes reach far over"),
    ],
)
def test_what_is_wrong_is_said(results, message):
    with pytest.raises(ValueError, match=message):
        group(results)

"""Instances of videos on a miniature of UVO."""

import json

import numpy as np
import pytest
from PIL import Image

from repvit_sam_jax.evals import run
from repvit_sam_jax.evals.proposals import tracks
from repvit_sam_jax.evals.tasks import open_task
from repvit_sam_jax.evals.tasks import uvo as task_module
from repvit_sam_jax.inference import rle
from tests.helpers.miniatures import SIZE, colour_segmenter, shifted, uvo, videos

LABELS = {"-zoo": videos.moving(0, 5), "ape": videos.moving(1, 1, objects=2)}
THRESHOLDS = np.linspace(0.5, 0.95, 10)
FILE = "VideoDenseSet/UVO_video_val_dense.json"


@pytest.fixture(autouse=True)
def frames_stay_as_they_are(monkeypatch):
    monkeypatch.setattr(task_module, "SHORT", SIZE[0])


@pytest.fixture
def data(tmp_path):
    return uvo.write(tmp_path, LABELS)


@pytest.fixture
def proposals(tmp_path):
    tracks.write(tmp_path / "tracks.npz", [(name, videos.follow(of)) for name, of in LABELS.items()])
    return tmp_path / "tracks.npz"


def measure(data, proposals, tmp_path, segmenter=None, **options):
    task = open_task("uvo", data, proposals)
    return run.run(task, segmenter or colour_segmenter(), run.Place(data, proposals, tmp_path / "out"), **options)


def test_a_segmenter_that_knows_the_objects_finds_all_tracks(data, proposals, tmp_path):
    found = measure(data, proposals, tmp_path, num_pictures=2)
    assert [found.numbers["AR100"], found.numbers["AP"]] == pytest.approx([1, 1])
    assert found.counts == {"videos": 2, "objects": 5, "tracks": 5}
    assert open_task("uvo", data, proposals).keys == ["ape", "-zoo"]  # by id
    first = measure(data, proposals, tmp_path / "first", limit=1)
    assert first.counts == {"videos": 1, "objects": 2, "tracks": 2}
    assert first.numbers["AR100"] == pytest.approx(1)


def test_masks_that_are_shifted_are_recalled_up_to_their_overlap(data, proposals, tmp_path):
    found = measure(data, proposals, tmp_path, colour_segmenter(shift=(0, 2)))
    overlaps = []
    for labels in LABELS.values():
        for number in range(1, labels.max() + 1):
            ours, theirs = (np.stack([shifted(f == number, (0, s)) for f in labels]) for s in (2, 0))
            overlaps.append((ours & theirs).sum() / (ours | theirs).sum())
    expected = np.mean([[iou >= threshold for iou in overlaps] for threshold in THRESHOLDS])
    assert 0.2 < expected < 0.9
    assert found.numbers["AR100"] == pytest.approx(expected)


def test_scores_are_means_and_a_track_that_is_lost_once_comes_last(data, proposals, tmp_path):
    given = videos.follow(LABELS["-zoo"])
    given.visible[2, 0] = False
    tracks.write(proposals, [("-zoo", given), ("ape", videos.follow(LABELS["ape"]))])
    task = open_task("uvo", data, proposals)
    (answer,) = task.segment(colour_segmenter(), [task.load("-zoo")])
    lost, *others = answer.found
    assert (lost["score"], lost["segmentations"][2]) == (task_module.LAST, None)
    assert [of["score"] for of in others] == pytest.approx([0.9, 0.9])
    assert others[0]["segmentations"][4] == rle.counts_to_coco(rle.mask_to_counts(LABELS["-zoo"][4] == 2), SIZE)
    assert task.score(answer)["results"][0]["score"] == task_module.LAST
    found = measure(data, proposals, tmp_path)
    overlap = (LABELS["-zoo"][[0, 1, 3, 4]] == 1).sum() / (LABELS["-zoo"] == 1).sum()
    assert found.numbers["AR100"] == pytest.approx(np.mean([1] * 4 + [np.mean(overlap >= THRESHOLDS)]))


def test_masks_of_low_predicted_iou_are_empty_and_the_first_tracks_count(data, proposals, monkeypatch):
    segmenter = colour_segmenter()
    segmenter.predictor.backend.IOUS = (0.6, 0.5, 0.25)
    monkeypatch.setattr(task_module, "TRACKS", 2)
    task = open_task("uvo", data, proposals)
    (answer,) = task.segment(segmenter, [task.load("-zoo")])
    assert [of["score"] for of in answer.found] == pytest.approx([0.6, 0.6])
    assert [of["segmentations"] for of in answer.found] == [[None] * 5] * 2


def test_frames_are_segmented_at_a_shorter_side_of_360(data, proposals, monkeypatch):
    monkeypatch.setattr(task_module, "SHORT", 360)
    assert task_module.scaled_size((480, 854)) == (360, 641)  # 640.5
    assert task_module.scaled_size((854, 480)) == (641, 360)
    assert task_module.scaled_size((200, 1000)) == (267, 1333)
    monkeypatch.setattr(task_module, "SHORT", 24)
    task = open_task("uvo", data, proposals)
    (answer,) = task.segment(colour_segmenter(32), [task.load("ape")])
    mask = rle.counts_to_mask(rle.decompress(answer.found[0]["segmentations"][0]["counts"]), SIZE)
    truth = LABELS["ape"][0] == 1
    assert 0.8 < (mask & truth).sum() / (mask | truth).sum() < 1  # of half the resolution


def test_other_categories_and_jpegs_are_taken(data, proposals, tmp_path):
    content = json.loads((data / FILE).read_text())
    content["annotations"][1]["category_id"] = 7
    (data / FILE).write_text(json.dumps(content))
    frame = data / "uvo_videos_dense_frames/ape/0.png"
    Image.open(frame).save(frame.with_suffix(".jpg"), quality=100, subsampling=0)
    frame.unlink()
    assert measure(data, proposals, tmp_path).numbers["AR100"] == pytest.approx(1)


def test_data_and_tracks_that_do_not_fit(data, proposals, tmp_path):
    with pytest.raises(ValueError, match=r"lacks VideoDenseSet/UVO_video_val_dense.json, uvo_videos_dense_frames"):
        open_task("uvo", data / "VideoDenseSet", proposals)
    content, file = json.loads((data / FILE).read_text()), data / FILE
    given = content["annotations"][0]
    for change, message in (
        ({"segmentations": given["segmentations"][1:]}, "annotation 0 of -zoo has no mask or null for each frame"),
        ({"segmentations": [{"size": [4, 5], "counts": "0d0"}] * 5}, r"annotation 0 of -zoo: a mask of size \[4, 5\]"),
    ):
        file.write_text(json.dumps(content | {"annotations": [given | change]}))
        with pytest.raises(ValueError, match=message):
            open_task("uvo", data, proposals).load("-zoo")
    first, second = content["videos"]
    for changed, message in (
        ({"annotations": [given | {"video_id": 5}]}, "annotations of video 5, which it lacks"),
        ({"videos": [first, second | {"id": first["id"]}]}, "videos with ids and folders of their own"),
        ({"videos": [first, second | {"length": 2}]}, "video 89 has 1 file_names and a length of 2"),
        (
            {"videos": [first, second | {"file_names": ["bee/0.png"]}]},
            "lacks the frames of 1 of 2 videos, .* bee/0.png",
        ),
        (
            {"videos": [first, second | {"height": 50}]},
            r"ape has tracks of frames of size \[48, 64\], expected \[50, 64",
        ),
        ({"videos": 3}, "is not in the form of YouTube-VIS"),
    ):
        file.write_text(json.dumps(content | changed))
        with pytest.raises(ValueError, match=message):
            open_task("uvo", data, proposals)
    file.write_text(json.dumps(content))
    frame = data / "uvo_videos_dense_frames/-zoo/3.png"
    Image.new("RGB", (32, 24)).save(frame)
    with pytest.raises(ValueError, match=r"3.png has 32 x 24 pixels, expected 64 x 48"):
        open_task("uvo", data, proposals).load("-zoo")
    frame.unlink()
    with pytest.raises(ValueError, match=r"there is no frame .*-zoo/3.png"):
        open_task("uvo", data, proposals).load("-zoo")

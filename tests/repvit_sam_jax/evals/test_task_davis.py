"""Objects of videos on a miniature of DAVIS-2017."""

import dataclasses
import shutil

import numpy as np
import pytest
from PIL import Image

from repvit_sam_jax.data.datasets.davis import Davis
from repvit_sam_jax.evals import run
from repvit_sam_jax.evals.metrics import video
from repvit_sam_jax.evals.proposals import tracks
from repvit_sam_jax.evals.tasks import open_task, sam_pt
from tests.helpers.miniatures import colour_segmenter, davis, shifted, videos

LABELS = {"zebra": videos.moving(0, 6), "ant": videos.moving(1, 3, objects=2)}
"""Not in the order of their names."""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return davis.write(tmp_path_factory.mktemp("davis"), LABELS)


def save(path, labels, change=lambda name, of: of):
    tracks.write(path, [(name, change(name, videos.follow(of))) for name, of in labels.items()])
    return path


def measure(data, proposals, tmp_path, segmenter=None, **options):
    task = open_task("davis", data, proposals)
    return run.run(task, segmenter or colour_segmenter(), run.Place(data, proposals, tmp_path / "out"), **options)


def jaccards(predicted, truth):
    """Of each object, the mean over its frames but the first and the last, by plain loops."""
    means = []
    for number in range(1, truth[0].max() + 1):
        values = []
        for ours, theirs in zip(predicted[1:-1], truth[1:-1], strict=True):
            union = ((ours == number) | (theirs == number)).sum()
            values.append(((ours == number) & (theirs == number)).sum() / union if union else 1)
        means.append(np.mean(values))
    return means


def test_a_segmenter_that_knows_the_objects_is_perfect(data, tmp_path):
    found = measure(data, save(tmp_path / "tracks.npz", LABELS), tmp_path, num_pictures=1)
    assert [found.numbers[name] for name in ("J&F-Mean", "J-Mean", "F-Mean", "J-Decay")] == [1, 1, 1, 0]
    assert found.counts == {"sequences": 2, "objects": 5}
    assert found.settings["refinements"] == 12
    first = measure(data, tmp_path / "tracks.npz", tmp_path / "first", limit=1)
    assert first.counts == {"sequences": 1, "objects": 3}  # zebra, the first of the list


def test_masks_that_are_shifted_have_the_overlap_of_shifted_labels(data, tmp_path):
    """Of noisy tracks, too, most of whose points are right."""

    def noisy(name, of):
        points = of.points.copy()
        points[:, :, 0] = np.random.default_rng(0).uniform(2, 40, points[:, :, 0].shape)
        return dataclasses.replace(of, points=points)

    proposals = save(tmp_path / "tracks.npz", LABELS, noisy)
    found = measure(data, proposals, tmp_path, colour_segmenter(shift=(1, 2)))
    predicted = {name: np.stack([shifted(frame, (1, 2)) for frame in of]) for name, of in LABELS.items()}
    expected = [value for name, of in LABELS.items() for value in jaccards(predicted[name], of)]
    assert found.numbers["J-Mean"] == pytest.approx(np.mean(expected), abs=1e-12)
    whole = {name: (np.concatenate([of[:1], predicted[name][1:]]), of) for name, of in LABELS.items()}
    assert found.numbers == video.davis(whole)


def test_a_pixel_is_of_the_object_with_the_largest_logit(data, tmp_path, monkeypatch):
    """The first frame is given; what is below the background's 0, or of a low predicted IoU, is no object's."""
    logits = np.full((3, 64, 64), -1, np.float32)
    logits[0, :, :32], logits[1, :, :20], logits[1, :, 30:40], logits[2] = 2, 3, 1, 9
    logits[0, :, :10] = 4
    objects = [sam_pt.Object(k, None, None, logits[k], iou) for k, iou in enumerate((0.7, 0.8, 0.69))]
    monkeypatch.setattr(sam_pt, "frames", lambda *given, first: [sam_pt.Frame(1, None, objects)])
    task = open_task("davis", data, save(tmp_path / "tracks.npz", LABELS))
    (answer,) = task.segment(colour_segmenter(), [task.load("zebra")])
    assert [answer.labels[1, 24, x] for x in (5, 15, 25, 36, 50)] == [1, 2, 1, 2, 0]
    assert not answer.labels[2:].any()


def test_the_first_frame_is_the_truth(data, tmp_path):
    task = open_task("davis", data, save(tmp_path / "tracks.npz", LABELS))
    (answer,) = task.segment(colour_segmenter(shift=(3, 3)), [task.load("zebra")])
    np.testing.assert_array_equal(answer.labels[0], LABELS["zebra"][0])


def test_void_is_background_and_objects_come_and_go(tmp_path):
    labels = videos.moving(0, 5)
    labels[2:4][labels[2:4] == 2] = 0  # gone, and back
    void = labels.copy()
    void[:, :2] = 255
    data = davis.write(tmp_path, {"one": void})
    # The first object is seen by nobody in the frame in the middle, and all are hidden in the one before the last.
    given = videos.follow(labels)
    given.visible[2, 0], given.visible[3] = False, False
    tracks.write(tmp_path / "tracks.npz", [("one", given)])
    found = measure(data, tmp_path / "tracks.npz", tmp_path)
    predicted = labels.copy()
    predicted[2][labels[2] == 1], predicted[3] = 0, 0
    truth = np.where(void == 255, 0, void)
    assert found.numbers["J-Mean"] == pytest.approx(np.mean(jaccards(predicted, truth)), abs=1e-12)
    assert found.numbers["J-Mean"] < 0.8


def test_labels_that_skip_a_number_keep_theirs(tmp_path):
    labels = videos.moving(0, 3, objects=2)
    labels[labels == 2] = 3
    data = davis.write(tmp_path, {"one": labels})
    tracks.write(tmp_path / "tracks.npz", [("one", videos.follow(labels))])
    found = measure(data, tmp_path / "tracks.npz", tmp_path)
    assert (found.numbers["J-Mean"], found.counts["objects"]) == (1, 3)


def test_tracks_that_fit_no_sequence(data, tmp_path):
    with pytest.raises(
        ValueError, match=r"starts from points that a tracker followed, --proposals FILE.npz, and it is"
    ):
        open_task("davis", data)
    path = tmp_path / "tracks.npz"
    for change, message in (
        ({"size": (64, 48)}, r"zebra has tracks of frames of size \[64, 48\], expected \[48, 64\]"),
        ({"points": lambda p: p[1:], "visible": lambda v: v[1:]}, "zebra has tracks of 5 frames, expected 6"),
        (
            {"points": lambda p: p[:, 1:], "visible": lambda v: v[:, 1:], "labels": lambda n: n[1:]},
            "of 2 objects, expe",
        ),
        ({"visible": lambda v: v[..., 1:]}, r"zebra/visible should be bool \[6, 3, 5\], got \[6, 3, 4\]"),
        ({"visible": lambda v: v.astype(float)}, r"zebra/visible should be bool"),
        ({"labels": lambda n: n.astype(float)}, r"zebra/labels should be int \[3, 5\]"),
        ({"points": lambda p: p[..., :1]}, r"zebra/points should be float \[T, K, N, 2\], got \[6, 3, 5, 1\]"),
    ):
        changed = lambda name, of, c=change: dataclasses.replace(
            of, **{field: value(getattr(of, field)) if callable(value) else value for field, value in c.items()}
        )
        with pytest.raises(ValueError, match=message):
            open_task("davis", data, save(path, LABELS, changed))
    for labels, message in (
        ({"zebra": LABELS["zebra"]}, "lacks 1 videos, such as 'ant'"),
        (LABELS | {"bee": LABELS["ant"]}, "has unknown 1 videos, such as 'bee'"),
    ):
        with pytest.raises(ValueError, match=message):
            open_task("davis", data, save(path, labels))
    path.write_bytes(b"no archive")
    with pytest.raises(ValueError, match="is no NumPy archive"):
        open_task("davis", data, path)
    for change, message in (
        ({"labels": lambda n: n + 1}, "zebra/labels should be 1 on the object"),
        ({"points": lambda p: np.where(p > 20, np.inf, p)}, "visible points that are not finite"),
    ):
        changed = lambda name, of, c=change: dataclasses.replace(of, **{n: v(getattr(of, n)) for n, v in c.items()})
        with pytest.raises(ValueError, match=message):
            open_task("davis", data, save(path, LABELS, changed)).load("zebra")


def test_data_that_are_not_whole(data, tmp_path):
    proposals = save(tmp_path / "tracks.npz", LABELS)
    with pytest.raises(ValueError, match=r"lacks ImageSets/2017/val.txt, JPEGImages/480p, Annotations/480p"):
        Davis(tmp_path)
    copy = shutil.copytree(data, tmp_path / "DAVIS")
    annotation = copy / "Annotations/480p/ant/00001.png"
    with Image.open(annotation) as opened:
        opened.convert("L").save(tmp_path / "gray.png")
    shutil.copy(tmp_path / "gray.png", annotation)
    with pytest.raises(ValueError, match=r"00001.png has no palette \(mode L, expected P\)"):
        measure(copy, proposals, tmp_path)
    annotation.write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"ant/00001.png can't be read as a picture"):
        open_task("davis", copy, proposals).load("ant")
    annotation.unlink()
    with pytest.raises(ValueError, match=r"Annotations/480p/ant lacks 1 of the 3 files that .* such as that of 00001"):
        Davis(copy)
    (copy / "JPEGImages/480p/ant/00001.jpg").unlink()
    with pytest.raises(ValueError, match=r"ant has 2 frames; the first and the last one do not count"):
        open_task("davis", copy, proposals)
    shutil.rmtree(copy / "Annotations/480p/ant")
    with pytest.raises(ValueError, match=r"Annotations/480p lacks 1 of 2 sequences, such as ant"):
        Davis(copy)
    (copy / "ImageSets/2017/val.txt").write_text("zebra\nzebra\n")
    with pytest.raises(ValueError, match=r"val.txt should list sequences, each once"):
        Davis(copy)
    photo = data / "JPEGImages/480p/zebra/00002.jpg"
    wrong = shutil.copytree(data, tmp_path / "wrong") / photo.relative_to(data)
    Image.new("RGB", (32, 24)).save(wrong)
    with pytest.raises(ValueError, match=r"00002.jpg has 32 x 24 pixels, expected 64 x 48"):
        open_task("davis", tmp_path / "wrong", proposals).load("zebra")

"""Pseudo-labels: where windows lie, masks that are those of the predictor, what is left out, and shards of them."""

import contextlib
import dataclasses
import json

import jax
import numpy as np
import pytest
from PIL import Image

from repvit_sam_jax import SamPredictor
from repvit_sam_jax.data import ExampleConfig, make_example, open_source, read_annotations
from repvit_sam_jax.evals.metrics import iou
from repvit_sam_jax.inference.rle import counts_to_mask
from train import __main__ as command
from train import pseudo_labels as labels
from train.teacher import load_teacher

SIZE = 256


def disc(size, centre, radius):
    y, x = np.mgrid[: size[0], : size[1]]
    return np.hypot(x - centre[0], y - centre[1]) <= radius


LARGE = disc((600, 800), (250, 300), 170)
SMALL = [disc((600, 800), (x, y), 20) for x in (500, 600, 700) for y in (80, 220, 360, 500)]


@pytest.fixture(scope="module")
def photo():
    image = np.full((600, 800, 3), (60, 110, 90), float)
    image[LARGE] = 200, 60, 40
    image[np.any(SMALL, axis=0)] = 240, 220, 60
    noise = np.random.default_rng(0).normal(0, 8, image.shape)
    return Image.fromarray((image + noise).clip(0, 255).astype(np.uint8))


def shown(thing):
    """A thing of the photo as it is in the window that shows all of it."""
    return np.asarray(Image.fromarray(thing).resize((256, 192), Image.Resampling.NEAREST))


def remembering(function):
    answers = {}

    def answer(model, params, *given):
        key = model, *((np.shape(leaf), np.asarray(leaf).tobytes()) for leaf in jax.tree.leaves(given))
        if key not in answers:
            answers[key] = function(model, params, *given)
        return answers[key]

    return answer


@pytest.fixture(scope="module", autouse=True)
def _answers():
    """What the model has answered it is not asked again: the time of these tests is the model's."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("encode_pixels", "_decode"):
            patch.setattr(labels, name, remembering(getattr(labels, name)))
        yield


@pytest.fixture(scope="module")
def teacher():
    return load_teacher("demo", SIZE, "float32")


@pytest.fixture(scope="module")
def labeller(teacher):
    return labels.Labeller(teacher.model, teacher.params)


@pytest.fixture
def folder(photo, tmp_path):
    (tmp_path / "photos").mkdir()
    photo.save(tmp_path / "photos" / "drawn.png")
    return tmp_path / "photos"


@pytest.fixture(scope="module")
def whole(photo):
    return labels.Window(photo, (0, 0, *photo.size), (192, 256))


def test_windows_lie_in_the_photo_and_show_it():
    """A photo whose colours are its coordinates."""
    y, x = np.mgrid[:600, :800]
    photo = Image.fromarray(np.stack([x // 4, y // 4, 0 * x], -1).astype(np.uint8))
    rng = np.random.default_rng(0)
    extents, shapes = [], set()
    for _ in range(40):
        window = labels.Window.of(photo, SIZE, rng)
        left, top, right, bottom = window.box
        assert 0 <= left < right <= 800
        assert 0 <= top < bottom <= 600
        assert max(window.size) == SIZE
        assert not any(side % labels.CELL for side in window.size)
        assert window.image.shape == (*window.size, 3)
        assert (right - left) / (bottom - top) == pytest.approx(window.size[1] / window.size[0], rel=0.02)
        corners = window.image[[0, -1], [0, -1], :2].ravel() * 4.0
        np.testing.assert_allclose(corners, [left, top, right, bottom], atol=8)
        part = window.part((40, 60, 104, 140), (64, 80))
        np.testing.assert_allclose(part.astype(int), window.image[40:104, 60:140], atol=3)
        extents.append(min(right - left, bottom - top))
        shapes.add(window.size)
    assert min(extents) < 480
    assert max(extents) > 560
    assert len(shapes) == len(labels.ASPECTS)


def test_finds_things_of_all_sizes(labeller, whole, monkeypatch):
    masks, scores = labeller(whole, np.random.default_rng(1))
    found = np.array(masks)
    assert iou(found, shown(LARGE)).max() > 0.9
    assert sum(iou(found, shown(thing)).max() > 0.8 for thing in SMALL) >= 1
    assert min(scores) >= labels.AGREEMENT
    assert max(scores) < 1
    shares = found.mean((1, 2))
    assert shares.min() >= 0.9 * min(look.smallest for look in labels.LOOKS)
    assert shares.max() <= 0.8
    for i, mask in enumerate(masks):
        assert (iou(found[:i], mask) <= labels.OVERLAP).all()
    monkeypatch.setattr(labels, "AGREEMENT", float(np.median(scores)))
    _, better = labeller(whole, np.random.default_rng(1))
    assert min(scores) < labels.AGREEMENT <= min(better)  # what a mask left out has overlapped may come in its place


@pytest.mark.slow(group="train")
def test_small_things_need_a_close_look(labeller, whole, monkeypatch):
    far, _, close, _ = labels.LOOKS

    def count(look):
        monkeypatch.setattr(labeller, "looks", (look,) * 4)
        masks, _ = labeller(whole, np.random.default_rng(1))
        found = np.array(masks).reshape(-1, 192, 256)
        return sum(iou(found, shown(thing)).max(initial=0) > 0.8 for thing in SMALL)

    assert count(far) == 0
    assert count(close) >= 2


@pytest.mark.slow(group="train")
def test_one_look_finds_small_and_large_things(teacher, photo):
    """A window with six discs of 2% of it, from which a look for large things takes none."""
    window = labels.Window(photo, (450, 30, 750, 255), (192, 256))
    things = [np.asarray(Image.fromarray(thing).resize((256, 192), box=window.box)) for thing in SMALL]
    things = [thing for thing in things if thing.mean() > 0.015]

    def found(looks):
        masks, _ = labels.Labeller(teacher.model, teacher.params, looks)(window, np.random.default_rng(1))
        return sum(iou(np.array(masks, bool).reshape(-1, 192, 256), thing).max(initial=0) > 0.8 for thing in things)

    assert len(things) == 6
    assert found(labels.WHOLE) >= 4
    assert found(labels.LOOKS[:1]) == 0


@pytest.mark.slow(group="train")
def test_masks_are_the_mean_of_the_predictor_s_two_answers(teacher, labeller, whole):
    """Step by step, box by box, by the public predictor."""
    areas, place = (600.0, 40000.0), (0, 0, *whole.size)
    image = whole.image
    frame = np.zeros((1, SIZE, SIZE, 3), np.uint8)
    frame[0, : image.shape[0]] = image
    embedding = labeller._encode(frame, np.array([image.shape[:2]], np.int32))
    views = image, np.ascontiguousarray(image[:, ::-1])
    predictors = [SamPredictor(teacher.model, teacher.params) for _ in views]
    for predictor, view in zip(predictors, views, strict=True):
        predictor.set_image(view)
    count = 0
    for seed in range(6):  # one look finds few things, and how many is the model's chance
        found = labeller._look(image, 7, np.random.default_rng(seed), areas, place, whole.size)
        boxes = labeller._propose(embedding, image.shape[:2], 7, areas, np.random.default_rng(seed))
        expected = []
        for box in boxes:
            both = []
            mirrored = np.array([255 - box[2], box[1], 255 - box[0], box[3]])
            for predictor, given in zip(predictors, (box, mirrored), strict=True):
                # Without the padding, which the predictor's own masks blend into what is beside it.
                both.append(predictor.predict(box=given, multimask_output=False)[2][0, :48, :64])
            mean = Image.fromarray((both[0] + both[1][:, ::-1]) / 2)
            mask = np.asarray(mean.resize((256, 192), Image.Resampling.BILINEAR)) > 0
            top, left, bottom, right = (int(box[i]) + d for i, d in ((1, -1), (0, -1), (3, 2), (2, 2)))
            inside = np.zeros_like(mask)
            inside[max(top, 0) : bottom, max(left, 0) : right] = True
            expected.append(labels._without_crumbs(mask & inside))
        for mask, _ in found:
            assert iou(np.array(expected), mask).max() > 0.999
        count += len(found)
    assert count >= 8


def test_things_that_go_on_outside_of_a_part_are_left_out(labeller, photo):
    whole = labels.Window(photo, (0, 0, *photo.size), (192, 256))
    place = (0, 0, 192, 128)  # the left half, which cuts the large disc

    def touching(window_size):
        image = whole.part(place, (256, 172))
        found = labeller._look(image, 7, np.random.default_rng(3), (300.0, 60000.0), place, window_size)
        return [mask for mask, _ in found if mask[:, -8:].any()]

    assert touching((192, 128))
    assert not touching(whole.size)


def test_outlines_are_seen_where_colours_differ():
    rng = np.random.default_rng(0)
    mask = disc((120, 160), (70, 60), 30)
    box = labels._box(mask)
    image = np.where(mask[..., None], [120, 80, 60], [90, 80, 60]) + rng.normal(0, 4, (120, 160, 3))
    image = image.clip(0, 255).astype(np.uint8)
    assert labels._seen(image, mask, box) > 0.99
    half = mask.copy()
    half[:, 70:] = False
    assert 0.5 < labels._seen(image, half, labels._box(half)) < 0.75  # the straight side is not seen
    assert labels._seen(image[:, ::-1], np.roll(mask, -30, 1), box - [30, 0, 30, 0]) < 0.6
    noise = rng.integers(0, 256, (120, 160, 3)).astype(np.uint8)
    assert labels._seen(noise, mask, box) < 0.05
    assert labels._seen(image, np.ones_like(mask), np.array([0, 0, 159, 119.0])) == 0  # no outline


def test_crumbs():
    mask = disc((60, 80), (20, 20), 12)
    crumb, piece = disc((60, 80), (60, 20), 2), disc((60, 80), (60, 45), 5)
    np.testing.assert_array_equal(labels._without_crumbs(mask | crumb | piece), mask | piece)
    assert not labels._without_crumbs(np.zeros((6, 8), bool)).any()


class Stub:
    """Rectangles in place of what a model finds."""

    def __init__(self, model, params, looks):
        self.image_size, self.looks = model.config.image_size, looks

    def __call__(self, window, rng):
        masks = np.zeros((labels.FEWEST + len(self.looks), *window.size), bool)
        for mask, (top, left) in zip(masks, rng.integers(0, 80, (len(masks), 2)), strict=True):
            mask[top : top + 40, left : left + 50] = True
        return list(masks), rng.uniform(labels.AGREEMENT, 1, len(masks)).tolist()


@pytest.fixture
def stub(monkeypatch):
    monkeypatch.setattr(labels, "Labeller", Stub)


def test_shards(stub, folder, teacher, tmp_path):
    check_shards(folder, teacher, tmp_path)


@pytest.mark.slow(group="train")
def test_shards_of_the_model_s_masks(folder, teacher, tmp_path):
    check_shards(folder, teacher, tmp_path)


def check_shards(folder, teacher, tmp_path):
    source = open_source(folder)
    (path,) = labels.write_pseudo_labels(tmp_path / "out", source, teacher, 2, seed=5)
    (again,) = labels.write_pseudo_labels(tmp_path / "again", source, teacher, 2, seed=5)
    assert path.read_bytes() == again.read_bytes()
    written_at = path.stat().st_mtime_ns
    assert labels.write_pseudo_labels(tmp_path / "out", source, teacher, 2, seed=5) == [path]
    assert path.stat().st_mtime_ns == written_at
    written = open_source(tmp_path / "out")
    assert len(written) == 2
    for record in written[0], written[1]:
        content = json.loads(record.annotations)
        size = content["image"]["height"], content["image"]["width"]
        assert max(size) == SIZE
        masks = [counts_to_mask(counts, size) for counts in read_annotations(record.annotations, size)]
        assert len(masks) >= labels.FEWEST
        # Four answers can be the same for a mask, and are not for all.
        assert min(about["predicted_iou"] for about in content["annotations"]) < 1
        for mask, about in zip(masks, content["annotations"], strict=True):
            assert about["area"] == mask.sum()
            assert labels.AGREEMENT <= about["predicted_iou"] == about["stability_score"] <= 1
        assert make_example(record, ExampleConfig(SIZE, num_masks=4))["valid"].any()
    assert written[0].photo != written[1].photo
    for other in dataclasses.replace(teacher, identity="other"), load_teacher("demo", SIZE, "bfloat16"):
        with pytest.raises(ValueError, match="holds windows with the settings"):
            labels.write_pseudo_labels(tmp_path / "out", source, other, 2, seed=5)
    with pytest.raises(ValueError, match="holds windows with the settings"):
        labels.write_pseudo_labels(tmp_path / "out", source, teacher, 2, seed=5, whole=True)
    (rough,) = labels.write_pseudo_labels(tmp_path / "whole", source, teacher, 2, seed=5, whole=True)
    assert rough.read_bytes() != path.read_bytes()


def test_bad_input(photo, teacher, tmp_path, monkeypatch):
    monkeypatch.setattr(labels, "_ATTEMPTS", 2)
    cases = {
        "grey": (Image.new("RGB", (300, 200), (90, 90, 90)), "none of 2 windows"),
        "tiny": (Image.new("RGB", (60, 90)), "photo.png is too small"),
        "text": (None, "photo.png is not an image"),
        "cut": (photo, "photo.png is truncated"),
    }
    for name, (image, message) in cases.items():
        (tmp_path / name).mkdir()
        file = tmp_path / name / "photo.png"
        if image is None:
            file.write_text("a text")
        else:
            image.save(file)
        if name == "cut":
            file.write_bytes(file.read_bytes()[:20000])
        with pytest.raises(ValueError, match=message):
            labels.write_pseudo_labels(tmp_path / "out" / name, open_source(tmp_path / name), teacher, 1, whole=True)
        assert not list((tmp_path / "out").rglob("*.tar"))


def test_command(stub, folder, tmp_path, monkeypatch, capsys):
    def run(*arguments):
        monkeypatch.setattr("sys.argv", ["train", "pseudo-label", *map(str, arguments)])
        with contextlib.suppress(SystemExit):
            command.main()
        return capsys.readouterr()

    options = ("--data", folder, "--image-size", SIZE, "--seed", 5)
    assert "2 windows in 1 shard" in run(tmp_path / "out", "--count", 2, *options).out
    assert "2 windows in 1 shard" in run(tmp_path / "whole", "--count", 2, *options, "--whole").out
    assert json.loads((tmp_path / "whole" / "windows.json").read_text())["looks"] == [[1, 0.0004, 0.8, 10]]
    for arguments, message in [
        ((tmp_path / "out", "--count", 3, *options), "holds windows with the settings"),
        ((tmp_path / "new", "--count", 0, *options), "at least 1"),
        ((tmp_path / "new", "--data", tmp_path / "missing"), "no file, folder"),
        ((tmp_path / "new", "--teacher", "missing.safetensors", *options), "missing.safetensors"),
    ]:
        errors = run(*arguments).err
        assert errors.startswith("error: ")
        assert message in errors
    assert not (tmp_path / "new").exists()

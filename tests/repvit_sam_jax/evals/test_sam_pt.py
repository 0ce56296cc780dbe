"""What SAM-PT asks for, in which order, beside a plain form of it; and the files of tracks."""

import dataclasses

import numpy as np
import pytest

from repvit_sam_jax import PRESETS, SamPredictor, transforms
from repvit_sam_jax.evals.proposals import tracks
from repvit_sam_jax.evals.tasks import sam_pt
from repvit_sam_jax.inference.predictor import EmbeddedImage
from repvit_sam_jax.models.prompt_encoder import BOTTOM_RIGHT, NOT_A_POINT, TOP_LEFT
from tests.helpers.miniatures import videos

SIDE = 64


def respond(points, labels, mask):
    """A mask and its predicted IoU, which depend on all of a prompt and on the order of its points.

    They mean nothing; some masks are empty, so that refinements end.
    """
    weights = np.sin(np.arange(1, 1 + len(points)))
    x, y = (points * (2 + labels)[:, None] * weights[:, None]).sum(0) / 40 if len(points) else (0, 0)
    before = 0 if mask is None else float(np.abs(mask).mean())
    rows, columns = np.indices((SIDE // 4, SIDE // 4))
    logits = 4 * np.sin(rows / 4 + x + before) + 4 * np.cos(columns / 3 + y) - 4 + np.sin(x)
    return logits.astype(np.float32), np.float32(0.75 + 0.2 * np.sin(x + before))


class Recorder:
    """A backend that answers with `respond`."""

    dtype = "float32"

    def __init__(self):
        self.config = dataclasses.replace(PRESETS["tiny"], image_size=SIDE)
        self.dispatched = []

    def encode(self, images):
        return [image[None] for image in images]

    def decode(self, embedding, prompts, multimask_output):
        assert not multimask_output
        found, kinds = [], []
        for i, valid in enumerate(prompts.point_valid[0]):
            points, labels = prompts.point_coords[0, i][valid], prompts.point_labels[0, i][valid]
            kinds.append((sorted(set(labels.tolist())), prompts.masks is not None))
            is_point = labels != NOT_A_POINT
            mask = None if prompts.masks is None else prompts.masks[0, i]
            found.append(respond(points[is_point].astype(float), labels[is_point], mask))
        self.dispatched.append(kinds)
        masks, ious = zip(*found, strict=True)
        return np.stack(masks)[None, :, None], np.stack(ious)[None, :, None]


def plain(given, frame, positives, others, refinements):
    """SAM-PT's loops over objects: low-res logits and predicted IoU, or None."""
    height, width = given.size
    results = []
    for k in range(given.labels.shape[0]):
        points, labels = [], []
        for of in [k] + [o for o in range(given.labels.shape[0]) if o != k and others]:
            for n in range(given.labels.shape[1]):
                x, y = given.points[frame, of, n]
                if not given.visible[frame, of, n] or not (0.01 <= x / width <= 0.99 and 0.01 <= y / height <= 0.99):
                    continue
                if of == k or n < positives:
                    points.append((x, y))
                    labels.append(int(of == k and n < positives))
        if not points:
            results.append(None)
            continue
        coords, labels = transforms.apply_coords(np.array(points), given.size, SIDE).astype(float), np.array(labels)
        mask = None
        if positives < given.labels.shape[1]:
            mask, _ = respond(coords[labels == 1], labels[labels == 1], None)
        mask, iou = respond(coords, labels, mask)
        for _ in range(refinements):
            whole = transforms.resize_bilinear(mask, SIDE, SIDE)[: transforms.resized_shape(height, width, SIDE)[0]]
            ys, xs = np.nonzero(whole[:, : transforms.resized_shape(height, width, SIDE)[1]] > 0)
            if len(xs) < 2:
                break
            box = np.array([[xs.min(), ys.min()], [xs.max(), ys.max()]], float)
            mask, iou = respond(np.concatenate([coords, box]), np.concatenate([labels, [TOP_LEFT, BOTTOM_RIGHT]]), mask)
        results.append((mask, iou))
    return results


@pytest.mark.parametrize("negatives", [0, 2])
@pytest.mark.parametrize("way", [sam_pt.Way(True, 5), sam_pt.Way(False, 0)])
def test_prompts_are_those_of_sam_pt(tmp_path, negatives, way, rng):
    given = videos.follow(np.stack([videos.moving(0, 1)[0]] * 6), positives=3, negatives=negatives)
    given.visible[:] = rng.random(given.visible.shape) < 0.6
    given.visible[1] = False
    given.visible[2, 0] = False
    given.points[3, :, 0] = 0.3, 20  # less than 0.01 of the width from the edge
    predictor = SamPredictor.over(Recorder())
    photo = np.zeros((*given.size, 3), np.uint8)
    found = list(sam_pt.frames(predictor, [tmp_path / str(t) for t in range(6)], given, way, 1, lambda path: photo))
    assert [frame.number for frame in found] == [1, 2, 3, 4, 5]
    for frame in found:
        expected = plain(given, frame.number, 3, way.others, way.refinements)
        assert [of.number for of in frame.objects] == [k for k, e in enumerate(expected) if e is not None]
        for of in frame.objects:
            mask, iou = expected[of.number]
            np.testing.assert_allclose(of.low_res, mask, atol=1e-4)
            assert of.predicted_iou == pytest.approx(iou, abs=1e-5)
            assert of.is_kept == (iou >= 0.7)


def test_all_objects_of_a_frame_go_together(tmp_path):
    """Points on them; all points and a mask; then the box besides."""
    given = videos.follow(videos.moving(0, 1))
    backend = Recorder()
    list(
        sam_pt.frames(
            SamPredictor.over(backend),
            [tmp_path],
            given,
            sam_pt.Way(True, 1),
            0,
            lambda path: np.zeros((48, 64, 3), "u1"),
        )
    )
    first, second, *_ = backend.dispatched
    assert first == [([1], False)] * 3
    assert second == [([0, 1], True)] * 3
    assert all(kind == ([0, 1, 2, 3], True) for kind in backend.dispatched[2])


def test_a_mask_of_one_pixel_is_not_refined():
    predictor = SamPredictor.over(Recorder())
    frame = sam_pt.Frame(0, EmbeddedImage(None, (32, 16)), [])
    logits = np.full((SIDE // 4, SIDE // 4), -80, np.float32)
    logits[5, 3], logits[4, 3], logits[5, 2] = 10, 5, -60  # above 0 at (13, 21) alone, a quarter from their centres
    of = sam_pt.Object(0, np.zeros((1, 2)), np.ones(1, int), logits)
    assert sam_pt._box(predictor, frame, of) is None
    logits[5, 4] = -60
    np.testing.assert_allclose(sam_pt._box(predictor, frame, of), np.array([13, 21, 14, 21]) / 2)


def test_tracks_of_trackers_become_the_file(tmp_path, rng):
    points, visible = rng.uniform(0, 40, (6, 2, 5, 2)).astype(np.float32), rng.random((6, 2, 5)) < 0.5
    folder = tmp_path / "found"
    folder.mkdir()
    kinds = np.where(visible, 1, rng.integers(2, 5, visible.shape))  # SAM-PT's other values say why it is not
    np.savez(folder / "a.b.npz", trajectories=points, visibilities=kinds.astype(np.float32), size=(48, 64))
    flat = {"tracks": points.reshape(1, 6, 10, 2), "size": (48, 64)}
    np.savez(folder / "c.npz", visibility=visible.reshape(1, 6, 10), **flat)
    np.savez(folder / "d.npz", visibility=np.where(visible, 0.71, 0.69).reshape(1, 6, 10), **flat)
    tracks.convert(folder=folder, out=tmp_path / "all.npz", positives=4, points=5)
    file = tracks.TracksFile(tmp_path / "all.npz", dict.fromkeys(("a.b", "c", "d"), tracks.Expected(6, (48, 64), 2)))
    for name in ("a.b", "c", "d"):
        read = file.read(name)
        np.testing.assert_array_equal(read.points, points)
        np.testing.assert_array_equal(read.visible, visible)
        assert read.labels.tolist() == [[1, 1, 1, 1, 0]] * 2
    for content, message in (
        ({"tracks": points[None], "visibility": visible}, r"d.npz: expected size, and trajectories and visibilities"),
        ({**flat, "visibility": visible}, r"d.npz: tracks of shape \[1, 6, 10, 2\] are not \[1, T, K \* 5, 2\]"),
        ({"trajectories": points[:, :, :3], "visibilities": visible, "size": (48, 64)}, "with at least 4 points"),
    ):
        np.savez(folder / "d.npz", **content)
        with pytest.raises(ValueError, match=message):
            tracks.convert(folder=folder, out=tmp_path / "all.npz", positives=4, points=5)
    (folder / "d.npz").write_bytes(b"no archive")
    for given, message in (
        ({}, r"d.npz: "),
        ({"folder": tmp_path / "none"}, "holds no VIDEO.npz"),
        ({"out": tmp_path / "all.zip"}, "is written as .npz"),
        ({"positives": 6}, "must be at least 1, and --points 5 as many or more"),
    ):
        with pytest.raises(ValueError, match=message):
            tracks.convert(**{"folder": folder, "out": tmp_path / "all.npz", "positives": 4, "points": 5} | given)

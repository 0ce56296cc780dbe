"""A visitor's photo and prompts, over a model that knows colours."""

import numpy as np
import pytest

from repvit_sam_jax import transforms
from repvit_sam_jax.app import session as module
from repvit_sam_jax.app import view
from repvit_sam_jax.app.session import Session
from repvit_sam_jax.inference import colours
from repvit_sam_jax.inference.mask_generator import SamAutomaticMaskGenerator
from tests.helpers.miniatures import photo_of, scene
from tests.repvit_sam_jax.app.conftest import Model


def inside(labels, label):
    """(x, y), the pixel of the thing that is nearest to its middle."""
    y, x = np.nonzero(labels == label)
    best = np.hypot(y - y.mean(), x - x.mean()).argmin()
    return float(x[best]), float(y[best])


def box_of(labels, label):
    y, x = np.nonzero(labels == label)
    return x.min(), y.min(), x.max() + 1, y.max() + 1


def test_a_click_gives_three_masks_of_which_the_best_is_chosen(session, labels):
    session.add_point(*inside(labels, 1), 1)
    assert np.array_equal(session.mask(), labels == 1)
    assert view.candidates(session) == ["1: 0.90", "2: 0.50", "3: 0.25"]
    session.choose(2)
    assert session.mask().all()
    session.choose(0)
    assert np.array_equal(session.mask(), labels == 1)
    with pytest.raises(ValueError, match="no mask 4"):
        session.choose(3)


def test_one_encode_whatever_the_clicks(session, model, labels):
    session.add_point(*inside(labels, 1), 1)
    session.add_point(*inside(labels, 2), 0)
    session.draw_box(*box_of(labels, 1))
    session.refine()
    session.undo()
    session.search({"points_per_side": 4}, lambda *_: None)
    session.clear()
    assert len(model.encoded) == 1


def test_points_have_labels_and_a_second_one_makes_it_one_mask(session, model, labels):
    session.add_point(*inside(labels, 1), 1)
    session.add_point(*inside(labels, 2), 0)
    prompts, multimask = model.asked[-1]
    assert prompts.point_labels[0, 0, :2].tolist() == [1, 0]
    assert not multimask
    assert np.array_equal(session.mask(), labels == 1)
    assert len(view.candidates(session)) == 1


def test_points_of_what_is_not_meant_alone_ask_nothing(session, model, labels):
    session.add_point(*inside(labels, 2), 0)
    assert model.asked == []
    assert not session.mask().any()
    assert "what is not meant" in view.words(session)
    session.add_point(*inside(labels, 1), 1)
    assert np.array_equal(session.mask(), labels == 1)


def test_a_box_has_any_two_corners_and_replaces_the_one_before(session, labels):
    x1, y1, x2, y2 = box_of(labels, 2)
    session.draw_box(x2, y1, x1, y2)
    assert session.now.box == (x1, y1, x2, y2)
    assert np.array_equal(session.mask(), labels == 2)
    session.draw_box(*box_of(labels, 3))
    assert np.array_equal(session.mask(), labels == 3)


def test_what_is_near_a_click_is_removed(session, labels):
    first, second = inside(labels, 1), inside(labels, 2)
    session.add_point(*first, 1)
    session.add_point(*second, 1)
    session.remove(second[0] + 1, second[1])
    assert session.now.points == (first,)
    assert np.array_equal(session.mask(), labels == 1)
    with pytest.raises(ValueError, match="no point to remove"):
        session.remove(first[0] + 20, first[1])
    session.draw_box(0, 0, 64, 48)
    session.remove(first[0] + 20, first[1])
    assert session.now.box is None


def test_undo_asks_nothing(session, model, labels):
    session.add_point(*inside(labels, 1), 1)
    session.choose(1)
    before = session.mask()
    session.draw_box(*box_of(labels, 2))
    session.clear()
    assert not session.mask().any()
    asked = len(model.asked)
    session.undo()
    assert np.array_equal(session.mask(), labels == 2)
    session.undo()
    assert session.now.chosen == 1
    assert np.array_equal(session.mask(), before)
    for _ in range(3):
        session.undo()
    assert session.now.points == ()
    assert len(model.asked) == asked


def test_steps_to_undo_are_so_many(session, labels, monkeypatch):
    monkeypatch.setattr(module, "MOST_STEPS", 2)
    for label in (1, 2, 3):
        session.add_point(*inside(labels, label), 1)
    for _ in range(9):
        session.undo()
    assert len(session.now.points) == 1


def test_refining_sends_the_chosen_mask(session, model, labels):
    session.add_point(*inside(labels, 1), 1)
    session.choose(1)
    logits = session.now.answer.low_res[1]
    session.refine()
    prompts, multimask = model.asked[-1]
    assert np.array_equal(prompts.masks[0, 0], logits)
    assert not multimask
    assert session.now.refined == 1
    session.refine()
    assert session.now.refined == 2
    session.add_point(*inside(labels, 2), 1)
    assert model.asked[-1][0].masks is None
    assert session.now.refined == 0


def test_nothing_to_refine(session):
    with pytest.raises(ValueError, match="no mask to refine"):
        session.refine()


def test_everything_is_what_the_generator_finds(session, model, labels):
    settings = {"points_per_side": 6, "pred_iou_thresh": 0.6, "stability_score_thresh": 0.5}
    seen = []
    dropped = session.search(settings, lambda *progress: seen.append(progress))
    generator = SamAutomaticMaskGenerator(model.predictor.backend, **settings, output_mode="coco_rle")
    expected = generator.generate(photo_of(labels))
    assert session.records == sorted(expected, key=lambda record: -record["area"])
    assert dropped == generator.dropped
    assert seen[-1] == (36, 36)
    assert view.candidates(session) == []
    assert f"{len(expected)} masks of everything" in view.words(session)
    session.undo()
    assert session.records is None


def test_embeddings_are_of_whole_photos(session, model):
    generator = SamAutomaticMaskGenerator(model.predictor.backend, crop_n_layers=1)
    with pytest.raises(ValueError, match="crop_n_layers is 1"):
        generator.generate_embedded(session.photo.embedded)


def test_visitors_do_not_see_each_other(session, model, labels):
    other = Session()
    other.open(model.predictor, photo_of(scene(1)), "another.jpg")
    session.add_point(*inside(labels, 1), 1)
    other.add_point(*inside(scene(1), 2), 1)
    assert np.array_equal(session.mask(), labels == 1)
    assert np.array_equal(other.mask(), scene(1) == 2)
    other.close()
    assert other.photo is None
    assert np.array_equal(session.mask(), labels == 1)
    with pytest.raises(ValueError, match="no photo"):
        other.add_point(1, 1, 1)


def test_large_photos_are_refused_and_the_one_before_stays(session, model, labels, monkeypatch):
    session.add_point(*inside(labels, 1), 1)
    monkeypatch.setattr(transforms, "MAX_PIXELS", 99)
    with pytest.raises(ValueError, match="10 x 10 pixels, more than 99"):
        session.open(model.predictor, np.zeros((10, 10, 3), np.uint8), "large.jpg")
    assert session.photo.name == "a scene.jpg"
    assert np.array_equal(session.mask(), labels == 1)
    assert len(model.encoded) == 1


def test_prompts_have_so_many_points(session, monkeypatch):
    monkeypatch.setattr(module, "MOST_POINTS", 2)
    session.add_point(1, 1, 1)
    session.add_point(2, 2, 1)
    with pytest.raises(ValueError, match="2 points at most"):
        session.add_point(3, 3, 1)


def test_another_model_answers_the_same_prompt(session, model, labels, monkeypatch):
    session.use(model.predictor)
    assert len(model.encoded) == 1
    session.add_point(*inside(labels, 1), 1)
    session.draw_box(*box_of(labels, 2))
    other = Model(monkeypatch)
    session.use(other.predictor)
    assert (len(other.encoded), len(other.asked)) == (1, 1)
    assert session.now.box is not None
    assert np.array_equal(session.mask(), labels == 2)
    session.undo()
    assert session.now.box is not None


def test_large_photos_are_shown_smaller_and_masked_whole(model, monkeypatch):
    monkeypatch.setattr(module, "SHOWN", 32)
    labels = scene(0)
    large = labels.repeat(2, 0).repeat(2, 1)
    session = Session()
    session.open(model.predictor, photo_of(large), "large.jpg")
    session.add_point(*inside(large, 1), 1)
    assert np.count_nonzero(session.mask() ^ (large == 1)) < 0.1 * np.count_nonzero(large == 1)
    shown = view.picture(session, 1.0)
    assert shown.shape == (24, 32, 3)
    x, y = (int(value) // 4 for value in inside(large, 1))
    assert shown[y, x].tolist() == [60, 220, 90]  # the point
    session.search({"points_per_side": 4, "stability_score_thresh": 0}, lambda *_: None)
    assert session.records
    assert view.picture(session, 0.5).shape == (24, 32, 3)


def test_opacity_zero_leaves_the_photo_within_the_mask(session, labels):
    session.draw_box(*box_of(labels, 3))
    x, y = (int(value) for value in inside(labels, 3))
    photo, faint, full = photo_of(labels), view.picture(session, 0.0), view.picture(session, 1.0)
    assert np.array_equal(faint[y, x], photo[y, x])
    assert full[y, x].tolist() == list(colours.FIRST)


def test_names_of_files_are_no_markup(session, model, labels):
    session.open(model.predictor, photo_of(labels), "<b>*a*.jpg")
    assert "_b__a_.jpg**, 64 x 48 pixels" in view.words(session)

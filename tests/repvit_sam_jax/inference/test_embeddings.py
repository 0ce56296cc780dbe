"""Embeddings in files: the same masks again, and no other model's."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from repvit_sam_jax import Sam, SamAutomaticMaskGenerator, SamPredictor
from repvit_sam_jax.inference.embeddings import encoder_sha256
from tests.helpers.photos import photo


@pytest.fixture(scope="module")
def predictor(tiny):
    made = SamPredictor(*tiny)
    made.set_image(photo(60, 90))
    return made


@pytest.fixture
def saved(predictor, tmp_path):
    predictor.save_embedding(tmp_path / "a.npz")
    return tmp_path / "a.npz"


def test_the_same_masks_bit_for_bit(tiny, predictor, saved):
    again = SamPredictor(*tiny)
    again.load_embedding(saved)
    assert again.original_size == (60, 90)
    asked = {"point_coords": [[20, 30]], "point_labels": [1]}
    for found, expected in zip(again.predict(**asked), predictor.predict(**asked), strict=True):
        np.testing.assert_array_equal(found, expected)
    options = {
        "points_per_side": 3,
        "pred_iou_thresh": -1,
        "stability_score_thresh": 1e-6,
        "box_nms_thresh": 1,
        "output_mode": "coco_rle",
    }
    generator = SamAutomaticMaskGenerator(*tiny, **options)
    records = generator.generate(photo(60, 90))
    assert len(records) > 1
    assert generator.generate_embedded(generator.predictor.read_embedding(saved)) == records


def test_an_encoder_is_the_same_in_every_form_and_precision(tiny_train, tiny):
    expected = encoder_sha256(tiny[1])
    assert encoder_sha256(tiny_train[1]) == expected
    half = SamPredictor(dataclasses.replace(tiny[0], dtype="bfloat16"), tiny[1])
    assert any(leaf.dtype != np.float32 for leaf in jax.tree.leaves(half.params))
    assert half.backend.encoder_sha256 == expected
    decoder = jax.tree.map(lambda leaf: leaf + 1, tiny[1]["mask_decoder"])
    assert encoder_sha256({**tiny[1], "mask_decoder": decoder}) == expected


def changed(params):
    """One number of the encoder is another."""
    leaves, tree = jax.tree.flatten(params["image_encoder"])
    leaves[3] = np.array(leaves[3])
    leaves[3].flat[0] += 0.1
    return {**params, "image_encoder": jax.tree.unflatten(tree, leaves)}


def test_another_models_is_refused(tiny, saved):
    other = SamPredictor(tiny[0], changed(tiny[1]))
    other.set_image(photo(20, 30))
    with pytest.raises(
        ValueError, match=r"a\.npz was made by another image encoder than this tiny's, by one of tiny \(SHA"
    ):
        other.load_embedding(saved)
    assert other.original_size == (20, 30)
    model = Sam(dataclasses.replace(tiny[0].config, image_size=2 * tiny[0].config.image_size))
    with pytest.raises(ValueError, match=f"made at an image size of {tiny[0].config.image_size}, and tiny has"):
        SamPredictor(model, tiny[1]).load_embedding(saved)


def rewrite(path, about=None, **arrays):
    """The file with other contents."""
    with np.load(path) as given:
        content = dict(given)
    text = json.dumps({**json.loads(str(content["about"])), **(about or {})})
    np.savez(path, **{**content, "about": np.array(text), **arrays})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-300]), "damaged: "),
        (lambda path: path.write_bytes(b"PK no zip"), "damaged: "),
        (lambda path: path.write_bytes(b""), "damaged: "),
        (lambda path: np.savez(path, embedding=np.zeros(3)), "damaged: "),
        (lambda path: np.savez(path, about=np.array("{}"), embedding=np.array([{}])), "damaged: "),  # a pickle
        (
            lambda path: rewrite(path, {"format": "repvit_sam_jax/embedding/9"}),
            "its format is 'repvit_sam_jax/embedding/9'",
        ),
        (lambda path: rewrite(path, {"original_size": [60.5, 90]}), "damaged: its size"),
        (lambda path: rewrite(path, {"original_size": [0, 90]}), "damaged: original_size must be"),
        (lambda path: rewrite(path, {"original_size": 5}), "damaged: "),
        (
            lambda path: rewrite(path, embedding=np.zeros((1, 2, 2, 3), np.float32)),
            "damaged: the embedding must have sh",
        ),
        (lambda path: rewrite(path, embedding=np.zeros((1, 4, 4, 256))), "damaged: its size or its type"),
    ],
)
def test_damaged_files(predictor, saved, damage, message):
    damage(saved)
    with pytest.raises(ValueError, match=message) as error:
        predictor.load_embedding(saved)
    assert str(saved) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_nan_is_damage(predictor, saved):
    value = np.array(predictor.get_image_embedding())
    value.flat[7] = np.nan
    rewrite(saved, embedding=value)
    with pytest.raises(ValueError, match="is damaged: the embedding has NaN"):
        predictor.load_embedding(saved)


def test_where_there_is_none(predictor, tmp_path):
    with pytest.raises(FileNotFoundError, match="no embedding at"):
        predictor.load_embedding(tmp_path / "a.npz")
    with pytest.raises(ValueError, match=r"a\.npy: an embedding is kept in a file \.npz"):
        predictor.save_embedding(tmp_path / "a.npy")
    assert not list(tmp_path.iterdir())

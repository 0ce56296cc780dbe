"""Baselines against masks drawn by hand, and the command that prints them."""

import json

import numpy as np
import pytest

from repvit_sam_jax import PRESETS, Sam
from repvit_sam_jax.data import ExampleConfig, make_example
from repvit_sam_jax.data.sources import Record
from repvit_sam_jax.evals import baselines, protocols
from repvit_sam_jax.evals.__main__ import _read, main
from repvit_sam_jax.evals.baselines import Settings, evaluate_baselines, tune
from repvit_sam_jax.weights import checkpoint
from tests.helpers.models import random_params
from tests.helpers.photos import annotations, jpeg


def make_batch(*masks, image=None):
    """One photo of 64 pixels, with boxes around the masks [16, 16]."""
    found = np.stack(masks)
    boxes = []
    for mask in found:
        (y,), (x,) = (np.nonzero(mask.any(axis)) for axis in (1, 0))
        boxes.append([4 * x[0], 4 * y[0], 4 * x[-1] + 3, 4 * y[-1] + 3])
    count = len(found)
    return {
        "image": np.zeros((1, 64, 64, 3), np.uint8) if image is None else image,
        "size": np.array([[64, 64]], np.int32),
        "masks": found[None],
        "boxes": np.array([boxes], np.float32),
        "areas": 16.0 * found.sum((1, 2))[None].astype(np.float32),
        "valid": np.ones((1, count), bool),
    }


Y, X = np.mgrid[:16, :16]
SQUARE = (X >= 2) & (X < 10) & (Y >= 4) & (Y < 12)
ROUND = (X - 6.5) ** 2 + (Y - 6.5) ** 2 <= 16
RIGHT = X >= 12
SETTINGS = Settings(radius=0.25, tolerance=8)


def test_shapes_in_boxes():
    found = evaluate_baselines([make_batch(SQUARE, SQUARE)], 64, SETTINGS)
    assert found["filled box"] == {"box": 1}
    assert 0.75 < found["inscribed ellipse"]["box"] < 0.82  # pi / 4
    found = evaluate_baselines([make_batch(ROUND)], 64, SETTINGS)
    assert found["inscribed ellipse"]["box"] == 1
    assert 0.75 < found["filled box"]["box"] < 0.85


@pytest.mark.parametrize("size", [32, 64, 256])
def test_a_box_fills_a_rectangle_whatever_the_size(size):
    """Boxes end at the last pixel of the photo, which may be many of the frame."""
    mask = np.zeros((16, 16), bool)
    mask[2:12, 4:15] = True
    record = Record("photo", jpeg(np.zeros((16, 16, 3), np.uint8)), annotations((16, 16), mask))
    batch = {name: value[None] for name, value in make_example(record, ExampleConfig(size, 1)).items()}
    assert evaluate_baselines([batch], size, SETTINGS)["filled box"]["box"] == 1
    assert 0.75 < evaluate_baselines([batch], size, SETTINGS)["inscribed ellipse"]["box"] < 0.9


def test_disc_at_the_centre():
    mask = (X - 6) ** 2 + (Y - 7) ** 2 <= 16  # 0.25 of 16
    assert evaluate_baselines([make_batch(mask)], 64, SETTINGS)["disc"]["centre"] == 1


def test_regions_of_a_colour_and_points_that_correct():
    """Two parts of a thing are joined by a second foreground point, and what only touches by a corner is apart."""
    image = np.full((1, 64, 64, 3), 90, np.uint8)
    big = np.kron(SQUARE, np.ones((4, 4), bool))
    image[0, big] = 100
    image[0, 48:, 40:] = 100  # touches it by a corner
    alone = evaluate_baselines([make_batch(SQUARE, image=image)], 64, SETTINGS)["region grow"]
    assert alone == {"centre": 1, "points3": 1}
    both = make_batch(SQUARE | ((X >= 10) & (Y >= 12)), image=image)
    joined = evaluate_baselines([both], 64, SETTINGS, points=(2, 3))["region grow"]
    assert joined["centre"] == pytest.approx(64 / 88)
    assert joined["points2"] == joined["points3"] == 1
    everything = evaluate_baselines([both], 64, Settings(0.25, 10), points=(3,))["region grow"]
    assert everything["centre"] == pytest.approx(88 / 256)


def test_padding_counts_for_nothing():
    batch = make_batch(X >= 8)
    batch["size"][:] = 64, 48
    assert evaluate_baselines([batch], 64, SETTINGS)["filled box"]["box"] == 1
    batch["valid"][:] = False
    with pytest.raises(ValueError, match="no batch holds a valid mask"):
        evaluate_baselines([batch], 64, SETTINGS)
    with pytest.raises(ValueError, match=r"points must be 2 or more each, got \(1,\)"):
        evaluate_baselines([batch], 64, SETTINGS, points=(1,))
    for batches in ([batch], []):
        with pytest.raises(ValueError, match="nothing to tune on"):
            tune(batches, 64)


def test_tuning_takes_the_best():
    image = np.full((1, 64, 64, 3), 90, np.uint8)
    image[0, np.kron(SQUARE, np.ones((4, 4), bool))] = 100
    image[0, 20:24, 20:24] = 105
    found = tune([make_batch(SQUARE, image=image)], 64)
    scores = {
        value: evaluate_baselines([make_batch(SQUARE, image=image)], 64, Settings(value, 1))["disc"]["centre"]
        for value in baselines._RADII
    }
    assert scores[found.radius] == max(scores.values())
    assert found.tolerance == 6


def test_five_points_and_ranks(rng):
    """More points begin with the same ones; the correlation is that of the IoUs of all masks."""
    from scipy import stats

    model = Sam(PRESETS["tiny"])
    params = random_params(model, seed=3)
    masks = [np.kron(mask, np.ones((2, 2), bool)) for mask in (SQUARE, ROUND, RIGHT)]
    batch = make_batch(SQUARE, ROUND, RIGHT)
    batch |= {
        "image": rng.integers(0, 256, (1, 128, 128, 3)).astype(np.uint8),
        "size": np.array([[128, 128]], np.int32),
        "masks": np.stack(masks)[None],
        "boxes": 2 * batch["boxes"],
    }
    few = protocols.evaluate(model, params, [batch])["ground_truth"]
    many = protocols.evaluate(model, params, [batch], points=(3, 5))["ground_truth"]
    assert set(many) == {*few, "points5"}
    for kind, means in few.items():
        assert many[kind]["all"] == pytest.approx(means["all"], abs=1e-5)
    read = protocols.PromptBatch.read(batch, 1, 128)
    clicks = protocols.Clicks(read, 1)
    clicks.put(0, np.zeros_like(read.targets))
    embeddings = protocols.encode_pixels(model, params, read.images, read.sizes)
    logits, predicted = model.decode(params, embeddings, clicks.prompts(1))
    hits = protocols.iou(np.asarray(logits) > 0, read.targets[:, :, None])
    expected = stats.spearmanr(np.asarray(predicted).ravel(), hits.ravel()).statistic
    assert protocols.rank_correlation(model, params, [batch]) == pytest.approx(expected)


@pytest.mark.parametrize("limit", [1, 8, 9, 100])
def test_no_more_photos_than_asked_for(tmp_path, limit):
    from repvit_sam_jax.data.shards import write_shards

    write_shards(tmp_path / "scenes", 10, size=64)
    batches = _read([str(tmp_path / "scenes")], ExampleConfig(64, 2), limit)
    numbers = [number for batch in batches for number in batch["index"]]
    assert numbers == list(range(min(limit, 10)))
    assert {len(values) for values in batches[-1].values()} == {len(batches[-1]["index"])}


def test_command(tmp_path, monkeypatch, capsys):
    from repvit_sam_jax.data.shards import write_shards

    write_shards(tmp_path / "scenes", 3, size=64)
    model = Sam(PRESETS["tiny"])
    params = random_params(model, seed=3)
    checkpoint.save(tmp_path / "w.safetensors", params, checkpoint.Metadata(model.config, "deploy"))
    run = lambda *arguments: (
        monkeypatch.setattr("sys.argv", ["repvit_sam_jax.evals", "prompts", *map(str, arguments)]),
        main(),
    )
    run(tmp_path / "w.safetensors", "--data", tmp_path / "scenes", "--masks", 4, "--json")
    found = json.loads(capsys.readouterr().out)
    assert set(found["miou"]) == {"tiny", "filled box", "inscribed ellipse", "disc", "region grow"}
    assert set(found["miou"]["tiny"]) == {"box", "centre", "centre_oracle", "points3", "points5"}
    assert -1 <= found["rank_correlation"] <= 1
    run("--data", tmp_path / "scenes", "--tune", tmp_path / "scenes", "--image-size", 64)
    assert "| filled box | " in capsys.readouterr().out
    for flag, value, message in (
        ("--limit", 0, "limit must be at least 1, got 0"),
        ("--masks", 0, "masks must be at least 1, got 0"),
        ("--image-size", 0, "image_size must be a positive multiple of 16, got 0"),
    ):
        with pytest.raises(SystemExit, match="1"):
            run("--data", tmp_path / "scenes", flag, value)
        assert f"error: {message}" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="1"):
        run("--data", tmp_path / "nothing")
    assert "error: no file" in capsys.readouterr().err

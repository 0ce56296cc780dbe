"""A handful of photos can be learnt by heart."""

import json

import numpy as np
import pytest
from PIL import Image, ImageDraw

from train.loop import Inputs, train
from train.recipe import Losses, Optimizer, Prompting, Recipe

RECIPE = Recipe(
    name="overfit",
    student="tiny",
    batch_size=4,
    steps=250,
    trained=("image_encoder", "mask_decoder"),
    optimizer=Optimizer(3e-3, 1e-5, warmup=0.05, weight_decay=0.0, clip_norm=1.0),
    losses=Losses(mse=0.0, bce=5.0, dice=5.0, iou=1.0),
    prompting=Prompting(num_prompts=2, rounds=1, targets="ground_truth"),
    dtype="float32",
    log_every=1,
    checkpoint_every=250,
    evaluate_every=250,
)


def write_photos(folder):
    """Four photos of two shapes each, with COCO polygons."""
    rng = np.random.default_rng(0)
    images, annotations = [], []
    for number in range(4):
        photo = Image.fromarray(rng.integers(0, 80, (128, 128, 3), dtype=np.uint8))
        images.append({"id": number, "file_name": f"{number}.png", "width": 128, "height": 128})
        for side in range(2):
            x, y = rng.integers(4, 20) + 62 * side, rng.integers(4, 60)
            width, height = rng.integers(30, 42), rng.integers(30, 60)
            corners = [(x, y), (x + width, y + 5), (x + width - 6, y + height), (x + 3, y + height - 8)]
            ImageDraw.Draw(photo).polygon(corners, fill=tuple(int(c) for c in rng.integers(120, 256, 3)))
            polygon = [float(c) for corner in corners for c in corner]
            annotations.append({"id": len(annotations), "image_id": number, "segmentation": [polygon], "iscrowd": 0})
        photo.save(folder / f"{number}.png")
    (folder / "instances.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    return (str(folder / "instances.json"),)


@pytest.mark.slow(group="train")
def test_overfit(tmp_path):
    photos = write_photos(tmp_path)
    train(RECIPE, tmp_path / "run", Inputs(photos, held_out=photos))
    losses = [json.loads(line)["loss"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    result = json.loads((tmp_path / "run" / "evaluations.jsonl").read_text())["ground_truth"]
    ious = {kind: result[kind]["all"] for kind in ("box", "centre")}
    print(losses[0], losses[-1], ious)
    assert np.mean(losses[-4:]) < losses[0] / 20
    assert min(ious.values()) > 0.9

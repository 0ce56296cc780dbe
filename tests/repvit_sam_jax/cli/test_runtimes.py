"""Commands over ONNX Runtime, with embeddings of both runtimes."""

import json

import numpy as np
import pytest
from pycocotools import mask as coco

from repvit_sam_jax.data.synthetic.scenes import render
from tests.helpers import runtimes
from tests.helpers.terminal import run

pytestmark = [pytest.mark.slow(group="export"), pytest.mark.torch]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A scene, and the demonstration model's ONNX files."""
    from PIL import Image

    made = tmp_path_factory.mktemp("onnx")
    runtimes.onnx_predictor(made)
    Image.fromarray(render(3, 1, (120, 160)).image).save(made / "scene.png")
    return made


def test_everything_over_onnx_from_either_embedding(folder, monkeypatch):
    """The same masks bit for bit from the runtime's own embedding, and nearly all of them from the other's."""
    over = ["--runtime", "onnx", "--weights", folder / "onnx"]

    def everything(name, *arguments):
        run(monkeypatch, "everything", folder / "scene.png", "--points-per-side", 6, "--out", folder / name, *arguments)
        content = json.loads((folder / name / "records.json").read_text())
        assert len(content["annotations"]) > 3
        return content

    own = everything("own", *over, "--save-embedding", folder / "onnx.npz")
    assert everything("again", *over, "--embedding", folder / "onnx.npz") == own
    jax = everything("jax", "--save-embedding", folder / "jax.npz")
    other = everything("other", *over, "--embedding", folder / "jax.npz")
    back = everything("back", "--embedding", folder / "onnx.npz")
    expected = [record["segmentation"] for record in own["annotations"]]
    for content in (jax, other, back):
        found = [record["segmentation"] for record in content["annotations"]]
        assert len(found) == len(expected)
        assert np.min(np.max(coco.iou(found, expected, [0] * len(expected)), axis=1)) > 0.99

"""Tasks ask JAX, ONNX Runtime and PyTorch alike."""

import numpy as np
import pytest

from repvit_sam_jax import SamPredictor, load
from repvit_sam_jax.evals.segmenters import Segmenter
from repvit_sam_jax.evals.tasks import open_task
from tests.helpers import runtimes
from tests.helpers.miniatures import bsds, duts

pytestmark = [pytest.mark.slow(group="models"), pytest.mark.torch]


@pytest.fixture(scope="module")
def segmenters(tmp_path_factory):
    made = {"jax": SamPredictor(*load("demo"))}
    made |= {name: make(tmp_path_factory.mktemp(name)) for name, make in runtimes.OTHERS.items()}
    return [Segmenter(name, predictor, {}) for name, predictor in made.items()]


def test_edges_are_the_same(segmenters, tmp_path):
    task = open_task("edges", bsds.write(tmp_path, photos=1))
    item = task.load(task.keys[0])
    maps = [task.segment(segmenter, [item])[0].edges.astype(int) for segmenter in segmenters]
    assert maps[0].any()
    for other in maps[1:]:
        assert (np.abs(other - maps[0]) > 1).mean() < 1e-3


def test_everything_is_the_same(segmenters, tmp_path):
    task = open_task("duts", duts.write(tmp_path, photos=1))
    item = task.load(task.keys[0])
    records = [task.score(task.segment(segmenter, [item])[0]) for segmenter in segmenters if segmenter.name != "torch"]
    assert records[0]["masks"] > 0
    assert records[1]["masks"] == records[0]["masks"]
    assert records[1]["error"] == pytest.approx(records[0]["error"], abs=1e-3)

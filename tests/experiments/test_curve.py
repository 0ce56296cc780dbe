"""The curve of several stages."""

import json

import matplotlib.pyplot as plt
import numpy as np
import pytest

from experiments import __main__ as command
from experiments import curve
from train.recipe import recipes, to_json


@pytest.fixture
def stages(tmp_path):
    for name, scores in {"a": (0.2, 0.4), "b": (0.5,)}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "recipe.json").write_text(to_json(recipes()["from_scratch"]))
        lines = [{"step": 10 * i, "ground_truth": {"box": {"all": score}}} for i, score in enumerate(scores, 1)]
        (tmp_path / name / "evaluations.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return [tmp_path / "a", tmp_path / "b"]


def test_a_stage_follows_the_one_before(stages, tmp_path, monkeypatch):
    drawn = []
    plot = plt.Axes.plot
    spy = lambda self, x, y, *rest, **style: drawn.append((x, y)) or plot(self, x, y, *rest, **style)
    monkeypatch.setattr(plt.Axes, "plot", spy)
    command.main(["curve", str(tmp_path / "out.png"), *map(str, stages)])
    size = recipes()["from_scratch"].batch_size
    np.testing.assert_allclose(drawn[0], [(10 * size, 20 * size), (20, 40)])
    np.testing.assert_allclose(drawn[1], [(30 * size,), (50,)])
    assert (tmp_path / "out.png").stat().st_size > 1000


def test_what_is_no_run(stages, tmp_path):
    (stages[1] / "evaluations.jsonl").write_text("")
    with pytest.raises(FileNotFoundError, match=r"no run that was evaluated: it has no evaluations\.jsonl"):
        curve.draw(stages, tmp_path / "out.png")
    (stages[1] / "evaluations.jsonl").unlink()
    with pytest.raises(FileNotFoundError, match=r"no run that was evaluated: it has no evaluations\.jsonl"):
        curve.draw(stages, tmp_path / "out.png")

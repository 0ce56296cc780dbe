"""The experiment: its arms are comparable, and what it draws and prints is what the runs wrote."""

import dataclasses
import json
from types import SimpleNamespace

import pytest
from PIL import Image

from experiments import evidence
from repvit_sam_jax import config
from tests.helpers import micro
from train.log import TrainingError
from train.loop import Inputs
from train.recipe import recipes


def test_every_arm_sees_as_many_photos_and_has_its_recipe():
    runs = evidence.runs(90, 40, seed=1)
    seen = {name: run.steps * run.batch_size for name, run in runs.items()}
    assert seen["scratch"] == seen["stage1"] + seen["encoder_only"]
    assert seen["encoder_only"] == seen["stage2"] == seen["beyond"]
    assert {run.seed for name, run in runs.items() if name != "teacher"} == {1}
    for name, published in [("stage1", "edgesam_stage1"), ("stage2", "edgesam_stage2"), ("beyond", "beyond")]:
        recipe = recipes()[published]
        assert (runs[name].losses, runs[name].trained) == (recipe.losses, recipe.trained)
        assert runs[name].prompting == dataclasses.replace(recipe.prompting, num_prompts=8)
    assert not runs["scratch"].needs_teacher
    rates = {name: run.optimizer.learning_rate for name, run in runs.items()}
    assert rates["stage2"] == rates["beyond"]


def write(folder, *scores):
    folder.mkdir(parents=True)
    lines = [
        {"step": 10 * i, "ground_truth": {kind: {"all": score} for kind in evidence.KINDS}}
        for i, score in enumerate(scores, 1)
    ]
    (folder / "evaluations.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_table_and_figure(tmp_path):
    write(tmp_path / "teacher", 0.5, 0.75)
    for seed, offset in ((0, 0.0), (1, 0.1)):
        for name in ("stage1", "encoder_only", "stage2", "scratch"):
            write(tmp_path / f"seed{seed}" / name, 0.1, (0.4 if name == "stage2" else 0.2) + offset)
    lines = evidence.table(tmp_path, (0, 1)).splitlines()
    assert lines[2].split("|")[2:4] == [" 75.0 ", " 75.0 "]
    assert "| then prompts in the loop | 45.0 (40.0, 50.0) |" in "\n".join(lines)
    assert "| then `beyond` | - |" in "\n".join(lines)
    assert [step for step, _ in evidence._curve(tmp_path / "seed0", "stage2")] == [10, 20, 30, 40]
    evidence.figure(tmp_path, tmp_path / "curves.png", (0, 1))
    with Image.open(tmp_path / "curves.png") as drawn:
        assert drawn.size == (1000, 400)


def test_a_run_that_was_stopped_is_not_exported(tmp_path, monkeypatch):
    monkeypatch.setattr(evidence, "train", lambda *_: SimpleNamespace(step=1))
    with pytest.raises(TrainingError, match="teacher was stopped after step 1; the same command goes on"):
        evidence.run(tmp_path, Inputs(()), teacher_steps=2, steps=1, seeds=(0,))
    assert not list(tmp_path.iterdir())


def test_what_each_run_starts_from(tmp_path, monkeypatch):
    """With stubs in place of training and export: files are made once, and are the start of what follows."""
    trained, exported = {}, []

    def train(recipe, folder, inputs):
        assert inputs == Inputs(("photos",), ("held out",))
        write(folder, 0.5) if not folder.exists() else None
        trained[str(folder.relative_to(tmp_path))] = recipe
        return SimpleNamespace(step=recipe.steps)

    def export(folder, file, form="deploy"):
        assert str(folder.relative_to(tmp_path)) in trained
        exported.append((file.relative_to(tmp_path).as_posix(), form))
        file.touch()

    monkeypatch.setattr(evidence, "train", train)
    monkeypatch.setattr(evidence, "export", export)
    for _ in range(2):  # the second time nothing is left to export
        evidence.run(tmp_path, Inputs(("photos",), ("held out",)), teacher_steps=2, steps=1, seeds=(0, 1))
        starts = [(f"seed{seed}/stage1.safetensors", "train") for seed in (0, 1)]
        assert exported == [("teacher.safetensors", "deploy"), *starts]
    arms = [f"seed{seed}/{name}" for seed in (0, 1) for name in ("stage1", *evidence.ARMS)]
    assert list(trained) == ["teacher", *arms]
    plain = {f"seed{seed}/{name}": recipe for seed in (0, 1) for name, recipe in evidence.runs(2, 1, seed).items()}
    for name, recipe in trained.items():
        seed, _, arm = name.partition("/")
        teacher = None if arm in ("", "scratch") else str(tmp_path / "teacher.safetensors")
        start = None if arm in ("", "scratch", "stage1") else str(tmp_path / seed / "stage1.safetensors")
        expected = plain[name if arm else "seed0/teacher"]
        assert recipe == dataclasses.replace(expected, teacher=teacher, init=start)
    rows = evidence.table(tmp_path, (0, 1)).splitlines()[2:]
    assert len(rows) == 2 + len(evidence.ARMS)
    assert not [row for row in rows if "| - |" in row]


@pytest.mark.slow(group="train")
def test_all_of_it(photos, tmp_path, monkeypatch):
    small = dataclasses.replace(config.get_config("micro"), name="micro_teacher")
    monkeypatch.setitem(config.MODELS, small.name, small)
    monkeypatch.setattr(evidence, "TEACHER", small.name)
    monkeypatch.setattr(evidence, "STUDENT", micro.ENCODER.student)
    inputs = Inputs((photos,), (photos,))
    for _ in range(2):  # the second time there is nothing left to do
        evidence.run(tmp_path, inputs, teacher_steps=2, steps=1, seeds=(0,))
        rows = evidence.table(tmp_path, (0,)).splitlines()[2:]
        assert len(rows) == 2 + len(evidence.ARMS)
        assert not [row for row in rows if "| - |" in row]
    with pytest.raises(ValueError, match="is the run of another recipe"):
        evidence.run(tmp_path, inputs, teacher_steps=3, steps=1, seeds=(0,))

"""The experiment of docs/distillation.md: what distillation teaches a small student, and what it learns without.

Every arm sees as many photos: two runs of stage 1, or stage 1 and a second stage, or one from scratch that is as long.
The recipes are those of `train/recipes`, but for what models of this size ask for: photos and prompts a step, learning
rates, arithmetic in float32.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from repvit_sam_jax import config
from train.export import export
from train.log import SCORE, TrainingError
from train.loop import Inputs, train
from train.recipe import Losses, Optimizer, Prompting, Recipe, get_recipe

TEACHER, STUDENT = "small", "mini"

_DECODER = config.MaskDecoderConfig(embed_dim=64, num_heads=4, mlp_dim=256, iou_head_hidden_dim=64)
for _name, _channels, _depths in (
    (TEACHER, (24, 48, 96, 192), (1, 1, 4, 1)),
    (STUDENT, (12, 24, 48, 96), (1, 1, 2, 1)),
):
    _encoder = config.RepViTConfig(_channels, _depths)
    config.MODELS[_name] = config.SamConfig(_name, _encoder, _DECODER, image_size=128)

KINDS = (*SCORE, "centre_oracle")
"""The kinds of prompts in the table; no run here learns from masks as prompts, which `points3` needs."""

ARMS = {
    "encoder_only": "embeddings alone",
    "stage2": "then prompts in the loop",
    "stage2_masks": "the same, on masks of the data",
    "beyond": "then `beyond`",
    "scratch": "from scratch",
}
"""What is compared, and how table and figure call it; all but the last begin with the same stage 1."""

_SCRATCH = Recipe(
    name="scratch",
    student=STUDENT,
    batch_size=8,
    steps=1,
    trained=("image_encoder", "prompt_encoder", "mask_decoder"),
    optimizer=Optimizer(2e-3, warmup=0.1, clip_norm=1.0),
    losses=Losses(mse=0.0, bce=5.0, dice=5.0, iou=1.0),
    prompting=Prompting(targets="ground_truth"),
)
"""Learns the masks of the data, without a teacher."""


def runs(teacher_steps: int, steps: int, seed: int) -> dict[str, Recipe]:
    """The recipes of the runs by name, without the files that they start from.

    Args:
      teacher_steps: of the teacher, whose seed is always 0.
      steps: of each stage.
      seed: of the students' runs.
    """
    first, second, beyond = (get_recipe(name) for name in ("edgesam_stage1", "edgesam_stage2", "beyond"))
    on_masks = dataclasses.replace(second, prompting=dataclasses.replace(second.prompting, targets="ground_truth"))
    return {
        "teacher": _fitted(dataclasses.replace(_SCRATCH, student=TEACHER), teacher_steps, 2e-3, 0),
        "stage1": _fitted(first, steps, 4e-3, seed),
        "encoder_only": _fitted(first, steps, 4e-3, seed),
        "stage2": _fitted(second, steps, 1e-3, seed),
        "stage2_masks": _fitted(on_masks, steps, 1e-3, seed),
        "beyond": _fitted(beyond, steps, 1e-3, seed),
        "scratch": _fitted(_SCRATCH, 2 * steps, 2e-3, seed),
    }


def _fitted(recipe: Recipe, steps: int, learning_rate: float, seed: int) -> Recipe:
    """A recipe for the small models."""
    return dataclasses.replace(
        recipe,
        student=recipe.student if recipe.student == TEACHER else STUDENT,
        batch_size=8,
        epochs=None,
        steps=steps,
        optimizer=dataclasses.replace(
            recipe.optimizer, learning_rate=learning_rate, final_learning_rate=learning_rate / 100
        ),
        prompting=dataclasses.replace(recipe.prompting, num_prompts=8),
        flip_probability=0.5,
        dtype="float32",
        seed=seed,
        log_every=50,
        checkpoint_every=steps,
        evaluate_every=max(steps // 4, 1),
        keep=1,
    )


def run(out: Path, inputs: Inputs, *, teacher_steps: int, steps: int, seeds: Sequence[int]) -> None:
    """Do all runs; what was done before is not done again.

    Args:
      out: a folder; it gets `teacher/`, and `seed0/stage1/` and so on, each a run's folder.
      inputs: the photos, with masks, and the held-out ones.
      teacher_steps: of eight photos.
      steps: likewise, of each of the student's stages.
      seeds: of the student's runs.

    Raises:
      TrainingError: a run was stopped by a signal, or a loss is not finite.
      ValueError: the folder holds runs of other steps or other photos.
    """
    teacher = out / "teacher.safetensors"
    _train(runs(teacher_steps, steps, 0)["teacher"], out / "teacher", inputs)
    if not teacher.exists():
        export(out / "teacher", teacher)
    for seed in seeds:
        folder = out / f"seed{seed}"
        recipes = runs(teacher_steps, steps, seed)
        start = folder / "stage1.safetensors"
        _train(dataclasses.replace(recipes["stage1"], teacher=str(teacher)), folder / "stage1", inputs)
        if not start.exists():
            export(folder / "stage1", start, form="train")
        for name in ARMS:
            recipe = recipes[name]
            if name != "scratch":
                recipe = dataclasses.replace(recipe, teacher=str(teacher), init=str(start))
            _train(recipe, folder / name, inputs)


def _train(recipe: Recipe, folder: Path, inputs: Inputs) -> None:
    step = int(train(recipe, folder, inputs).step)
    if step != recipe.steps:
        raise TrainingError(f"{folder} was stopped after step {step}; the same command goes on from there")


def evaluations(folder: Path) -> list[tuple[int, dict[str, float]]]:
    """(step, {kind of prompt: mIoU against ground truth}) of a run, in order; empty if it has none yet."""
    path = folder / "evaluations.jsonl"
    found = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [(each["step"], {kind: each["ground_truth"][kind]["all"] for kind in KINDS}) for each in found]


def table(out: Path, seeds: Sequence[int]) -> str:
    """The last evaluation of each arm, mean over the seeds and each seed's in brackets, in percent, as Markdown."""
    folders = {"teacher": [out / "teacher"]}
    for name, label in {"stage1": "stage 1", **ARMS}.items():
        folders[label] = [out / f"seed{seed}" / name for seed in seeds]
    lines = [f"| | {' | '.join(KINDS)} |", f"|---|{'---:|' * len(KINDS)}"]
    for label, group in folders.items():
        ends = [found[-1][1] for folder in group if (found := evaluations(folder))]
        lines.append(f"| {label} | {' | '.join(_cell([end[kind] for end in ends]) for kind in KINDS)} |")
    return "\n".join(lines)


def _cell(values: Sequence[float]) -> str:
    if not values:
        return "-"
    each = ", ".join(f"{100 * value:.1f}" for value in values)
    return f"{100 * np.mean(values):.1f} ({each})" if len(values) > 1 else each


def figure(out: Path, path: Path, seeds: Sequence[int]) -> None:
    """Draw held-out mIoU by photos seen; a line for each arm and seed."""
    panels, axes = plt.subplots(1, len(SCORE), figsize=(10, 4), layout="constrained")
    for kind, axis in zip(SCORE, axes, strict=True):
        for number, (name, label) in enumerate(ARMS.items()):
            for i, seed in enumerate(seeds):
                points = [(8 * step, 100 * found[kind]) for step, found in _curve(out / f"seed{seed}", name)]
                if points:
                    style = {"color": f"C{number}", "linestyle": "-" if i == 0 else "--", "marker": "."}
                    axis.plot(*zip(*points, strict=True), label=label.replace("`", "") if i == 0 else None, **style)
        if ends := evaluations(out / "teacher"):
            axis.axhline(100 * ends[-1][1][kind], color="black", linestyle=":", label="teacher")
        axis.set(title=f"{out.name}, {kind}", xlabel="photos seen", ylabel="held-out mIoU, %")
        axis.grid(alpha=0.3)
    axes[0].legend()
    panels.savefig(path, dpi=100)
    plt.close(panels)


def _curve(folder: Path, name: str) -> list[tuple[int, Mapping[str, float]]]:
    """Evaluations of an arm, by steps from the beginning of its stage 1."""
    own = evaluations(folder / name)
    if name == "scratch" or not own:
        return list(own)
    before = evaluations(folder / "stage1")
    return [*before, *((before[-1][0] + step, found) for step, found in own)]

"""`python -m experiments`: figures of the documentation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from repvit_sam_jax.terminal import run_commands

app = tyro.extras.SubcommandApp()
Folder = Annotated[Path, tyro.conf.Positional]


@app.command(name="evidence")
def evidence(
    out: Folder,
    *,
    data: tuple[str, ...],
    held_out: tuple[str, ...],
    teacher_steps: int = 2000,
    steps: int = 500,
    seeds: tuple[int, ...] = (0, 1),
    threads: int = 4,
) -> None:
    """Train a small teacher, distil it in every way, and draw what the students learn; an interrupted run goes on.

    Args:
      out: A folder, new or of the same experiment; it gets all runs, curves.png and table.md.
      data: Photos with masks, as for `distill`.
      held_out: Likewise, what everything is evaluated on.
      teacher_steps: Steps of the teacher, eight photos each.
      steps: Likewise, of each of the student's two stages.
      seeds: One run of each student for each.
      threads: Threads that read photos.
    """
    try:
        from experiments import evidence as experiment
    except ModuleNotFoundError as error:
        raise ValueError(f"the figure needs matplotlib: pip install matplotlib ({error})") from error
    from repvit_sam_jax.data import Reading
    from train.loop import Inputs

    inputs = Inputs(data, held_out, reading=Reading(threads=threads))
    experiment.run(out, inputs, teacher_steps=teacher_steps, steps=steps, seeds=seeds)
    experiment.figure(out, out / "curves.png", seeds)
    (out / "table.md").write_text(experiment.table(out, seeds) + "\n")
    print((out / "table.md").read_text(), end="")


@app.command(name="evaluation")
def evaluation(out: Folder, *, weights: str = "demo") -> None:
    """Draw what tasks of `repvit-sam eval` find on synthetic scenes.

    Args:
      out: A folder for scenes, results and pictures.
      weights: The model's.
    """
    from experiments import evaluation as experiment

    for path in experiment.run_all(out, weights):
        print(f"wrote {path}")


@app.command(name="curve")
def curve(out: Folder, runs: Annotated[tuple[Path, ...], tyro.conf.Positional]) -> None:
    """Draw held-out mIoU by photos seen, of runs that start from each other.

    Args:
      out: The picture.
      runs: Their folders, in order.
    """
    try:
        from experiments.curve import draw
    except ModuleNotFoundError as error:
        raise ValueError(f"the figure needs matplotlib: pip install matplotlib ({error})") from error
    draw(runs, out)


@app.command(name="quantization")
def quantization(weights: Annotated[Path, tyro.conf.Positional] = Path("demo")) -> None:
    """Compare ways to store and run the ONNX files in 8 bits: masks, size, time.

    Args:
      weights: The model's.
    """
    from experiments.quantization import table

    print(table(weights))


def main(args: Sequence[str] | None = None, prog: str = "experiments") -> None:
    """Entry point, with its arguments or those of the process."""
    run_commands(app, args, prog, __doc__)


if __name__ == "__main__":
    main()

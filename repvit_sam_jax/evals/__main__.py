"""`repvit-sam eval`: the paper's evaluations and others, a command each."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from ..terminal import run_commands
from . import commands
from .tasks import TASKS

if TYPE_CHECKING:
    import numpy as np

    from ..data import ExampleConfig

app = tyro.extras.SubcommandApp()

POINTS = (3, 5)
COLUMNS = ("box", "centre", "centre_oracle", *(f"points{n}" for n in POINTS))


@app.command(name="prompts")
def prompts(
    weights: Annotated[Path | None, tyro.conf.Positional, tyro.conf.arg(metavar="[WEIGHTS]")] = None,
    *,
    data: tuple[str, ...],
    tune: tuple[str, ...] = (),
    image_size: int | None = None,
    masks: int = 32,
    limit: int = 200,
    as_json: Annotated[bool, tyro.conf.arg(name="json")] = False,
) -> None:
    """Mean IoU of low-resolution masks, as training watches it, beside what boxes, discs and colours alone give.

    Args:
      weights: A segmenter's; without, the baselines alone.
      data: Photos with masks, as for `repvit-sam train distill`.
      tune: Others, to tune the baselines on: radius of the disc, tolerance of the colours. Without, `data` itself,
        which flatters them.
      image_size: Longer side that photos are resized to, if not the model's; 1024 without a model.
      masks: At most so many of a photo, the first ones.
      limit: Photos, the first ones.
      as_json: Print JSON.
    """
    from .. import load
    from ..data import ExampleConfig
    from . import baselines, protocols

    if masks < 1:
        raise ValueError(f"masks must be at least 1, got {masks}")
    if weights is None:
        model, params, size = None, None, 1024 if image_size is None else image_size
    else:
        model, params = load(weights, image_size=image_size)
        size = model.config.image_size
    config = ExampleConfig(size, masks)
    batches = _read(data, config, limit)
    settings = baselines.tune(_read(tune, config, limit) if tune else batches, size)
    found: dict[str, Any] = dict(baselines.evaluate_baselines(batches, size, settings, points=POINTS))
    result: dict[str, Any] = {"settings": {"radius": settings.radius, "tolerance": settings.tolerance}}
    if model is not None and params is not None:
        by_kind = protocols.evaluate(model, params, batches, points=POINTS)["ground_truth"]
        found = {model.config.name: {kind: means["all"] for kind, means in by_kind.items()}} | found
        result["rank_correlation"] = protocols.rank_correlation(model, params, batches)
    result["miou"] = found
    result["objects"] = int(sum(batch["valid"].sum() for batch in batches))
    print(json.dumps(result) if as_json else _table(result))


def _read(given: Sequence[str], config: ExampleConfig, limit: int) -> list[dict[str, np.ndarray]]:
    from ..data import one_pass, open_source

    if limit < 1:
        raise ValueError(f"limit must be at least 1, got {limit}")
    source = open_source(given)
    limit = min(limit, len(source))
    count = min(8, limit)
    batches = list(itertools.islice(one_pass(source, config, count), -(-limit // count)))
    batches[-1] = {name: values[: (limit - 1) % count + 1] for name, values in batches[-1].items()}
    return batches


def _table(result: dict[str, Any]) -> str:
    lines = [f"| mIoU, % | {' | '.join(COLUMNS)} |", f"|---|{'---:|' * len(COLUMNS)}"]
    for name, means in result["miou"].items():
        lines.append(f"| {name} | {' | '.join(f'{100 * means[k]:.1f}' if k in means else '-' for k in COLUMNS)} |")
    settings = result["settings"]
    lines.append(f"\n{result['objects']} objects; disc {settings['radius']:g}, colours {settings['tolerance']:g}")
    if "rank_correlation" in result:
        lines.append(f"Spearman's correlation of predicted and true IoU: {result['rank_correlation']:.2f}")
    return "\n".join(lines)


app.command(name="edges")(commands.edges)
app.command(name="all")(commands.everything)
app.command(name="tracks")(commands.tracks)
for _task in TASKS:
    if _task != "edges":
        app.command(name=_task)(commands.of(_task))


def main(args: Sequence[str] | None = None, prog: str = "eval") -> None:
    """Entry point of `eval`, with its arguments or those of the process."""
    run_commands(app, args, prog, __doc__)


if __name__ == "__main__":
    main()

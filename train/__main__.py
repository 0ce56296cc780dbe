"""`python -m train`: distillation of a segmenter, and its input."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import tyro

app = tyro.extras.SubcommandApp()
Folder = Annotated[Path, tyro.conf.Positional]


@app.command(name="scenes")
def scenes(out: Folder, *, count: int = 1000, seed: int = 0, size: int = 512, workers: int = 1) -> None:
    """Write synthetic scenes with exact masks, as tar shards in SA-1B's layout; an interrupted run goes on.

    Args:
      out: A new folder, or that of an earlier run with the same settings.
      count: Scenes, 1000 a shard.
      seed: Of the series.
      size: Longer side in pixels; the shorter one varies.
      workers: Processes that draw.
    """
    from .shards import write_shards

    shards = write_shards(out, count, seed=seed, size=size, workers=workers)
    print(f"{out}: {count} scenes in {len(shards)} shards")


@app.command(name="index")
def index(data: Annotated[tuple[str, ...], tyro.conf.Positional]) -> None:
    """Index tar shards, which training would do at its start, and say what a source holds.

    Args:
      data: Tar shards, a folder of them, a folder of photos, or a COCO .json with or without its folder of photos.
    """
    from .data import open_source

    source = open_source(data)
    print(f"{len(source)} photos, fingerprint {source.fingerprint[:16]}; the first is {source[0].name}")


def main() -> None:
    """Entry point: expected errors become one line and exit code 1."""
    try:
        app.cli(prog="train", description=__doc__, config=(tyro.conf.FlagCreatePairsOff,))
    except (ValueError, OSError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from error


if __name__ == "__main__":
    main()

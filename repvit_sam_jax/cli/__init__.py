"""The `repvit-sam` command.

Its modules import JAX inside functions, so that `--help` and mistakes in the arguments answer at once.
"""

from __future__ import annotations

import sys

import tyro

from .. import __version__
from .classify import classify
from .everything import everything
from .segment import segment

app = tyro.extras.SubcommandApp()
for command in (segment, everything, classify):
    app.command(command)


def main() -> None:
    """Entry point: expected errors become one line and exit code 1."""
    if sys.argv[1:] == ["--version"]:
        print(f"repvit-sam-jax {__version__}")
        return
    try:
        app.cli(
            prog="repvit-sam",
            description="Segment photos with RepViT-SAM in JAX.",
            config=(tyro.conf.FlagCreatePairsOff,),
        )
    except (ValueError, OSError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from error
    except KeyboardInterrupt:
        raise SystemExit(130) from None

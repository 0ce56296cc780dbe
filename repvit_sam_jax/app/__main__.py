"""`repvit-sam app`: a web page that segments photos by clicks."""

from __future__ import annotations

import os
from collections.abc import Sequence

import tyro

from ..config import Dtype
from ..terminal import COMPILE_CACHE, errors_in_one_line, require, use_compile_cache


def app(
    *,
    weights: tuple[str, ...] = (),
    host: str = "127.0.0.1",
    port: int = 7860,
    share: bool = False,
    dtype: Dtype = "float32",
    compile_cache: str | None = COMPILE_CACHE,
) -> None:
    """Serve a page that segments photos by clicks and boxes, to this machine alone unless told otherwise.

    Photos stay in the memory of this process, each for the visitor who uploaded it, and are forgotten half an hour
    after the last click. Nothing is sent anywhere else, and nothing is counted.

    Args:
      weights: Models for the menu, what `repvit-sam segment --weights` takes, or folders of `repvit-sam export onnx`;
        the first one is chosen at first. The embedded demonstration model and published names are in the menu too;
        what has a name is downloaded when somebody chooses it, unless REPVIT_SAM_OFFLINE is set.
      host: Address to listen at; 0.0.0.0 for all of the network.
      port: Port to listen at.
      share: Let Gradio make a public link, over a server of its makers.
      dtype: Precision of the arithmetic.
      compile_cache: Folder that keeps compiled programs for the next run; None keeps none.
    """
    if not 0 < port < 65536:
        raise ValueError(f"--port {port}: expected 1 to 65535")
    require("gradio", extra="app")
    os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1"}  # read when it is imported
    from .models import Menu
    from .page import serve

    menu = Menu(weights, dtype)
    use_compile_cache(compile_cache)
    serve(menu, host, port, share)


def main(args: Sequence[str] | None = None, prog: str = "app") -> None:
    """Entry point of `repvit-sam app`, with its arguments or those of the process."""
    with errors_in_one_line("app"):
        tyro.cli(app, args=args, prog=prog, config=(tyro.conf.FlagCreatePairsOff,))


if __name__ == "__main__":
    main()

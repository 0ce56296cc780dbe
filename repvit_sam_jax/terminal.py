"""What all commands share: errors in one line, exit codes, names of missing extras, and the cache of programs."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import platformdirs

EXTRAS = {
    "torch": "convert",
    **dict.fromkeys(("coremltools", "onnx", "onnxscript", "onnxruntime"), "export"),
    **dict.fromkeys(("grain", "optax", "orbax"), "train"),
    "litert_torch": "litert",
    "skimage": "eval",
    "gradio": "app",
}
"""Packages beyond the library's own -> the extra that brings them."""


@contextlib.contextmanager
def errors_in_one_line(extra: str | None = None) -> Iterator[None]:
    """Expected errors end the program with one line on stderr and exit code 1, Ctrl-C with 130.

    `extra` brings all that the command needs, if it needs more than one package.
    """
    warnings.formatwarning = _one_line
    try:
        yield
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in EXTRAS:
            raise
        _end(missing([package], extra or EXTRAS[package]), error)
    except RecursionError:
        raise  # a mistake of the program
    except (ValueError, OSError, RuntimeError) as error:
        _end(str(error), error)


def _one_line(message: Warning | str, category: type[Warning], *_: object, **__: object) -> str:
    return f"warning: {message}\n" if category is UserWarning else f"{category.__name__}: {message}\n"


def run_commands(
    app: Any,
    args: Sequence[str] | None,
    prog: str,
    description: str | None,
    extras: Mapping[str, str] | None = None,
) -> None:
    """Run a command of a `tyro.extras.SubcommandApp`, with its arguments or those of the process.

    `extras` are those of commands that need more than one package, by name.
    """
    import tyro

    given = sys.argv[1:] if args is None else list(args)
    with errors_in_one_line((extras or {}).get(given[0]) if given else None):
        app.cli(args=given, prog=prog, description=description, config=(tyro.conf.FlagCreatePairsOff,))


def require(*packages: str, extra: str = "export") -> None:
    """Raises ValueError, with the extra to install, if a package is missing."""
    absent = [name for name in packages if importlib.util.find_spec(name) is None]
    if absent:
        raise ValueError(missing(absent, extra))


def missing(packages: list[str], extra: str) -> str:
    """The line that names the remedy."""
    return (
        f"{', '.join(packages)} not installed; this needs an extra: pip install 'repvit-sam-jax[{extra}]' "
        f"(in a checkout: pip install -e '.[{extra}]')"
    )


def _default_compile_cache() -> str | None:
    """JAX's own setting if the environment has it, empty for no cache; else a folder in the user's cache."""
    folder = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    if folder is None:
        return platformdirs.user_cache_dir("repvit-sam", appauthor=False)
    return folder or None


COMPILE_CACHE = _default_compile_cache()
"""Default of `--compile-cache`."""


def use_compile_cache(folder: str | None) -> None:
    """Let JAX keep compiled programs in the folder, from one run to the next; None keeps none.

    It may be a bucket, such as gs://..., which is JAX's to open. A local folder that can't be written costs a warning
    on stderr, no more.
    """
    import jax

    if folder is not None and "://" not in folder:
        try:
            Path(folder).mkdir(mode=0o700, parents=True, exist_ok=True)  # what it holds will be run
            tempfile.TemporaryFile(dir=folder).close()
        except OSError as error:
            print(f"warning: compiled programs are not kept in {folder}: {error}", file=sys.stderr)
            folder = None
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


def counted(number: int, unit: str) -> str:
    """`1 shard`, `2 shards`."""
    return f"{number} {unit}" + ("" if number == 1 else "s")


def _end(message: str, error: Exception) -> None:
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(1) from error

"""The `repvit-sam` command.

A command's module is imported when it is called, and modules import JAX inside functions, so that `--help` and mistakes
in the arguments answer at once.
"""

from __future__ import annotations

import importlib
import importlib.util
import itertools
import re
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

from .. import __version__
from ..terminal import errors_in_one_line


class Command(NamedTuple):
    """A command of `repvit-sam`, whose module is within the library, or in a checkout beside it."""

    does: str
    module: str
    """With a function `main(args, prog)`, or for commands of one function with the function of the command's name."""
    first: tuple[str, ...] = ()
    """Arguments that go before those given."""


COMMANDS = {
    "segment": Command("a photo and prompts to a mask; or a folder of photos", "cli.segment"),
    "everything": Command("all masks of a photo, without prompts", "cli.everything"),
    "app": Command("a web page: photos, clicks, masks", "app.__main__"),
    "compare": Command("models side by side on photos, with their times, in one picture", "cli.compare"),
    "classify": Command("ImageNet classes of a photo, by a RepViT classifier", "cli.classify"),
    "convert": Command("checkpoints between PyTorch and this library: from-torch, to-torch, ...", "convert.__main__"),
    "parity": Command("compare a model with PyTorch, layer by layer", "convert.__main__", ("parity",)),
    "export": Command(
        "models in other formats: onnx, coreml, litert, stablehlo, a web page, annotation tools",
        "convert.export.__main__",
    ),
    "train": Command("distillation, fine-tuning and their input: distill, finetune, embed, ...", "train.__main__"),
    "eval": Command("masks against annotated ones", "evals.__main__"),
    "bench": Command("speed, beside PyTorch and ONNX Runtime; in a checkout", "benchmarks.__main__"),
}


def main(args: Sequence[str] | None = None) -> None:
    """Entry point of `repvit-sam`, with its arguments or those of the process."""
    name, *rest = [*(sys.argv[1:] if args is None else args), ""]
    if name in COMMANDS:
        with errors_in_one_line():
            _run(name, rest[:-1])
    elif name == "--version":
        print(f"repvit-sam-jax {__version__}")
    elif name in ("-h", "--help"):
        print(_help())
    else:
        print(_help() if not name else f"error: there is no command {name!r}\n\n{_help()}", file=sys.stderr)
        raise SystemExit(2)


def _help() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {command.does}" for name, command in COMMANDS.items()]
    usage = "usage: repvit-sam [-h] [--version] COMMAND ...\n\nSegment photos with RepViT-SAM in JAX.\n\ncommands:\n"
    return usage + "\n".join(lines) + "\n\n`repvit-sam COMMAND --help` says more."


def _run(name: str, args: Sequence[str]) -> None:
    command, prog = COMMANDS[name], f"repvit-sam {name}"
    module = importlib.import_module(place(command.module))
    if command.module.startswith("cli."):
        import tyro

        function: Callable[..., None] = getattr(module, name)
        tyro.cli(function, args=_joined(args), prog=prog, config=(tyro.conf.FlagCreatePairsOff,))
    else:
        module.main([*command.first, *args], prog)


def _joined(args: Sequence[str]) -> list[str]:
    """Numbers after --box and --point as one argument: `--box 20 10 300 400` is `--box 20,10,300,400`."""
    left, joined = list(args), list[str]()
    while left:
        flag = left.pop(0)
        joined.append(flag)
        numbers = list(itertools.takewhile(_NUMBER.fullmatch, left[: _COUNTS.get(flag, 0)]))
        if flag == "--point" and numbers[2:] not in ([], ["0"], ["1"]):  # no label, but a folder that is called so
            numbers.pop()
        if numbers:
            joined.append(",".join(numbers))
        del left[: len(numbers)]
    return joined


_COUNTS = {"--box": 4, "--point": 3}
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


def place(module: str) -> str:
    """Where a module is: within the library, or in a checkout beside it."""
    package = __package__.partition(".")[0]
    if importlib.util.find_spec(f"{package}.{module.partition('.')[0]}"):
        return f"{package}.{module}"
    if importlib.util.find_spec(module.partition(".")[0]):
        return module
    raise ValueError(f"{module.partition('.')[0]} is not part of an installation: run this in a checkout")

"""`python -m tests.mutants`: make deliberate mistakes in a copy of the working tree, and see which tests notice."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from tests.mutants import runner
from tests.mutants.catalogue import MUTANTS
from tests.mutants.mutant import Mutant
from tests.mutants.runner import Outcome


def main(
    *,
    only: tuple[str, ...] = (),
    tenth: int | None = None,
    list_: Annotated[bool, tyro.conf.arg(name="list")] = False,
    json_: Annotated[Path | None, tyro.conf.arg(name="json")] = None,
    again: bool = False,
    unchecked: bool = False,
    seconds: float = runner.SECONDS,
) -> None:
    """Run the mutants' tests. The exit code is 1 if one is missed or broken, and 2 if tests fail without a mistake.

    The working tree is left alone.

    Args:
      only: Names of mutants; all without.
      tenth: From 0 to 9, every tenth mutant from there on.
      list_: Print the mutants, and run nothing.
      json_: File of outcomes, rewritten after each mutant. Those that it holds already are not run again, unless they
        were broken or the mutant has changed.
      again: Run them all the same.
      unchecked: Leave out the first run of all these tests without a mistake, in which they must pass.
      seconds: Time limit of each mutant; one that takes longer counts as caught.
    """
    try:
        chosen = choose(MUTANTS, only, tenth)
    except ValueError as error:
        raise SystemExit(f"error: {error}") from error
    if list_:
        for mutant in chosen:
            print(f"{mutant.file}  {mutant.name}  ({', '.join(mutant.tests)})")
        return
    known = {} if json_ is None or not json_.is_file() else {one["name"]: Outcome(**one) for one in read(json_)}
    finished = {} if again else {m.name: known[m.name] for m in chosen if _is_finished(m, known.get(m.name))}
    waiting = [mutant for mutant in chosen if mutant.name not in finished]
    with runner.copy() as folder:
        if waiting and not unchecked:
            try:
                runner.check_unchanged(folder, waiting)
            except ValueError as error:
                print(error)
                raise SystemExit(2) from error
        for mutant in chosen:
            outcome = finished.get(mutant.name) or runner.run(mutant, folder, seconds)
            print(outcome, flush=True)
            finished[mutant.name] = known[mutant.name] = outcome
            if json_ is not None:
                write(json_, list(known.values()))
    print(summary([finished[mutant.name] for mutant in chosen]))
    if any(finished[mutant.name].outcome != "caught" for mutant in chosen):
        raise SystemExit(1)


def choose(mutants: Sequence[Mutant], only: Sequence[str], tenth: int | None) -> list[Mutant]:
    """Those of some names, or every tenth; ValueError for an unknown name, or a number that is none of 0 to 9."""
    if unknown := sorted(set(only) - {mutant.name for mutant in mutants}):
        raise ValueError(f"there is no mutant {', '.join(unknown)}; --list prints them")
    if tenth is not None and not 0 <= tenth <= 9:
        raise ValueError(f"--tenth takes a number from 0 to 9, got {tenth}")
    return [
        mutant
        for i, mutant in enumerate(mutants)
        if (not only or mutant.name in only) and (tenth is None or i % 10 == tenth)
    ]


def summary(outcomes: Sequence[Outcome]) -> str:
    """How many were caught, and how many not."""
    counts = {kind: sum(one.outcome == kind for one in outcomes) for kind in ("caught", "missed", "broken")}
    parts = [f"{counts['caught']} of {len(outcomes)} caught", f"{counts['missed']} missed"]
    return ", ".join(parts + [f"{counts['broken']} broken"] * bool(counts["broken"]))


def read(path: Path) -> list[dict]:
    """What `write` wrote."""
    return json.loads(path.read_text(encoding="utf-8"))


def write(path: Path, outcomes: Sequence[Outcome]) -> None:
    """All outcomes, whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps([dataclasses.asdict(one) for one in outcomes], indent=1) + "\n", encoding="utf-8")
    temporary.replace(path)


def _is_finished(mutant: Mutant, outcome: Outcome | None) -> bool:
    return outcome is not None and outcome.outcome != "broken" and outcome.digest == mutant.digest


if __name__ == "__main__":
    tyro.cli(main, prog="tests.mutants", config=(tyro.conf.FlagCreatePairsOff,))

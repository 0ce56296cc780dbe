"""All mutants: those of the library, the converter, training, evaluation, the benchmarks and the page."""

from __future__ import annotations

from tests.mutants import app, converting, library, masks_and_prompts, measuring, tasks, training
from tests.mutants.mutant import Mutant

MUTANTS: tuple[Mutant, ...] = (
    *library.MUTANTS,
    *masks_and_prompts.MUTANTS,
    *converting.MUTANTS,
    *measuring.MUTANTS,
    *tasks.MUTANTS,
    *training.MUTANTS,
    *app.MUTANTS,
)

"""All mutants: those of the library, of the converter, of training, of evaluation and of the benchmarks."""

from __future__ import annotations

from tests.mutants import converting, library, masks_and_prompts, measuring, tasks, training
from tests.mutants.mutant import Mutant

MUTANTS: tuple[Mutant, ...] = (
    *library.MUTANTS,
    *masks_and_prompts.MUTANTS,
    *converting.MUTANTS,
    *measuring.MUTANTS,
    *tasks.MUTANTS,
    *training.MUTANTS,
)

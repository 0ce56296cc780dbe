"""What a run reads."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from repvit_sam_jax import data
from repvit_sam_jax.data.sources import Source


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What a run reads.

    Attributes:
      photos: what `data.open_source` takes, or what it gives.
      held_out: likewise, with masks; empty for no evaluation.
      embeddings: folder of a cache of the teacher's embeddings of `photos`, or None.
      strict: stop at a damaged record.
      evals_root: folder of the data of the recipe's `evals`, as `repvit-sam eval all` takes it, or None.
      reading: threads and workers of the input; processes are filled in.
    """

    photos: tuple[str, ...] | Source
    held_out: tuple[str, ...] | Source = ()
    embeddings: Path | None = None
    strict: bool = False
    evals_root: Path | None = None
    reading: data.Reading = dataclasses.field(default_factory=data.Reading)

    def open(self) -> tuple[Source, Source | None]:
        """The sources of photos and of held-out ones. Errors as in `data.open_source`."""
        given = lambda source: data.open_source(source) if isinstance(source, tuple) else source
        return given(self.photos), given(self.held_out) if self.held_out else None

"""A deliberate mistake, and how it is made and undone."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path


@dataclasses.dataclass(frozen=True)
class Mutant:
    """`old` stands once in `file`, and `new` in its place is a mistake.

    Attributes:
      name: what the mistake is, in a few words with hyphens between them.
      file: relative to the repository.
      old: the right text.
      new: the wrong one.
      tests: targets of pytest of which one should fail, the cheapest first.
      slow: tests that are marked as slow are run too.
    """

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]
    slow: bool = False

    @property
    def digest(self) -> str:
        """Changes with every field that a run depends on."""
        return hashlib.sha256(json.dumps(dataclasses.asdict(self)).encode()).hexdigest()[:16]

    def mutated(self, root: Path) -> str:
        """The file with the mistake.

        Raises:
          ValueError: the file is not there, the old text is not in it exactly once, or both texts are the same.
        """
        path = root / self.file
        if not path.is_file():
            raise ValueError(f"{self.name}: there is no {self.file}")
        text = path.read_text(encoding="utf-8")
        if (count := text.count(self.old)) != 1:
            raise ValueError(f"{self.name}: the old text is {count} times in {self.file}, and should be once")
        if self.old == self.new:
            raise ValueError(f"{self.name}: the old text and the new one are the same")
        return text.replace(self.old, self.new)

    @contextlib.contextmanager
    def applied(self, root: Path) -> Iterator[None]:
        """The mistake is in the file while the block runs. Raises ValueError as `mutated`."""
        path, wrong = root / self.file, self.mutated(root)
        right = path.read_bytes()
        path.write_text(wrong, encoding="utf-8")
        try:
            yield
        finally:
            path.write_bytes(right)

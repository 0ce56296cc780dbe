"""Results that are made in parts, each kept as soon as it is done, so that a run that was stopped goes on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from .files import write_atomically

PARTS, ABOUT = ".parts", ".about.json"
"""Names within the folder: what is done, and how it is done."""


class Parts:
    """JSON by name, in the folder of a run's results."""

    def __init__(self, folder: Path, about: Mapping[str, Any]) -> None:
        """A run's results in `folder`, which need not be there yet; `about` is what all parts depend on, as JSON."""
        self._folder, self._about = folder, json.loads(json.dumps(about))

    def check(self) -> bool:
        """Whether the folder holds parts of such a run. Raises ValueError if they are another's."""
        if not (self._folder / ABOUT).is_file():
            return False
        before = json.loads((self._folder / ABOUT).read_text())
        if changed := [name for name in self._about if before.get(name) != self._about[name]]:
            raise ValueError(
                f"--out {self._folder} holds an unfinished run with other settings: {', '.join(changed)}; give them as "
                "before, or another folder"
            )
        return True

    def start(self) -> None:
        """Make the folder, unless it is there."""
        (self._folder / PARTS).mkdir(parents=True, exist_ok=True)
        write_json(self._folder / ABOUT, self._about)

    def read(self, name: str) -> Any:
        """A part, or None if it is not done."""
        path = self._path(name)
        return json.loads(path.read_text()) if path.is_file() else None

    def write(self, name: str, content: Any) -> None:
        """Keep a part."""
        write_json(self._path(name), content)

    def finish(self) -> None:
        """Remove the parts."""
        (self._folder / ABOUT).unlink()
        shutil.rmtree(self._folder / PARTS)

    def _path(self, name: str) -> Path:
        return self._folder / PARTS / f"{quote(name, safe=' ')}.json"


def write_json(path: Path, content: Any) -> None:
    """Write JSON, all or nothing; ValueError for NaN, which JSON lacks."""
    text = json.dumps(content, indent=1, allow_nan=False)
    write_atomically(path, lambda temporary: temporary.write_text(text))

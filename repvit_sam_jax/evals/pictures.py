"""Pictures of items: a row each, with the photo, its truth, and each model's answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

from PIL import Image, ImageDraw

from ..files import write_atomically
from .tasks.protocol import Picture

HEIGHT, GAP = 240, 6
"""Pixels of a panel's height, and between panels."""


class Kept:
    """Panels of a model on the first items of a task, in a folder beside its results."""

    def __init__(self, out: Path, name: str, keys: Sequence[str]) -> None:
        self._folder, self._name, self._keys = out / "pictures", name, keys

    @property
    def missing(self) -> set[str]:
        """Items whose panel is still to be kept."""
        return {key for key in self._keys if not self._path(key, self._name).is_file()}

    def keep(self, key: str, given: Mapping[str, Picture], answer: Picture) -> None:
        """Write an item's panels as PNG."""
        self._folder.mkdir(parents=True, exist_ok=True)
        numbered = {f"_{i} {title}": shown for i, (title, shown) in enumerate(given.items())}
        for title, picture in {**numbered, self._name: answer}.items():
            _save(Image.fromarray(picture), self._path(key, title))

    def _path(self, key: str, title: str) -> Path:
        return self._folder / f"{_file_name(key)}.{title}.png"


def _file_name(key: str) -> str:
    return quote(key, safe=" ")


def compose(out: Path, keys: Sequence[str], names: Sequence[str]) -> Path:
    """Rows of the panels that were kept, under their titles.

    Args:
      out: the folder that `Kept` was given.
      keys: items, a row each.
      names: of models.

    Returns:
      The PNG file.
    """
    folder, first = out / "pictures", f"{_file_name(keys[0])}."
    given = sorted(path.name[len(first) : -4] for path in folder.iterdir() if path.name.startswith(f"{first}_"))
    files = [*given, *names]
    titles = [*(name.partition(" ")[2] for name in given), *names]
    rows = [[Image.open(folder / f"{_file_name(key)}.{file}.png") for file in files] for key in keys]
    target = out / "pictures.png"
    _save(sheet(rows, titles), target)
    return target


def sheet(rows: Sequence[Sequence[Image.Image]], titles: Sequence[str]) -> Image.Image:
    """Rows of panels, all scaled to the same height, under the titles of their columns."""
    scaled = [[_scaled(panel) for panel in row] for row in rows]
    widths = [max(row[i].width for row in scaled) for i in range(len(titles))]
    size = sum(widths) + GAP * (len(widths) - 1), 20 + len(rows) * (HEIGHT + GAP)
    drawn = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(drawn)
    for row, panels in enumerate(scaled):
        for i, panel in enumerate(panels):
            x = sum(widths[:i]) + GAP * i
            drawn.paste(panel, (x, 20 + row * (HEIGHT + GAP)))
            if row == 0:
                pen.text((x, 3), titles[i], fill="black", font_size=13)
    return drawn


def _scaled(panel: Image.Image) -> Image.Image:
    width = max(1, round(panel.width * HEIGHT / panel.height))
    return panel.convert("RGB").resize((width, HEIGHT), Image.Resampling.LANCZOS)


def _save(picture: Image.Image, path: Path) -> None:
    write_atomically(path, lambda temporary: picture.save(temporary, "PNG"))

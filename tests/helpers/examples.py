"""The programs in docs/export.md, which use an artifact with nothing of this project."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from tests.helpers.processes import ROOT

EXAMPLES: dict[str, str] = dict(
    re.findall(
        r"<!-- example: (\w+) -->\n```python\n(.*?)```", (ROOT / "docs" / "export.md").read_text("utf-8"), re.DOTALL
    )
)
"""By what they use."""
FOREIGN = "\nimport sys\nassert not {'repvit_sam_jax', 'convert', 'torch', 'flax'} & set(sys.modules)\n"


def run(code: str, folder: Path) -> None:
    """Run a program in a folder, in a process of its own that has imported nothing of this project at its end."""
    done = subprocess.run(
        [sys.executable, "-c", code + FOREIGN], cwd=folder, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr


def agreement(predictor, photo: np.ndarray, folder: Path) -> float:
    """The share of pixels of `mask.png` that are the predictor's for the point of the examples."""
    predictor.set_image(photo)
    masks, iou, _ = predictor.predict([[20, 30]], [1])
    return np.mean((np.asarray(Image.open(folder / "mask.png")) > 0) == masks[iou.argmax()])

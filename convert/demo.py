"""`make demo`: from a checkpoint to a mask on a photo, with the parity table on the way.

With `weights/repvit_sam.pt` (or a network to fetch it over) this is the published model. Without, the same steps run on
random weights in the published format, and everything that is written says so.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from repvit_sam_jax import PRESETS, SamPredictor, load
from repvit_sam_jax.overlay import draw_overlay

from .download import DownloadError, download
from .from_torch import from_torch
from .parity import parity
from .synthetic import write

WARNING = "RANDOM WEIGHTS: this mask means nothing"
STAND_IN_SEED = 3
"""Random weights amplify float32 rounding, some a hundred times more than others; these hardly do (docs/parity.md)."""


def main(weights: Path = Path("weights"), out: Path = Path("demo"), preset: str = "repvit_sam") -> bool:
    """Run the demo; returns whether parity held.

    Args:
      weights: folder with `repvit_sam.pt`, or to download it into.
      out: folder for the converted model, overlay and report.
      preset: of the random weights, if the published ones can't be had.
    """
    out.mkdir(parents=True, exist_ok=True)
    checkpoint, random = _checkpoint(weights, out, preset)
    converted = out / "model.safetensors"

    print(f"\n1. convert {checkpoint}")
    metadata = from_torch(checkpoint, converted)
    print(f"   {metadata.config.name}, {metadata.form} form, SHA-256 of the source {metadata.source_sha256}")

    photo, points, box = _photo()
    print("\n2. parity of JAX with PyTorch on the photo, stage by stage\n")
    report = parity(checkpoint, photo)
    print(report.to_text())

    print("\n3. segment the photo")
    predictor = SamPredictor(*load(converted))
    predictor.set_image(photo)
    lines = []
    prompts: dict[str, dict[str, Any]] = {"point": {"point_coords": points, "point_labels": [1]}, "box": {"box": box}}
    for name, given in prompts.items():
        masks, iou, _ = predictor.predict(**given, multimask_output=name == "point")
        best = int(np.argmax(iou))
        caption = WARNING if random else f"{metadata.config.name}, {name}, predicted IoU {iou[best]:.2f}"
        coords = points if name == "point" else []
        overlay = draw_overlay(photo, masks[best], coords, [1] * len(coords), box if name == "box" else None, caption)
        path = out / f"overlay_{name}.png"
        Image.fromarray(overlay).save(path)
        lines.append(f"- {name}: {masks[best].mean():.1%} of the photo, predicted IoU {iou[best]:.3f}, `{path.name}`")
        print(f"   wrote {path}")

    note = f"**{WARNING}.** They check the machinery, not the model.\n\n" if random else ""
    text = f"# Demo of {metadata.config.name}\n\n{note}Photo: Chelsea the cat, Stefan van der Walt, CC0.\n\n"
    (out / "report.md").write_text(text + "\n".join(lines) + "\n\n" + report.to_text() + "\n")
    values = {"random_weights": random, "source_sha256": metadata.source_sha256, "parity": report.to_dict()}
    (out / "report.json").write_text(json.dumps(values, indent=1) + "\n")
    print(f"   wrote {out / 'report.md'} and {out / 'report.json'}")
    if random:
        print(f"\n{WARNING}. With the published checkpoint at {weights / 'repvit_sam.pt'} it is the real model.")
    return report.passed


def _checkpoint(weights: Path, out: Path, preset: str) -> tuple[Path, bool]:
    published = weights / "repvit_sam.pt"
    if published.is_file():
        return published, False
    print(f"There is no {published}; trying to download it.")
    try:
        print(f"SHA-256 {download(published)} (computed; its publisher states none)")
        return published, False
    except (DownloadError, OSError) as error:
        print(
            f"{error}\n\nGoing on with RANDOM weights in the published format: the steps are real, the masks are not."
        )
    stand_in = out / "random.pt"
    write(stand_in, PRESETS[preset], STAND_IN_SEED)
    return stand_in, True


def _photo() -> tuple[np.ndarray, list[list[float]], list[float]]:
    """A photo with a point and a box on it, in pixels."""
    from skimage import data

    return data.chelsea(), [[230.0, 160.0]], [110.0, 20.0, 360.0, 290.0]


if __name__ == "__main__":
    try:
        sys.exit(0 if main() else 1)
    except (ValueError, OSError) as failure:
        sys.exit(f"error: {failure}")

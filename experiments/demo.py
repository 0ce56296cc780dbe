"""`make demo`: points, boxes and everything on photos, with the parity table on the way.

With `weights/repvit_sam.pt` (or a network to fetch it over) this is the published model; without, the small one of the
package, and everything that is written says so.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from convert.from_torch import from_torch
from convert.parity import parity
from convert.to_torch import to_torch
from repvit_sam_jax import SamAutomaticMaskGenerator, SamPredictor, load
from repvit_sam_jax.inference.overlay import draw_masks, draw_overlay
from repvit_sam_jax.weights.hub import DownloadError, download
from repvit_sam_jax.weights.loading import DEMO

NOTE = "the demonstration model, which learnt from synthetic scenes and from itself; the published one is far better"


@dataclasses.dataclass(frozen=True)
class Prompt:
    """A question on one of scikit-image's photos, in pixels."""

    photo: str
    point_coords: Sequence[Sequence[float]] = ()
    point_labels: Sequence[int] = ()
    box: Sequence[float] | None = None


PROMPTS = {
    "point": Prompt("astronaut", [(220, 120)], [1]),
    "points": Prompt("coffee", [(280, 60), (290, 170), (120, 220)], [1, 1, 0]),
    "box": Prompt("coffee", box=(170, 15, 408, 212)),
    "rocket": Prompt("rocket", box=(308, 125, 337, 408)),
}
CREDITS = {
    "astronaut": "NASA, public domain",
    "coffee": "Rachel Michetti, CC0",
    "rocket": "SpaceX, CC0",
}


def main(weights: Path = Path("weights"), out: Path = Path("demo")) -> bool:
    """Run the demo; returns whether parity held.

    Args:
      weights: folder with `repvit_sam.pt`, or to download it into.
      out: folder for the converted model, overlays and report.
    """
    from skimage import data

    photos = {name: getattr(data, name)() for name in CREDITS}
    out.mkdir(parents=True, exist_ok=True)
    published = _published(weights)
    if published is not None:
        model_file, checkpoint = out / "model.safetensors", published
        print(f"\n1. convert {checkpoint}")
        from_torch(checkpoint, model_file)
    else:
        model_file, checkpoint = DEMO, out / "demo.pt"
        print(f"\n1. convert the demonstration model to PyTorch: {checkpoint}")
        to_torch(model_file, checkpoint)

    print("\n2. parity of JAX with PyTorch on a photo, layer by layer\n")
    report = parity(checkpoint, photos["coffee"])
    print(report.to_text())

    print("\n3. segment photos")
    model, params = load(model_file)
    predictor = SamPredictor(model, params)
    lines, pictures = [], []
    for name, prompt in PROMPTS.items():
        predictor.set_image(photos[prompt.photo])
        given: dict[str, Any] = {"box": prompt.box}
        if prompt.point_coords:
            given |= {"point_coords": prompt.point_coords, "point_labels": prompt.point_labels}
        masks, iou, _ = predictor.predict(**given, multimask_output=name == "point")
        best = int(np.argmax(iou))
        pictures.append(
            draw_overlay(
                photos[prompt.photo],
                masks[best],
                prompt.point_coords,
                prompt.point_labels,
                prompt.box,
                model.config.name,
            )
        )
        path = out / f"{name}.png"
        Image.fromarray(pictures[-1]).save(path)
        lines.append(f"- {name}: {masks[best].mean():.1%} of the photo, predicted IoU {iou[best]:.3f}, `{path.name}`")
        print(f"   wrote {path}")
    generator = SamAutomaticMaskGenerator(model, params)
    records = generator.generate(photos["coffee"])
    found = [record["segmentation"] for record in sorted(records, key=lambda record: -record["area"])]
    pictures.append(draw_masks(photos["coffee"], found))
    Image.fromarray(pictures[-1]).save(out / "everything.png")
    lines.append(f"- everything: {len(found)} masks, `everything.png`")
    Image.fromarray(_side_by_side([pictures[0], pictures[2], pictures[4]])).save(out / "overview.png")
    print(f"   wrote {out / 'everything.png'} and {out / 'overview.png'}")

    note = "" if published else f"By {NOTE}.\n\n"
    credits_ = "; ".join(f"{name}: {credit}" for name, credit in CREDITS.items())
    text = f"# Demo of {model.config.name}\n\n{note}Photos: {credits_}.\n\n"
    (out / "report.md").write_text(text + "\n".join(lines) + "\n\n" + report.to_text() + "\n")
    values = {"model": model.config.name, "masks": len(found), "parity": report.to_dict()}
    (out / "report.json").write_text(json.dumps(values, indent=1) + "\n")
    print(f"   wrote {out / 'report.md'} and {out / 'report.json'}")
    if published is None:
        print(f"\nThis was {NOTE}: put its checkpoint at {weights / 'repvit_sam.pt'}.")
    return report.passed


def _published(weights: Path) -> Path | None:
    """The published checkpoint, if it is there or can be had."""
    published = weights / "repvit_sam.pt"
    if published.is_file():
        return published
    print(f"There is no {published}; trying to download it.")
    try:
        print(f"SHA-256 {download(published)} (computed; its publisher states none)")
    except (DownloadError, OSError) as error:
        print(f"{error}\n\nGoing on with the demonstration model that the package contains.")
        return None
    return published


def _side_by_side(pictures: Sequence[UInt8[np.ndarray, "h w 3"]], height: int = 300) -> UInt8[np.ndarray, "h w 3"]:
    """Pictures of one height, a white gap between them."""
    resized = []
    for picture in map(Image.fromarray, pictures):
        resized += [
            np.asarray(
                picture.resize((round(picture.width * height / picture.height), height), Image.Resampling.LANCZOS)
            ),
            np.full((height, 8, 3), 255, np.uint8),
        ]
    return np.concatenate(resized[:-1], axis=1)


if __name__ == "__main__":
    try:
        sys.exit(0 if main() else 1)
    except (ValueError, OSError) as failure:
        sys.exit(f"error: {failure}")

"""`repvit-sam classify`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import tyro

from ..terminal import COMPILE_CACHE, use_compile_cache


def classify(
    photo: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="PHOTO")],
    *,
    weights: Path,
    names: Path | None = None,
    compile_cache: str | None = COMPILE_CACHE,
    as_json: Annotated[bool, tyro.conf.arg(name="json")] = False,
) -> None:
    """The five likeliest ImageNet classes of a photo, by a RepViT classifier.

    Args:
      photo: The image file.
      weights: A checkpoint of this library, of the official code such as repvit_m2_3_distill_450e.pth, or of timm; or a
        name such as repvit_m2_3_distill.
      names: A text file with a name a line, in the order of the classes; without it classes are numbers.
      compile_cache: Folder that keeps compiled programs for the next run; None keeps none.
      as_json: Print the result as JSON.
    """
    import jax
    import numpy as np

    from ..models.classifier import preprocess
    from ..transforms import load_image
    from ..weights.loading import load_classifier

    use_compile_cache(compile_cache)
    image = load_image(photo)
    model, params = load_classifier(weights)
    labels = _class_names(names, model.config.num_classes)
    logits = jax.jit(model.classify)(params, preprocess(image, model.config.image_size))[0]
    probabilities = np.asarray(jax.nn.softmax(logits))
    top = [
        {"class": int(i), "name": labels[i], "probability": float(probabilities[i])}
        for i in np.argsort(-probabilities)[:5]
    ]
    if as_json:
        print(json.dumps({"photo": str(photo), "model": model.config.name, "top": top}, indent=1))
        return
    print(f"{photo}, {model.config.name}")
    for entry in top:
        print(f"  {entry['probability']:6.1%}  {entry['name']}")


def _class_names(path: Path | None, count: int) -> list[str]:
    if path is None:
        return [f"class {i}" for i in range(count)]
    if not path.is_file():
        raise FileNotFoundError(f"no file of names at {path}")
    names = path.read_text().splitlines()
    if len(names) != count:
        raise ValueError(f"{path} has {len(names)} lines, the classifier has {count} classes")
    return names

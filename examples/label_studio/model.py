"""A machine learning backend for Label Studio: smart key points and rectangles to brush masks, by RepViT-SAM."""

from __future__ import annotations

import functools
import os
import threading
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
from label_studio_ml.model import LabelStudioMLBase
from label_studio_ml.response import ModelResponse
from label_studio_sdk.converter import brush

from repvit_sam_jax import SamPredictor, load, transforms

WEIGHTS = os.environ.get("REPVIT_SAM_WEIGHTS", "demo")
"""A .safetensors file, or a name that `repvit_sam_jax.load` knows."""
PHOTOS = 16
"""Embeddings that are kept, so that further clicks on a photo are answered at once."""
LOCK = threading.Lock()
"""One prompt at a time: the photo that is set is the predictor's."""


@functools.cache
def predictor() -> SamPredictor:
    """The model, loaded at the first request."""
    return SamPredictor(*load(WEIGHTS))


class RepViTSam(LabelStudioMLBase):
    """Answers a smart key point or rectangle with a brush mask; all that were set on a thing are one prompt."""

    def setup(self) -> None:
        """Say which weights made a prediction."""
        self.set("model_version", f"repvit-sam-jax {Path(WEIGHTS).name}")

    def predict(self, tasks: list[dict], context: dict | None = None, **_: Any) -> ModelResponse:
        """The mask for what `context` says was set on the first task's photo; nothing if that means no thing.

        Raises:
          ValueError: the photo can't be read.
        """
        results = (context or {}).get("result") or []
        from_name, to_name, value = self.get_first_tag_occurence("BrushLabels", "Image")
        asked = [result for result in results if result["type"] in ("keypointlabels", "rectanglelabels")]
        if not asked:
            return ModelResponse(predictions=[])
        path = self.get_local_path(tasks[0]["data"][value], task_id=tasks[0].get("id"))
        with LOCK:
            image = _embedded(path, Path(path).stat().st_mtime_ns)
            prompt = _prompt(asked, image.size)
            if not prompt:
                return ModelResponse(predictions=[])
            predictor().set_embedded([image])
            masks, scores, _ = predictor().predict(**prompt)
        best = int(scores.argmax())
        height, width = image.size
        region = {
            "id": uuid4().hex[:10],
            "type": "brushlabels",
            "from_name": from_name,
            "to_name": to_name,
            "original_width": width,
            "original_height": height,
            "image_rotation": 0,
            "score": float(scores[best]),
            "value": {
                "format": "rle",
                "rle": brush.mask2rle(masks[best].astype(np.uint8) * 255),
                "brushlabels": asked[-1]["value"][asked[-1]["type"]][:1],
            },
        }
        version = str(self.get("model_version"))
        prediction = {"result": [region], "score": region["score"], "model_version": version}
        return ModelResponse(predictions=[prediction], model_version=version)


@functools.lru_cache(PHOTOS)
def _embedded(path: str, _changed: int) -> Any:
    """A photo's embedding; of another version of the file another one."""
    return predictor().embed([transforms.load_image(path)])[0]


def _prompt(results: list[dict], size: tuple[int, int]) -> dict[str, Any]:
    """What `SamPredictor.predict` takes for regions in percent of the photo; nothing if they mean no thing."""
    height, width = size
    pixels = lambda x, y: [min(max(x, 0), 99.99) * width / 100, min(max(y, 0), 99.99) * height / 100]
    points, labels, box = [], [], None
    for result in results:
        value = result["value"]
        if result["type"] == "keypointlabels":
            points.append(pixels(value["x"], value["y"]))
            labels.append(int(result.get("is_positive", True)))
        else:  # the newest rectangle counts
            ends = (value["x"] + value["width"], value["y"] + value["height"])
            box = [*pixels(value["x"], value["y"]), *pixels(*ends)]
    if box is None and 1 not in labels:
        return {}
    prompt: dict[str, Any] = {"multimask_output": box is None and len(points) == 1}
    if points:
        prompt |= {"point_coords": points, "point_labels": labels}
    return prompt if box is None else prompt | {"box": box}


if __name__ == "__main__":
    from label_studio_ml.api import init_app

    host, port = os.environ.get("HOST", "127.0.0.1"), int(os.environ.get("PORT", "9090"))
    init_app(RepViTSam).run(host=host, port=port)

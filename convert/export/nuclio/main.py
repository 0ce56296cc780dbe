"""A photo to its embedding, for CVAT: base64 in the request's `image`, base64 of float32 [1, 256, 64, 64] in `blob`."""

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from PIL import Image


def init_context(context: Any) -> None:
    """Open the encoder once for each worker."""
    context.user_data.encoder = onnxruntime.InferenceSession(Path(__file__).parent / "encoder.onnx")


def handler(context: Any, event: Any) -> Any:
    """Answer one request."""
    photo = Image.open(io.BytesIO(base64.b64decode(event.body["image"]))).convert("RGB")
    blob = base64.b64encode(embed(context.user_data.encoder, photo).tobytes()).decode()
    return context.Response(body=json.dumps({"blob": blob}), content_type="application/json", status_code=200)


def embed(encoder: onnxruntime.InferenceSession, photo: Image.Image) -> np.ndarray:
    """The embedding of an RGB image, scaled as SAM does it to the size that the encoder says."""
    scale = int(encoder.get_modelmeta().custom_metadata_map["image_size"]) / max(photo.size)
    width, height = (int(side * scale + 0.5) for side in photo.size)
    scaled = np.asarray(photo.resize((width, height), Image.Resampling.BILINEAR), np.float32)
    return encoder.run(["image_embeddings"], {"input_image": scaled})[0]

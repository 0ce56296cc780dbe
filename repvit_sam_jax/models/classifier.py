"""RepViT's ImageNet classifiers (arXiv 2307.09283): where the distillation of an image encoder starts from.

    model, params = repvit_sam_jax.load_classifier("repvit_m2_3.safetensors")
    logits = jax.jit(model.classify)(params, classifier.preprocess(photo, model.config.image_size))

Reference: THU-MIG/RepViT, `model/repvit.py`. `params` has the keys `backbone`, `head` and, in the training form of a
distilled classifier, `head_dist`.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, UInt8
from PIL import Image

from ..config import ClassifierConfig, Dtype, Form, get_classifier_config
from ..transforms import PIXEL_MEAN, PIXEL_STD, check_image, check_normalized
from .encoders.repvit import RepViT
from .layers import BNLinear, Intermediates, Keys, Linear
from .model import Model, Params

RESIZE_RATIO = 256 / 224
"""How much longer than the crop the shorter side is resized to, in RepViT's evaluation."""


def preprocess(image: UInt8[np.ndarray, "h w 3"], image_size: int = 224) -> Float[np.ndarray, "1 s s 3"]:
    """What `Classifier.classify` takes: resize (bicubic), central crop, normalisation, as in RepViT's evaluation.

    Args:
      image: RGB photo.
      image_size: side S of the crop, in pixels.

    Raises:
      ValueError: the image is not uint8 [H, W, 3], or is empty.
    """
    check_image(image)
    height, width = image.shape[:2]
    short = int(RESIZE_RATIO * image_size)
    size = (int(short * width / height), short) if height <= width else (short, int(short * height / width))
    resized = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))
    top, left = (round((side - image_size) / 2) for side in resized.shape[:2])
    crop = resized[top : top + image_size, left : left + image_size].astype(np.float32)
    return ((crop - np.array(PIXEL_MEAN, np.float32)) / np.array(PIXEL_STD, np.float32))[None]


class _Modules(nnx.Module):
    def __init__(self, config: ClassifierConfig, *, form: Form, dtype: jnp.dtype, rngs: Keys):
        deploy = form == "deploy"
        self.backbone = RepViT(config.backbone, deploy=deploy, dtype=dtype, rngs=rngs)
        # Logits are compared with each other, not with a threshold, but they are few: float32 costs nothing here.
        common: dict[str, Any] = {"dtype": jnp.dtype("float32"), "rngs": rngs}
        width, classes = config.backbone.channels[-1], config.num_classes
        self.head: BNLinear | Linear = (Linear if deploy else BNLinear)(width, classes, **common)
        two = config.distilled and not deploy
        self.head_dist = BNLinear(width, classes, **common) if two else nnx.data(None)


class Classifier(Model[ClassifierConfig]):
    """A RepViT classifier without its parameters: `config`, `form` and `dtype`, as in `Model`."""

    @classmethod
    def from_preset(cls, name: str, *, form: Form = "deploy", dtype: Dtype = "float32") -> Classifier:
        """The model of a preset, such as `repvit_m2_3_distill`; see `config.CLASSIFIERS`."""
        return cls(get_classifier_config(name), form, dtype)

    def _modules(self, rngs: Keys) -> _Modules:
        return _Modules(self.config, form=self.form, dtype=self.compute_dtype, rngs=rngs)

    def classify(self, params: Params, images: Float[Array, "b s s 3"]) -> Float[Array, "b classes"]:
        """Logits of the classes.

        Args:
          params: as `load_classifier` or `init` gives them. In training form the running statistics are used.
          images: float [B, S, S, 3] from `preprocess`, S = `config.image_size`.

        Returns:
          float32 [B, classes]; the mean of both heads for a distilled classifier.

        Raises:
          ValueError: the images have another shape, or the params are of the other form.
        """
        return self.classify_with_intermediates(params, images)[0]

    def classify_with_intermediates(
        self, params: Params, images: Float[Array, "b s s 3"]
    ) -> tuple[Float[Array, "b classes"], Intermediates]:
        """`classify`, and activations of the same computation by name: `stem`, `blocks.1`, ..., `pooled`, `logits`."""
        size = self.config.image_size
        if images.ndim != 4 or images.shape[1:] != (size, size, 3):
            raise ValueError(
                f"images must have shape [B, {size}, {size}, 3] for this model, got {tuple(images.shape)}; "
                "classifier.preprocess makes them"
            )
        check_normalized(images)
        modules = self._merge(params)
        features, intermediates = modules.backbone.features(images, train=False)
        pooled = features.astype(jnp.float32).mean((1, 2))
        logits = modules.head(pooled)
        if modules.head_dist is not None:
            logits = (logits + modules.head_dist(pooled)) / 2
        return logits, {**intermediates, "pooled": pooled, "logits": logits}

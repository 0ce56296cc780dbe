"""A visitor of a model that knows colours, and what the model is asked."""

from __future__ import annotations

import pytest

from repvit_sam_jax.app.session import Session
from tests.helpers.miniatures import colour_segmenter, photo_of, scene


class Model:
    """The predictor, and the calls of its backend: embeddings that it made, prompts that it answered."""

    def __init__(self, monkeypatch, side=64):
        self.predictor = colour_segmenter(side).predictor
        self.encoded, self.asked = [], []
        backend = self.predictor.backend
        encode, decode = backend.encode, backend.decode
        monkeypatch.setattr(backend, "encode", lambda images: self.encoded.append(images) or encode(images))
        monkeypatch.setattr(backend, "decode", lambda *given: self.asked.append((given[1], given[2])) or decode(*given))


@pytest.fixture
def model(monkeypatch):
    return Model(monkeypatch)


@pytest.fixture
def labels():
    """Of the scene: 0 the background, 1, 2 and 3 its things."""
    return scene(0)


@pytest.fixture
def session(model, labels):
    """With the scene, for which the encoder has run."""
    visitor = Session()
    visitor.open(model.predictor, photo_of(labels), "a scene.jpg")
    return visitor

"""A command in this process, and the pictures that it wrote."""

from __future__ import annotations

import sys

import numpy as np
from PIL import Image

from repvit_sam_jax import cli


def read(path):
    with Image.open(path) as image:
        return np.array(image)


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["repvit-sam", *map(str, arguments)])
    cli.main()

"""Annotations of other programs to forms that this library reads and writes, and back."""

from typing import Literal

Form = Literal["coco", "polygons", "labelstudio", "rle", "png", "yolo", "labelme"]
"""What annotations can be converted to."""
FILES = ("coco", "polygons", "labelstudio")
"""Those that are one file."""

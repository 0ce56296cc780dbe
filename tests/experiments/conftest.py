"""The smallest models and scenes, as training has them."""

from tests.train.conftest import micro_models, photos

__all__ = ["micro_models", "photos"]

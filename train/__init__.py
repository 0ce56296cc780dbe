"""Distillation of segmenters; `python -m train`."""

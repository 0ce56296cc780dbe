"""Distillation of a segmenter: its input, teacher, losses and loop. Run from a checkout, `repvit-sam train`."""

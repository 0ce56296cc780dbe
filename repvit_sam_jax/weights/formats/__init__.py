"""Weights as other programs hold them: how files are read, and what their names mean here."""

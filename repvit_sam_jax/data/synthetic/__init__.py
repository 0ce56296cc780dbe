"""Synthetic scenes with exact masks, drawn from random numbers."""

"""Checkpoints between PyTorch and JAX, their parity, and exports. `python -m convert --help`."""

"""Checkpoints between PyTorch and JAX, their parity, and exports. `repvit-sam convert --help`."""

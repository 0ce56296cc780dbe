"""The PyTorch twins in formats of other runtimes, to be compared with."""

"""Every speed figure in the docs comes from here. `python -m benchmarks --help`."""

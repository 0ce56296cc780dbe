"""`python -m repvit_sam_jax.cli`, the same as `repvit-sam`."""

from . import main

main()

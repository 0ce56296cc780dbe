"""Models in formats of other runtimes, each checked against the JAX model before it is written."""

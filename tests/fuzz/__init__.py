"""Mutated inputs, whose only outcomes may be the right answer and one clear error: `python -m tests.fuzz`."""

"""Deliberate mistakes that the tests must notice: `python -m tests.mutants`.

`catalogue.MUTANTS` lists them. Each is a small textual change of one file, and names the tests that should fail by it.
While tests are made faster or fewer, this shows whether they still see what they saw before.
"""

"""Recipes, a file each; every `Recipe` at the top level of a file here is found by its name."""

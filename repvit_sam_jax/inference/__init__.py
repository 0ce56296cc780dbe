"""Prompts to masks: what a user does with an encoded photo."""

"""What made figures of the documentation, and the demonstration; from a checkout."""

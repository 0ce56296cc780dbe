"""Image encoders, one family a file."""

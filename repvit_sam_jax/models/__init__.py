"""SAM and its image encoders, as in the papers."""

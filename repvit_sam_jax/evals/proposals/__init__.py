"""Where segmenters are told to look: boxes and tracks that other models found."""

"""Other programs that serve the predictor in the place of JAX. Each is imported only by whom it is asked for."""

"""What makes the models fast, and nothing else: each function says which plain expression it equals."""

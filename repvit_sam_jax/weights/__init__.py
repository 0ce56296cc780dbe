"""Files of weights: reading, checking, fusing; and the demonstration model's."""

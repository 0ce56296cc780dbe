"""Readers of the data sets that segmenters are measured on, in the layouts in which they are distributed."""

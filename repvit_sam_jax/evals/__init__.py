"""Metrics and protocols that segmenters are measured by."""

"""Metrics, and signs of bad colour: what is measured of predictions."""

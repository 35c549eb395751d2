"""Predict, evaluate, choose a decoding, colourize one photo."""

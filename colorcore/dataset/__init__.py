"""Samples, shards and their index: making, merging and loading them."""

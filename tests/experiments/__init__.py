"""Experiments that take hours: the guides' claims, the search, the scale."""

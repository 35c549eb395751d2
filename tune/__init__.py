"""The search for the best settings of a recipe, run by Ray Tune.

:func:`trainable` and :func:`search_space` are for a `ray.tune.Tuner` of one's own.
"""

from tune.own_tuner import search_space, trainable

__all__ = ["search_space", "trainable"]

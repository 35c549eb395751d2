"""The search for the best settings of a recipe, run by Ray Tune.

:func:`trainable` and :func:`search_space` are for a `ray.tune.Tuner` of one's own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tune.own_tuner import search_space, trainable

__all__ = ["search_space", "trainable"]


def __getattr__(name: str) -> Any:
    # Imported on first use: every process of a trial imports this package.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from tune import own_tuner

    return getattr(own_tuner, name)

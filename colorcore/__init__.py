"""Colorization as a library: colour maths, photos, samples, palette, models, losses, training.

Nothing in this package imports Ray, MLflow or the command line, so it runs wherever torch and numpy
do. See ARCHITECTURE.md for the map.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from colorcore.stock_pipeline import webdataset as webdataset

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """``colorcore.webdataset``, imported when it is first used: it needs torch."""
    if name == "webdataset":
        from colorcore.stock_pipeline import webdataset

        return webdataset
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

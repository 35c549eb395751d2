"""The style of all plots, and rendering a figure to the bytes of a PNG."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from matplotlib.figure import Figure


INK = "#2b2b2b"
QUIET = "#8a8a8a"
STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 11,
    "axes.edgecolor": "#c8c8c8",
    "axes.labelcolor": INK,
    "axes.titlesize": 13,
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "axes.linewidth": 0.8,
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "text.color": INK,
}


def plot_png(
    inches: tuple[float, float], draw: Callable[[Figure], None], *, software: str | None = None
) -> bytes:
    """Call ``draw`` on an empty figure in this style -> the bytes of a PNG, 100 px per inch.

    Its only metadata is ``software``, by which :func:`colorcore.photos.write.made_by` knows it.
    """
    from matplotlib import style
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # Start from matplotlib's defaults: the user's own matplotlibrc must not change the picture.
    with style.context(["default", STYLE]):
        figure = Figure(figsize=inches, dpi=100, facecolor="white")
        canvas = FigureCanvasAgg(figure)
        draw(figure)
        buffer = io.BytesIO()
        canvas.print_figure(buffer, format="png", metadata={"Software": software})
    return buffer.getvalue()

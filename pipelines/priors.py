"""The job of `cc priors`: a dataset's histograms -> its palette, and a picture of that."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from colorcore.color.fit_palette import fit_palette
from colorcore.color.palette import Palette, save_palette
from colorcore.dataset.layout import read_histogram, read_info
from colorcore.drawing.palette_plot import draw_palette
from colorcore.storage.location import open_store
from colorcore.storage.locks import claim
from pipelines.errors import WrongCallError


@dataclass(frozen=True, slots=True)
class PriorsReport:
    """The result of `cc priors`: the palette, the pixels and cells counted, and its picture."""

    palette: Palette
    pixels: int
    cells: int
    picture: str


def make_palette(
    dataset: str | Path,
    *,
    bins: int = 313,
    method: Literal["kmeans", "grid"] = "kmeans",
    power: float = 1.0,
    seed: int = 0,
    centroids: Path | None = None,
) -> PriorsReport:
    """Fit, save and draw a dataset's palette; the same call writes the same bytes.

    Raises:
        DatasetError: the dataset is not finished.
        BusyError: another process writes to the dataset.
        LocationError: it cannot be written.
        WrongCallError: the data has fewer colours than bins, or ``centroids`` is not (Q, 2).
    """
    store = open_store(dataset)
    info = read_info(store)
    histogram = read_histogram(store)
    with claim(store, "cc priors"):
        try:
            given = None if centroids is None else np.load(centroids, allow_pickle=False)
            palette = fit_palette(
                histogram,
                bins=bins,
                method=method,
                power=power,
                seed=seed,
                centroids=given,
                dataset=info.fingerprint or "",
            )
        except (ValueError, OSError) as error:
            raise WrongCallError(str(error)) from error
        save_palette(palette, store.below("palette"))
        store.write("palette/palette.png", draw_palette(palette, histogram))
    return PriorsReport(
        palette=palette,
        pixels=int(histogram.sum()),
        cells=int(np.count_nonzero(histogram)),
        picture=store.show("palette/palette.png"),
    )

"""The picture of a palette: bins, histogram, weights and priors in the ab plane."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from colorcore.color.colorfulness import GREY_CHROMA
from colorcore.color.fit_palette import gamut_lightness, hue_order
from colorcore.color.lab import AB_OFFSET, fit_gamut, lab_to_rgb
from colorcore.drawing.style import INK, QUIET, plot_png

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage
    from numpy.typing import NDArray

    from colorcore.color.palette import Palette

LIGHTNESS = 65.0
"""L at which a bin is shown, or the nearest L at which its colour exists in sRGB."""
_EXTENT = (-128.5, 127.5, -128.5, 127.5)
_AXIS = np.arange(256) - AB_OFFSET


def draw_palette(palette: Palette, histogram: NDArray[np.integer[Any]]) -> bytes:
    """Draw a palette and the colours it was fitted to: the bytes of a PNG, 1600 px wide.

    Upper row, on the ab plane: the bins in their own colours with an area by prior; the photos'
    histogram (256, 256); the loss weight of every colour. Lower row: the priors of the bins in hue
    order, and their weights as a line.
    """
    return plot_png((16, 10.4), lambda figure: _draw(figure, palette, histogram))


def _draw(figure: Figure, palette: Palette, histogram: NDArray[np.integer[Any]]) -> None:
    """All panels of :func:`draw_palette`, with the title above them."""
    about = palette.about
    figure.text(0.055, 0.962, f"Palette of {len(palette)} colours", fontsize=19, weight="bold")
    figure.text(0.055, 0.934, _facts(about, histogram), fontsize=11.5, color=QUIET)
    figure.text(
        0.955, 0.962, palette.fingerprint, fontsize=10, color=QUIET, ha="right", family="monospace"
    )
    grid = figure.add_gridspec(
        2, 3, left=0.055, right=0.955, top=0.885, bottom=0.08, height_ratios=[1.9, 1], hspace=0.26
    )
    rgb = _plane_rgb()
    inside = ~np.isnan(rgb[..., 0])
    reach = max(112.0, float(np.abs(palette.centroids).max()) + 4)
    planes = [figure.add_subplot(grid[0, column]) for column in range(3)]
    for plane in planes:
        plane.set(xlim=(-reach, reach), ylim=(-reach, reach), xlabel="a*  (green – red)")
        plane.set_aspect("equal")
        plane.set_ylabel("b*  (blue – yellow)", labelpad=0)
        plane.axhline(0, color="#d8d8d8", lw=0.7, zorder=0.5)
        plane.axvline(0, color="#d8d8d8", lw=0.7, zorder=0.5)
        plane.contour(_AXIS, _AXIS, inside.T, levels=[0.5], colors="#b4b4b4", linewidths=0.8)
    _draw_bins(planes[0], palette, rgb)
    _draw_histogram(planes[1], histogram)
    _draw_weights(planes[2], palette, inside)
    _draw_priors(figure.add_subplot(grid[1, :]), palette)


def _facts(about: dict[str, Any], histogram: NDArray[np.integer[Any]]) -> str:
    """One line on how a palette was made."""
    names = {"kmeans": "k-means", "grid": "uniform grid", "given": "given centroids"}
    parts = [names.get(about.get("method", ""), "")]
    formats = {
        "power": "power {:g}",
        "spacing": "spacing {:.2f}",
        "sigma": "priors smoothed by σ = {:g}",
        "lam": "weights with λ = {:g}",
        "rms_error": "colours within {:.2f} ab units of their bin (RMS)",
    }
    parts += [text.format(about[k]) for k, text in formats.items() if about.get(k) is not None]
    parts.append(f"{int(histogram.sum(dtype=np.int64)):,} pixels")
    return "   ·   ".join(part for part in parts if part)


def _draw_bins(plane: Axes, palette: Palette, rgb: NDArray[np.float64]) -> None:
    """The gamut, pale, and the bins as dots in their own colours, area by prior."""
    plane.set_title("Bins, area by prior")
    pale = np.where(np.isnan(rgb), 1.0, 1.0 - 0.3 * (1.0 - rgb))
    plane.imshow(pale.transpose(1, 0, 2), origin="lower", extent=_EXTENT, zorder=0)
    by_size = np.argsort(-palette.priors, kind="stable")
    area = 6 + 3000 * palette.priors
    a, b = palette.centroids[by_size].T
    own = display_rgb(palette.centroids[by_size], clip=True)
    plane.scatter(a, b, s=area[by_size], c=own, edgecolors=INK, linewidths=0.4, zorder=3)


def _draw_histogram(plane: Axes, histogram: NDArray[np.integer[Any]]) -> None:
    """The photos' colours, as shares of all pixels on a log scale."""
    from matplotlib.colors import LogNorm

    plane.set_title("Colours of the photos")
    share = np.ma.masked_less_equal(histogram / histogram.sum(dtype=np.int64), 0)
    top = float(share.max())
    norm = LogNorm(vmin=min(max(float(share.min()), top * 1e-6), top / 10), vmax=top)
    image = plane.imshow(share.T, origin="lower", extent=_EXTENT, norm=norm, cmap="magma_r")
    _scale_bar(plane, image, "share of pixels per cell")


def _draw_weights(plane: Axes, palette: Palette, inside: NDArray[np.bool_]) -> None:
    """The weight of a pixel of each colour in a rebalanced loss, on a log scale around 1."""
    from matplotlib.colors import LogNorm

    plane.set_title("What a pixel counts for in the loss")
    weight = np.ma.masked_where(~inside, palette.balance())
    reach = max(2.0, float(palette.weights.max()), 1 / float(palette.weights.min()))
    norm = LogNorm(vmin=1 / reach, vmax=reach)
    image = plane.imshow(weight.T, origin="lower", extent=_EXTENT, norm=norm, cmap="coolwarm")
    tick = max(tick for tick in (2, 5, 10, 100) if tick <= reach)
    _scale_bar(plane, image, "weight (mean 1)", [1 / tick, 1, tick])


def _scale_bar(
    plane: Axes, image: AxesImage, label: str, ticks: Sequence[float] | None = None
) -> None:
    """A thin colour scale in the panel's lower left corner, where sRGB has no colours."""
    frame = plane.inset_axes((0.05, 0.085, 0.36, 0.022))
    bar = frame.figure.colorbar(image, cax=frame, orientation="horizontal")
    bar.outline.set_visible(False)
    if ticks is not None:
        bar.set_ticks(ticks, labels=[f"{tick:g}" for tick in ticks])
    frame.set_title(label, fontsize=9, loc="left", pad=3)
    frame.tick_params(labelsize=8.5, length=2, which="both")
    frame.minorticks_off()


def _draw_priors(axes: Axes, palette: Palette) -> None:
    """A bar a bin in its own colour, hue by hue and from pale to vivid; the weights as a line."""
    points = palette.centroids.astype(np.float64)
    place = {tuple(point): index for index, point in enumerate(hue_order(points).tolist())}
    order = np.argsort([place[tuple(point)] for point in points.tolist()])
    x = np.arange(len(palette))
    priors, weights = palette.priors[order], palette.weights[order]
    axes.set_title("Priors by hue, each hue from pale to vivid")
    axes.bar(x, priors, width=1.0, color=display_rgb(points[order], clip=True))
    axes.set_yscale("log")
    axes.set_ylabel("prior")
    axes.set_xlim(-0.5, len(palette) - 0.5)
    axes.set_ylim(10 ** np.floor(np.log10(priors.min() * 0.9)), priors.max() * 1.6)
    axes.set_xticks(*_hue_ticks(points[order]))
    axes.set_xlabel("hue angle  (0° red, 90° yellow, 180° green, 270° blue)")
    line = axes.twinx()
    line.step(x, weights, where="mid", color=INK, lw=0.9)
    line.set_ylim(0, weights.max() * 1.12)
    line.set_ylabel("weight (line)")
    for side in (axes, line):
        side.spines[["top"]].set_visible(False)


def _hue_ticks(points: NDArray[np.float64]) -> tuple[list[float], list[str]]:
    """Places and labels of every 30° of hue among centroids (Q, 2) in hue order."""
    hue = np.degrees(np.arctan2(points[:, 1], points[:, 0])) % 360.0
    grey = np.hypot(points[:, 0], points[:, 1]) <= GREY_CHROMA
    places, labels = ([grey.sum() / 2 - 0.5], ["near grey"]) if grey.any() else ([], [])
    room = len(points) * 0.033
    for degrees in range(0, 360, 30):
        found = np.flatnonzero(~grey & (hue >= degrees) & (hue < degrees + 30))
        if len(found) and (not places or found[0] - 0.5 - places[-1] >= room):
            places.append(float(found[0]) - 0.5)
            labels.append(f"{degrees}°")
    return places, labels


def display_rgb(ab: NDArray[Any], *, clip: bool = False) -> NDArray[np.float64]:
    """The sRGB of ab colours at L 65, or at the nearest L at which they are in the gamut.

    ab (N, 2) ab units -> (N, 3) sRGB in 0..1. Colours outside the gamut at every L are NaN, or
    with ``clip`` the same hue with the largest chroma available at L 65.
    """
    import torch

    L = gamut_lightness(ab, near=LIGHTNESS)
    lab = np.column_stack([np.where(np.isnan(L), LIGHTNESS, L), ab])
    rgb = lab_to_rgb(fit_gamut(torch.from_numpy(lab.T[None, :, None, :])))[0, :, 0].T.numpy()
    shown: NDArray[np.float64] = rgb if clip else np.where(np.isnan(L)[:, None], np.nan, rgb)
    return shown


@cache
def _plane_rgb() -> NDArray[np.float64]:
    """The colour of each stored (a, b) cell: (256, 256, 3) sRGB, NaN outside the gamut."""
    a, b = np.meshgrid(_AXIS, _AXIS, indexing="ij")
    return display_rgb(np.stack([a.ravel(), b.ravel()], axis=1)).reshape(256, 256, 3)

"""Pictures for people: a palette at a glance, and photos as grey | predicted | truth.

Everything is drawn with matplotlib's objects or Pillow, never with pyplot, so there is no global
figure, no window and no backend to choose; the same input gives the same bytes. Both are
imported where they are used.
"""

from __future__ import annotations

import io
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from colorcore.color.colorfulness import GREY_CHROMA
from colorcore.color.lab import AB_OFFSET, fit_gamut, lab_to_rgb
from colorcore.color.palette import gamut_lightness, hue_order
from colorcore.storage.atomic import replace_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage
    from numpy.typing import NDArray
    from torch import Tensor

    from colorcore.color.palette import Palette
    from colorcore.drawing.weight_stats import WeightStats

LIGHTNESS = 65.0
"""L at which a bin is shown, or the nearest L at which its colour exists in sRGB."""
_WEIGHT_ROWS, _WEIGHT_COLUMNS = 3, 4
GAP = 4
"""Pixels between the photos of a triptych."""

INK = "#2b2b2b"
QUIET = "#8a8a8a"
_EXTENT = (-128.5, 127.5, -128.5, 127.5)
_STYLE = {
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
_AXIS = np.arange(256) - AB_OFFSET


def draw_palette(palette: Palette, histogram: NDArray[np.integer[Any]]) -> bytes:
    """Draw a palette and the colours it was fitted to: the bytes of a PNG, 1600 px wide.

    Above, on the ab plane: the bins in their own colours, area by prior; the photos' histogram
    (256, 256); the loss weight of every colour. Below: each bin's prior, hue by hue, its weight
    as a line.
    """
    return plot_png((16, 10.4), lambda figure: _draw(figure, palette, histogram))


def plot_png(inches: tuple[float, float], draw: Callable[[Figure], None]) -> bytes:
    """What ``draw`` puts on an empty figure, in the house style: a PNG of 100 px an inch."""
    from matplotlib import style
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # From matplotlib's defaults: the reader's own matplotlibrc must not change the picture.
    with style.context(["default", _STYLE]):
        figure = Figure(figsize=inches, dpi=100, facecolor="white")
        canvas = FigureCanvasAgg(figure)
        draw(figure)
        buffer = io.BytesIO()
        canvas.print_figure(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def draw_weights(stats: Sequence[WeightStats], title: str) -> bytes:
    """Histograms of the whole model and of its largest tensors: the bytes of a PNG, 1600 px wide.

    stats as :func:`colorcore.drawing.weight_stats.model_stats` gives them. Weights are across,
    from the
    smallest to the largest; the height is the share of weights on a log scale, for a few large
    ones matter. What is no finite number is counted in red.
    """
    from matplotlib import style
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = stats[: _WEIGHT_ROWS * _WEIGHT_COLUMNS]
    rows = -(-len(shown) // _WEIGHT_COLUMNS)
    with style.context(["default", _STYLE]):
        height = 1.3 + 2.7 * rows
        figure = Figure(figsize=(16, height), dpi=100, facecolor="white")
        canvas = FigureCanvasAgg(figure)
        figure.text(0.045, 1 - 0.42 / height, "Weights", fontsize=19, weight="bold")
        figure.text(0.045, 1 - 0.72 / height, title, fontsize=11.5, color=QUIET)
        grid = figure.add_gridspec(
            rows, _WEIGHT_COLUMNS, left=0.045, right=0.985, top=1 - 1.35 / height,
            bottom=0.42 / height, hspace=0.62, wspace=0.2,
        )  # fmt: skip
        for place, row in enumerate(shown):
            axes = figure.add_subplot(grid[divmod(place, _WEIGHT_COLUMNS)])
            _draw_weight_histogram(axes, row, whole=place == 0)
        buffer = io.BytesIO()
        canvas.print_figure(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _draw_weight_histogram(axes: Axes, row: WeightStats, *, whole: bool) -> None:
    shape = "" if whole else f"   {'×'.join(map(str, row.shape))}"
    axes.set_title(f"{row.layer}{shape}", fontsize=9, pad=19)
    facts = f"{row.count:,} weights   σ {row.std:.3g}   {row.near_zero:.0%} near zero"
    axes.text(0, 1.035, facts, transform=axes.transAxes, fontsize=9, color=QUIET)
    if row.non_finite:
        note = f"{row.non_finite:,} not finite"
        axes.text(
            0.98, 0.9, note, transform=axes.transAxes, ha="right", color="#c0392b", weight="bold"
        )
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8.5)
    if not row.histogram.any():
        axes.set(xticks=[], yticks=[])
        return
    share = row.histogram / row.histogram.sum()
    color = INK if whole else "#4a7fb5"
    axes.stairs(share, row.edges(), fill=True, color=color, baseline=share[share > 0].min() / 2)
    axes.set_yscale("log")
    axes.set_ylim(bottom=share[share > 0].min() / 2)
    axes.axvline(0, color="#c8c8c8", lw=0.8, zorder=0)
    axes.locator_params(axis="x", nbins=5)


def triptychs(
    lab_pred: Tensor,
    lab_true: Tensor,
    *,
    labels: Sequence[str] | None = None,
    scale: float = 1.0,
) -> NDArray[np.uint8]:
    """Photos side by side, a row each: grey | predicted | truth.

    lab_pred, lab_true (B, 3, H, W) CIELAB -> (H', W', 3) uint8 sRGB. Grey is the truth's L alone.
    Colours that sRGB lacks are clipped, as a viewer would.

    Args:
        lab_pred: what a model answered.
        lab_true: the photos.
        labels: a caption for each row, drawn below it.
        scale: size of a photo in the picture, 1 pixel for pixel.

    Raises:
        ValueError: the shapes differ, there is no photo, or labels or scale do not fit.
    """
    import torch

    if lab_pred.shape != lab_true.shape or lab_true.ndim != 4 or lab_true.shape[1] != 3:
        raise ValueError(
            "expected predicted and true lab (B, 3, H, W) of one shape, got "
            f"{tuple(lab_pred.shape)} and {tuple(lab_true.shape)}"
        )
    count = len(lab_true)
    if not count or (labels is not None and len(labels) != count):
        have = None if labels is None else len(labels)
        raise ValueError(f"expected one or more photos and a label each, got {count} and {have}")
    if not scale > 0:
        raise ValueError(f"scale must be above 0, got {scale}")
    with torch.no_grad():
        truth = lab_true.detach().float().cpu()
        neutral = torch.cat([truth[:, :1], torch.zeros_like(truth[:, 1:])], dim=1)
        columns = [
            _resized(_to_uint8(lab), scale)
            for lab in (neutral, lab_pred.detach().float().cpu(), truth)
        ]
    rows = []
    for index, photos in enumerate(zip(*columns, strict=True)):
        row = _joined(photos, axis=1)
        rows.append(row if labels is None else _captioned(row, labels[index]))
    return _joined(rows, axis=0)


_FORMATS: dict[str, tuple[str, dict[str, Any]]] = {
    ".png": ("PNG", {}),
    ".jpg": ("JPEG", {"quality": 95, "subsampling": 0}),
    ".webp": ("WEBP", {"quality": 95}),
}


def save_picture(path: Path, rgb: NDArray[np.uint8]) -> None:
    """Write an sRGB picture (H, W, 3) uint8, whole or not at all; no metadata in it.

    The suffix decides: .png is exact, .jpg and .webp are smaller and lose a little.

    Raises:
        ValueError: the array is no such picture, or the suffix is none of the three.
    """
    from PIL import Image

    if rgb.dtype != np.uint8 or rgb.ndim != 3 or rgb.shape[2] != 3:
        raise ValueError(f"expected a picture (H, W, 3) uint8, got {rgb.shape} {rgb.dtype}")
    if path.suffix.lower() not in _FORMATS:
        raise ValueError(f"expected a name ending in {', '.join(_FORMATS)}, got {path.name}")
    name, options = _FORMATS[path.suffix.lower()]
    buffer = io.BytesIO()
    Image.fromarray(rgb).save(buffer, format=name, **options)
    replace_bytes(path, buffer.getvalue())


def _to_uint8(lab: Tensor) -> NDArray[np.uint8]:
    """CIELAB (B, 3, H, W) -> sRGB (B, H, W, 3) uint8, rounded."""
    return _rgb_to_uint8(lab_to_rgb(lab))


def _rgb_to_uint8(rgb: Tensor) -> NDArray[np.uint8]:
    """SRGB (B, 3, H, W) in 0..1 -> (B, H, W, 3) uint8, rounded."""
    return np.asarray(rgb.mul(255).round().permute(0, 2, 3, 1).cpu().numpy(), np.uint8)


def _resized(photos: NDArray[np.uint8], scale: float) -> NDArray[np.uint8]:
    from PIL import Image

    if scale == 1.0:
        return photos
    height, width = photos.shape[1:3]
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    resized = [Image.fromarray(photo).resize(size, Image.Resampling.LANCZOS) for photo in photos]
    return np.stack([np.asarray(image) for image in resized])


def _joined(parts: Sequence[NDArray[np.uint8]], *, axis: int) -> NDArray[np.uint8]:
    """Pictures (H, W, 3) beside (axis 1) or below (axis 0) each other, white gaps between."""
    shape = list(parts[0].shape)
    shape[axis] = GAP
    gap = np.full(shape, 255, np.uint8)
    pieces = [piece for part in parts for piece in (gap, part)][1:]
    return np.concatenate(pieces, axis=axis)


def _captioned(row: NDArray[np.uint8], text: str) -> NDArray[np.uint8]:
    """A row of photos with a line of text below, cut off where the row ends."""
    from PIL import Image, ImageDraw, ImageFont

    strip = Image.new("RGB", (row.shape[1], 18), "white")
    font = ImageFont.load_default(12)
    ImageDraw.Draw(strip).text((2, 2), text, fill=INK, font=font)
    return np.concatenate([row, np.asarray(strip)])


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
    """One line on where a palette comes from."""
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
    """What a pixel of each colour counts for in a rebalanced loss, on a log scale around 1."""
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
    """Where each 30° of hue begin among centroids (Q, 2) in hue order, and their labels."""
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
    """What ab colours look like: at L 65, or at the L closest to it at which sRGB has them.

    ab (N, 2) ab units -> (N, 3) sRGB in 0..1. Colours outside the gamut at every L are NaN, or
    with ``clip`` the same hue with as much chroma as there is at L 65.
    """
    import torch

    L = gamut_lightness(ab, near=LIGHTNESS)
    lab = np.column_stack([np.where(np.isnan(L), LIGHTNESS, L), ab])
    rgb = lab_to_rgb(fit_gamut(torch.from_numpy(lab.T[None, :, None, :])))[0, :, 0].T.numpy()
    shown: NDArray[np.float64] = rgb if clip else np.where(np.isnan(L)[:, None], np.nan, rgb)
    return shown


@cache
def _plane_rgb() -> NDArray[np.float64]:
    """What each stored (a, b) cell looks like: (256, 256, 3) sRGB, NaN outside the gamut."""
    a, b = np.meshgrid(_AXIS, _AXIS, indexing="ij")
    return display_rgb(np.stack([a.ravel(), b.ravel()], axis=1)).reshape(256, 256, 3)

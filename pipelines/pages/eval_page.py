"""The report of `cc eval --html`: one file that needs no network, no script and no other file.

The page is made from the record that ``cc eval --json`` prints, so both show the same numbers.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from colorcore.comparison.hue_errors import HUES
from pipelines.pages.eval_charts import (
    METRICS,
    bar,
    color_key,
    counted,
    difference_table,
    legend,
    round_top,
    scatter,
    score_table,
    text_of,
)
from pipelines.pages.eval_style import STYLE, color_of, policy

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

GENERATOR = "colorcore eval"
"""Names the program in the page, by which an earlier report is recognized."""
HEAD = f'<!doctype html>\n<meta charset="utf-8">\n<meta name="generator" content="{GENERATOR}">\n'
_EQUAL = ("psnr", "delta_e2000", "auc_balanced", "cf", "cf_gap")
_NEUTRAL = "#8c8c8c"
QUALITY = 82


def eval_page(
    record: Mapping[str, Any],
    pictures: Sequence[Mapping[str, NDArray[np.uint8]]],
    places: str,
    hue_colors: Sequence[str],
) -> str:
    """The HTML of a report.

    Args:
        record: what ``cc eval --json`` prints, with its ``details``.
        pictures: of each photo in ``details["shown"]``, (H, W, 3) uint8 sRGB by label.
        places: where the photos are from, for the title.
        hue_colors: ``#rrggbb`` of the twelve sectors of hue.
    """
    colors = {side["name"]: color_of(i) for i, side in enumerate(record["sides"])}
    colors = {"grey": color_of(None), "constant": color_of(None), **colors}
    sections = [
        _head(record, places),
        _scores(record, colors),
        _differences(record["differences"]),
        _equal(record),
        _gallery(record["details"]["shown"], pictures, colors),
        _hues(record["details"]["hues"], colors, hue_colors),
        _scatter(record, colors),
        _reliability(record["details"]["reliability"], colors),
        _stability(record["details"]["size_stability"]),
        _folders(record),
        _notes(record),
    ]
    return (
        f"{HEAD}"
        f'<meta http-equiv="Content-Security-Policy" content="{policy()}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{text_of(f'Colorizers compared on {places}')}</title>\n"
        f"<style>{STYLE}</style>\n<main>\n{''.join(sections)}</main>\n"
    )


def _head(record: Mapping[str, Any], places: str) -> str:
    sides = "".join(
        f"<li>{color_key(color_of(i))}<b>{text_of(side['name'])}</b>: "
        f"{text_of(_about(side))}{_signs(side)}</li>"
        for i, side in enumerate(record["sides"])
    )
    excluded = record["excluded"]
    left_out = (
        f" {counted(excluded, 'photo')} left out, because a side has no output of "
        f"{'it' if excluded == 1 else 'them'}."
        if excluded
        else ""
    )
    refused = sum(record["refused"].values())
    unread = f" {counted(refused, 'photo')} could not be read." if refused else ""
    true = record["scores"]["grey"]["cf_true"]
    return (
        f"<h1>{text_of(f'Colorizers on {places}')}</h1>"
        f"<p>{counted(record['photos'], 'photo')} at {record['size']} px; their mean "
        f"colourfulness (CF) is {true:.1f}.{left_out}{unread}</p><ul>{sides}</ul>"
    )


def _about(side: Mapping[str, Any]) -> str:
    """What a side is, in a few words."""
    if side["kind"] == "outputs":
        return f"pictures in {side['location']}, {side['outputs']['matched']:,} matched by name"
    decoding = side["decoding"]
    knobs = [f"chroma ×{decoding['chroma']:g}"]
    if decoding["temperature"] is not None:
        knobs.insert(0, f"T {decoding['temperature']:g}")
    return f"the model {side['location']} of {side['size']} px, decoded with {', '.join(knobs)}"


def _signs(side: Mapping[str, Any]) -> str:
    return "".join(
        f'<br><span class="quiet">sign of bad colour: {text_of(sign["name"])}, '
        f"{text_of(sign['meaning'])}</span>"
        for sign in side["signs"]
    )


def _scores(record: Mapping[str, Any], colors: Mapping[str, str]) -> str:
    scores = record["scores"]
    metrics = [name for name in METRICS if any(name in row for row in scores.values())]
    has_intervals = bool(record["intervals"])
    note = (
        "Small print: 95% intervals, from resampling the photos. "
        if has_intervals
        else "One photo has no intervals. "
    )
    caution = f" {text_of(record['caution'])}." if "caution" in record else ""
    return (
        "<h2>Scores</h2>"
        f"<p>Means over photos. {note}Best of the compared sides in bold.{caution}</p>"
        + score_table(
            metrics,
            {name: (row, record["intervals"].get(name, {})) for name, row in scores.items()},
            colors,
            [side["name"] for side in record["sides"]],
        )
    )


def _differences(differences: Sequence[Mapping[str, Any]]) -> str:
    """The section on pairs of sides: where they differ by more than chance."""
    if not differences:
        return ""
    return (
        "<h2>Differences</h2><p>The better side of each pair, and below it the mean difference "
        "over the same photos (first minus second) with its 95% interval. Level: the interval "
        "holds 0, so the choice of photos may have made the difference.</p>"
        + difference_table(differences)
    )


def _equal(record: Mapping[str, Any]) -> str:
    shares = record.get("equal_cf") or []
    if not shares or "sides" not in shares[0]:
        return ""
    colors = {side["name"]: color_of(i) for i, side in enumerate(record["sides"])}
    text = (
        "<h2>Scores at equal colourfulness</h2><p>A paler picture nearly always has the better "
        "PSNR. Here each side's chroma is scaled until its mean CF is the same share of the "
        f"photos', and it is scored again, on {counted(shares[0]['photos'], 'photo')}.</p>"
    )
    for each in shares:
        rows = {
            name: (found["scores"], found["intervals"]) if found else ({}, {})
            for name, found in each["sides"].items()
        }
        knobs = {
            name: _knobs(found["decoding"]) if found else "out of reach"
            for name, found in each["sides"].items()
        }
        text += (
            f"<h3>At {each['share']:.0%} of the photos' colourfulness</h3>"
            + score_table(_EQUAL, rows, colors, list(rows), knobs)
            + difference_table(each["differences"])
        )
    return text


def _knobs(decoding: Mapping[str, Any]) -> str:
    temperature = decoding["temperature"]
    chroma = f"chroma ×{decoding['chroma']:.2f}"
    return chroma if temperature is None else f"T {temperature:g}, {chroma}"


def _gallery(
    shown: Sequence[Mapping[str, Any]],
    pictures: Sequence[Mapping[str, NDArray[np.uint8]]],
    colors: Mapping[str, str],
) -> str:
    text = (
        "<h2>Worst, median and best photos</h2><p>By the ΔE2000 of the first side. Centre squares, "
        "at up to 512 px; models' colours as <code>cc colorize</code> joins them with the photo's "
        "own lightness.</p>"
    )
    for photo, made in zip(shown, pictures, strict=True):
        figures = ""
        for label, rgb in made.items():
            scores = photo["scores"].get(label)
            said = (
                f"<br>ΔE {scores['delta_e2000']:.1f}, PSNR {scores['psnr']:.1f} dB"
                if scores
                else ""
            )
            key = color_key(colors[label]) if label in colors and label != "grey" else ""
            figures += (
                f'<figure><img alt="{text_of(label)} of {text_of(photo["name"])}" '
                f'width="{rgb.shape[1]}" height="{rgb.shape[0]}" src="{_data_uri(rgb)}">'
                f"<figcaption>{key}{text_of(label)}"
                f'<span class="quiet">{said}</span></figcaption></figure>'
            )
        text += (
            f'<figure class="photo"><figcaption><b>{photo["rank"]}</b> '
            f'<span class="quiet">{text_of(photo["name"])}</span></figcaption>'
            f'<div class="strip">{figures}</div></figure>'
        )
    return text


def _data_uri(rgb: NDArray[np.uint8]) -> str:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(rgb).save(buffer, "WEBP", quality=QUALITY)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _hues(
    hues: Mapping[str, Mapping[str, Mapping[str, float | None]]],
    colors: Mapping[str, str],
    hue_colors: Sequence[str],
) -> str:
    values = [row["delta_e2000"] or 0.0 for side in hues.values() for row in side.values()]
    top = round_top(max(values))
    rows = ""
    sectors = list(next(iter(hues.values())))
    for number, sector in enumerate(sectors):
        named = number < len(HUES)
        swatch = (
            '<svg class="swatch" viewBox="0 0 10 10" aria-hidden="true">'
            f'<rect width="10" height="10" rx="2" '
            f'fill="{hue_colors[number] if named else _NEUTRAL}"/></svg>'
        )
        label = f"{HUES[number]}" if named else sector
        share = next(iter(hues.values()))[sector]["share"] or 0.0
        degrees = f"{sector.replace('-', '–')}°, " if named else ""
        bars = ""
        for side, errors in hues.items():
            error = errors[sector]["delta_e2000"]
            width = 0.0 if error is None else error / top
            bars += bar(width, colors[side], "–" if error is None else f"{error:.1f}")
        rows += (
            f'<div class="row"><span>{swatch}{label}</span>'
            f"<small>{degrees}{share:.1%}</small><div>{bars}</div></div>"
        )
    return (
        "<h2>Error by hue</h2><p>Mean ΔE2000 over the pixels of each true hue, with their share of "
        "all pixels. Neutral: true chroma of at most 6 ab units.</p>"
        f'{legend(hues, colors)}<div class="rows">{rows}</div>'
    )


def _scatter(record: Mapping[str, Any], colors: Mapping[str, str]) -> str:
    photos = record["details"]["photos"]
    names = [side["name"] for side in record["sides"]]
    largest = max(max(p["cf_true"], *(p["sides"][name]["cf"] for name in names)) for p in photos)
    top = round_top(largest)
    charts = ""
    for name in names:
        points = [(photo["cf_true"], photo["sides"][name]["cf"]) for photo in photos]
        chart = scatter(points, colors[name], f"Colourfulness of {name}", top)
        charts += f"<figure><figcaption>{text_of(name)}</figcaption>{chart}</figure>"
    some = (
        f" {len(photos):,} of {record['photos']:,} photos are shown."
        if len(photos) < record["photos"]
        else ""
    )
    return (
        "<h2>Colourfulness</h2><p>One dot per photo. Below the dashed line, the prediction is "
        f'paler than the photo; above it, more vivid.{some}</p><div class="charts">{charts}</div>'
    )


def _reliability(
    reliability: Mapping[str, Sequence[Mapping[str, float | None]]], colors: Mapping[str, str]
) -> str:
    text = (
        "<h2>Does confidence mean what it says?</h2><p>Share of pixels within 10 ab units of the "
        "true colour, per tenth of the model's confidence. Mark: what the confidence promises.</p>"
    )
    if not reliability:
        return text + '<p class="quiet">No side predicts bins, so none has a confidence.</p>'
    for name, tenths in reliability.items():
        rows = ""
        for tenth in tenths:
            low, high = tenth["from"] or 0.0, tenth["to"] or 0.0
            right = tenth["right"]
            line = bar(
                right or 0.0,
                colors[name],
                "–" if right is None else f"{right:.0%}",
                mark=(low + high) / 2,
            )
            rows += (
                f'<div class="row"><span>{low:.1f} to {high:.1f}</span>'
                f"<small>{tenth['share'] or 0.0:.1%} of pixels</small><div>{line}</div></div>"
            )
        text += f'<h3>{color_key(colors[name])}{text_of(name)}</h3><div class="rows">{rows}</div>'
    return text


def _stability(stability: Mapping[str, Any]) -> str:
    sides = stability["sides"]
    factors = list(next(iter(sides.values())))
    head = "".join(f"<th>{factor}× its size</th>" for factor in factors)
    body = "".join(
        f'<tr><th scope="row">{text_of(name)}</th>'
        + "".join(f"<td>{row[factor]:.2f}</td>" for factor in factors)
        + "</tr>"
        for name, row in sides.items()
    )
    return (
        "<h2>Size stability</h2><p>The same photo should get the same colours at any size. Mean "
        "distance in ab units between a model's colours at its own size and at another one, on "
        f"{counted(stability['photos'], 'photo')}.</p>"
        f'<div class="wide" tabindex="0"><table><thead><tr><th></th>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _folders(record: Mapping[str, Any]) -> str:
    """What was found in folders of outputs."""
    lines = ""
    for side in record["sides"]:
        if (found := side["outputs"]) is None:
            continue
        facts = [f"matched by name: {found['matched']:,}"]
        for key, meaning in (
            ("missing", "photos without an output"),
            ("ambiguous", "photos whose output is not certain"),
            ("damaged", "outputs that cannot be read"),
            ("extra", "outputs of no photo"),
            ("resized", "outputs of another size than their photo"),
            ("reshaped", "those of another shape, stretched to the photo's"),
        ):
            number = found[key] if isinstance(found[key], int) else len(found[key])
            facts += [f"{meaning}: {number:,}"] if number else []
        lines += f"<li><b>{text_of(side['name'])}</b>: {'; '.join(facts)}</li>"
    return f"<h2>Other tools' pictures</h2><ul>{lines}</ul>" if lines else ""


def _notes(record: Mapping[str, Any]) -> str:
    first = text_of(record["sides"][0]["name"])
    outputs = any(side["kind"] == "outputs" for side in record["sides"])
    theirs = (
        "<li>Other tools' pictures are scored as they are, with their own lightness; models get "
        "the photo's. Mean |ΔL| says how far it is off.</li>"
        if outputs
        else ""
    )
    return (
        "<h2>How it was measured</h2><ul>"
        f"<li>Photos are cropped to their central square and resized to {record['size']} px; "
        "colours outside sRGB are clipped.</li>"
        f"{theirs}"
        f"<li>The palette that balances AuC, and the constant colour, are those of {first}.</li>"
        "<li>Intervals: percentile bootstrap over photos, 2,000 resamples with a fixed seed, the "
        "same photos for all sides (Efron and Tibshirani 1993).</li>"
        "<li>Of many comparisons, about one in twenty looks significant by chance alone.</li>"
        "<li>CF: Hasler and Süsstrunk 2003. AuC: Zhang et al. 2016. ΔE2000: Sharma et al. 2005."
        "</li></ul>"
    )

"""The page of `cc serve`: one HTML file, two scripts and a style, loaded from this server only.

Its sliders are those of the page of befores and afters, markup, style and script.
"""

from __future__ import annotations

import html
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.pages.before_after import pair, style_and_script

if TYPE_CHECKING:
    from colorcore.colorizing.colorizer import Colorizer
    from pipelines.serving.settings import ServeSettings


def page_files(colorizer: Colorizer, settings: ServeSettings) -> dict[str, tuple[bytes, str]]:
    """The files of the page by their address: their bytes and media types."""
    slider_style, slider_script = style_and_script()
    text = _read("page.html")
    for name, value in _values(colorizer, settings).items():
        text = text.replace(f"{{{name}}}", value)
    files = {
        "/": (text, "text/html"),
        "/page.css": (slider_style + _read("page.css"), "text/css"),
        "/slider.js": (slider_script, "text/javascript"),
        "/page.js": (_read("page.js"), "text/javascript"),
    }
    return {path: (text.encode("utf-8"), kind) for path, (text, kind) in files.items()}


def _values(colorizer: Colorizer, settings: ServeSettings) -> dict[str, str]:
    """What takes the place of ``{name}`` in the page."""
    decoding = colorizer.decoding
    temperature = decoding.temperature if colorizer.predicts_bins else None
    return {
        "pair": pair("photo", "", ""),
        "model": html.escape(colorizer.name),
        "chroma": f"{decoding.chroma:g}",
        # A slider that shows more vivid colours than any model was decoded with.
        "most_chroma": f"{max(3.0, 2.0 * decoding.chroma):g}",
        "temperature": "1" if temperature is None else f"{temperature:g}",
        "temperature_hidden": "hidden" if temperature is None else "",
        "max_bytes": str(settings.max_bytes),
    }


def _read(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")

"""Write the HTML report of `cc eval`."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from colorcore.color.lab import lab_to_rgb
from colorcore.comparison.hue_errors import SECTOR, SECTORS
from colorcore.photos.write import write_whole
from colorcore.storage.local import LocalStore
from colorcore.storage.locks import require_writable
from pipelines.errors import WrongCallError
from pipelines.evaluation.report import record_of
from pipelines.pages.eval_page import HEAD, eval_page

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from pipelines.evaluation.details import Shown
    from pipelines.evaluation.report import EvalReport

SUFFIXES = (".html", ".htm")
_SWATCH_L, _SWATCH_CHROMA = 62.0, 45.0
"""Lightness and chroma at which sRGB has every hue, nearly."""


def check_page(path: Path | None, *, overwrite: bool) -> None:
    """Check the file that receives the report, before anything is read.

    An earlier report is replaced, any other file only with ``overwrite``.

    Raises:
        WrongCallError: the file may not be replaced, or its suffix is not that of a page.
        LocationError: its folder cannot be written.
    """
    if path is None:
        return
    if path.suffix.lower() not in SUFFIXES:
        raise WrongCallError(f"expected a name ending in .html for --html, got {path}")
    require_writable(LocalStore(path.parent))
    if path.is_dir():
        raise WrongCallError(f"expected a file for --html, found the folder {path}; add a name")
    if overwrite or not path.exists():
        return
    with path.open("rb") as file:
        if file.read(len(HEAD)) != HEAD.encode():
            raise WrongCallError(
                f"expected a new file for --html, found {path}, which cc has not written; choose "
                "another name, or replace it with --overwrite"
            )


def write_report(path: Path, report: EvalReport, gallery: Sequence[Shown], places: str) -> None:
    """Write the page of a report that has details.

    Raises:
        OSError: the file cannot be written.
    """
    pictures = [shown.pictures for shown in gallery]
    page = eval_page(record_of(report), pictures, places, _hue_colors())
    write_whole(path, page.encode())


def _hue_colors() -> list[str]:
    """The colour of the middle of each sector of hue, as ``#rrggbb``."""
    angles = [math.radians(SECTOR * (i + 0.5)) for i in range(SECTORS)]
    lab = torch.tensor(
        [
            [_SWATCH_L, _SWATCH_CHROMA * math.cos(each), _SWATCH_CHROMA * math.sin(each)]
            for each in angles
        ]
    )
    rgb = lab_to_rgb(lab.T.reshape(1, 3, 1, -1))[0, :, 0].T.mul(255).round().int().tolist()
    return ["#{:02x}{:02x}{:02x}".format(*each) for each in rgb]

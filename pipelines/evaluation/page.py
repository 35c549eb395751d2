"""Write the HTML report of `cc eval`."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from colorcore.color.lab import lab_to_rgb
from colorcore.comparison.hue_errors import SECTOR, SECTORS
from colorcore.photos.write import write_whole
from pipelines.evaluation.report import record_of
from pipelines.pages.eval_page import HEAD, eval_page

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from pipelines.evaluation.details import Shown
    from pipelines.evaluation.report import EvalReport

_SWATCH_L, _SWATCH_CHROMA = 62.0, 45.0
"""Lightness and chroma at which sRGB has every hue, nearly."""


def is_report(path: Path) -> bool:
    """Whether a file is a report that `cc eval` wrote, which may be replaced."""
    with path.open("rb") as file:
        return file.read(len(HEAD)) == HEAD.encode()


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

"""How often `cc colorize` mistakes a grey or toned photo for a coloured one, and the reverse.

    python -m tests.experiments.colored --photos IMAGENET_SAMPLE --test BSDS --out FOLDER

Every photo is judged as it is, then as a grey, toned or aged print made from it and compressed as
JPEG. Prints how many are called coloured. The photos that are not are drawn in
``FOLDER/not-colored.jpg`` with their measures: only a look tells how many of them are grey.
1,200 photos take about five minutes on one core.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from colorcore.color.colored import is_colored, photo_hues
from colorcore.drawing.contact_sheet import Section, Tile, draw_contact_sheet
from colorcore.photos.read import read_photo
from colorcore.photos.refusal import PhotoLimits
from colorcore.photos.write import save_picture
from pipelines.sources.reading import photos_of
from pipelines.sources.source import open_sources
from tests.colorcore.color.toned import SCANS, TONED, through_jpeg

RENDERINGS = {**SCANS, **TONED}
LIMITS = PhotoLimits(min_side=1, max_aspect=float("inf"))
AS_IT_IS = "as it is"


def photos_in(folder: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Name and sRGB (H, W, 3) uint8 of every photo."""
    for photo in photos_of(open_sources([str(folder)]), LIMITS.max_bytes, Counter()):
        yield Path(photo.source).name, read_photo(photo.data(), limits=LIMITS).rgb


def judge(folder: Path, quality: int) -> tuple[int, Counter[str], list[Tile]]:
    """The number of photos, how many are called coloured by rendering, and those that are not."""
    coloured: Counter[str] = Counter()
    others: list[tuple[float, Tile]] = []
    count = 0
    for name, rgb in photos_in(folder):
        count += 1
        if is_colored(rgb):
            coloured[AS_IT_IS] += 1
        else:
            hue = photo_hues(rgb)
            words = f"residual {hue.residual:.1f} spread {hue.spread:.1f} area {hue.coloured:.0%}"
            others.append((hue.residual, Tile(rgb, name, words)))
        for rendering, render in RENDERINGS.items():
            coloured[rendering] += is_colored(through_jpeg(render(rgb), quality))
    return count, coloured, [tile for _, tile in sorted(others, key=lambda other: other[0])]


def main() -> None:
    """Print a row per rendering: the photos of each folder that are called coloured."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--photos", type=Path, required=True, help="a folder of photos")
    parser.add_argument("--test", type=Path, help="photos of another source, counted apart")
    parser.add_argument("--quality", type=int, default=60, help="JPEG quality of the renderings")
    parser.add_argument("--out", type=Path, required=True, help="folder for the contact sheet")
    arguments = parser.parse_args()
    folders = [each for each in (arguments.photos, arguments.test) if each is not None]
    judged = {folder.name: judge(folder, arguments.quality) for folder in folders}
    heads = [f"{name}: coloured of {count:,}" for name, (count, _, _) in judged.items()]
    print(f"| photos | {' | '.join(heads)} |\n|---|{'---|' * len(heads)}")
    for row in (AS_IT_IS, *RENDERINGS):
        print(f"| {row} | {' | '.join(f'{each[row]:,}' for _, each, _ in judged.values())} |")
    sections = [Section(f"{name}: {len(tiles)}", tiles) for name, (_, _, tiles) in judged.items()]
    sheet = draw_contact_sheet("Called not coloured, by residual", sections)
    save_picture(arguments.out / "not-colored.jpg", sheet)


if __name__ == "__main__":
    main()

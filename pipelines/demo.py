"""The job of `cc demo`: photographs that come with installed libraries, and pictures of the result.

scikit-learn and scikit-image install a few real photographs. Colour ones are cut into tiles at
several zooms, which gives a few hundred samples; grey ones stay whole and are refused. Seven
photographs are too few to learn colour from: the demo shows that everything works. Its scores
are too good, because neighbouring tiles of one photograph are in both splits.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from pipelines.errors import WrongCallError
from pipelines.sources.listing import list_photos
from pipelines.sources.source import local_path, open_sources

COLOUR = (
    "sklearn/china.jpg",
    "sklearn/flower.jpg",
    "skimage/astronaut.png",
    "skimage/chelsea.png",
    "skimage/coffee.png",
    "skimage/motorcycle_left.png",
    "skimage/rocket.jpg",
)
GREY = ("skimage/camera.png", "skimage/coins.png", "skimage/moon.png", "skimage/brick.png")
ZOOMS = (1, 2, 3, 4)
"""Divisors of a photograph's shorter side: the sides of the square tiles it is cut into."""
MAX_PHOTOS = 2000
"""The demo uses at most this many of the user's own photos."""
MAX_SHOWN = 8
"""Held-out photos in the picture at the end."""
MARKER = ".cc-demo"
"""The file by which a later demo knows that it may remove the folder."""


def start_demo(out: Path) -> bool:
    """Make the demo's folder; return whether that removed an earlier demo.

    Raises:
        WrongCallError: the folder holds something else.
    """
    again = (out / MARKER).exists()
    if again:
        shutil.rmtree(out)
    elif out.exists() and any(out.iterdir()):
        raise WrongCallError(f"expected a new or empty folder, {out} holds other files")
    out.mkdir(parents=True, exist_ok=True)
    (out / MARKER).write_text("cc demo made this folder and removes it when run again\n")
    return again


def own_photos(source: Path, folder: Path) -> int:
    """Link the first photos of ``source`` into ``folder``; return their number."""
    sources = open_sources([local_path(str(source), "--photos")])
    folder.mkdir(parents=True)
    count = 0
    for photo in list_photos(sources, Counter()):
        store, name = sources[0].place(photo)
        path = (store.local or source).absolute() / name
        (folder / f"{count:04d}{path.suffix}").symlink_to(path)
        count += 1
        if count == MAX_PHOTOS:
            break
    if not count:
        raise WrongCallError(f"found no photos in {source}")
    return count


def installed_photos(folder: Path, whole_folder: Path) -> list[Path]:
    """Cut the installed photographs into tiles in ``folder``; return copies of the whole ones.

    Raises:
        WrongCallError: scikit-image is not installed.
    """
    from PIL import Image

    folder.mkdir(parents=True)
    whole_folder.mkdir(parents=True)
    whole = [Path(shutil.copy(_installed(name), whole_folder)) for name in COLOUR]
    for path in whole:
        with Image.open(path) as photo:
            rgb = photo.convert("RGB")
        for number, box in enumerate(_tiles(*rgb.size)):
            rgb.crop(box).save(folder / f"{path.stem}-{number:02d}.png")
    for path in map(_installed, GREY):
        shutil.copy(path, folder / path.name)
    return whole


def _installed(name: str) -> Path:
    package, file = name.split("/")
    if package == "sklearn":
        import sklearn.datasets

        return Path(sklearn.datasets.__file__).parent / "images" / file
    try:
        import skimage
    except ImportError as error:
        raise WrongCallError(
            "expected scikit-image, which holds the demo's photographs, found none; "
            "pip install 'colorcore[demo]', or use your own photos with --photos"
        ) from error
    return Path(skimage.__file__).parent / "data" / file


def _tiles(width: int, height: int) -> Iterator[tuple[int, int, int, int]]:
    for zoom in ZOOMS:
        side = min(width, height) // zoom
        for top in range(0, height - side + 1, side):
            for left in range(0, width - side + 1, side):
                yield left, top, left + side, top + side


def held_out_photos(dataset: Path, folder: Path) -> list[Path]:
    """The first photos of the validation split, which the model has not trained on."""
    from colorcore.dataset.layout import iterate_index

    found: list[Path] = []
    for table in iterate_index(dataset, ["split", "source"]):
        for split, source in zip(
            table["split"].to_pylist(), table["source"].to_pylist(), strict=True
        ):
            if split == "val":
                found.append(folder / source)
    return found[:MAX_SHOWN]


def before_and_after(photos: list[Path], pictures: Path, target: Path) -> Path:
    """Save one picture: per photo its lightness, its colourized version, and the original."""
    import numpy as np
    import torch

    from colorcore.color.lab import decode_lab
    from colorcore.dataset.sample import lab_of
    from colorcore.drawing.triptychs import triptychs
    from colorcore.photos.refusal import PhotoLimits
    from colorcore.photos.write import save_picture

    limits = PhotoLimits(min_side=1, max_aspect=float("inf"))

    def stack(paths: list[Path]) -> torch.Tensor:
        labs = [lab_of(path.read_bytes(), 256, limits) for path in paths]
        return decode_lab(torch.from_numpy(np.stack(labs)))

    made = [pictures / f"{path.stem}.png" for path in photos]
    save_picture(target, triptychs(stack(made), stack(photos)))
    return target

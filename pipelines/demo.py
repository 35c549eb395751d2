"""The job of `cc demo`: photographs that come with installed libraries, and pictures of the result.

scikit-learn and scikit-image install a few real photographs. Some colour ones are cut into tiles at
several zooms, which gives a few hundred samples to train on; grey ones stay whole and are refused.
The others are held out, whole, and are what the demo colourizes: the model `start` knows what sky,
skin and plants look like, and has seen none of these photographs. The training's own scores are too
good, because neighbouring tiles of one photograph are in both splits.
"""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Iterator
from itertools import count
from pathlib import Path

from pipelines.errors import WrongCallError
from pipelines.sources.listing import list_photos
from pipelines.sources.source import local_path, open_sources

COLOUR = (
    "sklearn/flower.jpg",
    "skimage/coffee.png",
    "skimage/motorcycle_left.png",
    "skimage/rocket.jpg",
)
HELD_OUT = ("sklearn/china.jpg", "skimage/astronaut.png", "skimage/chelsea.png")
GREY = ("skimage/camera.png", "skimage/coins.png", "skimage/moon.png", "skimage/brick.png")
ZOOMS = (1, 2, 3, 4)
"""Divisors of a photograph's shorter side: the sides of the square tiles it is cut into."""
MAX_PHOTOS = 2000
"""The demo uses at most this many of the user's own photos."""
BATCH = 16
LR = 1e-4
"""A twentieth of the recipe's, so that a few photographs change little of what the model knows."""
MAX_EPOCHS = 6
"""Enough for a few hundred samples; more would forget what the model knew of all others."""
_WARM, _TIMED = 2, 4
"""Steps before the speed is measured, and steps that measure it."""
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
    """Cut photographs into tiles in ``folder``; return copies of those that are held out, whole.

    Raises:
        WrongCallError: scikit-image is not installed.
    """
    from PIL import Image

    folder.mkdir(parents=True)
    whole_folder.mkdir(parents=True)
    for path in map(installed_photo, COLOUR):
        with Image.open(path) as photo:
            rgb = photo.convert("RGB")
        for number, box in enumerate(_tiles(*rgb.size)):
            rgb.crop(box).save(folder / f"{path.stem}-{number:02d}.png")
    for path in map(installed_photo, GREY):
        shutil.copy(path, folder / path.name)
    return [Path(shutil.copy(installed_photo(name), whole_folder)) for name in HELD_OUT]


def installed_photo(name: str) -> Path:
    """The path of a photograph such as "sklearn/china.jpg".

    Raises:
        WrongCallError: scikit-image is not installed.
    """
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


def training_settings(dataset: Path, seconds: float) -> tuple[list[str], float]:
    """Settings of a training of ``start`` that takes about ``seconds`` here, and photos per second.

    The speed is measured on a few steps in this process, on one thread, as the training's worker
    has it.
    """
    import torch

    from colorcore.checkpoints.shipped import START
    from colorcore.color.palette import load_palette
    from colorcore.dataset.layout import read_info
    from colorcore.dataset.samples import Samples
    from colorcore.training.fit import train_step
    from colorcore.training.state import FitData, Training
    from pipelines.training.start_weights import recipe_of

    train = Samples(dataset, "train")
    if not len(train):
        raise WrongCallError(f"expected colourful photos to train on, {dataset} has none")
    settings = [f"data.batch={min(BATCH, len(train))}", f"optim.lr={LR:g}"]
    torch.set_num_threads(1)
    recipe = recipe_of(START, settings)
    assert recipe is not None  # noqa: S101 - a checkpoint has one
    fingerprint = read_info(dataset).fingerprint or ""
    data = FitData(train, train, load_palette(dataset / "palette"), (0.0, 0.0), fingerprint)
    training = Training(recipe, data, torch.device("cpu"), None)
    steps = (batch for epoch in count() for batch in training.loader.epoch(epoch))
    for _ in range(_WARM):
        train_step(training, next(steps))
    started = time.perf_counter()
    for _ in range(_TIMED):
        train_step(training, next(steps))
    speed = _TIMED * recipe.data.batch / (time.perf_counter() - started)
    epochs = max(1, min(MAX_EPOCHS, round(speed * seconds / len(train))))
    every = max(1, epochs // 4)
    return [*settings, f"train.epochs={epochs}", f"train.eval_every={every}"], speed


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

"""The weights that `cc train --from` starts from: an old ``.pt`` file, or our own checkpoint.

The recipe's model must be exactly the one that the weights belong to. The optimizer's state is
left out, because it belongs to the learning rates of another training.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn import functional as F

from colorcore.checkpoints.checkpoint import has_checkpoint, load_checkpoint
from colorcore.checkpoints.foreign_unet import READINGS, OldCheckpoint, load_old_checkpoint
from colorcore.checkpoints.shipped import SHIPPED
from colorcore.color.lab import decode_lab, normalize_L
from colorcore.dataset.samples import Samples
from colorcore.models import AnswersInBins, build_model
from colorcore.recipes.recipe import DEFAULT, load_recipe, overridden
from colorcore.storage.location import open_store
from pipelines.errors import WrongCallError

if TYPE_CHECKING:
    from torch import Tensor

    from colorcore.color.palette import Palette
    from colorcore.recipes.recipe import Recipe

PHOTOS = 6
"""Photos on which the readings of an old file are compared."""
SIDE = 128
"""Their side in pixels, or up to twice that; they are small because the CPU does it."""
FREE = frozenset({"dropout", "encoder_weights", "mixup"})
"""Options of a model that do not change the weights it can load."""
CLEAR = 1.02
"""Minimum ratio of the second best reading's error to the best one's."""


@dataclass(frozen=True, slots=True)
class StartWeights:
    """Where start weights are, small enough to send to a worker; ``reading`` is of an old file."""

    source: str | Path
    reading: str | None
    about: str

    def weights(self) -> dict[str, Tensor]:
        """The weights, under the names of our model.

        Raises:
            CheckpointError: the source can no longer be read.
        """
        if self.reading is not None:
            return load_old_checkpoint(Path(self.source)).weights(READINGS[self.reading])
        return load_checkpoint(self.source).weights


def choose_recipe(
    recipe: str | None,
    overrides: Iterable[str],
    start: str | Path | None,
    resumed: str | Path | None,
) -> tuple[Recipe, str]:
    """The recipe to train with, and a name for the run.

    Without ``recipe``, a name or a file, a training goes on as it began: like ``resumed``,
    the folder of a training, or like ``start``, a checkpoint. Otherwise it has the default recipe.

    Raises:
        CheckpointError: ``start`` is no checkpoint.
        RecipeError: there is no such recipe, or an override is wrong.
    """
    if recipe is None:
        if resumed is not None and has_checkpoint(open_store(resumed).below("last")):
            start = resumed
        if start is not None and (own := recipe_of(start, overrides)) is not None:
            return own, Path(start).stem
    recipe = recipe or DEFAULT
    return load_recipe(recipe, overrides), Path(recipe).stem


def recipe_of(source: str | Path, overrides: Iterable[str]) -> Recipe | None:
    """The recipe that a checkpoint was trained with, overridden; None of an old .pt file.

    Raises:
        CheckpointError: ``source`` is no checkpoint.
        RecipeError: an override is wrong.
    """
    if str(source) not in SHIPPED and (here := open_store(source).local) and here.is_file():
        return None
    return overridden(load_checkpoint(source).recipe, overrides, f"the recipe of {source}")


def choose_start_weights(
    source: str | Path, recipe: Recipe, palette: Palette, samples: Samples, reading: str | None
) -> StartWeights:
    """Start weights that fit the recipe; ``reading`` None measures which one fits an old file.

    Raises:
        CheckpointError: ``source`` is no checkpoint, is damaged, or is a file of another network.
        WrongCallError: its weights belong to another model than the recipe's, or its reading is
            not clear.
    """
    # A shipped checkpoint keeps its name: a worker on another node has the package elsewhere.
    here = None if str(source) in SHIPPED else open_store(source).local
    source = str(source) if here is None else here.absolute()
    if here is not None and here.is_file():
        start, options = _from_pt_file(here, samples, reading)
        _require_model(source, recipe, {"name": "unet", **options})
    else:
        if reading is not None:
            raise WrongCallError(
                f"--from-reading is for an old .pt file, but {source} is a checkpoint; leave it out"
            )
        start = _from_checkpoint(source, recipe, palette)
    bad = [name for name, value in start.weights().items() if not value.isfinite().all()]
    if bad:
        raise WrongCallError(
            f"{source} holds weights that are NaN or infinite ({', '.join(bad[:3])}); "
            "start from another checkpoint"
        )
    return start


def measure_readings(old: OldCheckpoint, samples: Samples) -> dict[str, float]:
    """Mean ab error (L1, ab units) of each reading on a few photos, the best first."""
    positions = np.linspace(0, len(samples) - 1, min(PHOTOS, len(samples))).astype(np.int64)
    lab = decode_lab(samples.read(positions))
    lab = F.avg_pool2d(lab, max(1, samples.size // SIDE))
    errors = {}
    with torch.no_grad():
        for name, reading in READINGS.items():
            ab = old.model(reading)(normalize_L(lab[:, :1]))["ab"]
            errors[name] = float((ab - lab[:, 1:]).abs().mean())
    return dict(sorted(errors.items(), key=lambda item: item[1]))


def _from_pt_file(
    source: Path, samples: Samples, reading: str | None
) -> tuple[StartWeights, Mapping[str, Any]]:
    if reading is not None and reading not in READINGS:
        raise WrongCallError(f"expected --from-reading {', '.join(READINGS)}, got {reading}")
    old = load_old_checkpoint(source)
    how = "as given"
    if reading is None:
        (reading, best), (second, next_best), *_ = measure_readings(old, samples).items()
        if not next_best > CLEAR * best:
            raise WrongCallError(
                f"cannot detect the input convention of {source}: its ab error is {best:.2f} as "
                f"{reading} and {next_best:.2f} as {second}; set it with --from-reading"
            )
        how = f"ab error {best:.2f}, next best {second} {next_best:.2f}"
    about = f"{source.name}: {old.about()}; read as {reading} ({how}); optimizer state left out"
    return StartWeights(source.absolute(), reading, about), old.model_options(READINGS[reading])


def _from_checkpoint(source: str | Path, recipe: Recipe, palette: Palette) -> StartWeights:
    checkpoint = load_checkpoint(source)
    theirs = checkpoint.recipe.model
    _require_model(source, recipe, {"name": theirs.name, **theirs.options()})
    with torch.device("meta"):
        in_bins = isinstance(build_model(theirs.name, **theirs.options()), AnswersInBins)
    if in_bins and checkpoint.palette.fingerprint != palette.fingerprint:
        raise WrongCallError(
            f"{source} predicts the bins of the palette {checkpoint.palette.fingerprint}, the "
            f"dataset's palette is {palette.fingerprint}; give the dataset its centroids with "
            "cc priors --centroids"
        )
    checkpoint.model()  # raises CheckpointError if the weights do not fit
    about = (
        f"{Path(source).name}: {len(checkpoint.weights)} tensors of a training on the dataset "
        f"{checkpoint.dataset}, {checkpoint.epoch} epochs; optimizer state left out"
    )
    return StartWeights(source, None, about)


def _require_model(source: str | Path, recipe: Recipe, theirs: Mapping[str, Any]) -> None:
    """Check that the recipe's model is the one that the weights belong to.

    Raises:
        WrongCallError: it is another one; the message lists what to set.
    """
    ours = {"name": recipe.model.name, **recipe.model.options()}
    changes = [
        f"--set model.{key}={str(value).lower() if isinstance(value, bool) else value}"
        for key, value in theirs.items()
        if key not in FREE and ours.get(key) != value
    ]
    if changes:
        raise WrongCallError(
            f"{source} holds weights of another model than the recipe's; "
            f"train with {' '.join(changes)}"
        )

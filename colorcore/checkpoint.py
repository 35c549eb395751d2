"""A checkpoint: one folder that colorizes, scores itself and goes on training.

::

    checkpoint.json        recipe, sizes, scores, decoding, where the run stands; written last
    model.safetensors      the averaged (EMA) weights: what one uses
    palette.safetensors    centroids, priors, weights
    training.safetensors   raw weights, optimiser state, the discriminator if there is one; only
                           needed to go on training

Nothing in it is unpickled, ever. A folder is replaced as a whole: ``last`` is written beside
and renamed into place, and whoever is killed in between leaves the old one readable.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from colorcore.decoding import Decoding
from colorcore.models import build_model
from colorcore.palette import Palette
from colorcore.recipe import Recipe, RecipeError, parse_recipe

if TYPE_CHECKING:
    from torch import Tensor, nn

FORMAT = 1


class CheckpointError(Exception):
    """A folder that is no checkpoint, or one that does not fit."""


@dataclass(slots=True)
class Checkpoint:
    """A trained model with all that belongs to it.

    recipe        of the run
    weights       the EMA weights by parameter name
    palette       of the dataset it was trained on
    mean_ab       (a, b) of the training pixels, ab units: the constant baseline
    size          side of the training samples in pixels
    dataset       fingerprint of the dataset
    epoch, step   where training goes on: epochs done, and steps done in the next one
    scores        of the latest validation
    best          the best score so far of the recipe's metric
    run_id        of the tracking run, so that a resumed training goes on in it
    training      raw weights ("model.*", "discriminator.*") and optimiser state ("optimizer.*",
                  "discriminator_optimizer.*"); {} when not loaded
    optimizer     what of it is no tensor: for each optimiser its numbers, and the gradient
                  scaler's under "scaler"
    decoding      what answers are decoded with: the model's own until one is chosen
    decoded       scores with the chosen decoding, on the validation photos; {} until then
    history       the course of the loss (signs.LossHistory.state); [] when not known
    """

    recipe: Recipe
    weights: dict[str, Tensor]
    palette: Palette
    mean_ab: tuple[float, float]
    size: int
    dataset: str
    epoch: int = 0
    step: int = 0
    scores: dict[str, float] = field(default_factory=dict)
    best: float | None = None
    run_id: str | None = None
    training: dict[str, Tensor] = field(default_factory=dict)
    optimizer: dict[str, Any] = field(default_factory=dict)
    decoding: Decoding = field(default_factory=Decoding)
    decoded: dict[str, float] = field(default_factory=dict)
    history: list[float] = field(default_factory=list)

    def model(self, device: torch.device | str = "cpu") -> nn.Module:
        """The model with the EMA weights, ready to predict.

        Raises:
            CheckpointError: the weights do not fit the recipe's model.
        """
        model = build_model(self.recipe.model.name, **self.recipe.model.options())
        try:
            model.load_state_dict(self.weights)
        except RuntimeError as error:
            raise CheckpointError(
                f"the weights do not fit the recipe's model: {str(error).splitlines()[-1].strip()}"
            ) from error
        return model.to(device).eval()


_FACTS = ("mean_ab", "size", "dataset", "epoch", "step", "scores", "best", "run_id", "optimizer")
_LATER_FACTS = ("decoded", "history")
"""Facts that checkpoints may lack, of versions that did not know them."""


def save_checkpoint(checkpoint: Checkpoint, folder: Path) -> None:
    """Write the folder anew, then swap it in for the one that is there."""
    fresh = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    _save_tensors(checkpoint.weights, fresh / "model.safetensors")
    if checkpoint.training:
        _save_tensors(checkpoint.training, fresh / "training.safetensors")
    palette = checkpoint.palette
    arrays = {name: getattr(palette, name) for name in ("centroids", "priors", "weights")}
    _save_tensors(
        {name: torch.from_numpy(array.copy()) for name, array in arrays.items()},
        fresh / "palette.safetensors",
    )
    record = {
        "format": FORMAT,
        **{name: getattr(checkpoint, name) for name in (*_FACTS, *_LATER_FACTS)},
        "decoding": asdict(checkpoint.decoding),
        "palette": palette.about,
        "recipe": checkpoint.recipe.values(),
    }
    (fresh / "checkpoint.json").write_text(json.dumps(record, indent=2), encoding="utf-8")
    _swap(fresh, folder)


def load_checkpoint(folder: Path, *, training: bool = False) -> Checkpoint:
    """Read a checkpoint folder; with ``training`` also what it takes to go on training.

    A folder that holds ``best`` or ``last``, such as `cc train` writes, stands for its best.

    Raises:
        CheckpointError: it is none, is damaged or of another format; or it holds nothing to go
            on training from.
    """
    folder = _resolve(folder)
    if training and not (folder / "training.safetensors").is_file():
        raise CheckpointError(
            f"{folder} holds no training state (training.safetensors) to go on from; "
            "resume from the last folder of the training's --out"
        )
    try:
        record = json.loads((folder / "checkpoint.json").read_text(encoding="utf-8"))
        if record["format"] != FORMAT:
            raise CheckpointError(
                f"expected checkpoint format {FORMAT}, found {record['format']!r} in {folder}; "
                "load it with the version of colorcore that wrote it"
            )
        arrays = {k: v.numpy() for k, v in load_file(folder / "palette.safetensors").items()}
        return Checkpoint(
            recipe=parse_recipe(record["recipe"], str(folder)),
            weights=load_file(folder / "model.safetensors"),
            palette=Palette(**arrays, about=record["palette"]),
            training=load_file(folder / "training.safetensors") if training else {},
            **{**{name: record[name] for name in _FACTS}, "mean_ab": tuple(record["mean_ab"])},
            # Checkpoints from before decodings were chosen have none.
            decoding=Decoding(**record.get("decoding", {})),
            **{name: record[name] for name in _LATER_FACTS if name in record},
        )
    except (OSError, KeyError, TypeError, ValueError, RecipeError, SafetensorError) as error:
        raise CheckpointError(
            f"{folder} is damaged: {type(error).__name__}: {error}; "
            "copy it again from where it came, or train again"
        ) from error


def has_checkpoint(folder: Path) -> bool:
    """Whether a checkpoint can be loaded from here."""
    return any((place / "checkpoint.json").is_file() for place in (folder, _previous(folder)))


def optimizer_state(
    optimizer: torch.optim.Optimizer, name: str = "optimizer"
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An optimiser's state as tensors named ``name.*``, and the rest as plain values by name."""
    state = optimizer.state_dict()
    tensors = {
        f"{name}.{index}.{key}": value
        for index, values in state["state"].items()
        for key, value in values.items()
    }
    groups = [
        {key: value for key, value in group.items() if key != "params"}
        for group in state["param_groups"]
    ]
    return tensors, {name: groups}


def restore_optimizer(
    optimizer: torch.optim.Optimizer, checkpoint: Checkpoint, name: str = "optimizer"
) -> None:
    """Put an optimiser into the state that :func:`optimizer_state` gave under that name.

    Raises:
        KeyError, ValueError: the checkpoint holds no such optimiser, or another model's.
    """
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in checkpoint.training.items():
        kind, _, rest = key.partition(".")
        if kind == name:
            index, _, what = rest.partition(".")
            state.setdefault(int(index), {})[what] = tensor
    groups = [
        {**saved, "params": group["params"]}
        for saved, group in zip(
            checkpoint.optimizer[name], optimizer.state_dict()["param_groups"], strict=True
        )
    ]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def weights_under(tensors: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """The tensors named ``name.*``, without that."""
    prefix = f"{name}."
    return {key[len(prefix) :]: value for key, value in tensors.items() if key.startswith(prefix)}


def _save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    save_file({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, path)


def _resolve(folder: Path) -> Path:
    for place in (folder, folder / "best", folder / "last"):
        for version in (place, _previous(place)):
            if (version / "checkpoint.json").is_file():
                return version
    raise CheckpointError(
        f"expected a checkpoint folder (with a checkpoint.json), found none at {folder}; "
        "cc train writes them to its --out folder"
    )


def _previous(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.old")


def _swap(fresh: Path, folder: Path) -> None:
    """Put ``fresh`` in the place of ``folder``; at every moment one of the two is readable."""
    old = _previous(folder)
    if folder.exists():
        shutil.rmtree(old, ignore_errors=True)
        folder.replace(old)
    fresh.replace(folder)
    shutil.rmtree(old, ignore_errors=True)

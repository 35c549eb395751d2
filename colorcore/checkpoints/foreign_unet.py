"""Weights of a UNet that another program trained and saved as a ``.pt`` file.

The UNet of many repositories has two 3x3 convolutions with BatchNorm and ReLU at each scale, max
pooling down, transposed 2x2 convolutions up, and a 1x1 head. Files hold its weights under
``model`` or another name, often with ``opt``, ``scaler``, ``cfg``, ``epoch`` and ``epoch_loss``.
Nothing but tensors and plain values is ever unpickled (``torch.load(weights_only=True)``).

``foreign_unet.toml`` maps names to encoder, decoder and head. Within each of these, a layer's
kind and width give its level, because widths double from level to level; two convolutions of one
level, and their BatchNorms, stand in the file's order. Every tensor must then have the shape that
:class:`~colorcore.models.unet.UNet` has in its place, and none may be missing or left over.

The weights don't tell how lightness was scaled, nor whether a decoder concatenates the skip
connection first or last: that is a :class:`Reading`.
"""

from __future__ import annotations

import pickle
import re
import tomllib
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

import torch

from colorcore.checkpoints.checkpoint import CheckpointError
from colorcore.models.unet import UNet

if TYPE_CHECKING:
    from torch import Tensor

MAX_BYTES = 16 * 10**9
"""Size limit of a file, and of what it unpacks to; 128 channels with AdamW's state have 1.5 GB."""
_KINDS: dict[tuple[int, ...], str] = {
    (3, 3): "convolution",
    (2, 2): "transposed convolution",
    (1, 1): "1x1 convolution",
}
_SHOWN = 3

Scale = Literal["centered", "unit", "percent"]
_Place: TypeAlias = "tuple[str, str, int]"
"""Part of the network, kind of layer, output channels."""


@dataclass(frozen=True, slots=True)
class Reading:
    """An input convention: lightness in -1..1, 0..1 or 0..100, and the order of a concatenation."""

    scale: Scale = "unit"
    skip_first: bool = True

    @property
    def name(self) -> str:
        """Such as "unit/skip-first"."""
        return f"{self.scale}/{'skip' if self.skip_first else 'up'}-first"


READINGS = {
    reading.name: reading
    for scale in get_args(Scale)
    for reading in (Reading(scale), Reading(scale, skip_first=False))
}


@dataclass(frozen=True, slots=True)
class OldCheckpoint:
    """The network in a file.

    options      of :class:`UNet`: channels, depth, head
    names        name of each tensor in the file -> its name in our UNet
    wrapper      prefix that was removed from every name
    epoch, loss  as stored in the file
    """

    options: dict[str, Any]
    names: dict[str, str]
    wrapper: str
    epoch: int | None
    loss: float | None
    _weights: dict[str, Tensor] = field(repr=False)

    def model_options(self, reading: Reading) -> dict[str, Any]:
        """Options of our UNet that make it the same function, dropout aside."""
        lightness = "centered" if reading.scale == "centered" else "unit"
        return {**self.options, "norm": "batch", "attention": False, "lightness": lightness}

    def weights(self, reading: Reading) -> dict[str, Tensor]:
        """The weights of our UNet that make it the same function as the file's network.

        A network for L in 0..100 is one for L in 0..1 whose first layer is multiplied by 100.
        """
        weights = dict(self._weights)
        if reading.scale == "percent":
            weights["encoder.0.0.weight"] = weights["encoder.0.0.weight"] * 100
        if not reading.skip_first:
            for level in range(self.options["depth"]):
                name = f"decoder.{level}.0.weight"
                up, skip = weights[name].chunk(2, dim=1)
                weights[name] = torch.cat([skip, up], dim=1)
        return weights

    def model(self, reading: Reading) -> UNet:
        """Our UNet with the weights, ready to predict."""
        unet = UNet(**self.model_options(reading))
        unet.load_state_dict(self.weights(reading))
        return unet.eval()

    def about(self) -> str:
        """One line on what was mapped."""
        folded = len(set(self.names.values()) - set(self._weights))
        parts = [f"{len(self.names)} tensors mapped, {folded} of them conv biases folded"]
        parts.append(f"wrapper '{self.wrapper}' removed" if self.wrapper else "no wrapper")
        parts += [f"epoch {self.epoch}"] if self.epoch is not None else []
        parts += [f"loss {self.loss:.4g}"] if self.loss is not None else []
        return "; ".join(parts)


def load_old_checkpoint(path: Path) -> OldCheckpoint:
    """Read a ``.pt`` file of a UNet strictly, without running any code in it.

    Raises:
        CheckpointError: it is no such file, would need unpickling, or does not match.
    """
    content = _read(path)
    state = _state(content, path)
    stripped, wrapper = _unwrap(state)
    try:
        options, names = _place(stripped)
    except ValueError as error:
        raise CheckpointError(
            f"{path} does not match our UNet: {error}; rename its keys, or train without --from"
        ) from error
    epoch, loss = (content.get(key) for key in ("epoch", "epoch_loss"))
    return OldCheckpoint(
        options=options,
        names={f"{wrapper}{theirs}": ours for theirs, ours in names.items()},
        wrapper=wrapper,
        epoch=epoch if isinstance(epoch, int) else None,
        loss=float(loss) if isinstance(loss, int | float) else None,
        _weights=_fold({ours: stripped[theirs] for theirs, ours in names.items()}),
    )


@cache
def _spellings() -> dict[str, Any]:
    return tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))


def _read(path: Path) -> dict[str, Any]:
    """The file's dictionary, with tensors mapped from disk where the format allows."""
    expected = f"expected a checkpoint that torch.save wrote, found none in {path}"
    try:
        size = path.stat().st_size
        is_zip = zipfile.is_zipfile(path)
        if is_zip:
            with zipfile.ZipFile(path) as archive:
                size = max(size, sum(member.file_size for member in archive.infolist()))
        if size > MAX_BYTES:
            raise CheckpointError(
                f"{path} has {size / 1e9:.1f} GB, expected at most {MAX_BYTES / 1e9:g}; write only "
                "its weights to a file: torch.save({'model': checkpoint['model']}, 'small.pt')"
            )
        with warnings.catch_warnings(action="ignore"):  # of a pickle protocol it may not know
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        if found is None:
            raise CheckpointError(f"{expected}; name a .pt file, or a checkpoint folder") from error
        raise CheckpointError(
            f"{path} holds an object of {found[1]}, which cannot be read without running code "
            "from the file, so nothing was read; convert it where that class is available: "
            "torch.save({'model': checkpoint['model'], 'epoch': checkpoint['epoch']}, 'plain.pt')"
        ) from error
    except (OSError, EOFError, ValueError, RuntimeError, KeyError, TypeError, AttributeError,
            IndexError, zipfile.BadZipFile) as error:  # fmt: skip
        cause = str(error).splitlines()[:1] if isinstance(error, OSError | RuntimeError) else []
        raise CheckpointError(f"{': '.join([expected, *cause])}; name a .pt file") from error
    if not isinstance(content, dict):
        raise CheckpointError(
            f"expected a dictionary of weights in {path}, found {type(content).__name__}; "
            "save the network's state_dict()"
        )
    return content


def _state(content: dict[str, Any], path: Path) -> dict[str, Tensor]:
    keys = _spellings()["states"]
    state = next((content[key] for key in keys if isinstance(content.get(key), dict)), content)
    others = [str(key) for key, value in state.items() if not isinstance(value, torch.Tensor)]
    if others or not state or not all(isinstance(key, str) for key in state):
        raise CheckpointError(
            f"expected weights by name in {path} ({', '.join(keys)}), found "
            f"{_some(others) if others else 'none'}; save the network's state_dict()"
        )
    return state


def _unwrap(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], str]:
    """The same tensors without the prefix that wrappers put before every name, and that prefix."""
    removed = ""
    while True:
        first = next(iter(state)).partition(".")[0]
        wrapped = all(key.startswith(f"{first}.") for key in state)
        if first not in _spellings()["wrappers"] or not wrapped:
            return state, removed
        state = {key.partition(".")[2]: value for key, value in state.items()}
        removed += f"{first}."


def _place(state: Mapping[str, Tensor]) -> tuple[dict[str, Any], dict[str, str]]:
    """Options of our UNet, and the file's name -> our name of each tensor.

    Raises:
        ValueError: something does not match; the message names it.
    """
    theirs = _layers(state)
    widths = sorted({width for part, _, width in theirs if part == "encoder"})
    heads = [(width, layers) for (part, _, width), layers in theirs.items() if part == "head"]
    if len(heads) != 1 or len(heads[0][1]) != 1 or heads[0][0] not in (2, 3):
        found = _some([f"{layers[0]} of {width}" for width, layers in heads]) or "none"
        raise ValueError(f"expected one head of 2 (ab) or 3 (RGB) channels, found {found}")
    if len(widths) < 2:
        raise ValueError(f"expected encoder layers of two or more widths, found {widths}")
    options: dict[str, Any] = {
        "channels": widths[0],
        "depth": len(widths) - 1,
        "head": "ab" if heads[0][0] == 2 else "rgb",
    }
    with torch.device("meta"):
        ours = UNet(**options).state_dict()
    renamed: dict[str, str] = {}
    for place, layers in _layers(ours).items():
        found_here = theirs.pop(place, [])
        if len(found_here) != len(layers):
            part, kind, width = place
            raise ValueError(
                f"expected {len(layers)} layers ({kind}, {width} channels) in the {part}, "
                f"found {_some(found_here) or 'none'}"
            )
        renamed |= dict(zip(found_here, layers, strict=True))
    names = {
        key: f"{renamed[layer]}.{member}"
        for key in state
        for layer, _, member in [key.rpartition(".")]
        if layer in renamed
    }
    _check(state, names, ours)
    return options, names


def _layers(state: Mapping[str, Tensor]) -> dict[_Place, list[str]]:
    """Layers with weights by their place in a UNet, each list in the file's order."""
    part_of = {name: part for part, names in _spellings()["parts"].items() for name in names}
    layers: dict[_Place, list[str]] = {}
    unknown = []
    for key, tensor in state.items():
        layer, _, member = key.rpartition(".")
        if member != "weight":
            continue
        part = part_of.get(layer.partition(".")[0].lower().rstrip("0123456789").rstrip("_"))
        kind = "BatchNorm" if tensor.ndim == 1 else _KINDS.get(tuple(tensor.shape[2:]))
        if part is None or kind is None:
            unknown.append(f"{key} {tuple(tensor.shape)}")
            continue
        width = tensor.shape[1] if kind == "transposed convolution" else tensor.shape[0]
        layers.setdefault((part, kind, width), []).append(layer)
    if unknown:
        raise ValueError(f"no place for {_some(unknown)}")
    return layers


def _check(
    state: Mapping[str, Tensor], names: Mapping[str, str], ours: Mapping[str, Tensor]
) -> None:
    """Every tensor has the shape of its place, none is left over, and none is missing."""
    shapes = {name: tuple(value.shape) for name, value in ours.items()}
    biases = {f"{name[:-6]}bias": shape[:1] for name, shape in shapes.items() if len(shape) == 4}
    shapes = {**biases, **shapes}  # convolutions before a BatchNorm may have biases; ours don't
    left = [key for key in state if names.get(key) not in shapes]
    missing = [name for name in ours if name not in names.values()]
    wrong = [
        f"{key} {tuple(state[key].shape)} (expected {shapes[name]})"
        for key, name in names.items()
        if name in shapes and tuple(state[key].shape) != shapes[name]
    ]
    for what, found in (("no place for", left), ("nothing for", missing), ("wrong shapes:", wrong)):
        if found:
            raise ValueError(f"{what} {_some(found)}")


def _fold(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Move conv biases into the running means behind them: (x + b) - m = x - (m - b)."""
    folded = {
        name: value.float() if value.is_floating_point() else value.clone()
        for name, value in weights.items()
    }
    for name in weights:
        if found := re.fullmatch(r"((?:(?:en|de)coder\.\d+|bottleneck)\.)([03])\.bias", name):
            folded[f"{found[1]}{int(found[2]) + 1}.running_mean"] -= folded.pop(name)
    return folded


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{', '.join(names[:_SHOWN])}{more}"

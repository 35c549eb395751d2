"""A model with what options of `cc colorize` and `cc eval` ask of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from colorcore.colorizing.onnx_file import is_onnx
from colorcore.decoding import Decoding
from colorcore.loading import best_device, load_colorizer
from pipelines.errors import WrongCallError
from pipelines.tracking.model import local_model

if TYPE_CHECKING:
    from torch import nn

    from colorcore.colorizing.colorizer import Colorizer


def asked_decoding(
    model: nn.Module, stored: Decoding, temperature: float | None, chroma: float | None
) -> Decoding:
    """The checkpoint's decoding, with the given temperature and chroma in place of its own.

    Raises:
        WrongCallError: a value is out of range, or the model has no temperature.
    """
    from colorcore.models.decoding import completed, own_decoding

    decoding = completed(model, stored)
    if temperature is not None and own_decoding(model).temperature is None:
        raise WrongCallError(
            f"--temperature needs a model that predicts bins, {type(model).__name__} does not; "
            "leave it out, or use --chroma for more vivid colours"
        )
    try:
        if temperature is not None:
            decoding = replace(decoding, temperature=temperature)
        if chroma is not None:
            decoding = replace(decoding, chroma=chroma)
    except ValueError as error:
        raise WrongCallError(f"--{error}") from error
    return decoding


def open_colorizer(
    model: str | Path,
    device: str | None = None,
    *,
    temperature: float | None = None,
    chroma: float | None = None,
) -> Colorizer:
    """The colorizer of a MODEL, wherever it is, with the given temperature and chroma.

    Raises:
        CheckpointError, StorageError: as :func:`colorcore.loading.load_colorizer`.
        OnnxFileError: as :func:`colorcore.loading.load_colorizer`.
        JobError: as :func:`pipelines.tracking.model.local_model`.
        WrongCallError: there is no such device, a value is out of range, or the model has no
            temperature.
    """
    colorizer = _on_device(local_model(model), device)
    try:
        return colorizer.with_decoding(temperature, chroma)
    except ValueError as error:
        raise WrongCallError(f"--{error}") from error


def _on_device(place: str | Path, device: str | None) -> Colorizer:
    if not is_onnx(place):
        return load_colorizer(place, "cpu").to(device_for(device))
    try:
        return load_colorizer(place).to(device or "cpu")  # without torch, which device_for needs
    except ValueError as error:
        raise WrongCallError(f"--device: {error}") from error


def device_for(asked: str | None) -> str:
    """The device that is asked for, or the best one.

    Raises:
        WrongCallError: there is no such device here.
    """
    import torch

    if asked is None:
        return best_device()
    try:
        torch.zeros(1, device=asked)
    except (RuntimeError, AssertionError, ValueError) as error:
        raise WrongCallError(
            f"expected a device that this machine has, such as cpu, got {asked!r} for --device"
        ) from error
    return asked

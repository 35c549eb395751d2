"""What `cc eval` and `cc colorize` decode with: what was asked for, or what the model carries."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from colorcore.models.decoding import Decoding, completed, own_decoding
from pipelines.errors import WrongCallError

if TYPE_CHECKING:
    from torch import nn


def asked_decoding(
    model: nn.Module, stored: Decoding, temperature: float | None, chroma: float | None
) -> Decoding:
    """The checkpoint's decoding, in numbers, with those knobs turned that were asked for.

    Raises:
        WrongCallError: a knob is out of range, or the model has none of that kind.
    """
    decoding = completed(model, stored)
    if temperature is not None and own_decoding(model).temperature is None:
        raise WrongCallError(
            f"--temperature is for models that answer in bins, {type(model).__name__} does not; "
            "leave it out, or make its colours more vivid with --chroma"
        )
    try:
        if temperature is not None:
            decoding = replace(decoding, temperature=temperature)
        if chroma is not None:
            decoding = replace(decoding, chroma=chroma)
    except ValueError as error:
        raise WrongCallError(f"--{error}") from error
    return decoding

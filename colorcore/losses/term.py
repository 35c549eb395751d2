"""The type of a loss term, and the error raised if it lacks what it needs."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from torch import Tensor

from colorcore.models.prediction import Prediction

Term: TypeAlias = Callable[[Prediction, Tensor], Tensor]
"""Prediction and the true lab (B, 3, H, W) CIELAB float -> a scalar, smaller is better.

A builder checks its options and is cheap. A term loads what is heavy (pretrained weights, tables
on a device) in a method ``prepare(device)``, which :meth:`Loss.prepare` calls before training. A
method ``require()`` checks that what cannot be downloaded is installed, before anything starts.
A builder that needs the palette has a parameter ``palette: Palette | None``, which is None if a
recipe is only checked.
"""


class LossError(Exception):
    """A term lacks what it needs; the message names it and where to get it."""

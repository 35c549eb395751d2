"""How predictions become colours: two settings that may be changed after training.

:mod:`colorcore.models.decoding` applies them. They stand here because they need no torch, which
takes longer to import than an exported model needs for a photo.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Decoding:
    """How predictions become colours; the default is the model's own decoding.

    Attributes:
        temperature: of the annealed mean over bins, above 0; None is the model's own, and the only
            choice for a model that does not predict bins.
        chroma: factor on a and b, above 0.

    Raises:
        ValueError: a value is out of range.
    """

    temperature: float | None = None
    chroma: float = 1.0

    def __post_init__(self) -> None:
        for name in ("temperature", "chroma"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} must be above 0 and finite, got {value}")

    def __str__(self) -> str:
        """Such as "T 0.38, chroma ×1.2", and "chroma ×1" without bins."""
        chroma = f"chroma ×{self.chroma:g}"
        return chroma if self.temperature is None else f"T {self.temperature:g}, {chroma}"

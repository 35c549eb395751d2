"""The result of `cc export`."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

TORCH = "torch"
ONNX = "onnx"
NOTICEABLE = 2.3
"""Difference of colours that is just noticeable, ΔE (Mahy et al. 1994, "Evaluation of uniform color
spaces developed after the adoption of CIELAB and CIELUV", of ΔE*ab)."""


@dataclass(frozen=True, slots=True)
class Variant:
    """A form of the model, measured.

    bytes      of its file; of torch's the weights
    cpu_ms     CPU milliseconds of all threads per photo, one photo at a time
    delta_e    mean ΔE2000 to the photos as the full model in torch colourizes them
    psnr       mean PSNR to the photos' own colours, dB
    psnr_lost  by how much that is below the full model's, dB
    """

    name: str
    bytes: int
    cpu_ms: float
    delta_e: float
    psnr: float
    psnr_lost: float


@dataclass(slots=True)
class ExportReport:
    """An exported file, and how it compares with the model it came from.

    difference   largest |Δab| between the network in torch and its graph in float32, ab units
    tolerance    above which the export fails
    norms_left   normalizations that could not be folded into a convolution
    photos       what was scored
    size         side of the scored photos in pixels
    variants     the model in torch, then each form on the way to the file, which is the last one
    changes      what was done to the model
    """

    file: Path
    model: str
    difference: float
    tolerance: float
    norms_left: int
    photos: str
    size: int
    variants: list[Variant] = field(default_factory=list)
    changes: dict[str, Any] = field(default_factory=dict)

    @property
    def added_by_int8(self) -> float:
        """By how much the mean ΔE2000 rises from the same network's float32 form to int8."""
        if "int8" not in self.changes:
            return 0.0
        full, small = self.variants[-2:]
        return small.delta_e - full.delta_e

    def record(self) -> dict[str, Any]:
        """All of it as plain values."""
        return asdict(self)

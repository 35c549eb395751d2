"""The number format in which the networks run; weights, losses and metrics stay float32."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from colorcore.cpu import has_bf16


def autocast(device: torch.device, precision: str) -> Any:
    """The context in which the networks run.

    "auto" is bf16 on a GPU and on a CPU that has instructions for it (AVX512_BF16, AMX), and fp32
    on any other CPU. A step on a CPU with AVX512_BF16 takes about half as long in bf16 for a
    U-Net, and 15% to 40% less for the other models.
    """
    enabled = precision in ("bf16", "fp16") or (precision == "auto" and _is_faster(device))
    dtype = torch.float16 if precision == "fp16" else torch.bfloat16
    return torch.autocast(device.type, dtype, enabled=enabled)


def scoring_precision(device: torch.device, precision: str) -> str:
    """The precision in which a training's validation runs the network.

    Float32, but float16 on a GPU, unless the training asks for "fp32". There torch convolves
    float32 in TF32, and float16 has as many bits: scores differ by as little from those of true
    float32 (``python -m tests.experiments.cpu scores DATASET``).
    """
    return "fp16" if device.type == "cuda" and precision != "fp32" else "fp32"


def _is_faster(device: torch.device) -> bool:
    return device.type == "cuda" or (device.type == "cpu" and has_bf16())


@contextlib.contextmanager
def fast_products(device: torch.device, precision: str) -> Iterator[None]:
    """Let matrix products that stay float32 round to TF32 on a GPU, unless "fp32" is asked for.

    Torch lets convolutions do so anyway. TF32 keeps 10 bits of the mantissa: an ab of 60 is off by
    0.03 at most. Scores are computed outside of this context.
    """
    if device.type != "cuda" or precision == "fp32":
        yield
        return
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)

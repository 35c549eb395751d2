"""The number format in which the networks run; weights, losses and metrics stay float32."""

from __future__ import annotations

from typing import Any

import torch


def autocast(device: torch.device, precision: str) -> Any:
    """The context in which the networks run: "auto" is bf16 on a GPU and fp32 on a CPU."""
    enabled = precision in ("bf16", "fp16") or (precision == "auto" and device.type == "cuda")
    dtype = torch.float16 if precision == "fp16" else torch.bfloat16
    return torch.autocast(device.type, dtype, enabled=enabled)

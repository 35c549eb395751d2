"""Which device a job of one process uses."""

from __future__ import annotations


def best_device() -> str:
    """The GPU, if there is one."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"

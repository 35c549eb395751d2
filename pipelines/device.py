"""The device of a job with a single process."""

from __future__ import annotations


def best_device() -> str:
    """``"cuda"`` if there is a GPU, else ``"cpu"``."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"

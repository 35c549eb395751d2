"""Ranks that go wrong, for the processes that the precursor's tests start: nothing heavy here."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def apart(rank: int, _: Any, folder: Path, *__: Any) -> None:
    """End with weights of one's own, as a rank does that never hears of the other."""
    import torch
    from safetensors.torch import save_file

    save_file({"model.weight": torch.full((3,), float(rank))}, folder / f"{rank}.safetensors")


def unreachable(rank: int, *_: Any) -> None:
    """Fail as the second rank does whose network is not there."""
    if rank:
        raise OSError("no route to host")

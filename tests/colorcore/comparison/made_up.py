"""Weights and pictures that are made up, the same everywhere, for networks of other projects."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from colorcore.blocks.inception import FidInception
from colorcore.losses.extractors import Extractor

CHANNELS = {"alex": (64, 192, 384, 256, 256), "vgg16": (64, 128, 256, 512, 512)}
"""Of the features that LPIPS compares."""


def weights(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    """Tensors that keep features in bounds; each depends on its name and shape alone."""
    return {name: torch.from_numpy(_tensor(name, shape)) for name, shape in shapes.items()}


def _tensor(name: str, shape: tuple[int, ...]) -> np.ndarray:
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    if name.endswith("num_batches_tracked"):
        return np.zeros(shape, np.int64)
    if name.startswith("lin"):  # learned weights of LPIPS are never negative
        return rng.uniform(0, 1, shape).astype(np.float32)
    if len(shape) > 1:
        spread = np.sqrt(2 / np.prod(shape[1:]))
        return (spread * rng.standard_normal(shape)).astype(np.float32)
    if name.endswith(("bn.weight", "running_var")):
        return rng.uniform(0.5, 1.5, shape).astype(np.float32)
    return (0.1 * rng.standard_normal(shape)).astype(np.float32)


def weight_files(folder: Path) -> dict[str, Path]:
    """Files for LPIPS ("alex", "alex linear", "vgg16" and "vgg16 linear") and FID ("fid")."""
    states = {"fid": FidInception().state_dict()}
    for net, channels in CHANNELS.items():
        states[net] = Extractor(net).state_dict()
        states[f"{net} linear"] = {
            f"lin{i}.model.1.weight": torch.empty(1, c, 1, 1) for i, c in enumerate(channels)
        }
    files = {}
    for name, state in states.items():
        files[name] = folder / f"{name}.pth"
        torch.save(weights({key: tuple(x.shape) for key, x in state.items()}), files[name])
    return files


def pictures(count: int, side: int, seed: int) -> torch.Tensor:
    """Coloured squares with noise, (count, 3, side, side) in 0..1, in steps of 8 bits."""
    rng = np.random.default_rng(seed)
    squares = rng.integers(0, 200, (count, 3, 8, 8))
    large = np.kron(squares, np.ones((1, 1, -(-side // 8), -(-side // 8)), int))
    noisy = large[..., :side, :side] + rng.integers(0, 56, (count, 3, side, side))
    return torch.from_numpy(noisy.astype(np.float32) / 255)

"""The random numbers of a step: a function of (seed, step, rank), never of what ran before."""

from __future__ import annotations

import torch


def seed_step(seed: int, step: int, rank: int) -> torch.Generator:
    """Seed torch for a step's dropout; returns the generator of its augmentation.

    Seeding every step instead of once is what lets a run resume at any step, and what gives each
    rank flips and dropout of its own.
    """
    mixed = _mix(seed, step, rank)
    torch.manual_seed(mixed + 1)
    return torch.Generator().manual_seed(mixed)


def _mix(*numbers: int) -> int:
    """One well-spread seed from several numbers (SplitMix64's finalizer over each)."""
    state = 0x9E3779B97F4A7C15
    for number in numbers:
        state = (state + number + 0x9E3779B97F4A7C15) & (2**64 - 1)
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & (2**64 - 1)
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & (2**64 - 1)
        state ^= state >> 31
    return state >> 2

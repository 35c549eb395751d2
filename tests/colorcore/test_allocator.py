"""Memory that a process keeps: counted in pages that the kernel had to map again."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="mallopt(3) is glibc's")

SCRIPT = """
import resource
import torch
from torch import nn
from colorcore.allocator import keep_freed_memory

torch.set_num_threads(1)
layers = [(nn.LazyConv2d(16, 3, padding=1), nn.GroupNorm(4, 16), nn.ReLU()) for _ in range(4)]
network = nn.Sequential(*(layer for block in layers for layer in block))
photos = torch.randn(8, 1, 96, 96)

def step():
    network(photos).square().mean().backward()
    network.zero_grad()

def faults():
    for _ in range(4):
        step()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        step()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

without = faults()
print(keep_freed_memory(), without, faults())
"""


def measured(**env: str) -> tuple[str, int, int]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env={**clean, **env},
        capture_output=True,
        text=True,
        check=True,
    )
    told, without, kept = done.stdout.split()
    return told, int(without), int(kept)


@pytest.mark.slow
def test_a_step_gets_the_memory_that_the_step_before_it_freed() -> None:
    told, without, kept = measured()
    assert told == "True"
    assert without > 10_000
    assert kept < without / 4


@pytest.mark.slow
def test_what_a_variable_says_counts() -> None:
    assert measured(MALLOC_TRIM_THRESHOLD_="1000000")[0] == "False"

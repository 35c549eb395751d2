"""Between host and device: what arrives, sums and counts, and what a step and a validation copy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from colorcore.transfer import Arriving, Sums, counts, counts_unasked, steps_late, to_device

CPU = torch.device("cpu")


def test_what_arrives_is_what_was_there_when_it_left():
    values = torch.tensor([1.5, 2.5], requires_grad=True)
    arriving = Arriving(values * 2)
    assert arriving.tensor().tolist() == [3.0, 5.0]
    assert not arriving.tensor().requires_grad
    assert torch.equal(to_device(values, CPU), values)
    assert (steps_late(CPU), steps_late(torch.device("cuda"))) == (0, 1)


def test_sums_are_kept_in_float64_and_can_be_added():
    sums = Sums(2)
    for _ in range(10):
        sums.add(torch.tensor([1e8, 0.1]))
    assert len(sums) == 2
    read = sums.read()
    assert read.dtype == torch.float64
    assert read.tolist() == [1e9, 10 * float(np.float32(0.1))]
    read += 1  # a copy
    other = Sums(2)
    other.add_read(sums.read())
    other.add(torch.tensor([1.0, 0.0], dtype=torch.float64))
    assert other.read().tolist() == [1e9 + 1, sums.read()[1].item()]


@given(st.integers(1, 70_000), st.integers(0, 2**32 - 1))
def test_counts_are_those_of_numpy(below: int, seed: int):
    values = np.random.default_rng(seed).integers(0, below, (3, 50))
    values[0, 0], values[0, 1] = 0, below - 1
    expected = np.bincount(values.ravel(), minlength=below)
    for count in (counts, counts_unasked):
        assert np.array_equal(count(torch.from_numpy(values), below).numpy(), expected)


def test_counts_of_more_values_than_float32_counts():
    values = torch.zeros(2**24 + 5, dtype=torch.uint8)
    assert counts_unasked(values, 2).tolist() == [2**24 + 5, 0]


@pytest.mark.parametrize("below", [1, 2])
def test_counts_of_nothing(below: int):
    nothing = torch.empty(0, dtype=torch.int64)
    for count in (counts, counts_unasked):
        assert count(nothing, below).tolist() == [0] * below

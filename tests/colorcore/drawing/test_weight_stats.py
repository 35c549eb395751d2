"""Statistics of a model's weights, against NumPy and by hand."""

from __future__ import annotations

import csv
import io

import numpy as np
import pytest
import torch
from PIL import Image

from colorcore.drawing.weight_stats import (
    BINS,
    NEAR_ZERO,
    WHOLE,
    model_stats,
    stats_csv,
    stats_facts,
)
from colorcore.drawing.weights_plot import draw_weights
from colorcore.models import build_model


@pytest.fixture(scope="module")
def parameters() -> list[tuple[str, torch.Tensor]]:
    torch.manual_seed(0)
    return list(build_model("unet", channels=4, depth=2).named_parameters())


def test_each_row_is_what_numpy_finds(parameters) -> None:
    rows = model_stats(parameters)
    assert rows[0].layer == WHOLE
    assert rows[0].count == sum(p.numel() for _, p in parameters)
    assert [row.count for row in rows[1:]] == sorted(
        (p.numel() for _, p in parameters), reverse=True
    )
    arrays = {name: p.detach().numpy().astype(np.float64) for name, p in parameters}
    assert {row.layer for row in rows[1:]} == set(arrays)
    for row in rows[1:]:
        array = arrays[row.layer]
        assert row.shape == array.shape
        assert (row.mean, row.std) == pytest.approx((array.mean(), array.std()))
        assert (row.min, row.max) == (array.min(), array.max())
        assert row.histogram.sum() == row.count
        if array.min() < array.max():
            expected, edges = np.histogram(array, BINS)
            assert row.edges() == pytest.approx(edges)
            assert abs(row.histogram - expected).sum() <= 2  # on an edge, rounding decides


def test_zeros_and_what_is_near() -> None:
    weights = torch.tensor([0.0, 0.0, NEAR_ZERO / 2, -1.0, 1.0])
    row = model_stats([("w", weights)])[1]
    assert (row.zeros, row.near_zero) == (0.4, pytest.approx(0.6))
    assert row.histogram[0] == row.histogram[-1] == 1


def test_what_is_no_number_is_counted_and_left_out() -> None:
    weights = torch.tensor([1.0, float("nan"), float("inf"), 3.0])
    rows = model_stats([("bad", weights), ("worse", torch.full((2,), float("nan")))])
    whole, bad, worse = rows
    assert (bad.mean, bad.min, bad.max, bad.non_finite) == (2.0, 1.0, 3.0, 2)
    assert (whole.non_finite, worse.non_finite) == (4, 2)
    assert stats_facts(worse)["mean"] is None
    assert draw_weights(rows, "title").startswith(b"\x89PNG")


def test_constant_weights_have_a_histogram() -> None:
    row = model_stats([("one", torch.ones(7))])[1]
    assert row.histogram[BINS // 2] == 7
    assert (row.low, row.high) == (0.5, 1.5)


def test_a_model_without_parameters() -> None:
    with pytest.raises(ValueError, match="got none"):
        model_stats([])


def test_the_csv_gives_the_histogram_back(parameters) -> None:
    rows = model_stats(parameters)
    read = list(csv.DictReader(io.StringIO(stats_csv(rows).decode())))
    assert [row["layer"] for row in read] == [row.layer for row in rows]
    for line, row in zip(read, rows, strict=True):
        counts = [int(line[f"bin_{i:02d}"]) for i in range(BINS)]
        assert counts == row.histogram.tolist()
        assert sum(counts) == int(line["count"])
        assert tuple(map(int, line["shape"].split("x"))) == row.shape
        assert float(line["std"]) == pytest.approx(row.std, rel=1e-6)


@pytest.mark.slow
def test_the_picture_is_wide_and_the_same_each_time(parameters) -> None:
    rows = model_stats(parameters)
    data = draw_weights(rows, "a title")
    assert data == draw_weights(rows, "a title")
    assert Image.open(io.BytesIO(data)).size[0] == 1600
    fewer = Image.open(io.BytesIO(draw_weights(rows[:3], "a title")))
    assert fewer.size[1] < Image.open(io.BytesIO(data)).size[1]

"""The table of photos, sides and metrics."""

import numpy as np
import pytest

from colorcore.comparison.per_photo import COLUMNS, PerPhoto
from colorcore.scores.metrics import PER_PHOTO


def table_of(psnr: np.ndarray, sides: list[str], **options) -> PerPhoto:
    """A table whose PSNR is given, (photos, sides), and ΔE2000 the negative of it."""
    table = PerPhoto(sides, **options)
    values = np.zeros((*psnr.shape, len(table.columns)), np.float32)
    values[..., table.columns.index("psnr")] = psnr
    values[..., table.columns.index("delta_e2000")] = -psnr
    for start in range(0, len(values), 3):
        part = values[start : start + 3]
        table.add([f"{start + i}.jpg" for i in range(len(part))], part)
    return table


def test_differences_beyond_chance_and_level_ones() -> None:
    rng = np.random.default_rng(0)
    base = rng.normal(22, 4, 60)
    better, level = base + rng.normal(0.5, 0.2, 60), base + rng.normal(0, 0.2, 60)
    table = table_of(np.stack([base, better, level], 1), ["base", "better", "level"])
    intervals, differences = table.compare()
    assert intervals.keys() == {"base", "better", "level"}
    low, high = intervals["base"]["psnr"]
    assert low < base.mean() < high
    # The plain intervals overlap: only the paired difference tells the two apart.
    assert intervals["better"]["psnr"].low < high
    found = {(each.one, each.other, each.metric): each for each in differences}
    assert len(found) == 3 * 4
    assert found["base", "better", "psnr"].better == "better"
    assert found["base", "better", "psnr"].difference == pytest.approx((base - better).mean(), 1e-4)
    assert found["base", "better", "delta_e2000"].better == "better"  # lower is better there
    assert found["base", "level", "psnr"].better == ""
    assert found["better", "level", "psnr"].better == "better"


def test_pairs_that_are_asked_for_and_too_few_photos() -> None:
    table = table_of(np.array([[1.0, 2.0], [2.0, 3.5]]), ["a", "b"], columns=PER_PHOTO)
    _, differences = table.compare([("b", "a")])
    assert {(each.one, each.other) for each in differences} == {("b", "a")}
    assert table_of(np.array([[1.0, 2.0]]), ["a", "b"]).compare() == ({}, [])


def test_of_too_many_photos_a_random_sample_is_kept() -> None:
    psnr = np.arange(1000.0)[:, None]
    table = table_of(psnr, ["a"], limit=100)
    assert (table.seen, len(table)) == (1000, 100)
    kept = table.of("a", "psnr")
    assert [f"{value:.0f}.jpg" for value in kept] == table.names
    assert len(set(table.names)) == 100
    assert 400 < kept.mean() < 600
    assert np.array_equal(table_of(psnr, ["a"], limit=100).table(), table.table())


def test_columns_are_the_metrics_and_lightness() -> None:
    assert (*PER_PHOTO, "lightness_error") == COLUMNS
    assert PerPhoto(["a", "b"]).table().shape == (0, 2, len(COLUMNS))

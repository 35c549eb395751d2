"""KID against scikit-learn's kernel, and against what unbiased means."""

from itertools import combinations, pairwise, product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics.pairwise import polynomial_kernel
from torch import Tensor

from colorcore.scores import kid
from colorcore.scores.kid import Reservoir, kernel_distance


def pairs(N: int, d: int = 7, *, seed: int = 0, apart: float = 0.3) -> tuple[Tensor, Tensor]:
    """Features of N photos, and of changed copies of them, that are like their photo."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(N, d, generator=generator)
    return x + apart + 0.1 * torch.randn(N, d, generator=generator), x


def k(x: Tensor, y: Tensor) -> np.ndarray:
    """The paper's kernel, from elsewhere."""
    return polynomial_kernel(x.double(), y.double(), degree=3, gamma=1 / x.shape[1], coef0=1)


def by_loops(x: Tensor, y: Tensor) -> float:
    """The mean of h over all ordered pairs of different photos, one by one."""
    xx, yy, xy = k(x, x), k(y, y), k(x, y)
    N = len(x)
    h = [xx[i, j] + yy[i, j] - xy[i, j] - xy[j, i] for i in range(N) for j in range(N) if i != j]
    return float(np.mean(h))


@given(N=st.integers(2, 9), d=st.integers(1, 5), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=30)
def test_it_is_the_mean_over_pairs_of_different_photos(N: int, d: int, seed: int):
    x, y = pairs(N, d, seed=seed)
    assert kernel_distance(x, y).value == pytest.approx(by_loops(x, y), rel=1e-9, abs=1e-12)


@pytest.mark.slow
@given(size=st.integers(2, 3), M=st.integers(3, 5), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=20)
def test_it_is_unbiased_for_few_photos_although_they_are_paired(size: int, M: int, seed: int):
    """Over all samples, drawn with replacement from M photos, its mean is MMD² of the M photos.

    The photos and their copies are two distributions of M points, whose MMD² is the mean over all
    i and j, the same ones included. The estimate that has k(x_i, y_i), too, fails here.
    """
    x, y = pairs(M, seed=seed)
    expected = float((k(x, x) + k(y, y) - k(x, y) - k(y, x)).mean())
    samples = [list(chosen) for chosen in product(range(M), repeat=size)]
    values = [kernel_distance(x[chosen], y[chosen]).value for chosen in samples]
    assert np.mean(values) == pytest.approx(expected, rel=1e-9)

    def papers(x: Tensor, y: Tensor) -> float:
        """Its own estimate, for sets that are not paired."""
        own = [(k(z, z).sum() - np.trace(k(z, z))) / (size * (size - 1)) for z in (x, y)]
        return float(sum(own) - 2 * k(x, y).mean())

    biased = np.mean([papers(x[chosen], y[chosen]) for chosen in samples])
    assert biased < expected - 0.1 * abs(expected)


def test_all_samples_without_replacement_have_the_mean_of_the_whole():
    x, y = pairs(7)
    whole = kernel_distance(x, y).value
    for size in (2, 4, 6):
        chosen = [list(each) for each in combinations(range(7), size)]
        values = [kernel_distance(x[each], y[each]).value for each in chosen]
        assert np.mean(values) == pytest.approx(whole, rel=1e-9)


def test_equal_features_are_0_apart_and_the_distance_grows():
    x, _ = pairs(20)
    assert kernel_distance(x, x).value == pytest.approx(0, abs=1e-12)
    values = [kernel_distance(x + step, x).value for step in (0.0, 0.2, 0.5, 1.0)]
    assert all(earlier < later for earlier, later in pairwise(values))


def test_sets_of_one_distribution_are_0_apart_on_average_and_often_below():
    values = [
        kernel_distance(*(torch.randn(2, 30, 5, generator=torch.Generator().manual_seed(seed))))
        .value for seed in range(300)
    ]  # fmt: skip
    error = np.std(values) / len(values) ** 0.5
    assert abs(np.mean(values)) < 3 * error
    assert 0.3 < np.mean(np.array(values) < 0) < 0.8


def test_the_error_is_that_of_leaving_out_one_photo_after_the_other():
    x, y = pairs(11)
    left = [
        by_loops(torch.cat([x[:i], x[i + 1 :]]), torch.cat([y[:i], y[i + 1 :]])) for i in range(11)
    ]
    expected = (10 / 11 * np.square(np.array(left) - np.mean(left)).sum()) ** 0.5
    assert kernel_distance(x, y).error == pytest.approx(expected, rel=1e-6)


def test_the_error_is_the_spread_over_samples():
    found = [kernel_distance(*pairs(40, seed=seed)) for seed in range(200)]
    spread = np.std([each.value for each in found])
    assert np.mean([each.error for each in found]) == pytest.approx(spread, rel=0.25)


def test_a_few_rows_at_a_time_give_the_same(monkeypatch):
    x, y = pairs(20)
    whole = kernel_distance(x, y)
    monkeypatch.setattr(kid, "_ROWS", 3)
    assert kernel_distance(x, y) == pytest.approx(whole)


def test_too_few_photos_are_nan():
    x, y = pairs(3)
    assert np.isnan(kernel_distance(x[:1], y[:1])).all()
    assert np.isnan(kernel_distance(x[:2], y[:2])).tolist() == [False, True]
    assert not np.isnan(kernel_distance(x, y)).any()


def test_features_of_other_numbers_of_photos_are_refused():
    x, y = pairs(4)
    with pytest.raises(ValueError, match=r"same shape \(N, d\), got \(4, 7\) and \(3, 7\)"):
        kernel_distance(x, y[:3])


def kept(limit: int, stream: int) -> list[int]:
    reservoir = Reservoir(limit)
    for number in range(stream):
        reservoir.add(torch.tensor(number))
    return [int(item) for item in reservoir.items]


def test_a_reservoir_keeps_everything_it_has_room_for():
    assert kept(5, 3) == [0, 1, 2]
    assert kept(5, 5) == [0, 1, 2, 3, 4]


def test_of_more_it_keeps_a_uniform_sample_the_same_in_every_run():
    found = kept(2_000, 20_000)
    assert len(set(found)) == 2_000
    tenths = np.histogram(found, bins=10, range=(0, 20_000))[0]
    assert (abs(tenths - 200) < 5 * 180**0.5).all()  # variance of a tenth: 2000 · .1 · .9
    assert found == kept(2_000, 20_000)

"""Spreads over seeds, and what is level, worked out by hand."""

import pytest

from colorcore.scores.spread import LEVEL, UNKNOWN, Spread, compare, spread_of


def test_mean_and_sample_deviation():
    """Of 2, 4 and 9: mean 5, squared differences 9 + 1 + 16, over n − 1 = 2: √13."""
    found = spread_of([2.0, 4.0, 9.0])
    assert found.mean == 5.0
    assert found.deviation == pytest.approx(13**0.5)
    assert found.show(2) == "5.00 ± 3.61"
    assert spread_of([2.5]) == Spread(2.5, None)
    assert spread_of([2.5]).show(1) == "2.5"
    for scores in ([], [1.0, float("nan")]):
        with pytest.raises(ValueError, match="finite scores of at least one seed"):
            spread_of(scores)


@pytest.mark.parametrize(
    ("one", "other", "verdict"),
    [
        ([10.0, 12.0], [20.0, 20.0], "worse"),  # 9 apart, deviations √2 and 0
        ([20.0, 20.0], [10.0, 12.0], "better"),
        ([10.0, 12.0], [12.0, 12.0], LEVEL),  # 1 apart
        ([1.0, 3.0], [4.0, 4.0], "worse"),  # 2 apart, 1.41 allowed
        ([1.0, 3.0], [2.0 + 2**0.5, 2.0 + 2**0.5], LEVEL),  # exactly the larger deviation
        ([1.0, 5.0], [4.0], LEVEL),  # one side's spread counts for both: √8
        ([1.0, 5.0], [6.0], "worse"),
        ([6.0], [1.0, 5.0], "better"),
        ([6.0], [1.0], UNKNOWN),
    ],
)
def test_verdicts(one: list[float], other: list[float], verdict: str):
    assert compare(one, other, higher_is_better=True) == verdict
    turned = {"better": "worse", "worse": "better"}.get(verdict, verdict)
    assert compare(one, other, higher_is_better=False) == turned
    assert compare(other, one, higher_is_better=True) == turned

import numpy as np
import pytest
import torch
from scipy.stats import wasserstein_distance

from colorcore.losses.histogram import build, histograms
from tests.colorcore.losses.conftest import photos

MIDDLES = -126.0 + 4.0 * torch.arange(64)


def test_histograms_by_hand():
    """Middles are at −126, −122 …: 1 lies between −2 (bin 31) and 2 (bin 32), nearer to 2."""
    lab = torch.zeros(1, 3, 1, 2)
    lab[0, 1] = torch.tensor([1.0, 2.0])
    lab[0, 2] = torch.tensor([-128.0, 128.0])
    a, b = histograms(lab, 64)[0]
    assert a[31:33].tolist() == [0.125, 0.875]
    assert [b[0].item(), b[63].item()] == [0.5, 0.5]
    assert a.sum() == b.sum() == 1


def test_the_mean_of_a_histogram_is_the_photos():
    lab = photos(3, 16, 16)
    torch.testing.assert_close(
        histograms(lab, 64) @ MIDDLES, lab[:, 1:].mean((2, 3)), atol=1e-3, rtol=1e-4
    )


def test_away_from_borders_it_is_numpys():
    """Pixels in the middle of bins belong to one bin each."""
    rng = np.random.default_rng(0)
    values = MIDDLES.numpy()[rng.integers(0, 64, 500)]
    lab = torch.zeros(1, 3, 1, 500)
    lab[0, 1, 0] = torch.from_numpy(values)
    expected, _ = np.histogram(values, bins=64, range=(-128, 128))
    np.testing.assert_allclose(histograms(lab, 64)[0, 0].numpy(), expected / 500, atol=1e-6)


def test_the_distance_is_how_far_colours_must_go():
    """All in one bin against all ten bins further: 40 ab units."""
    lab = torch.zeros(1, 3, 1, 1)
    lab[0, 1:] = MIDDLES[20]
    answer = torch.zeros(1, 2, 64)
    answer[:, :, 30] = 1.0
    value = build()({"histograms": answer}, lab)
    assert value.item() == pytest.approx(40 / 128)


def test_against_scipy():
    lab, scores = photos(2, 8, 8), torch.randn(2, 2, 64)
    answer = (3 * scores).softmax(dim=2)
    true = histograms(lab, 64)
    expected = [
        wasserstein_distance(MIDDLES, MIDDLES, answer[i, j], true[i, j])
        for i in range(2)
        for j in range(2)
    ]
    value = build()({"histograms": answer}, lab)
    assert value.item() == pytest.approx(np.mean(expected) / 128, rel=1e-4)


def test_the_photos_own_histogram_is_the_best_answer():
    lab = photos(2, 9, 7)
    assert build()({"histograms": histograms(lab, 64)}, lab) == 0


@pytest.mark.parametrize("shape", [(2, 128), (1, 2, 64), (2, 3, 64)])
def test_other_shapes_are_refused(shape):
    with pytest.raises(ValueError, match=r"expects histograms \(2, 2, bins\), got"):
        build()({"histograms": torch.zeros(shape)}, photos(2, 4, 4))

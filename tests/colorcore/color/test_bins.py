"""Soft encoding and the annealed mean, against hand-computed cases and brute force."""

import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from colorcore.color.bins import NEIGHBORS, SoftEncoder, decode_ab, nearest_bins, soft_table
from tests.colorcore.color.histograms import (
    ZHANG_LIKE,
)

# Nearest bins


def test_nearest_bins_agree_with_brute_force():
    rng = np.random.default_rng(3)
    centroids = rng.uniform(-110, 110, (50, 2))
    bins = nearest_bins(centroids)
    assert bins.shape == (256, 256)
    assert bins.dtype == np.int32
    cells = rng.integers(0, 256, (2000, 2))
    distance = np.linalg.norm((cells - 128.0)[:, None] - centroids[None], axis=-1)
    np.testing.assert_array_equal(bins[cells[:, 0], cells[:, 1]], distance.argmin(1))


# Soft encoding


def test_soft_encoding_by_hand():
    centroids = np.array([(10.0, 0.0), (0.0, 0.0), (0.0, 30.0)])
    indices, shares = soft_table(centroids)
    assert indices.shape == shares.shape == (65536, 3)
    neutral = 128 * 256 + 128
    np.testing.assert_array_equal(indices[neutral], [1, 0, 2])
    # Distances 0, 10, 30 at σ = 5: exp(0), exp(-2), exp(-18).
    raw = np.array([1.0, math.exp(-2), math.exp(-18)])
    np.testing.assert_allclose(shares[neutral], raw / raw.sum(), rtol=1e-6)
    cell = (128 + 6) * 256 + 128 - 3  # (6, -3): squared distances 25, 45, 1125
    np.testing.assert_array_equal(indices[cell], [0, 1, 2])
    raw = np.exp(-np.array([25.0, 45.0, 1125.0]) / 50)
    np.testing.assert_allclose(shares[cell], raw / raw.sum(), rtol=1e-6)


def soft_by_brute_force(a, b, centroids):
    """Dense soft code (Q,) of one colour, without tables."""
    squared = [(a - x) ** 2 + (b - y) ** 2 for x, y in centroids]
    nearest = sorted(range(len(squared)), key=squared.__getitem__)[:NEIGHBORS]
    mass = {q: math.exp(-(squared[q] - min(squared)) / (2 * 5.0**2)) for q in nearest}
    code = np.zeros(len(centroids))
    for q in nearest:
        code[q] = mass[q] / sum(mass.values())
    return code


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 40))
def test_soft_encoding_agrees_with_brute_force(seed, bins):
    rng = np.random.default_rng(seed)
    centroids = rng.uniform(-110, 110, (bins, 2))
    indices, shares = soft_table(centroids)
    assert indices.shape == (65536, min(bins, NEIGHBORS))
    np.testing.assert_allclose(shares.sum(1), 1, rtol=1e-5)
    for cell in rng.integers(0, 65536, 20):
        code = np.zeros(bins)
        code[indices[cell]] = shares[cell]
        expected = soft_by_brute_force(cell // 256 - 128, cell % 256 - 128, centroids)
        np.testing.assert_allclose(code, expected, atol=1e-6)


def test_soft_encoding_far_from_every_bin_stays_finite():
    _, shares = soft_table(np.array([(100.0, 100.0), (100.0, 90.0)]))
    assert np.isfinite(shares).all()
    np.testing.assert_allclose(shares.sum(1), 1)


def test_encode_looks_each_pixel_up():
    rng = np.random.default_rng(7)
    encoder = SoftEncoder(np.array(ZHANG_LIKE))
    ab_u8 = torch.from_numpy(rng.integers(0, 256, (3, 2, 4, 5), dtype=np.uint8))
    indices, shares = encoder.encode(ab_u8)
    assert indices.shape == shares.shape == (3, 5, 4, 5)
    assert indices.dtype == torch.int64
    assert shares.dtype == torch.float32
    for n, y, x in np.ndindex(3, 4, 5):
        a, b = ab_u8[n, :, y, x].tolist()
        np.testing.assert_array_equal(indices[n, :, y, x], encoder.indices[a * 256 + b])
        np.testing.assert_array_equal(shares[n, :, y, x], encoder.shares[a * 256 + b])


def test_encode_and_decode_are_nearly_inverse_on_a_fine_grid():
    axis = np.arange(-120, 121, 6.0)
    centroids = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)
    encoder = SoftEncoder(centroids)
    ab = torch.randint(-110, 111, (1, 2, 8, 8), generator=torch.Generator().manual_seed(0))
    indices, shares = encoder.encode((ab + 128).to(torch.uint8))
    target = torch.zeros(1, len(centroids), 8, 8).scatter_(1, indices, shares)
    decoded = decode_ab(
        target.clamp_min(1e-30).log(), torch.from_numpy(centroids).float(), temperature=1.0
    )
    assert (decoded - ab).abs().max() < 2.5


def test_an_encoder_can_be_copied_with_the_loss_that_holds_it():
    encoder = SoftEncoder(np.array(ZHANG_LIKE))
    ab_u8 = torch.full((1, 2, 1, 1), 200, dtype=torch.uint8)
    encoder.encode(ab_u8)
    again = copy.deepcopy(encoder)
    assert torch.equal(again.encode(ab_u8)[0], encoder.encode(ab_u8)[0])


@pytest.mark.parametrize(
    "ab_u8",
    [
        torch.zeros(1, 2, 4, 4),
        torch.zeros(1, 3, 4, 4, dtype=torch.uint8),
        torch.zeros(2, 4, 4, dtype=torch.uint8),
    ],
)
def test_encode_takes_stored_ab_only(ab_u8):
    with pytest.raises(ValueError, match=r"expected stored ab \(B, 2, H, W\) uint8, got"):
        SoftEncoder(np.array(ZHANG_LIKE)).encode(ab_u8)


@pytest.mark.gpu
def test_encode_and_decode_on_the_gpu_agree_with_the_cpu():
    if not torch.cuda.is_available():  # it cannot be emulated
        pytest.skip("needs an NVIDIA GPU")
    encoder = SoftEncoder(np.array(ZHANG_LIKE))
    generator = torch.Generator().manual_seed(0)
    ab_u8 = torch.randint(0, 256, (2, 2, 16, 16), generator=generator, dtype=torch.uint8)
    on_gpu, on_cpu = encoder.encode(ab_u8.cuda()), encoder.encode(ab_u8)
    assert torch.equal(on_gpu[0].cpu(), on_cpu[0])
    assert torch.equal(on_gpu[1].cpu(), on_cpu[1])
    logits = torch.randn(2, 6, 16, 16, generator=generator)
    centroids = torch.tensor(ZHANG_LIKE)
    with torch.autocast("cuda", torch.bfloat16):
        ab = decode_ab(logits.cuda(), centroids.cuda())
    assert (ab.cpu() - decode_ab(logits, centroids)).abs().max() < 0.1


# Annealed mean (eq. 5)

TWO_BINS = torch.tensor([(-20.0, 10.0), (60.0, -30.0)])


def two_bin_logits(first, second):
    return torch.tensor([first, second]).reshape(1, 2, 1, 1)


@pytest.mark.parametrize(
    ("temperature", "expected"),
    [
        (1.0, (40.0, -20.0)),  # probabilities 1/4 and 3/4: the mean
        (0.5, (52.0, -26.0)),  # squared: 1/10 and 9/10
        (1e-4, (60.0, -30.0)),  # the mode
    ],
)
def test_annealed_mean_of_two_bins_by_hand(temperature, expected):
    ab = decode_ab(two_bin_logits(0.0, math.log(3)), TWO_BINS, temperature=temperature)
    assert ab.shape == (1, 2, 1, 1)
    np.testing.assert_allclose(ab.flatten(), expected, rtol=1e-5)


def test_annealed_mean_of_equals_is_the_middle_at_any_temperature():
    for temperature in (1e-3, 0.38, 5.0):
        ab = decode_ab(two_bin_logits(7.0, 7.0), TWO_BINS, temperature=temperature)
        np.testing.assert_allclose(ab.flatten(), (20.0, -10.0), rtol=1e-5)


def test_annealed_mean_has_the_right_gradient():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 4, 2, 3, dtype=torch.float64, generator=generator).requires_grad_()
    centroids = torch.randn(4, 2, dtype=torch.float64, generator=generator)
    assert torch.autograd.gradcheck(lambda z: decode_ab(z, centroids), (logits,))


def test_annealed_mean_is_exact_under_autocast():
    logits = torch.randn(1, 6, 8, 8, generator=torch.Generator().manual_seed(0))
    centroids = torch.tensor(ZHANG_LIKE)
    with torch.autocast("cpu", torch.bfloat16):
        low = decode_ab(logits, centroids)
    torch.testing.assert_close(low, decode_ab(logits, centroids))


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan])
def test_temperature_must_be_above_zero(temperature):
    with pytest.raises(ValueError, match="temperature must be above 0"):
        decode_ab(two_bin_logits(0.0, 1.0), TWO_BINS, temperature=temperature)


def test_logits_and_centroids_must_match():
    with pytest.raises(ValueError, match=r"got \(1, 2, 1, 1\) and \(3, 2\)"):
        decode_ab(two_bin_logits(0.0, 1.0), torch.zeros(3, 2))

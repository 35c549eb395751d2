"""CIELAB against scikit-image, the CIE's formulas, brute force and gradcheck."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.color import lab2rgb, rgb2lab

from colorcore.color.lab import (
    decode_lab,
    denormalize_ab,
    encode_lab,
    fit_gamut,
    lab_to_rgb,
    lightness_to_grey,
    normalize_ab,
    normalize_L,
    rgb_to_lab,
)

GAMUT_TOLERANCE = 1e-4
STEP = 2.0**-12


def all_colours(red: int):
    """The 65,536 sRGB colours of one red level. (256, 256, 3) uint8."""
    green, blue = np.mgrid[:256, :256]
    return np.stack([np.full_like(green, red), green, blue], -1).astype(np.uint8)


def stored_exactly(rgb):
    """Stored LAB before rounding, by CIE 15:2004 and IEC 61966-2-1 in float64. (..., 3)."""
    v = rgb / 255.0
    linear = np.where(v <= 0.04045, v / 12.92, ((v + 0.055) / 1.055) ** 2.4)
    to_xyz = [
        [0.412453, 0.357580, 0.180423],
        [0.212671, 0.715160, 0.072169],
        [0.019334, 0.119193, 0.950227],
    ]
    t = linear @ np.transpose(to_xyz) / [0.95047, 1.0, 1.08883]
    f = np.where(t > 216 / 24389, np.cbrt(t), (24389 / 27 * t + 16) / 116)
    x, y, z = f[..., 0], f[..., 1], f[..., 2]
    return np.stack([(116 * y - 16) * 2.55, 500 * (x - y) + 128, 200 * (y - z) + 128], -1)


def random_rgb(seed: int, side: int = 64):
    return torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(seed))


def random_lab(seed: int, colours: int):
    """Colours in and out of the gamut. (1, 3, 1, colours) float64."""
    rng = np.random.default_rng(seed)
    lab = rng.uniform([1, -100, -100], [99, 100, 100], (colours, 3))
    return torch.from_numpy(lab.T.copy())[None, :, None]


def chroma(lab):
    return lab[:, 1:].norm(dim=1)


def inside(lab):
    rgb = lab_to_rgb(lab, clip=False)
    return ((rgb >= -GAMUT_TOLERANCE) & (rgb <= 1 + GAMUT_TOLERANCE)).all(1)


def delta_e(one, other):
    return np.sqrt(((np.asarray(one, np.float64) - other) ** 2).sum(-1))


# Stored LAB


@pytest.mark.slow
def test_every_srgb_colour_is_stored_within_a_delta_e_of_0_8():
    worst, off_by_one = 0.0, 0
    for red in range(256):
        rgb = all_colours(red)
        stored = encode_lab(rgb).transpose(1, 2, 0)
        truth = rgb2lab(rgb)
        worst = max(worst, delta_e(stored * [100 / 255, 1, 1] - [0, 128, 128], truth).max())
        exact = truth * [255 / 100, 1, 1] + [0, 128, 128]
        distance = np.abs(exact - stored)
        assert distance.max() < 0.6, red  # 0.5 is rounding; the rest is the tables
        off_by_one += (distance > 0.51).sum()
    assert worst <= 0.8
    assert off_by_one < 0.001 * 3 * 2**24


@pytest.mark.parametrize("seed", range(3))
def test_stored_values_are_the_formulas_rounded(seed: int):
    rgb = np.random.default_rng(seed).integers(0, 256, (200, 300, 3), np.uint8)
    exact = stored_exactly(rgb)
    tie = np.abs(exact - np.floor(exact) - 0.5) < 0.07  # the tables' error in the darkest colours
    stored = encode_lab(rgb).transpose(1, 2, 0)
    np.testing.assert_array_equal(stored[~tie], np.rint(exact)[~tie])
    assert tie.mean() < 0.16


def test_grey_is_stored_as_neutral_and_its_lightness_rises():
    grey = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, axis=2)
    L, a, b = encode_lab(grey)
    assert (a == 128).all()
    assert (b == 128).all()
    assert L[0, 0] == 0
    assert L[0, -1] == 255
    assert (np.diff(L[0].astype(int)) >= 0).all()


@pytest.mark.parametrize(
    ("rgb", "lab"),
    [  # Lindbloom's CIE calculator, sRGB, D65
        ((255, 0, 0), (53.24, 80.09, 67.20)),
        ((0, 255, 0), (87.74, -86.18, 83.18)),
        ((0, 0, 255), (32.30, 79.19, -107.86)),
        ((255, 255, 0), (97.14, -21.55, 94.48)),
    ],
)
def test_published_values(rgb, lab):
    stored = encode_lab(np.array([[rgb]], np.uint8))[:, 0, 0]
    expected = np.multiply(lab, [2.55, 1, 1]) + np.array([0, 128, 128])
    np.testing.assert_array_equal(stored, np.rint(expected))
    exact = rgb_to_lab(torch.tensor(rgb).reshape(1, 3, 1, 1) / 255)
    np.testing.assert_allclose(exact.flatten(), lab, atol=0.02)


def test_encode_lab_is_planar_and_contiguous():
    rgb = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    stored = encode_lab(rgb)
    assert stored.shape == (3, 5, 7)
    assert stored.dtype == np.uint8
    assert stored.flags.c_contiguous
    np.testing.assert_array_equal(stored, encode_lab(rgb[::-1])[:, ::-1])
    np.testing.assert_array_equal(stored[:, 2:3, 3:4], encode_lab(rgb[2:3, 3:4].copy()))


@pytest.mark.parametrize("shape", [(4, 4), (4, 4, 1), (4, 4, 4), (3, 4, 4), (1, 4, 4, 3)])
def test_encode_lab_refuses_other_shapes(shape):
    with pytest.raises(ValueError, match=r"expected an RGB array .* got") as error:
        encode_lab(np.zeros(shape, np.uint8))
    assert str(shape) in str(error.value)


@pytest.mark.parametrize("dtype", [np.uint16, np.int8, np.float32])
def test_encode_lab_refuses_other_types(dtype):
    with pytest.raises(ValueError, match=np.dtype(dtype).name):
        encode_lab(np.zeros((4, 4, 3), dtype))


def test_decode_lab_gives_the_stored_units():
    stored = torch.tensor([[0, 51, 255], [0, 128, 255], [28, 128, 255]], dtype=torch.uint8)
    before = stored.clone()
    lab = decode_lab(stored[:, :, None])[:, :, 0]
    assert lab.dtype == torch.float32
    expected = [[0.0, 20.0, 100.0], [-128.0, 0.0, 127.0], [-100.0, 0.0, 127.0]]
    torch.testing.assert_close(lab, torch.tensor(expected))
    assert torch.equal(stored, before)


def test_decode_lab_takes_batches():
    stored = torch.randint(0, 256, (2, 4, 3, 5, 6), dtype=torch.uint8)
    lab = decode_lab(stored)
    assert lab.shape == stored.shape
    torch.testing.assert_close(lab[1, 2], decode_lab(stored[1, 2]), rtol=0, atol=0)


def test_decoding_what_was_encoded_gives_the_photo_back():
    """Exact up to rounding: 2 levels of 255 on average, except for the darkest blues."""
    rgb = np.random.default_rng(0).integers(0, 256, (128, 128, 3), np.uint8)
    lab = decode_lab(torch.from_numpy(encode_lab(rgb)))[None]
    back = lab_to_rgb(lab)[0].permute(1, 2, 0).numpy() * 255
    assert np.abs(back - rgb).mean() < 1
    assert delta_e(lab[0].permute(1, 2, 0), rgb2lab(rgb)).max() <= 0.8


# The differentiable conversions


@pytest.mark.parametrize("brightness", [1.0, 0.03])
def test_rgb_to_lab_agrees_with_scikit_image(brightness: float):
    rgb = random_rgb(0) * brightness
    expected = rgb2lab(rgb.double().numpy(), channel_axis=1)
    difference = np.sqrt(((rgb_to_lab(rgb).numpy() - expected) ** 2).sum(1))
    assert difference.mean() < 0.01
    assert difference.max() < 0.05


@pytest.mark.filterwarnings("ignore:Conversion from CIE-LAB")
def test_lab_to_rgb_agrees_with_scikit_image():
    lab = torch.cat([rgb_to_lab(random_rgb(1)), random_lab(1, 64 * 64).reshape(1, 3, 64, 64)])
    expected = lab2rgb(lab.double().numpy(), channel_axis=1)
    rgb = lab_to_rgb(lab.float()).double().numpy()
    difference = rgb2lab(rgb, channel_axis=1) - rgb2lab(expected, channel_axis=1)
    assert np.sqrt((difference**2).sum(1)).mean() < 0.01
    np.testing.assert_allclose(rgb, expected, atol=1e-4)


def test_round_trip():
    rgb = random_rgb(2)
    torch.testing.assert_close(lab_to_rgb(rgb_to_lab(rgb)), rgb, rtol=0, atol=1e-4)


def test_without_clip_colours_leave_the_gamut_and_come_back():
    lab = random_lab(3, 500)
    lab = lab[..., (lab[0, 0, 0] > 20)]
    rgb = lab_to_rgb(lab, clip=False)
    assert rgb.min() < 0
    assert rgb.max() > 1
    clipped = lab_to_rgb(lab)
    assert clipped.min() >= 0
    assert clipped.max() <= 1
    torch.testing.assert_close(clipped, rgb.clamp(0, 1))


def test_gradients():
    rgb = (random_rgb(4, 3).double() * 0.9 + 0.05).requires_grad_()
    assert torch.autograd.gradcheck(rgb_to_lab, rgb)
    lab = rgb_to_lab(rgb.detach()).requires_grad_()
    assert torch.autograd.gradcheck(lab_to_rgb, lab)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_gradients_are_finite_at_black_and_white(value: float):
    rgb = torch.full((1, 3, 2, 2), value, requires_grad=True)
    lab = rgb_to_lab(rgb)
    lab.sum().backward()
    assert rgb.grad is not None
    assert rgb.grad.isfinite().all()
    lab = lab.detach().requires_grad_()
    lab_to_rgb(lab).sum().backward()
    assert lab.grad is not None
    assert lab.grad.isfinite().all()


# Normalised forms


def test_normalized_forms_span_minus_one_to_one():
    torch.testing.assert_close(normalize_L(torch.tensor([0.0, 50.0, 100.0])), torch.arange(-1.0, 2))
    rgb = torch.from_numpy(all_colours(0)[None, ::15, ::15].transpose(0, 3, 1, 2) / 255)
    for red in (0.0, 0.5, 1.0):
        rgb[:, 0] = red
        assert normalize_ab(rgb_to_lab(rgb)[:, 1:]).abs().max() <= 1


def test_denormalize_ab_is_the_inverse():
    ab = random_lab(5, 100)[:, 1:]
    torch.testing.assert_close(denormalize_ab(normalize_ab(ab)), ab, rtol=0, atol=0)
    ab_norm = torch.linspace(-1, 1, 9)
    torch.testing.assert_close(normalize_ab(denormalize_ab(ab_norm)), ab_norm, rtol=0, atol=0)
    assert denormalize_ab(torch.tensor(1.0)) == 128


# Fitting into the gamut


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), double=st.booleans())
def test_fit_gamut_keeps_lightness_and_hue_and_ends_inside(seed: int, double: bool):
    lab = random_lab(seed, 200) if double else random_lab(seed, 200).float()
    fitted = fit_gamut(lab)
    assert fitted.shape == lab.shape
    assert fitted.dtype == lab.dtype
    assert torch.equal(fitted[:, 0], lab[:, 0])
    cross = fitted[:, 1] * lab[:, 2] - fitted[:, 2] * lab[:, 1]
    assert (cross.abs() <= 1e-5 * chroma(lab) * (1 + chroma(fitted))).all()
    assert ((fitted[:, 1:] * lab[:, 1:]).sum(1) >= 0).all()
    rgb = lab_to_rgb(fitted, clip=False)
    assert rgb.min() >= -1.1 * GAMUT_TOLERANCE
    assert rgb.max() <= 1 + 1.1 * GAMUT_TOLERANCE
    was_inside = inside(lab)
    columns = was_inside[:, None].expand_as(lab)
    assert torch.equal(fitted[columns], lab[columns])
    assert (chroma(fitted) <= chroma(lab)).all()


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_fit_gamut_gives_up_no_more_chroma_than_it_must(seed: int):
    """One more 2^-12 of the chroma would be outside."""
    lab = random_lab(seed, 300)
    lab = lab[..., ~inside(lab)[0, 0]]
    factor = chroma(fit_gamut(lab)) / chroma(lab)
    more = torch.cat([lab[:, :1], lab[:, 1:] * (factor + STEP)[:, None]], 1)
    assert not inside(more).any()


def test_fit_gamut_finds_the_edge_that_a_fine_search_finds():
    lab = random_lab(7, 400)
    lab = lab[..., ~inside(lab)[0, 0]]
    t = torch.linspace(0, 1, 4097, dtype=lab.dtype)[:, None]
    tried = torch.cat([lab[:, :1].expand(1, 1, 4097, -1), lab[:, 1:] * t], 1)
    first_outside = (~inside(tried)[0]).int().argmax(0)
    factor = (chroma(fit_gamut(lab)) / chroma(lab))[0, 0]
    distance = (factor - t[first_outside - 1, 0]).abs()
    # The gamut is not exactly star-shaped: one colour in thousands enters it again.
    assert (distance > STEP + 1e-9).sum() <= 1
    assert lab.shape[-1] > 250


def test_fit_gamut_leaves_photos_alone():
    lab = rgb_to_lab(random_rgb(8))
    assert torch.equal(fit_gamut(lab), lab)


def test_fit_gamut_changes_only_the_pixels_in_question():
    lab = rgb_to_lab(random_rgb(9, 8))
    wild = lab.clone()
    wild[1, :, 2, 3] = torch.tensor([50.0, 100.0, 100.0])
    fitted = fit_gamut(wild)
    changed = (fitted != wild).any(1)
    assert changed.sum() == 1
    assert changed[1, 2, 3]
    assert torch.equal(wild[1, :, 2, 3], torch.tensor([50.0, 100.0, 100.0]))


@pytest.mark.parametrize("L", [0.0, 100.0])
def test_fit_gamut_of_black_and_white_is_neutral(L: float):
    fitted = fit_gamut(torch.tensor([L, 60.0, -60.0]).reshape(1, 3, 1, 1))
    assert fitted[0, 0] == L
    assert chroma(fitted) < 0.05


def test_the_grey_of_a_lightness_is_that_of_scikit_image():
    lightness = np.linspace(0, 100, 301)
    lab = np.stack([lightness, np.zeros_like(lightness), np.zeros_like(lightness)], axis=-1)
    expected = lab2rgb(lab[None])[0].mean(-1)
    found = lightness_to_grey(torch.from_numpy(lightness))
    np.testing.assert_allclose(found.numpy(), expected, atol=2e-4)


def test_the_gradient_of_grey_is_finite_everywhere():
    lightness = torch.linspace(0, 100, 1001, requires_grad=True)
    (gradient,) = torch.autograd.grad(lightness_to_grey(lightness).sum(), lightness)
    assert torch.isfinite(gradient).all()
    assert (gradient > 0).all()

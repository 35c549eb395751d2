"""Colourfulness by the paper's formula, and toned prints made from real colour photos."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from skimage import data
from sklearn.datasets import load_sample_images

from colorcore.color.colorfulness import (
    GREY_CHROMA,
    TONED_RESIDUAL,
    HueSpread,
    colorfulness,
    colorfulness_u8,
    hue_spread,
)
from colorcore.color.lab import encode_lab
from colorcore.dataset.layout import SampleSettings
from colorcore.dataset.sample import make_sample
from colorcore.photos.refusal import PhotoRefused, Reason
from colorcore.photos.square import square
from tests.colorcore.color.toned import TONED, encoded, grey_of, in_bytes, sepia, through_jpeg

# Hasler and Süsstrunk's formula


def paper_colorfulness(rgb):
    """M^(3) of Hasler and Süsstrunk 2003, eq. 17 ff., from (H, W, 3) RGB."""
    red, green, blue = (rgb[..., i].astype(np.float64) for i in range(3))
    rg, yb = red - green, 0.5 * (red + green) - blue
    return np.hypot(rg.std(), yb.std()) + 0.3 * np.hypot(rg.mean(), yb.mean())


def planar(picture):
    return np.asarray(picture, np.float32).transpose(2, 0, 1)


@pytest.mark.parametrize("value", [0, 1, 127, 255])
def test_grey_has_no_colorfulness(value: int):
    assert colorfulness(np.full((3, 8, 8), float(value))) == 0


def test_one_colour_by_hand():
    """Nothing varies: 0.3 √((R − G)² + ((R + G)/2 − B)²)."""
    rgb = np.broadcast_to(np.array([200.0, 100.0, 50.0])[:, None, None], (3, 4, 4))
    assert colorfulness(rgb) == pytest.approx(0.3 * np.hypot(100, 100))


def test_two_colours_by_hand():
    """Half pure red, half pure blue: rg is 255 and 0, yb is 127.5 and −255."""
    rgb = np.zeros((3, 2, 2))
    rgb[0, 0] = rgb[2, 1] = 255
    expected = np.hypot(127.5, 191.25) + 0.3 * np.hypot(127.5, 63.75)
    assert colorfulness(rgb) == pytest.approx(expected)
    assert colorfulness(rgb) > 109  # "extremely colourful" begins there


@settings(max_examples=50, deadline=None)
@given(hnp.arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9), st.just(3))))
def test_colorfulness_agrees_with_the_paper(picture):
    expected = paper_colorfulness(picture)
    assert colorfulness(planar(picture)) == pytest.approx(expected, abs=2e-3)
    assert float(colorfulness(torch.from_numpy(planar(picture)))) == pytest.approx(
        expected, abs=2e-3
    )
    assert colorfulness_u8(picture) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("name", ["astronaut", "coffee", "chelsea"])
def test_colorfulness_of_bytes_is_exact(name: str):
    photo = getattr(data, name)()
    assert colorfulness_u8(photo) == pytest.approx(paper_colorfulness(photo), rel=1e-12)


def test_colorfulness_of_a_batch_is_that_of_each_photo():
    rgb = torch.rand(2, 4, 3, 6, 5, generator=torch.Generator().manual_seed(0)) * 255
    batch = colorfulness(rgb)
    assert batch.shape == (2, 4)
    for i in range(2):
        for j in range(4):
            torch.testing.assert_close(batch[i, j], colorfulness(rgb[i, j]))
    np.testing.assert_allclose(colorfulness(rgb.numpy()), batch, rtol=1e-5)


def test_less_chroma_is_less_colorful():
    """At equal RGB mean, CF is linear in chroma: half the chroma, half the CF."""
    rgb = np.random.default_rng(0).uniform(0, 255, (3, 20, 20))
    grey = rgb.mean(0)
    assert colorfulness(grey + 0.5 * (rgb - grey)) == pytest.approx(0.5 * colorfulness(rgb))


# The moments


def stored(*colours, side: int = 64):
    """Stored LAB with stripes of some (L, a, b), each of equal width."""
    columns = np.array(colours)[np.arange(side) * len(colours) // side].T
    return np.repeat(np.rint(columns)[:, None], side, axis=1).astype(np.uint8)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_moments_agree_with_a_singular_value_decomposition(seed: int):
    rng = np.random.default_rng(seed)
    spread = rng.uniform(0, 30, 2)
    lab_u8 = np.clip(
        rng.normal(rng.uniform(90, 170, (3, 1, 1)), [[[40]], [[spread[0]]], [[spread[1]]]],
                   (3, 40, 40)), 0, 255,
    ).astype(np.uint8)  # fmt: skip
    hue = hue_spread(lab_u8)
    ab = lab_u8[1:].reshape(2, -1).astype(np.float64) - 128
    smallest = np.linalg.svd(ab.T, compute_uv=False)[-1]
    chroma = np.hypot(*ab)
    assert hue.spread == pytest.approx(smallest / np.sqrt(ab.shape[1]), abs=1e-3)
    assert hue.one_sided == pytest.approx(np.hypot(*ab.mean(1)) / chroma.mean(), abs=1e-4)
    assert hue.coloured == np.mean(chroma > GREY_CHROMA)


def test_moments_by_hand():
    """Equal parts of red and green, ±20 either side of neutral, at two levels of L."""
    hue = hue_spread(stored((100, 148, 128), (150, 108, 128)))
    assert hue.coloured == 1
    assert hue.spread == 0
    assert hue.one_sided == 0
    assert hue.residual == 0
    same_L = hue_spread(stored((100, 148, 128), (100, 108, 128)))
    assert same_L.residual == pytest.approx(20, rel=0.001)


def test_neutral_is_greyscale():
    hue = hue_spread(stored((10, 128, 128), (90, 128, 128)))
    assert hue == HueSpread(coloured=0, spread=0, one_sided=0, residual=0)
    assert hue.is_greyscale


def test_greyscale_bears_one_percent_of_colour():
    picture = stored((100, 128, 128), side=100)
    picture[1, 0] = 128 + 50  # one row of a hundred
    assert hue_spread(picture).is_greyscale
    picture[1, 1, 0] = 128 + 50
    assert not hue_spread(picture).is_greyscale


def test_residual_of_independent_colours_does_not_depend_on_the_size():
    """With fewer pixels than levels of L, a group of one pixel must not count as explained."""
    rng = np.random.default_rng(0)
    for side in (16, 24, 32):
        lab_u8 = np.stack([
            rng.integers(20, 220, (side, side)),
            *rng.normal(128, 12, (2, side, side)).clip(0, 255),
        ]).astype(np.uint8)  # fmt: skip
        assert hue_spread(lab_u8).residual == pytest.approx(12 * np.sqrt(2), rel=0.12), side


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([(20, 20), (64, 96), (75, 33), (256, 256)]))
def test_residual_agrees_with_a_loop_over_cells(seed: int, shape: tuple[int, int]):
    """Cells of whole pixels, 32 per side or one per pixel; pixels near white are left out."""
    rng = np.random.default_rng(seed)
    lab_u8 = rng.integers(rng.integers(0, 200), 256, (3, *shape)).astype(np.uint8)
    rows, columns = (np.linspace(0, n, min(n, 32) + 1).astype(int) for n in shape)
    cells = [
        lab_u8[:, top:bottom, left:right].reshape(3, -1).astype(float)
        for top, bottom in pairwise(rows)
        for left, right in pairwise(columns)
    ]
    dark = [cell[:, cell[0] < 232] for cell in cells]
    enough = [few for few, cell in zip(dark, cells, strict=True) if few.size > cell.size / 4]
    means = np.array([c.mean(1) for c in (enough if len(enough) >= len(cells) / 4 else cells)])
    group = np.rint(means[:, 0] / 2)
    within = sum(((m - m.mean(0)) ** 2).sum() for g in set(group) for m in [means[group == g, 1:]])
    expected = np.sqrt(within / max(len(means) - len(set(group)), 1))
    assert hue_spread(lab_u8).residual == pytest.approx(expected, rel=1e-9, abs=1e-6)


def test_a_white_picture_has_a_residual_too():
    white = stored((250, 140, 128), (250, 116, 128))
    assert hue_spread(white).residual == pytest.approx(12, rel=0.01)
    assert not hue_spread(white).is_single_hue


# Renderings of real photos


def _photos():
    china, flower = load_sample_images().images
    photos = {name: getattr(data, name)() for name in ("astronaut", "coffee", "chelsea")}
    return {**photos, "china": china, "flower": flower}


PHOTOS = _photos()


def reason_of(data: bytes, size: int) -> str | None:
    try:
        make_sample(data, SampleSettings(size=size))
    except PhotoRefused as refusal:
        return refusal.reason.value
    return None


@pytest.mark.parametrize("quality", [None, 75])
@pytest.mark.parametrize("tone", TONED)
def test_toned_prints_are_refused(tone: str, quality: int | None):
    for name, photo in PHOTOS.items():
        assert reason_of(encoded(TONED[tone](photo), quality), 256) == Reason.SINGLE_HUE, name


@pytest.mark.parametrize("size", [64, 128, 300])
def test_toned_prints_are_refused_at_every_size(size: int):
    for tone in ("sepia-1.0", "cyanotype-deep", "duotone-violet-peach"):
        for name, photo in PHOTOS.items():
            assert reason_of(encoded(TONED[tone](photo), 75), size) == Reason.SINGLE_HUE, name


def test_a_trace_of_sepia_is_refused_too():
    for name, photo in PHOTOS.items():
        for quality in (None, 75):
            data = encoded(sepia(photo, 0.2), quality)
            assert reason_of(data, 256) in {Reason.SINGLE_HUE, Reason.GREYSCALE}, name


@pytest.mark.parametrize("quality", [None, 75])
def test_grey_stored_as_rgb_is_refused(quality: int | None):
    for name, photo in PHOTOS.items():
        grey = np.repeat(in_bytes(grey_of(photo)), 3, axis=2)
        assert reason_of(encoded(grey, quality), 256) == Reason.GREYSCALE, name


def test_sensor_noise_does_not_colour_a_grey_photo():
    """Noise of 2 levels per pixel; of 4 if JPEG compression and a smaller size average it."""
    rng = np.random.default_rng(0)
    for name, photo in PHOTOS.items():
        crop = grey_of(photo)[:256, :256] + rng.normal(0, 2, (256, 256, 3))
        assert reason_of(encoded(in_bytes(crop), None), 256) == Reason.GREYSCALE, name
        whole = in_bytes(grey_of(photo) + rng.normal(0, 4, photo.shape))
        assert reason_of(encoded(whole, 75), 256) == Reason.GREYSCALE, name


@pytest.mark.parametrize("size", [16, 32, 64, 256])
@pytest.mark.parametrize("quality", [None, 75])
def test_colour_originals_are_kept(size: int, quality: int | None):
    for name, photo in PHOTOS.items():
        assert reason_of(encoded(photo, quality), size) is None, name


def test_dull_photos_are_not_colorful():
    for name, photo in PHOTOS.items():
        dull = in_bytes(0.85 * grey_of(photo) + 0.15 * photo)
        verdict = reason_of(encoded(dull, None), 128)
        assert verdict in {Reason.NOT_COLORFUL, Reason.SINGLE_HUE, Reason.GREYSCALE}, name
    dull = in_bytes(0.75 * grey_of(PHOTOS["china"]) + 0.25 * PHOTOS["china"])
    assert reason_of(encoded(dull, None), 128) == Reason.NOT_COLORFUL


def test_the_docstring_of_toned_residual_holds():
    before, after = [], []
    for photo in PHOTOS.values():
        assert hue_spread(encode_lab(square(photo, 256))).residual > 7
        for render in TONED.values():
            picture = render(photo)
            decoded = through_jpeg(picture, 75)
            before.append(hue_spread(encode_lab(square(picture, 256))).residual)
            after.append(hue_spread(encode_lab(square(decoded, 256))).residual)
    assert max(before) < TONED_RESIDUAL
    assert np.median(before) < 0.5
    assert max(after) < 2.7
    assert np.percentile(after, 95) < 1.5
    assert np.median(after) < 1.0

import math

import pytest
import torch
from torch import Tensor

from colorcore.color.lab import lab_to_rgb, rgb_to_lab
from colorcore.step.augment import augment, bend_lightness, jitter_light


def photos(batch: int, height: int = 12, width: int = 12, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    low, high = torch.tensor([0.0, -110.0, -110.0]), torch.tensor([100.0, 110.0, 110.0])
    share = torch.rand(batch, 3, height, width, generator=generator)
    return low[:, None, None] + share * (high - low)[:, None, None]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def ramps(batch: int, size: int) -> Tensor:
    """L is the column's number, a the row's, b their sum."""
    column = torch.arange(size, dtype=torch.float32).expand(size, size)
    return torch.stack([column, column.T, column + column.T]).expand(batch, 3, size, size)


def test_nothing_asked_is_nothing_done():
    lab = photos(2)
    assert augment(lab, flip=False, crop=None) is lab


def test_a_flip_is_the_mirror_image_or_the_photo_itself():
    lab = photos(64, 5, 7)
    out = augment(lab, flip=True, crop=None, generator=seeded())
    flipped = [torch.equal(o, p.flip(-1)) for o, p in zip(out, lab, strict=True)]
    kept = [torch.equal(o, p) for o, p in zip(out, lab, strict=True)]
    assert all(f != k for f, k in zip(flipped, kept, strict=True))
    assert any(flipped)
    assert any(kept)


def test_half_of_the_photos_are_flipped():
    """Binomial with n = 10,000: five standard deviations are 250."""
    lab = torch.arange(2.0).expand(10_000, 3, 1, 2)
    flipped = int(augment(lab, flip=True, crop=None, generator=seeded())[:, 0, 0, 0].sum())
    assert abs(flipped - 5000) < 250


def test_the_batch_that_came_in_stays_as_it_was():
    lab = photos(4)
    before = lab.clone()
    augment(lab, flip=True, crop=0.5, generator=seeded())
    assert torch.equal(lab, before)


@pytest.mark.parametrize("crop", [0.01, 0.5, 0.9])
@pytest.mark.parametrize("flip", [True, False])
def test_a_crop_keeps_the_shape_and_invents_no_colour(flip: bool, crop: float):
    lab = photos(32, 12, 20)
    out = augment(lab, flip=flip, crop=crop, generator=seeded())
    assert out.shape == lab.shape
    assert out.dtype == lab.dtype
    bounds = {"dim": (2, 3), "keepdim": True}
    assert (out >= lab.amin(**bounds) - 1e-4).all()
    assert (out <= lab.amax(**bounds) + 1e-4).all()


def test_a_crop_of_one_is_the_whole_photo():
    lab = photos(4)
    out = augment(lab, flip=False, crop=1.0, generator=seeded())
    torch.testing.assert_close(out, lab, atol=1e-3, rtol=0)


def test_a_flip_with_a_crop_is_a_mirrored_crop():
    """The same draws with and without flips: each photo's crop is the same, or its mirror."""
    lab = photos(32)
    cropped = augment(lab, flip=False, crop=0.6, generator=seeded())
    both = augment(lab, flip=True, crop=0.6, generator=seeded())
    alone = augment(lab, flip=True, crop=None, generator=seeded())
    mirrored = [not torch.equal(o, p) for o, p in zip(alone, lab, strict=True)]
    assert 0 < sum(mirrored) < len(lab)
    for out, crop, mirror in zip(both, cropped, mirrored, strict=True):
        torch.testing.assert_close(out, crop.flip(-1) if mirror else crop, atol=1e-3, rtol=0)


def test_a_crop_of_a_ramp_is_its_part_of_the_ramp():
    """By hand: a crop that starts at pixel edge x0 and is s·n wide has, at output pixel i, the
    ramp's value at x0 + s·(i + ½) − ½: a ramp again, of slope s, up to where photos end."""
    size, smallest = 16, 0.5
    out = augment(ramps(200, size), flip=False, crop=smallest, generator=seeded())
    middle = slice(1, -1)  # at its edge a photo is continued by its last pixel, not by the ramp
    slope = out.diff(dim=3)[:, 0, middle, middle]
    side = slope.mean((1, 2))
    torch.testing.assert_close(slope, side[:, None, None].expand_as(slope), atol=1e-4, rtol=0)
    for photo, s in zip(out, side, strict=True):
        first = photo[0, 1, 1] - 1.5 * s + 0.5, photo[1, 1, 1] - 1.5 * s + 0.5  # x0 and y0
        at = s * (torch.arange(size) + 0.5) - 0.5
        columns, rows = ((start + at).clamp(0, size - 1) for start in first)
        expected = torch.stack(
            [columns.expand(size, size), rows.expand(size, size).T, columns + rows[:, None]]
        )
        torch.testing.assert_close(photo, expected, atol=2e-4, rtol=0)
        assert all(-1e-3 <= start <= size * (1 - s) + 1e-3 for start in first)  # inside the photo


def test_crops_are_as_large_and_where_they_should_be():
    """Sides are uniform in 0.5..1; the centre has all the room that a side leaves."""
    size = 64
    out = augment(ramps(2000, size), flip=False, crop=0.5, generator=seeded())
    side = out[:, 0].diff(dim=2)[:, 1:-1, 1:-1].mean((1, 2))
    assert 0.5 <= side.min() < 0.51
    assert 0.99 < side.max() <= 1.0001
    assert side.mean() == pytest.approx(0.75, abs=5 * 0.144 / 2000**0.5)
    room = size * (1 - side)
    for channel in (0, 1):
        start = out[:, channel, 1, 1] - 1.5 * side + 0.5
        share = (start / room)[room > 8]
        assert share.min() < 0.02
        assert share.max() > 0.98
        assert share.mean() == pytest.approx(0.5, abs=5 * 0.289 / len(share) ** 0.5)


@pytest.mark.parametrize("crop", [None, 0.5])
def test_random_numbers_come_from_the_generator_alone(crop: float | None):
    lab = photos(8)
    torch.manual_seed(1)
    first = augment(lab, flip=True, crop=crop, generator=seeded(5))
    after = torch.rand(1)
    torch.manual_seed(2)
    again = augment(lab, flip=True, crop=crop, generator=seeded(5))
    other = augment(lab, flip=True, crop=crop, generator=seeded(6))
    torch.manual_seed(1)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(after, torch.rand(1))


def test_a_photo_does_not_get_the_draws_of_its_neighbour():
    lab = photos(1).expand(8, -1, -1, -1)
    out = augment(lab, flip=False, crop=0.5, generator=seeded())
    assert len({tuple(photo.flatten().tolist()) for photo in out}) == 8


# Light


def test_light_changes_as_kornia_changes_it():
    from kornia.enhance import (
        adjust_brightness_accumulative,
        adjust_contrast_with_mean_subtraction,
        adjust_saturation_with_gray_subtraction,
    )

    rgb = torch.rand(6, 3, 9, 11, generator=seeded(1))
    factors = 0.4 + 1.2 * torch.rand(6, 3, generator=seeded(2))
    brightness, contrast, saturation = factors.unbind(1)
    expected = adjust_brightness_accumulative(rgb, brightness)
    expected = adjust_contrast_with_mean_subtraction(expected, contrast)
    expected = adjust_saturation_with_gray_subtraction(expected, saturation)
    torch.testing.assert_close(jitter_light(rgb, factors), expected, atol=1e-5, rtol=0)


def test_light_by_hand():
    """One pixel, so that contrast works on its own grey: .299 · .2 + .587 · .4 + .114 · .6."""
    rgb = torch.tensor([0.2, 0.4, 0.6]).reshape(1, 3, 1, 1)
    grey = 0.363
    for factors, expected in (
        ((1.0, 1.0, 1.0), [0.2, 0.4, 0.6]),
        ((2.0, 1.0, 1.0), [0.4, 0.8, 1.0]),
        ((1.0, 1.0, 0.0), [grey] * 3),
        ((1.0, 0.5, 1.0), [(v + grey) / 2 for v in (0.2, 0.4, 0.6)]),
    ):
        out = jitter_light(rgb, torch.tensor([factors])).flatten().tolist()
        assert out == pytest.approx(expected, abs=1e-3)


def test_jitter_draws_factors_for_each_photo_within_its_bounds():
    """A grey photo of one shade keeps its chroma, and its brightness differs by the factor."""
    lab = rgb_to_lab(torch.full((400, 3, 4, 4), 0.5))
    shades = lab_to_rgb(augment(lab, flip=False, crop=None, jitter=0.3, generator=seeded()))
    assert (shades - shades.mean(1, keepdim=True)).abs().max() < 1e-3
    factors = shades[:, 0, 0, 0] / 0.5
    assert float(factors.min()) == pytest.approx(0.7, abs=0.01)
    assert float(factors.max()) == pytest.approx(1.3, abs=0.01)
    again = augment(lab, flip=False, crop=None, jitter=0.3, generator=seeded())
    torch.testing.assert_close(lab_to_rgb(again), shades, atol=0, rtol=0)


def test_jitter_leaves_the_draws_of_flips_and_crops_as_they_were():
    lab = rgb_to_lab(torch.rand(8, 3, 12, 12, generator=seeded(3)))
    plain = augment(lab, flip=True, crop=0.5, generator=seeded())
    jittered = augment(lab, flip=True, crop=0.5, jitter=1e-6, generator=seeded())
    torch.testing.assert_close(jittered, plain, atol=1e-2, rtol=0)


def test_the_tone_curve_is_a_power_between_black_and_white():
    """100 · (L/100)^γ by hand, at L = 0, 25 and 100; a and b stay, for every photo its own γ."""
    lab = torch.tensor([0.0, 25.0, 100.0]).expand(2, 3, 3)[:, :, None, :].clone()
    lab[:, 1:] = torch.tensor([[-40.0, 0.0, 70.0], [5.0, 6.0, 7.0]])[:, None]
    out = bend_lightness(lab, torch.tensor([0.5, 2.0]))
    torch.testing.assert_close(out[0, 0, 0], torch.tensor([0.0, 50.0, 100.0]))
    torch.testing.assert_close(out[1, 0, 0], torch.tensor([0.0, 6.25, 100.0]))
    assert torch.equal(out[:, 1:], lab[:, 1:])


def test_gamma_is_drawn_evenly_on_a_log_scale_within_its_bounds():
    lab = torch.zeros(2000, 3, 2, 2)
    lab[:, 0] = 50.0
    out = augment(lab, flip=False, crop=None, gamma=1.0, generator=seeded())
    exponents = (out[:, 0, 0, 0] / 100).log() / math.log(0.5)
    logs = exponents.log2()  # even on -1..1, whose mean is 0 and standard deviation 1/sqrt(3)
    assert -1.0001 <= float(logs.min()) < -0.99
    assert 0.99 < float(logs.max()) <= 1.0001
    assert float(logs.mean()) == pytest.approx(0.0, abs=0.05)
    assert float(logs.std()) == pytest.approx(3**-0.5, abs=0.02)


def test_gamma_leaves_the_draws_of_flips_and_crops_as_they_were():
    lab = rgb_to_lab(torch.rand(8, 3, 12, 12, generator=seeded(3)))
    plain = augment(lab, flip=True, crop=0.5, generator=seeded())
    bent = augment(lab, flip=True, crop=0.5, gamma=1e-6, generator=seeded())
    torch.testing.assert_close(bent, plain, atol=1e-2, rtol=0)
    assert not torch.equal(augment(lab, flip=True, crop=0.5, gamma=0.5, generator=seeded()), plain)

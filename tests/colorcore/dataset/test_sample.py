"""From a photo to a sample or a reason: the order of the reasons, and the split."""

import hashlib
from itertools import pairwise

import numpy as np
import pytest
from pydantic import ValidationError

from colorcore.color.colorfulness import colorfulness
from colorcore.color.lab import encode_lab
from colorcore.dataset.layout import SampleSettings
from colorcore.dataset.sample import lab_of, make_sample, split_of
from colorcore.photos.read import read_photo
from colorcore.photos.refusal import PhotoRefused, Reason
from colorcore.photos.square import square

SIZE = 64
SETTINGS = SampleSettings(size=SIZE)
HASHES = [hashlib.sha256(b"%d" % i).hexdigest() for i in range(20_000)]


def refusal(data: bytes, **settings) -> PhotoRefused:
    with pytest.raises(PhotoRefused) as error:
        make_sample(data, SampleSettings(**{"size": SIZE, **settings}))
    return error.value


# The split


@pytest.mark.parametrize("percent", [0.5, 5, 30, 50, 99])
def test_the_split_has_its_share(percent: float):
    share = np.mean([split_of(sha256, percent) == "val" for sha256 in HASHES])
    assert share == pytest.approx(percent / 100, abs=4 * (0.25 / len(HASHES)) ** 0.5)


def test_without_val_percent_all_is_train():
    assert {split_of(sha256, 0) for sha256 in [*HASHES, "0" * 64]} == {"train"}


def test_a_photo_in_val_stays_there_when_the_share_grows():
    chosen = [{h for h in HASHES if split_of(h, percent) == "val"} for percent in (1, 5, 10, 20)]
    for smaller, larger in pairwise(chosen):
        assert smaller < larger


def test_the_split_is_the_same_for_ever():
    """Fixed values: another rule would move photos of existing datasets."""
    lowest, highest = "0" * 64, "f" * 64
    assert split_of(lowest, 0.001) == "val"
    assert split_of(highest, 99.9) == "train"
    edge = f"{round(0.05 * 2**32):08x}" + "0" * 56
    below = f"{round(0.05 * 2**32) - 1:08x}" + "f" * 56
    assert split_of(edge, 5) == "train"
    assert split_of(below, 5) == "val"


# The sample


def test_a_sample_has_the_photos_facts(scene, jpeg):
    data = jpeg(scene(1, 96, 160))
    sample = make_sample(data, SETTINGS)
    rgb = square(read_photo(data, min_size=SIZE).rgb, SIZE)
    np.testing.assert_array_equal(sample.lab_u8, encode_lab(rgb))
    assert sample.lab_u8.shape == (3, SIZE, SIZE)
    assert (sample.width, sample.height) == (160, 96)
    assert sample.sha256 == hashlib.sha256(data).hexdigest()
    assert sample.split == split_of(sample.sha256, SETTINGS.val_percent)
    cf = colorfulness(rgb.transpose(2, 0, 1).astype(np.float64))
    assert sample.colorfulness == pytest.approx(cf, abs=0.006)
    assert sample.facts() == {
        "width": 160,
        "height": 96,
        "colorfulness": sample.colorfulness,
        "sha256": sample.sha256,
    }


def test_lab_of_is_the_same_picture_without_a_filter(scene, jpeg):
    data = jpeg(scene(2))
    np.testing.assert_array_equal(
        lab_of(data, SIZE, SETTINGS.limits), make_sample(data, SETTINGS).lab_u8
    )
    grey = jpeg(np.full((80, 80, 3), 90, np.uint8))
    assert (lab_of(grey, SIZE, SETTINGS.limits)[1:] == 128).all()
    with pytest.raises(PhotoRefused):
        lab_of(b"", SIZE, SETTINGS.limits)


# The reasons, in order: a photo that breaks several rules is refused by the first


def test_file_and_limits_come_before_colours(jpeg):
    assert refusal(b"").reason == Reason.EMPTY
    small_and_grey = jpeg(np.full((20, 200, 3), 90, np.uint8))
    assert refusal(small_and_grey, max_bytes=10).reason == Reason.TOO_LARGE
    assert refusal(small_and_grey, max_pixels=100).reason == Reason.BOMB
    assert refusal(small_and_grey).reason == Reason.TOO_SMALL
    assert refusal(small_and_grey, min_side=8).reason == Reason.TOO_NARROW
    assert refusal(small_and_grey, min_side=8, max_aspect=10).reason == Reason.GREYSCALE


def test_greyscale_comes_before_single_hue_before_not_colorful(scene, jpeg):
    grey = scene(3).mean(axis=2, keepdims=True)
    toned = (grey * [1.0, 0.8, 0.5]).astype(np.uint8)
    dull = (115 + 0.09 * scene(4)).astype(np.uint8)
    everything = 200.0
    plain = refusal(jpeg(np.repeat(grey, 3, 2).astype(np.uint8)), min_colorfulness=everything)
    assert plain.reason == Reason.GREYSCALE
    assert refusal(jpeg(toned), min_colorfulness=everything).reason == Reason.SINGLE_HUE
    assert refusal(jpeg(dull)).reason == Reason.NOT_COLORFUL
    assert make_sample(jpeg(dull), SampleSettings(size=SIZE, min_colorfulness=0)).colorfulness < 15


def test_details_say_what_was_expected_and_found(scene, jpeg):
    detail = refusal(jpeg(scene(5)), min_colorfulness=190).detail
    cf = make_sample(jpeg(scene(5)), SETTINGS).colorfulness
    assert detail == f"colorfulness {cf:.1f}, expected at least 190"
    grey = refusal(jpeg(np.full((80, 80, 3), 90, np.uint8)))
    assert "0.0% of the pixels" in grey.detail


@pytest.mark.parametrize(
    "wrong",
    [
        {"size": 8},
        {"val_percent": 100},
        {"val_percent": -1},
        {"min_colorfulness": -1},
        {"max_aspect": 0.5},
        {"sise": 64},
    ],
)
def test_settings_are_checked(wrong):
    with pytest.raises(ValidationError):
        SampleSettings(**wrong)

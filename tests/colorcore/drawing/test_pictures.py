"""Pictures: their shapes and bytes, and triptychs against scikit-image."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.color import lab2rgb, rgb2lab

from colorcore.color.fit_palette import fit_palette
from colorcore.drawing.palette_plot import display_rgb, draw_palette
from colorcore.drawing.triptychs import GAP, triptychs
from colorcore.photos.write import save_picture


def photos(count=2, height=24, width=32, seed=0):
    """Lab (B, 3, H, W) of made-up photos: smooth gradients of colour."""
    rng = np.random.default_rng(seed)
    corners = torch.from_numpy(rng.random((count, 3, 2, 2), dtype=np.float32))
    rgb = torch.nn.functional.interpolate(corners, (height, width), mode="bilinear")
    lab = rgb2lab(rgb.permute(0, 2, 3, 1).numpy())
    return torch.from_numpy(lab).permute(0, 3, 1, 2).float()


def histogram():
    axis = np.arange(256) - 128
    radius = np.hypot(axis[:, None] - 3, axis[None] - 8)
    return (1e6 * np.exp(-radius / 8)).astype(np.int64)


# Triptychs


def test_columns_are_grey_predicted_and_truth():
    true, predicted = photos(seed=0), photos(seed=1)
    picture = triptychs(predicted, true)
    assert picture.shape == (2 * 24 + GAP, 3 * 32 + 2 * GAP, 3)
    assert picture.dtype == np.uint8
    for n in range(2):
        row = picture[n * (24 + GAP) :][:24].astype(int)
        grey, middle, right = (row[:, k * (32 + GAP) :][:, :32] for k in range(3))
        assert np.ptp(grey, axis=-1).max() <= 1
        for column, lab in ((middle, predicted[n]), (right, true[n])):
            expected = lab2rgb(lab.permute(1, 2, 0).double().numpy())
            assert np.abs(column / 255 - expected).max() <= 1 / 255
        neutral = true[n].double().clone()
        neutral[1:] = 0
        expected = lab2rgb(neutral.permute(1, 2, 0).numpy())
        assert np.abs(grey / 255 - expected).max() <= 1.01 / 255
    assert (picture[24 : 24 + GAP] == 255).all()
    assert (picture[:, 32 : 32 + GAP] == 255).all()


def test_triptychs_leave_their_input_alone_and_repeat_themselves():
    true, predicted = photos(seed=0), photos(seed=1).requires_grad_()
    before = true.clone()
    first = triptychs(predicted, true, labels=["one", "two"])
    assert torch.equal(true, before)
    np.testing.assert_array_equal(first, triptychs(predicted, true, labels=["one", "two"]))


def test_colours_outside_srgb_are_clipped():
    lab = torch.tensor([60.0, 127.0, -127.0]).reshape(1, 3, 1, 1).expand(1, 3, 4, 4)
    assert triptychs(lab, lab).shape == (4, 12 + 2 * GAP, 3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_any_floating_type_will_do(dtype):
    true = photos()
    picture = triptychs(true.to(dtype), true)
    assert np.abs(picture.astype(int) - triptychs(true, true)).max() <= 12


def test_scale_and_labels_change_the_size():
    true = photos(count=3)
    assert triptychs(true, true, scale=0.5).shape == (3 * 12 + 2 * GAP, 3 * 16 + 2 * GAP, 3)
    assert triptychs(true, true, scale=2).shape == (3 * 48 + 2 * GAP, 3 * 64 + 2 * GAP, 3)
    plain = triptychs(true, true)
    labelled = triptychs(true, true, labels=["a fish", "a very long name " * 9, ""])
    strip = (labelled.shape[0] - plain.shape[0]) // 3
    assert strip > 8
    assert labelled.shape[1] == plain.shape[1]
    np.testing.assert_array_equal(labelled[:24], plain[:24])
    assert (labelled[24 : 24 + strip] < 128).any()  # ink


@pytest.mark.parametrize(
    ("pred", "true", "options", "message"),
    [
        ((1, 3, 4, 4), (2, 3, 4, 4), {}, r"got \(1, 3, 4, 4\) and \(2, 3, 4, 4\)"),
        ((1, 2, 4, 4), (1, 2, 4, 4), {}, "of one shape"),
        ((3, 4, 4), (3, 4, 4), {}, "of one shape"),
        ((0, 3, 4, 4), (0, 3, 4, 4), {}, "one or more photos"),
        ((2, 3, 4, 4), (2, 3, 4, 4), {"labels": ["one"]}, "a label each, got 2 and 1"),
        ((2, 3, 4, 4), (2, 3, 4, 4), {"scale": 0.0}, "scale must be above 0"),
    ],
)
def test_wrong_calls(pred, true, options, message):
    with pytest.raises(ValueError, match=message):
        triptychs(torch.zeros(pred), torch.zeros(true), **options)


# PNG


def test_save_picture_keeps_every_pixel_and_repeats_its_bytes(tmp_path):
    rgb = np.random.default_rng(0).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    for name in ("one", "two"):
        save_picture(tmp_path / "new" / f"{name}.png", rgb)
    with Image.open(tmp_path / "new" / "one.png") as image:
        np.testing.assert_array_equal(np.asarray(image), rgb)
        assert image.info == {}
    assert (tmp_path / "new" / "one.png").read_bytes() == (
        tmp_path / "new" / "two.png"
    ).read_bytes()
    with pytest.raises(ValueError, match=r"expected a picture \(H, W, 3\) uint8"):
        save_picture(tmp_path / "bad.png", rgb[..., 0])


# Palette


def test_display_colours_have_the_hue_that_was_asked_for():
    ab = np.array([(0.0, 0.0), (60.0, 40.0), (50.0, -90.0), (-30.0, 90.0)])
    rgb = display_rgb(ab)
    assert np.ptp(rgb[0]) < 0.01
    np.testing.assert_allclose(rgb2lab(rgb[None])[0][:, 1:], ab, atol=0.3)
    outside = np.array([(-120.0, 0.0)])
    assert np.isnan(display_rgb(outside)).all()
    clipped = rgb2lab(display_rgb(outside, clip=True)[None])[0, 0]
    assert clipped[1] < -30
    assert abs(clipped[2]) < 1


@pytest.mark.parametrize(
    "options",
    [
        {"bins": 12, "method": "grid"},
        {"centroids": [(-128.0, -128.0), (127.0, 0.0)]},  # outside the gamut
    ],
)
def test_any_palette_can_be_drawn(tmp_path, options):
    (tmp_path / "palette.png").write_bytes(
        draw_palette(fit_palette(histogram(), **options), histogram())
    )
    with Image.open(tmp_path / "palette.png") as image:
        assert image.width == 1600
        assert image.height > 800
        assert "Software" not in image.info
        assert "Creation Time" not in image.info


def test_one_colour_can_be_drawn(tmp_path):
    lonely = np.zeros((256, 256), np.int64)
    lonely[140, 150] = 1
    (tmp_path / "palette.png").write_bytes(draw_palette(fit_palette(lonely, bins=1), lonely))
    assert (tmp_path / "palette.png").stat().st_size > 0


DRAW = """
import sys
from pathlib import Path
import numpy as np
from colorcore.color.fit_palette import fit_palette
from colorcore.drawing.palette_plot import draw_palette
histogram = np.load(sys.argv[1])
palette = fit_palette(histogram, bins=32)
Path(sys.argv[2]).write_bytes(draw_palette(palette, histogram))
print("matplotlib.pyplot" in sys.modules)
"""


@pytest.mark.slow
def test_the_same_palette_gives_the_same_picture_whatever_the_users_style(tmp_path):
    from matplotlib import rc_context

    np.save(tmp_path / "histogram.npy", histogram())
    arguments = [str(tmp_path / "histogram.npy"), str(tmp_path / "one.png")]
    process = subprocess.run(
        [sys.executable, "-c", DRAW, *arguments], capture_output=True, text=True, check=True
    )
    assert process.stdout == "False\n"
    palette = fit_palette(histogram(), bins=32)
    with rc_context({"font.size": 20, "axes.facecolor": "red", "savefig.dpi": 30}):
        (tmp_path / "two.png").write_bytes(draw_palette(palette, histogram()))
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()

"""The picture of a palette: its colours, and the same bytes whatever the user's style."""

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from skimage.color import rgb2lab

from colorcore.color.fit_palette import fit_palette
from colorcore.drawing.palette_plot import display_rgb, draw_palette


def histogram():
    axis = np.arange(256) - 128
    radius = np.hypot(axis[:, None] - 3, axis[None] - 8)
    return (1e6 * np.exp(-radius / 8)).astype(np.int64)


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

"""Pictures on disk: every pixel, the same bytes, no metadata."""

import numpy as np
import pytest
from PIL import Image

from colorcore.photos.write import save_picture


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

"""Pictures on disk: every pixel, the same bytes, no metadata but the software's name."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from colorcore.photos import write
from colorcore.photos.write import (
    COLORIZED,
    DRAWN,
    PICTURE_SUFFIXES,
    EncoderLimitError,
    check_encodable,
    made_by,
    save_picture,
)


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


@pytest.mark.parametrize("suffix", PICTURE_SUFFIXES)
def test_a_picture_names_the_software_that_made_it(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    rgb = np.full((5, 7, 3), 90, np.uint8)
    for software in (DRAWN, COLORIZED):
        save_picture(path, rgb, software=software)
        assert [made_by(path, each) for each in (DRAWN, COLORIZED)] == [
            software == DRAWN,
            software == COLORIZED,
        ]
        with Image.open(path) as image:
            assert image.size == (7, 5)
    save_picture(path, rgb)
    assert not made_by(path, DRAWN)


def test_other_files_are_made_by_nobody(tmp_path):
    (tmp_path / "words.png").write_bytes(b"colorcore")
    (tmp_path / "folder.png").mkdir()
    for name in ("words.png", "folder.png", "gone.png"):
        assert not made_by(tmp_path / name, DRAWN)


@pytest.mark.parametrize(("suffix", "most"), [(".webp", 16_383), (".jpg", 65_500)])
def test_the_limits_are_those_of_the_encoders(tmp_path, suffix, most, monkeypatch):
    save_picture(tmp_path / f"a{suffix}", np.zeros((1, most, 3), np.uint8))
    check_encodable(suffix, most, most)
    check_encodable(".png", 10 * most, 10 * most)
    for refuse in (
        lambda: check_encodable(suffix, most + 1, 1),
        lambda: check_encodable(suffix, 1, most + 1),
        lambda: save_picture(tmp_path / f"b{suffix}", np.zeros((most + 1, 1, 3), np.uint8)),
    ):
        with pytest.raises(EncoderLimitError, match=f"{most:,} pixels per side"):
            refuse()
    monkeypatch.setattr(write, "_LONGEST_SIDE", {})
    with pytest.raises(EncoderLimitError, match="to fit into"):
        save_picture(tmp_path / f"b{suffix}", np.zeros((1, most + 1, 3), np.uint8))
    assert [path.name for path in tmp_path.iterdir()] == [f"a{suffix}"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, error):
    (tmp_path / "a.png").write_bytes(b"old")
    whole = Path.write_bytes

    def half(path, data):
        whole(path, data[: len(data) // 2])
        raise error

    monkeypatch.setattr(Path, "write_bytes", half)
    with pytest.raises(type(error)):
        save_picture(tmp_path / "a.png", np.zeros((9, 9, 3), np.uint8))
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
    assert (tmp_path / "a.png").read_bytes() == b"old"

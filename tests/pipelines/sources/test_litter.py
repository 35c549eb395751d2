"""What file systems and photo programs leave next to photos is skipped and counted, not refused."""

from __future__ import annotations

import struct
import subprocess
import tarfile
from collections import Counter
from pathlib import Path

import pytest

from colorcore.photos.refusal import PhotoRefused
from pipelines.errors import JobError
from pipelines.sources.listing import list_photos
from pipelines.sources.litter import litter_file, litter_folder, litter_in
from pipelines.sources.reading import photos_of, read_photos
from pipelines.sources.source import PlannedPhoto, open_sources
from tests.conftest import jpeg, scene
from tests.pipelines.sources.files import BIG, make, names


def apple_double() -> bytes:
    """What macOS 13 writes next to a photo with a quarantine attribute, by RFC 1740's layout.

    Two entries, Finder info (9) and a resource fork (2) of 286 bytes that says that it is blank.
    """
    header = struct.pack(">II16sH", 0x00051607, 0x00020000, b"Mac OS X        ", 2)
    entries = struct.pack(">IIIIII", 9, 50, 3760, 2, 3810, 286)
    finder = bytes(34) + b"ATTR" + bytes(3760 - 38)
    blank = b"This resource fork intentionally left blank   "
    return header + entries + finder + bytes(16) + blank + bytes(286 - 16 - len(blank))


def counted(*sources: Path) -> tuple[list[str], Counter[str]]:
    ignored: Counter[str] = Counter()
    found = list(list_photos(open_sources(sources), ignored))
    return [photo.source for photo in found], ignored


# Names


@pytest.mark.parametrize(
    "path",
    [
        "a/._b.jpg", "._b.tar", "__MACOSX/a/b.jpg", "a/.AppleDouble/b.jpg", ".DS_Store",
        "a/@eaDir/b.jpg/SYNOPHOTO_THUMB_XL.jpg", "a/SYNOFILE_THUMB_M.jpg", ".@__thumb/b.jpg",
        "Thumbs.db", "thumbs.DB", "$RECYCLE.BIN/S-1-5/$R1.jpg", "$Recycle.Bin/a.jpg",
        ".Trash-1000/files/b.jpg", ".Trashes/501/b.jpg", "a/.local/share/Trash/files/b.jpg",
        "DCIM/.thumbnails/1.jpg", ".thumbs/1.jpg", "home/.cache/thumbnails/large/1.png",
        "a.photoslibrary/resources/derivatives/1/1_105_c.jpeg", "a.photolibrary/Thumbnails/1.jpg",
        "a/.picasaoriginals/b.jpg", "a/[Originals]/b.jpg", "C Previews.lrdata/1/2.jpg",
        "mipmaps-0123.d/3/1.jpg", "appdata_oc1/preview/1.png", "#recycle/b.jpg", "@Recycle/b.jpg",
        "ehthumbs.db", "ehthumbs_vista.db", "Desktop.ini", "a/.xvpics/b.jpg",
        "a/.sh_thumbnails/large/b.png", ".Trash/b.jpg", "a/.dtrash/files/b.jpg",
        "a.migratedphotolibrary/Previews/1.jpg", "a.aplibrary/Thumbnails/1.jpg",
        "a.photoslibrary/Modified/1.jpg", "a.photolibrary/Data/1.jpg", "a.aplibrary/Data.noindex/1",
    ],
)  # fmt: skip
def test_litter_is_known_by_its_name(path: str) -> None:
    assert litter_in(path) is not None


@pytest.mark.parametrize(
    "path",
    [
        "a.jpg", ".hidden.jpg", "_a.jpg", "thumbnails/1.jpg", "thumbnails128x128/1.png",
        "Trash/1.jpg", "Originals/1.jpg", "originals/1.jpg", "resources/1.jpg", "preview/1.jpg",
        "a.photoslibrary/originals/0/1.jpeg", "a.photolibrary/Masters/1.jpg", "thumbs.db.jpg",
        "O/1.jpg", "recycle/1.jpg", "mipmaps-1/foo.d/1.jpg", "appdata_x/1.jpg", "._folder/1.jpg",
    ],
)  # fmt: skip
def test_photos_are_not_taken_for_litter(path: str) -> None:
    assert litter_in(path) is None
    assert litter_file(path) is litter_folder(path.rpartition("/")[0]) is None


# Folders


def test_litter_in_a_folder_is_counted_by_kind(tmp_path: Path) -> None:
    make(
        tmp_path, "a.jpg", "._a.jpg", "._b", ".DS_Store", "b/Thumbs.db", "b/c.png",
        "@eaDir/a.jpg/SYNOPHOTO_THUMB_XL.jpg", "@eaDir/a.jpg/SYNOPHOTO_THUMB_SM.jpg",
        ".thumbnails/normal/1.png", "$RECYCLE.BIN/1/d.jpg", "notes.txt",
    )  # fmt: skip
    found, ignored = counted(tmp_path)
    assert found == ["a.jpg", "b/c.png"]
    assert ignored == {
        "._* (AppleDouble)": 2, ".DS_Store (macOS)": 1, "Thumbs.db (Windows)": 1,
        "@eaDir/ (thumbnails)": 2, ".thumb*/ (thumbnails)": 1,
        "$RECYCLE.BIN/ (deleted files)": 1, ".txt": 1,
    }  # fmt: skip


def test_a_folder_of_litter_that_is_the_source_is_read(tmp_path: Path) -> None:
    make(tmp_path, ".thumbnails/1.png", ".thumbnails/._1.png")
    assert names(tmp_path / ".thumbnails") == ["1.png"]


def test_a_link_in_litter_hides_no_photos(tmp_path: Path) -> None:
    """The walk visits each folder once, but looking into litter is no visit."""
    make(tmp_path, ".thumbs/1.png", "photos/a.jpg")
    (tmp_path / ".thumbs/link").symlink_to(tmp_path / "photos")
    (tmp_path / ".trash").symlink_to(tmp_path / "photos")
    found, ignored = counted(tmp_path)
    assert sorted(found) in (["photos/a.jpg"], [".trash/a.jpg"])
    assert ignored.total() >= 2


def test_names_alone_decide_in_folders(tmp_path: Path) -> None:
    """A photo named like AppleDouble is skipped and counted; naming it as a source takes it."""
    (tmp_path / "._real.jpg").write_bytes(jpeg(scene(1)))
    assert counted(tmp_path) == ([], Counter({"._* (AppleDouble)": 1}))
    (read,) = photos_of(open_sources([tmp_path / "._real.jpg"]), BIG, Counter())
    assert read.data() == jpeg(scene(1))


# Content


@pytest.mark.parametrize("name", ["._a.jpg", "a.jpg"])
def test_a_listed_file_that_is_apple_double_is_skipped(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(apple_double())
    (tmp_path / "b.jpg").write_bytes(b"photo")
    (tmp_path / "l.txt").write_text(f"{name}\nb.jpg\n")
    others: Counter[str] = Counter()
    read = list(photos_of(open_sources([tmp_path / "l.txt"]), BIG, others))
    assert [photo.source for photo in read] == ["b.jpg"]
    assert others == {"._* (AppleDouble)": 1}


def test_without_a_counter_nothing_is_dropped(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(apple_double())
    (read,) = read_photos(open_sources([tmp_path]), [PlannedPhoto(0, b"a.jpg")], BIG)
    assert read.data() == apple_double()


# Tars


def tree(top: Path) -> Path:
    make(top, "._0.jpg", ".DS_Store", "@eaDir/0.jpg/SYNOPHOTO_THUMB_M.jpg", "0.txt")
    (top / "0.jpg").write_bytes(jpeg(scene(0)))
    (top / "sub").mkdir()
    (top / "sub/1.jpg").write_bytes(apple_double())
    (top / "sub/link.jpg").symlink_to("../0.jpg")
    return top


EXPECTED = {
    "._* (AppleDouble)": 2, ".DS_Store (macOS)": 1, "@eaDir/ (thumbnails)": 1, ".txt": 1,
    "(links in tars)": 1,
}  # fmt: skip


def test_a_tar_by_gnu_tar(tmp_path: Path) -> None:
    tree(tmp_path / "p")
    subprocess.run(["tar", "-cf", tmp_path / "a.tar", "-C", tmp_path / "p", "."], check=True)
    others: Counter[str] = Counter()
    (read,) = photos_of(open_sources([tmp_path / "a.tar"]), BIG, others)
    assert (read.source, read.data()) == ("a.tar#./0.jpg", jpeg(scene(0)))
    assert others == EXPECTED


def test_a_tar_as_macos_packs_it(tmp_path: Path) -> None:
    """bsdtar puts the AppleDouble of a member before it, in pax format."""
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        (tmp_path / "._x").write_bytes(apple_double())
        (tmp_path / "x").write_bytes(jpeg(scene(2)))
        for name in ("a.jpg", "b/c.jpg"):
            folder, _, file = name.rpartition("/")
            tar.add(tmp_path / "._x", f"{folder}/._{file}".lstrip("/"))
            tar.add(tmp_path / "x", name)
    others: Counter[str] = Counter()
    read = list(photos_of(open_sources([tmp_path / "a.tar"]), BIG, others))
    assert [photo.source for photo in read] == ["a.tar#a.jpg", "a.tar#b/c.jpg"]
    assert not any(isinstance(photo.content, PhotoRefused) for photo in read)
    assert others == {"._* (AppleDouble)": 2}


def test_a_tar_by_webdataset(tmp_path: Path) -> None:
    from webdataset import TarWriter

    with TarWriter(str(tmp_path / "a.tar")) as sink:
        for key in range(3):
            sink.write({"__key__": f"{key:03}", "jpg": jpeg(scene(key)), "json": {"a": 1}})
            sink.write({"__key__": f"@eaDir/{key:03}", "jpg": b"thumbnail"})
    others: Counter[str] = Counter()
    assert len(list(photos_of(open_sources([tmp_path / "a.tar"]), BIG, others))) == 3
    assert others == {".json": 3, "@eaDir/ (thumbnails)": 3}


# Sources without photos


def test_a_source_without_photos_is_an_error_that_says_what_is_there(tmp_path: Path) -> None:
    make(tmp_path, "good/a.jpg", "raw/a.jxl", "raw/b.jxl", "raw/._a.jpg")
    (tmp_path / "empty").mkdir()
    subjects = [tmp_path / name for name in ("good", "raw", "empty")]
    with pytest.raises(JobError) as error:
        list(photos_of(open_sources(subjects), BIG, Counter()))
    assert str(error.value) == (
        f"expected photos in {tmp_path / 'raw'}, found none: skipped 2 .jxl, "
        "1 ._* (AppleDouble); 1 more sources have none; check the sources"
    )


@pytest.mark.parametrize("damage", [0, 700])
def test_a_damaged_tar_is_no_empty_source(tmp_path: Path, damage: int) -> None:
    make(tmp_path, "b.jxl")
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.add(tmp_path / "b.jxl", "b.jxl")
    (tmp_path / "a.tar").write_bytes((tmp_path / "a.tar").read_bytes()[:damage])
    (read,) = photos_of(open_sources([tmp_path / "a.tar"]), BIG, Counter())
    assert isinstance(read.content, PhotoRefused)

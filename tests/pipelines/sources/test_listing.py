"""The walk over folders: its order, links, odd names, and folders that cannot be listed."""

import errno
import inspect
import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import pytest

from colorcore.photos.read import PHOTO_SUFFIXES
from colorcore.photos.refusal import Reason
from colorcore.storage import local as local_store
from colorcore.storage.local import LocalStore
from pipelines.sharding.plan_file import PlanFile, write_plan
from pipelines.sources.listing import list_photos
from pipelines.sources.source import open_sources
from tests.pipelines.sources.files import content, listed, make, names, refusal

# The order


def test_the_order_is_sorted_within_each_directory(tmp_path):
    ordered = ["10.jpg", "9.jpg", "a/B.jpg", "a/a/1.jpg", "a/z.jpg", "a b/2.jpg", "a.jpg", "é.jpg"]
    make(tmp_path, *reversed(ordered))
    assert names(tmp_path) == ordered


def test_the_order_does_not_depend_on_the_file_system(tmp_path, monkeypatch):
    make(tmp_path, *(f"{folder}/{i}.jpg" for folder in "cab" for i in range(5)))
    expected = listed(tmp_path)
    scandir = os.scandir

    class Backwards:
        def __init__(self, folder):
            with scandir(folder) as entries:
                self.entries = sorted(entries, key=lambda entry: entry.name, reverse=True)

        def __enter__(self):
            return iter(self.entries)

        def __exit__(self, *_):
            pass

    monkeypatch.setattr(local_store.os, "scandir", Backwards)
    assert listed(tmp_path) == expected
    assert len(expected) == 15


def test_sources_come_in_the_order_given(tmp_path):
    one, two = make(tmp_path / "one", "a.jpg", "b.jpg"), make(tmp_path / "two", "a.jpg")
    assert listed(two, one) == [(0, b"a.jpg"), (1, b"a.jpg"), (1, b"b.jpg")]
    assert listed(one, one) == [(0, b"a.jpg"), (0, b"b.jpg"), (1, b"a.jpg"), (1, b"b.jpg")]


def test_new_photos_do_not_reorder_old_ones(tmp_path):
    make(tmp_path, "a/1.jpg", "b/1.jpg", "c.jpg")
    before = listed(tmp_path)
    make(tmp_path, "a/0.jpg", "aa/1.jpg", "d.jpg")
    assert [photo for photo in listed(tmp_path) if photo in before] == before


def test_the_shared_folder_of_photos(photo_folder):
    ignored = Counter()
    found = [photo.source for photo in list_photos(open_sources([photo_folder.path]), ignored)]
    assert sorted(found) == sorted([*photo_folder.kept, *photo_folder.refused])
    assert ignored == photo_folder.ignored


# What is a photo


def test_photos_are_told_by_their_suffix_in_any_case(tmp_path):
    for i, suffix in enumerate(sorted(PHOTO_SUFFIXES)):
        make(tmp_path, f"{i}{suffix}", f"{i}x{suffix.upper()}", f"{i}.y.{suffix}")
    assert len(names(tmp_path)) == 3 * len(PHOTO_SUFFIXES)


def test_other_files_are_counted_by_suffix(tmp_path):
    make(tmp_path, "a.jpg", ".hidden.jpg", "a.txt", "b.TXT", "c.tar.gz", "d.jpg.part", "e.")
    make(tmp_path, "jpg", ".jpg", "f/README", b"g.\xff")
    ignored = Counter()
    found = [photo.path for photo in list_photos(open_sources([tmp_path]), ignored)]
    assert found == [b".hidden.jpg", b"a.jpg"]
    assert ignored == {
        ".txt": 2, ".gz": 1, "(none)": 3, ".part": 1, ".": 1, os.fsdecode(b".\xff"): 1
    }  # fmt: skip


def test_a_directory_named_like_a_photo_is_a_directory(tmp_path):
    make(tmp_path, "album.jpg/1.jpg")
    assert names(tmp_path) == ["album.jpg/1.jpg"]


def test_no_photos(tmp_path):
    assert listed(tmp_path) == []


# Links


def test_each_directory_is_walked_once(tmp_path):
    make(tmp_path, "a/1.jpg", "b/2.jpg", "b/c/3.jpg")
    (tmp_path / "a/up").symlink_to(tmp_path)
    (tmp_path / "a/self").symlink_to(tmp_path / "a")
    (tmp_path / "b/c/other").symlink_to(tmp_path / "a")
    (tmp_path / "z").symlink_to(tmp_path / "b")
    assert names(tmp_path) == ["a/1.jpg", "b/2.jpg", "b/c/3.jpg"]


def test_links_to_elsewhere_are_followed(tmp_path):
    top = make(tmp_path / "top", "1.jpg")
    away = make(tmp_path / "away", "2.jpg", "3.jpg")
    (top / "link").symlink_to(away)
    (top / "three.jpg").symlink_to(away / "3.jpg")
    assert names(top) == ["1.jpg", "link/2.jpg", "link/3.jpg", "three.jpg"]
    assert content(top, b"link/2.jpg") == b"x"


def test_a_source_may_be_a_link(tmp_path):
    (tmp_path / "link").symlink_to(make(tmp_path / "top", "1.jpg"))
    assert names(tmp_path / "link") == ["1.jpg"]


@pytest.mark.parametrize("target", ["nowhere.jpg", "self.jpg"])
def test_a_broken_link_is_a_photo_that_reading_refuses(tmp_path, target: str):
    make(tmp_path, "a.jpg")
    (tmp_path / "self.jpg").symlink_to(tmp_path / target)
    assert names(tmp_path) == ["a.jpg", "self.jpg"]
    reason, detail = refusal(tmp_path, b"self.jpg")
    assert reason is Reason.UNREADABLE
    assert detail in {"no such file", "Too many levels of symbolic links"}


def test_a_link_to_itself_is_no_directory(tmp_path):
    (tmp_path / "self").symlink_to(tmp_path / "self")
    ignored = Counter()
    assert list(list_photos(open_sources([tmp_path]), ignored)) == []
    assert ignored == {"(none)": 1}


# Directories that are left out, or cannot be listed


def test_skip_is_not_entered(tmp_path):
    make(tmp_path, "a/1.jpg", "dataset/palette/palette.png", "z/2.jpg")
    (tmp_path / "z/link").symlink_to(tmp_path / "dataset")
    assert names(tmp_path, skip=tmp_path / "dataset") == ["a/1.jpg", "z/2.jpg"]
    assert names(tmp_path, skip=tmp_path / "z/link") == ["a/1.jpg", "z/2.jpg"]
    assert len(names(tmp_path)) == 3


def test_a_directory_that_cannot_be_listed_is_a_photo(tmp_path, monkeypatch):
    """Then it shows up among the refused photos, and nothing is lost silently."""
    make(tmp_path, "a/1.jpg", "b/2.jpg", "c/3.jpg")
    scandir = os.scandir

    def guarded(folder):
        if folder.name == "b":
            raise PermissionError(errno.EACCES, "Permission denied")
        return scandir(folder)

    monkeypatch.setattr(local_store.os, "scandir", guarded)
    assert names(tmp_path) == ["a/1.jpg", "b", "c/3.jpg"]
    assert refusal(tmp_path, b"b") == (Reason.UNREADABLE, "Is a directory")


AS_NOBODY = """
import os, sys
from collections import Counter
from pipelines.sources.listing import list_photos
from pipelines.sources.reading import read_photos
from pipelines.sources.source import open_sources
if os.geteuid() == 0:  # root may list every directory
    os.setuid(65534)
sources = open_sources([sys.argv[1]])
for read in read_photos(sources, list(list_photos(sources, Counter())), 10**9):
    print(read.source, read.content)
"""


def test_an_unreadable_directory():
    """In a separate process that drops root, because root can list every directory."""
    with tempfile.TemporaryDirectory() as folder:
        top = Path(folder)
        top.chmod(0o755)
        make(top, "a/1.jpg", "b/2.jpg")
        (top / "a").chmod(0)
        try:
            command = [sys.executable, "-c", AS_NOBODY, folder]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        finally:
            (top / "a").chmod(0o700)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["a unreadable: Permission denied", "b/2.jpg b'x'"]


def test_very_deep_directories(tmp_path):
    """The walk does not recurse: a low limit stands in for a thousand nested folders."""
    deep = "d/" * 300 + "1.jpg"
    make(tmp_path, deep)
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack()) + 100)
    try:
        found = listed(tmp_path)
    finally:
        sys.setrecursionlimit(limit)
    assert found == [(0, deep.encode())]


# Names that are no text


@pytest.mark.skipif(sys.platform != "linux", reason="file names are bytes on Linux")
def test_names_that_are_no_utf8_survive_the_plan(tmp_path):
    raw = [b"caf\xe9/\xff\xfe.jpg", b"new\nline.jpg", "写真.jpg".encode(), b" .jpg", b"'\".JPG"]
    top = make(tmp_path / "photos", *raw)
    found = list(list_photos(open_sources([top]), Counter()))
    assert [photo.path for photo in found] == sorted(raw)
    write_plan(tmp_path / "dataset", 0, [found])
    planned = PlanFile(LocalStore(tmp_path / "dataset"), 0).slice(0)
    assert planned == found
    for photo in planned:
        assert content(top, photo) == b"x"
        photo.source.encode()  # can be shown
    assert len({photo.source for photo in planned}) == len(raw)


@pytest.mark.skipif(sys.platform != "linux", reason="file names are bytes on Linux")
def test_such_names_are_sharded(tmp_path, build_dataset, scene, jpeg):
    import pyarrow.parquet as pq

    top = make(tmp_path / "photos", b"caf\xe9.jpg")
    (top / os.fsdecode(b"caf\xe9.jpg")).write_bytes(jpeg(scene(0)))
    info = build_dataset([top], tmp_path / "dataset")
    assert info.counts["train"] + info.counts["val"] == 1
    (row,) = pq.read_table(tmp_path / "dataset/index/000000.parquet").to_pylist()
    assert row["source"] == r"caf\xe9.jpg"

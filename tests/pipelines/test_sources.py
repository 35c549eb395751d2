"""Walking folders: the order, links, names that are no text, and what cannot be read."""

import errno
import inspect
import os
import socket
import sys
from collections import Counter
from pathlib import Path

import pytest

from colorcore.dataset import PlannedPhoto, read_plan, write_plan
from colorcore.photo import PHOTO_SUFFIXES
from colorcore.refusal import PhotoRefused, Reason
from pipelines import sources as module
from pipelines.errors import JobError, WrongCallError
from pipelines.sources import check_sources, list_photos, local_path, read_source

BIG = 10**9


def make(top: Path, *names: str | bytes) -> Path:
    """Files of one byte each."""
    for name in names:
        path = top / os.fsdecode(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return top


def listed(*sources: Path, skip: Path | None = None) -> list[tuple[int, bytes]]:
    return [(photo.root, photo.path) for photo in list_photos(sources, Counter(), skip=skip)]


def names(*sources: Path, skip: Path | None = None) -> list[str]:
    return [os.fsdecode(path) for _, path in listed(*sources, skip=skip)]


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

    monkeypatch.setattr(module.os, "scandir", Backwards)
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
    found = [photo.source for photo in list_photos([photo_folder.path], ignored)]
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
    found = [photo.path for photo in list_photos([tmp_path], ignored)]
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
    assert read_source([top], PlannedPhoto(0, b"link/2.jpg"), BIG) == b"x"


def test_a_source_may_be_a_link(tmp_path):
    (tmp_path / "link").symlink_to(make(tmp_path / "top", "1.jpg"))
    assert names(tmp_path / "link") == ["1.jpg"]


@pytest.mark.parametrize("target", ["nowhere.jpg", "self.jpg"])
def test_a_broken_link_is_a_photo_that_reading_refuses(tmp_path, target: str):
    make(tmp_path, "a.jpg")
    (tmp_path / "self.jpg").symlink_to(tmp_path / target)
    assert names(tmp_path) == ["a.jpg", "self.jpg"]
    with pytest.raises(OSError, match=r"No such file|Too many levels"):
        read_source([tmp_path], PlannedPhoto(0, b"self.jpg"), BIG)


def test_a_link_to_itself_is_no_directory(tmp_path):
    (tmp_path / "self").symlink_to(tmp_path / "self")
    ignored = Counter()
    assert list(list_photos([tmp_path], ignored)) == []
    assert ignored == {"(none)": 1}


# Directories that are left out, or cannot be listed


def test_skip_is_not_entered(tmp_path):
    make(tmp_path, "a/1.jpg", "dataset/palette/palette.png", "z/2.jpg")
    (tmp_path / "z/link").symlink_to(tmp_path / "dataset")
    assert names(tmp_path, skip=tmp_path / "dataset") == ["a/1.jpg", "z/2.jpg"]
    assert names(tmp_path, skip=tmp_path / "z/link") == ["a/1.jpg", "z/2.jpg"]
    assert len(names(tmp_path)) == 3


def test_a_directory_that_cannot_be_listed_is_a_photo(tmp_path, monkeypatch):
    """So that it turns up among the refused photos, and nothing is lost silently."""
    make(tmp_path, "a/1.jpg", "b/2.jpg", "c/3.jpg")
    scandir = os.scandir

    def guarded(folder):
        if folder.endswith(b"/b"):
            raise PermissionError(errno.EACCES, "Permission denied")
        return scandir(folder)

    monkeypatch.setattr(module.os, "scandir", guarded)
    assert names(tmp_path) == ["a/1.jpg", "b", "c/3.jpg"]
    with pytest.raises(IsADirectoryError):
        read_source([tmp_path], PlannedPhoto(0, b"b"), BIG)


def test_an_unreadable_directory(tmp_path):
    make(tmp_path, "a/1.jpg", "b/2.jpg")
    (tmp_path / "a").chmod(0)
    try:
        if os.access(tmp_path / "a", os.R_OK):
            pytest.skip("root may list every directory")
        assert names(tmp_path) == ["a", "b/2.jpg"]
        with pytest.raises(PermissionError):
            read_source([tmp_path], PlannedPhoto(0, b"a"), BIG)
    finally:
        (tmp_path / "a").chmod(0o700)


def test_very_deep_directories(tmp_path):
    """The walk takes no stack: the limit is lowered here instead of nesting a thousand folders."""
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
    found = list(list_photos([top], Counter()))
    assert [photo.path for photo in found] == sorted(raw)
    write_plan(tmp_path / "dataset", 0, found)
    planned = read_plan(tmp_path / "dataset", 0)
    assert planned == found
    for photo in planned:
        assert read_source([top], photo, BIG) == b"x"
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


# Reading


def test_reading(tmp_path):
    (tmp_path / "a.jpg").write_bytes(bytes(range(256)))
    assert read_source([Path("/nowhere"), tmp_path], PlannedPhoto(1, b"a.jpg"), 256) == bytes(
        range(256)
    )
    with pytest.raises(FileNotFoundError):
        read_source([tmp_path], PlannedPhoto(0, b"b.jpg"), BIG)


def test_a_file_too_large_is_refused_unread(tmp_path):
    with (tmp_path / "a.jpg").open("wb") as file:
        file.truncate(2**40)  # a hole: reading it would not fit into memory
    with pytest.raises(PhotoRefused) as refusal:
        read_source([tmp_path], PlannedPhoto(0, b"a.jpg"), 1_000)
    assert refusal.value.reason == Reason.TOO_LARGE
    assert refusal.value.detail == "1,099,511,627,776 bytes, expected at most 1,000"


@pytest.mark.timeout(20)
def test_pipes_sockets_and_devices_are_refused(tmp_path):
    """Opening a pipe that nobody writes to would wait for ever."""
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "zero.jpg").symlink_to("/dev/zero")
    listening = socket.socket(socket.AF_UNIX)
    here = Path.cwd()
    try:
        os.chdir(tmp_path)  # a socket's address is short
        listening.bind("socket.jpg")
    finally:
        os.chdir(here)
        listening.close()
    assert names(tmp_path) == ["pipe.jpg", "socket.jpg", "zero.jpg"]
    for photo in list_photos([tmp_path], Counter()):
        with pytest.raises(PhotoRefused) as refusal:
            read_source([tmp_path], photo, BIG)
        assert refusal.value.reason == Reason.UNREADABLE


@pytest.mark.parametrize("name", ["one.jpg", "any name"])
def test_a_source_that_is_a_file(tmp_path, name: str):
    make(tmp_path, name)
    assert listed(tmp_path / name) == [(0, b"")]
    assert read_source([tmp_path / name], PlannedPhoto(0, b""), BIG) == b"x"


# Locations


def test_sources_are_checked(tmp_path):
    make(tmp_path, "a.jpg")
    given = [str(tmp_path), str(tmp_path / "a.jpg")]
    assert check_sources(given) == [tmp_path, tmp_path / "a.jpg"]
    with pytest.raises(WrongCallError, match="expected a folder of photos or a photo, found") as e:
        check_sources([*given, str(tmp_path / "b")])
    assert str(tmp_path / "b") in str(e.value)
    assert isinstance(e.value, JobError)


@pytest.mark.parametrize("uri", ["s3://bucket/photos", "gs://b/p", "https://host/a.jpg", "hdfs://"])
def test_other_uris_are_refused(uri: str):
    with pytest.raises(WrongCallError) as error:
        local_path(uri, "SOURCE")
    assert f"for SOURCE, got {uri}" in str(error.value)
    assert "copy it here first" in str(error.value)


def test_file_uris_are_local(tmp_path):
    make(tmp_path, "a b/ü.jpg")
    assert local_path("file:///a/b.jpg", "SOURCE") == Path("/a/b.jpg")
    (path,) = check_sources([(tmp_path / "a b").as_uri()])
    assert path == tmp_path / "a b"
    assert names(path) == ["ü.jpg"]


@pytest.mark.parametrize("path", ["photos", "/a/b", "./c:/d", "100%20x", "a:b", "~x"])
def test_paths_are_taken_as_they_are(path: str):
    assert local_path(path, "DATASET") == Path(path)

"""Walking folders: the order, links, names that are no text, and what cannot be read."""

import errno
import inspect
import os
import socket
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from pathlib import Path

import pytest

from colorcore.photos.read import PHOTO_SUFFIXES
from colorcore.photos.refusal import PhotoRefused, Reason
from colorcore.storage import local as local_store
from colorcore.storage.local import LocalStore
from colorcore.storage.store import StorageError
from pipelines.errors import JobError, WrongCallError
from pipelines.sharding.plan_file import read_plan, write_plan
from pipelines.sources import reading
from pipelines.sources.listing import list_photos
from pipelines.sources.reading import photos_of, read_photos
from pipelines.sources.source import PlannedPhoto, Source, local_path, open_sources

BIG = 10**9


def make(top: Path, *names: str | bytes) -> Path:
    """Files of one byte each."""
    for name in names:
        path = top / os.fsdecode(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return top


def listed(*sources: Path, skip: Path | None = None) -> list[tuple[int, bytes]]:
    skipped = None if skip is None else LocalStore(skip)
    found = list_photos(open_sources(sources), Counter(), skip=skipped)
    return [(photo.root, photo.path) for photo in found]


def names(*sources: Path, skip: Path | None = None) -> list[str]:
    return [os.fsdecode(path) for _, path in listed(*sources, skip=skip)]


def content(top: Path, photo: bytes | PlannedPhoto, max_bytes: int = BIG) -> bytes | PhotoRefused:
    """What is read of one photo of one source."""
    planned = PlannedPhoto(0, photo) if isinstance(photo, bytes) else photo
    (read,) = read_photos(open_sources([top]), [planned], max_bytes)
    assert (read.root, read.source) == (planned.root, planned.source)
    return read.content


def refusal(top: Path, photo: bytes | PlannedPhoto, max_bytes: int = BIG) -> tuple[Reason, str]:
    found = content(top, photo, max_bytes)
    assert isinstance(found, PhotoRefused)
    return found.reason, found.detail


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
    """So that it turns up among the refused photos, and nothing is lost silently."""
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
    """In a process of its own, which is nobody's when this one is root's."""
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
    found = list(list_photos(open_sources([top]), Counter()))
    assert [photo.path for photo in found] == sorted(raw)
    write_plan(tmp_path / "dataset", 0, [found])
    planned = read_plan(tmp_path / "dataset", 0)
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


# Reading


def test_reading(tmp_path):
    (tmp_path / "a.jpg").write_bytes(bytes(range(256)))
    make(tmp_path / "other", "a.jpg")
    both = open_sources([tmp_path / "other", tmp_path])
    (read,) = read_photos(both, [PlannedPhoto(1, b"a.jpg")], 256)
    assert (read.root, read.source, read.data()) == (1, "a.jpg", bytes(range(256)))
    assert refusal(tmp_path, b"b.jpg") == (Reason.UNREADABLE, "no such file")
    assert refusal(tmp_path, b"a.jpg/b.jpg") == (Reason.UNREADABLE, "Not a directory")
    assert refusal(tmp_path, b"a\0.jpg") == (Reason.UNREADABLE, "embedded null byte")


def test_photos_are_read_in_the_order_asked_for(tmp_path):
    top = tmp_path / "photos"
    top.mkdir()
    for i in range(40):
        (top / f"{i}.jpg").write_bytes(bytes([i]))
    order = [7, 0, 7, 39, 12]
    asked = [PlannedPhoto(0, f"{i}.jpg".encode()) for i in order]
    read = list(read_photos(open_sources([top]), asked, BIG))
    assert [photo.content for photo in read] == [bytes([i]) for i in order]
    with pytest.raises(PhotoRefused):
        next(read_photos(open_sources([top]), [PlannedPhoto(0, b"gone.jpg")], BIG)).data()


def test_a_file_too_large_is_refused_unread(tmp_path):
    with (tmp_path / "a.jpg").open("wb") as file:
        file.truncate(2**40)  # a hole: reading it would not fit into memory
    assert refusal(tmp_path, b"a.jpg", 1_000) == (
        Reason.TOO_LARGE,
        "1,099,511,627,776 bytes, expected at most 1,000",
    )


@pytest.mark.timeout(120)
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
    for photo in list_photos(open_sources([tmp_path]), Counter()):
        reason, detail = refusal(tmp_path, photo)
        assert reason is Reason.UNREADABLE
        assert detail == "expected a file, got a pipe, socket or device"


@pytest.mark.parametrize("name", ["one.jpg", "any name"])
def test_a_source_that_is_a_file(tmp_path, name: str):
    make(tmp_path, name)
    assert listed(tmp_path / name) == [(0, name.encode())]
    assert content(tmp_path / name, name.encode()) == b"x"


# Reading ahead, as from a store that is not on this machine


class Far(LocalStore):
    """A folder that says it is remote; counts who reads in it at a time, and what is held."""

    local = None
    reading = 0
    most = 0
    _lock = threading.Lock()

    def read(self, name, *, admit=None):
        with Far._lock:
            Far.reading += 1
            Far.most = max(Far.most, Far.reading)
        try:
            return super().read(name, admit=admit)
        finally:
            with Far._lock:
                Far.reading -= 1


@pytest.fixture
def far(tmp_path):
    Far.reading = Far.most = 0
    for i in range(100):
        (tmp_path / f"{i:02d}.jpg").write_bytes(bytes([i]) * (1000 + i))
    return [Source("far", "folder", Far(tmp_path))]


@pytest.mark.timeout(120)
@pytest.mark.parametrize("ahead", [1, 1500, 5_000, 10**9])
def test_remote_photos_come_in_order_however_little_is_held(far, monkeypatch, ahead: int):
    monkeypatch.setattr(reading, "AHEAD_BYTES", ahead)
    asked = [PlannedPhoto(0, f"{i * 37 % 101:02d}.jpg".encode()) for i in range(101)]
    read = list(read_photos(far, asked, 1090))
    assert [photo.source for photo in read] == [photo.source for photo in asked]
    for photo in read:
        number = int(photo.source[:-4]) if photo.source != "100.jpg" else 100
        if number == 100:
            assert (photo.content.reason, photo.content.detail) == (
                Reason.UNREADABLE,
                "no such file",
            )
        elif number > 90:
            assert photo.content.reason is Reason.TOO_LARGE
        else:
            assert photo.content == bytes([number]) * (1000 + number)
    assert 1 <= Far.most <= reading.REMOTE_READS
    assert Far.reading == 0


@pytest.mark.timeout(120)
def test_what_is_read_ahead_is_bounded(far, monkeypatch):
    """While the consumer holds the first photo, no more than the bound is read behind it."""
    monkeypatch.setattr(reading, "AHEAD_BYTES", 5_500)
    asked = [PlannedPhoto(0, f"{i:02d}.jpg".encode()) for i in range(100)]
    held = {}
    admit = reading._ReadAhead._admit

    def watched(self, number, size):
        admit(self, number, size)
        held[number] = sum(self._held.values())

    monkeypatch.setattr(reading._ReadAhead, "_admit", watched)
    for i, photo in enumerate(read_photos(far, asked, BIG)):
        assert photo.content == bytes([i]) * (1000 + i)
        assert max(held) <= i + 2 * reading.REMOTE_READS
    assert len(held) == 100
    assert max(held.values()) <= 5_500 + 1100  # the next one is let in at any time


@pytest.mark.timeout(120)
@pytest.mark.parametrize("taken", [0, 1, 7])
def test_reading_ahead_ends_when_the_consumer_stops(far, monkeypatch, taken: int):
    monkeypatch.setattr(reading, "AHEAD_BYTES", 2_000)
    photos = read_photos(far, [PlannedPhoto(0, f"{i:02d}.jpg".encode()) for i in range(99)], BIG)
    for _ in range(taken):
        next(photos)
    photos.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("photos")]


@pytest.mark.timeout(120)
def test_a_store_that_does_not_answer_stops_the_reading(far, monkeypatch):
    """No photo is refused for a fault of the network."""

    def fail(self, name, *, admit=None):
        if name == "03.jpg":
            raise StorageError("s3://… failed 6 times: no route")
        return LocalStore.read(self, name, admit=admit)

    monkeypatch.setattr(Far, "read", fail)
    seen = []
    asked = [PlannedPhoto(0, b"%02d.jpg" % i) for i in range(9)]
    with pytest.raises(StorageError, match="no route"):
        seen.extend(photo.source for photo in read_photos(far, asked, BIG))
    assert seen == ["00.jpg", "01.jpg", "02.jpg"]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("photos")]


def test_photos_of_lists_and_reads_a_few_paths_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "READ_TOGETHER", 3)
    top = make(tmp_path / "photos", *(f"{i}.jpg" for i in range(8)))
    found = [photo.source for photo in photos_of([top, top / "3.jpg"], BIG)]
    assert found == [*(f"{i}.jpg" for i in range(8)), "3.jpg"]


# Locations


def test_sources_are_checked(tmp_path):
    make(tmp_path, "a.jpg", "b.CSV", "c.tar")
    given = [str(tmp_path), str(tmp_path / "a.jpg"), tmp_path / "b.CSV", str(tmp_path / "c.tar")]
    here = LocalStore(tmp_path)
    assert open_sources(given) == [
        Source(str(tmp_path), "folder", here),
        Source(str(tmp_path / "a.jpg"), "file", here, "a.jpg"),
        Source(str(tmp_path / "b.CSV"), "list", here, "b.CSV"),
        Source(str(tmp_path / "c.tar"), "file", here, "c.tar"),
    ]
    missing = str(tmp_path / "b")
    with pytest.raises(WrongCallError, match="expected a folder of photos, a photo, a list") as e:
        open_sources([*given, missing])
    assert f"found nothing at {missing}" in str(e.value)
    assert isinstance(e.value, JobError)


def test_absolute_sources_outlive_a_change_of_folder(tmp_path, monkeypatch):
    make(tmp_path / "photos", "a.jpg")
    monkeypatch.chdir(tmp_path)
    (source,) = open_sources(["photos"])
    assert source.location == "photos"
    absolute = source.absolute()
    monkeypatch.chdir("/")
    (read,) = read_photos([absolute], [PlannedPhoto(0, b"a.jpg")], BIG)
    assert read.data() == b"x"
    assert (absolute.location, absolute.kind) == ("photos", "folder")


def test_other_uris_are_no_local_path():
    """For what is local on every machine, such as --out of cc train."""
    uri = "s3://bucket/photos?endpoint_override=localhost:1&scheme=http"
    with pytest.raises(WrongCallError) as error:
        local_path(uri, "OUT")
    assert f"for OUT, got {uri}" in str(error.value)
    assert "copy it here first" in str(error.value)


@pytest.mark.parametrize("uri", ["https://host/a.jpg", "what://b/p"])
def test_uris_that_nothing_opens(uri: str):
    with pytest.raises(StorageError, match="cannot open") as error:
        open_sources([uri])
    assert uri.partition("://")[0] in str(error.value)
    assert "\n" not in str(error.value)


def test_file_uris_are_local(tmp_path):
    make(tmp_path, "a b/ü.jpg")
    assert local_path("file:///a/b.jpg", "SOURCE") == Path("/a/b.jpg")
    uri = (tmp_path / "a b").as_uri()
    assert " " not in uri
    assert open_sources([uri]) == [Source(uri, "folder", LocalStore(tmp_path / "a b"))]
    assert [photo.source for photo in list_photos(open_sources([uri]), Counter())] == ["ü.jpg"]


@pytest.mark.parametrize("path", ["photos", "/a/b", "./c:/d", "100%20x", "a:b", "~x"])
def test_paths_are_taken_as_they_are(path: str):
    assert local_path(path, "DATASET") == Path(path)

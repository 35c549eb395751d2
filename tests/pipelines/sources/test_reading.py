"""Reading photos: what is refused, the order, and how remote photos are read ahead."""

import os
import socket
import threading
from collections import Counter
from pathlib import Path

import pytest

from colorcore.photos.refusal import PhotoRefused, Reason
from colorcore.storage.local import LocalStore
from colorcore.storage.store import StorageError
from pipelines.sources import reading
from pipelines.sources.listing import list_photos
from pipelines.sources.reading import photos_of, read_photos
from pipelines.sources.source import PlannedPhoto, Source, open_sources
from tests.pipelines.sources.files import BIG, content, listed, make, names, refusal


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
    """Opening a pipe without a writer would block forever."""
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
    """A folder that claims to be remote; counts concurrent reads."""

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
    """While the consumer holds a photo, at most AHEAD_BYTES are read after it."""
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
    """A network failure must not refuse a photo."""

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
    read = photos_of(open_sources([top, top / "3.jpg"]), BIG, Counter())
    assert [photo.source for photo in read] == [*(f"{i}.jpg" for i in range(8)), "3.jpg"]

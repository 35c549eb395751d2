"""Stores: the local store against the file system, and which locations can be opened."""

import os
import stat
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from colorcore.storage.local import LocalStore
from colorcore.storage.location import absolute_store, open_store
from colorcore.storage.remote import RemoteStore
from colorcore.storage.store import Entry, LocationError, NotAFileError, StorageError

HERE = "endpoint_override=localhost:1&scheme=http"
"""Options with which an s3:// URI is opened without a request."""


@pytest.fixture
def store(tmp_path) -> LocalStore:
    return LocalStore(tmp_path)


# Local: reading


def test_entries_are_sorted_as_bytes(store, tmp_path):
    names = [b"10", b"9", b"B", b"a", b"a b", b"a-", b"z", "é".encode(), "写".encode()]
    names += [b"\xff\xfe.jpg"] if sys.platform == "linux" else []
    for name in reversed(names):
        (tmp_path / os.fsdecode(name)).touch()
    (tmp_path / "a").unlink()
    (tmp_path / "a").mkdir()
    assert [os.fsencode(entry.name) for entry in store.entries()] == names == sorted(names)
    assert [entry.name for entry in store.entries() if entry.is_dir] == ["a"]
    assert store.entries("a") == []


@settings(max_examples=30, deadline=None)
@given(st.sets(st.text("ab .-_é\udcff", min_size=1, max_size=4).filter(str.strip), max_size=8))
def test_names_come_back_as_they_are(names: set[str]):
    import tempfile

    names -= {".", ".."}
    with tempfile.TemporaryDirectory() as folder:
        here = LocalStore(Path(folder))
        for name in names:
            here.write(f"in/{name}", name.encode("utf-8", "surrogateescape"))
        expected = sorted(names, key=os.fsencode)
        if names:
            assert here.entries("in") == [Entry(f"in/{name}", False) for name in expected]
        assert here.names("in") == expected
        for name in names:
            assert here.read(f"in/{name}") == os.fsencode(name)


def test_names_are_those_of_files(store, tmp_path):
    assert store.names("none") == []
    (tmp_path / "index" / "folder").mkdir(parents=True)
    (tmp_path / "index" / "b").touch()
    (tmp_path / "index" / "a").touch()
    assert store.names("index") == ["a", "b"]
    with pytest.raises(FileNotFoundError):
        store.entries("none")


def test_kinds(store, tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("folder")
    (tmp_path / "broken").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "folder").mkdir()
    expected = {
        "file": "file", "folder": "folder", "link": "folder", "": "folder",
        "none": "nothing", "broken": "nothing", "loop": "nothing", "file/x": "nothing",
    }  # fmt: skip
    assert {name: store.kind(name) for name in expected} == expected
    assert [store.exists(name) for name in ("file", "folder", "none")] == [True, False, False]
    assert [entry.name for entry in store.entries() if entry.is_dir] == ["folder", "link"]


def test_reading(store, tmp_path):
    data = bytes(range(256))
    (tmp_path / "a").write_bytes(data)
    assert store.read("a") == data
    assert store.size("a") == 256
    with store.open("a") as file:
        file.seek(250)
        assert file.read() == data[250:]
    with store.stream("a") as file:
        assert file.read(3) == data[:3]
    for read in (store.read, store.size, lambda name: store.read_range(name, 0, 1)):
        with pytest.raises(FileNotFoundError):
            read("none")


@pytest.mark.parametrize(
    ("offset", "length"), [(0, 256), (5, 0), (5, 7), (250, 100), (256, 1), (999, 9)]
)
def test_ranges(store, tmp_path, offset: int, length: int):
    data = bytes(range(256))
    (tmp_path / "a").write_bytes(data)
    assert store.read_range("a", offset, length) == data[offset : offset + length]


def test_admit_is_asked_before_anything_is_read(store, tmp_path):
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(2**42)  # a hole: reading it would not fit into memory
    asked = []

    def refuse(size: int) -> None:
        asked.append(size)
        raise MemoryError

    with pytest.raises(MemoryError):
        store.read("huge", admit=refuse)
    assert asked == [2**42]
    (tmp_path / "a").write_bytes(b"abc")
    assert store.read("a", admit=asked.append) == b"abc"
    assert asked == [2**42, 3]


@pytest.mark.timeout(120)
def test_pipes_and_devices_are_no_files(store, tmp_path):
    """Opening a pipe without a writer would block forever."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    calls: list[Callable[[str], object]] = [store.read, lambda name: store.read_range(name, 0, 1)]
    for name in ("pipe", "zero"):
        for call in calls:
            with pytest.raises(NotAFileError, match="got a pipe, socket or device"):
                call(name)


# Local: writing


def test_writing_makes_folders_and_leaves_nothing_else(store, tmp_path):
    store.write("a/b/c.json", b"one")
    store.write("a/b/c.json", b"two")
    assert [p.name for p in sorted(tmp_path.rglob("*"))] == ["a", "b", "c.json"]
    assert store.read("a/b/c.json") == b"two"


def test_a_write_that_fails_leaves_the_old_file(store, tmp_path, monkeypatch):
    store.write("a", b"old")

    def full(self, data):
        with self.open("wb") as file:
            file.write(data[:1])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(tmp_path), "write_bytes", full)
    with pytest.raises(OSError, match="No space"):
        store.write("a", b"new")
    assert store.read("a") == b"old"


def test_put_moves_in_one_step(store, tmp_path):
    (tmp_path / "made").write_bytes(b"new")
    inode = (tmp_path / "made").stat().st_ino
    store.write("train/a.tar", b"old")
    with store.open("train/a.tar") as reader:
        store.put(tmp_path / "made", "train/a.tar")
        assert reader.read() == b"old"  # a reader that had it open sees the whole old file
    assert store.read("train/a.tar") == b"new"
    assert not (tmp_path / "made").exists()
    assert (tmp_path / "train/a.tar").stat().st_ino == inode  # renamed, not copied


def test_fetch_and_below(store, tmp_path):
    store.write("a/b", b"data")
    store.fetch("a/b", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == b"data"
    assert store.exists("a/b")
    assert store.below("a") == LocalStore(tmp_path / "a")
    assert store.below("a").read("b") == b"data"
    assert store.show("a/b") == str(tmp_path / "a/b")
    assert store.show() == store.location == str(tmp_path)
    assert stat.S_ISREG((tmp_path / "copy").stat().st_mode)


def test_identity_is_that_of_the_folder_itself(store, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    (tmp_path / "link").symlink_to("a")
    assert store.identity("a") == store.identity("link") == LocalStore(tmp_path / "a").identity()
    assert store.identity("a") != store.identity("b")


# Locations


def test_an_empty_location_is_refused_and_the_current_folder_is_a_dot():
    with pytest.raises(LocationError, match="got an empty name; is a variable of the shell unset"):
        open_store("")
    assert open_store(".") == open_store(Path()) == LocalStore(Path())


def test_local_locations(tmp_path):
    assert open_store("a/b") == LocalStore(Path("a/b"))
    assert open_store(Path("a:/b")) == LocalStore(Path("a:/b"))
    assert open_store("file:///a%20b/%C3%A9") == LocalStore(Path("/a b/é"))
    assert open_store((tmp_path / "ü %41").as_uri()) == LocalStore(tmp_path / "ü %41")
    assert open_store("100%20x") == LocalStore(Path("100%20x"))
    there = LocalStore(Path("x"))
    assert open_store(there) is there


def test_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert absolute_store("a") == LocalStore(tmp_path / "a")
    remote = open_store(f"s3://bucket/a?{HERE}")
    assert absolute_store(remote) is remote


def test_remote_locations_are_shown_as_they_are_written():
    store = open_store(f"s3://bucket/some/folder/?{HERE}")
    assert isinstance(store, RemoteStore)
    assert store.local is None
    assert store.location == f"s3://bucket/some/folder?{HERE}"
    assert store.show("a b/c") == f"s3://bucket/some/folder/a b/c?{HERE}"
    assert store.below("x").show("y") == f"s3://bucket/some/folder/x/y?{HERE}"
    assert open_store(store.location) == store
    assert open_store(f"s3://bucket?{HERE}").show("a") == f"s3://bucket/a?{HERE}"


SECRET = "SuperSecret123"  # noqa: S105


@pytest.mark.parametrize(
    "location",
    [
        f"s3://key:{SECRET}@bucket/folder",
        f"s3://key:{SECRET}/with/slashes@bucket/folder",
        f"s3://{SECRET}@bucket",
        f"s3://bucket/folder?secret_key={SECRET}&{HERE}",
        f"s3://bucket/folder?{HERE}&access_key={SECRET}",
        f"s3://bucket/folder?{HERE}&session_token={SECRET}",
        f"s3://bucket/folder?secret%5Fkey={SECRET}",
        f"s3://bucket/a?X-Amz-Signature={SECRET}",
        f"s3://bucket/a?X-Amz-Credential={SECRET}",
        f"gs://bucket/a?credential_file={SECRET}",
        f"abfs://container/a?sig={SECRET}",
        f"https://user:{SECRET}@host/a.jpg",
    ],
)
def test_locations_with_secrets_are_refused_without_telling_them(location: str):
    with pytest.raises(StorageError, match="expected no credentials in the location") as error:
        open_store(location)
    assert SECRET not in str(error.value)
    assert "environment" in str(error.value)
    chain = [error.value.__cause__, error.value.__context__]
    assert not any(SECRET in str(link) for link in chain if link is not None)


@pytest.mark.parametrize("location", ["what://bucket/a", "https://host/a.jpg", "://a", "S4://b"])
def test_an_unknown_scheme_is_said_in_one_line(location: str):
    with pytest.raises(StorageError, match="expected a local path or a URI such as") as error:
        open_store(location)
    assert "\n" not in str(error.value)
    assert location.partition("://")[0] in str(error.value)


def test_an_unknown_option_is_named():
    with pytest.raises(StorageError, match="unknown option 'endpoint' in the URI") as error:
        open_store("s3://bucket/a?endpoint=localhost:1&region=x")
    assert "endpoint_override" in str(error.value)
    assert "\n" not in str(error.value)


def test_an_endpoint_may_come_from_the_environment(monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://localhost:1")
    assert open_store("s3://a-bucket-of-the-environment/x").show() == (
        "s3://a-bucket-of-the-environment/x"
    )


def test_remove(tmp_path):
    store = LocalStore(tmp_path)
    store.write("a/b.bin", b"x")
    store.remove("a/b.bin")
    assert not store.exists("a/b.bin")
    store.remove("a/b.bin")

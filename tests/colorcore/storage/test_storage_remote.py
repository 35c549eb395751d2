"""A store in a bucket: reading, writing, and failures of its server."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from colorcore import waiting
from colorcore.storage import remote as remote_store
from colorcore.storage import store as storage
from colorcore.storage.location import open_store
from colorcore.storage.store import Entry, LocationError, StorageError
from tests.servers.flaky_proxy import FlakyS3

PART = 10 * 1024 * 1024
"""The size from which pyarrow uploads in parts."""
BIG = bytes(range(251)) * (PART // 251 + 5_000)


@pytest.fixture
def store(s3_server, bucket: str) -> storage.Store:
    return open_store(s3_server.uri(bucket, "top"))


AWKWARD = ["a b/c d.txt", "Été 写真/naïve ñ.jpg", "100%/a+b&c=d;e'f.txt", "deep/er/and/deeper.x"]


@pytest.mark.parametrize("name", AWKWARD)
def test_what_is_written_is_read_back(s3_server, bucket, store, name: str, tmp_path: Path) -> None:
    store.write(name, b"0123456789")
    assert s3_server.keys(bucket) == [f"top/{name}"]
    assert s3_server.get(bucket, f"top/{name}") == b"0123456789"
    assert store.kind(name) == "file"
    assert store.exists(name)
    assert store.size(name) == 10
    sizes: list[int] = []
    assert store.read(name, admit=sizes.append) == b"0123456789"
    assert sizes == [10]
    assert store.read_range(name, 3, 4) == b"3456"
    with store.open(name) as file:
        assert file.seek(-4, io.SEEK_END) == 6
        assert (file.read(2), file.tell(), file.read(), file.read()) == (b"67", 8, b"89", b"")
    with store.stream(name) as file:
        assert (file.read(4), file.read()) == (b"0123", b"456789")
    store.fetch(name, tmp_path / "here")
    assert (tmp_path / "here").read_bytes() == b"0123456789"
    store.put(tmp_path / "here", f"{name}.copy")
    assert not (tmp_path / "here").exists()
    assert store.read(f"{name}.copy") == b"0123456789"
    store.remove(f"{name}.copy")
    store.remove(f"{name}.copy")  # it no longer exists
    assert not store.exists(f"{name}.copy")
    store.write(f"{name}.copy", b"again")
    store.write(name, b"new")
    assert store.read(name) == b"new"
    folder, _, last = name.rpartition("/")
    assert store.names(folder) == [last, f"{last}.copy"]
    assert store.below(folder).read(last) == b"new"
    assert open_store(store.show(name)).read("") == b"new"


def test_ranges_end_where_the_file_does(store) -> None:
    store.write("file", b"0123456789")
    store.write("empty", b"")
    assert store.read_range("file", 8, 100) == b"89"
    assert store.read_range("file", 10, 5) == b""
    assert store.read_range("file", 700, 5) == b""
    assert store.read_range("file", 2, 0) == b""
    assert store.read("empty") == store.read_range("empty", 0, 5) == b""
    assert store.size("empty") == 0
    with store.open("file") as file:
        file.seek(99)
        assert file.read(5) == b""


def test_what_is_missing_is_no_storage_error(store, tmp_path: Path) -> None:
    store.write("folder/file", b"x")
    for name in ("nothing", "folder/nothing", "folder"):
        for call in (
            store.read,
            store.size,
            lambda name: store.read_range(name, 0, 1),
            lambda name: store.fetch(name, tmp_path / "f"),
            lambda name: store.open(name).__enter__(),
            lambda name: store.stream(name).__enter__(),
        ):
            with pytest.raises(FileNotFoundError):
                call(name)
    assert [store.kind(name) for name in ("folder", "nothing", "folder/file")] == [
        "folder",
        "nothing",
        "file",
    ]
    assert not store.exists("folder")
    assert store.names("nothing") == []
    with pytest.raises(FileNotFoundError):
        store.entries("nothing")
    assert open_store(store.show("nothing")).kind() == "nothing"


def test_a_listing_is_sorted_by_bytes_however_keys_are(s3_server, bucket, store) -> None:
    # As whole keys a-b/x comes before a/x, for "-" is before "/"; as names "a" is before "a-b".
    for key in ("a-b/x", "a/x", "a/y/z", "a.b", "é/x", "z", "Z", "~", "ﬀ", "😀", "a b"):
        s3_server.put(bucket, f"top/{key}", b"x")
    s3_server.put(bucket, "top/marked/", b"")  # how consoles represent an empty folder
    s3_server.put(bucket, "top/full/", b"")
    s3_server.put(bucket, "top/full/file", b"x")
    s3_server.put(bucket, "top-secret", b"x")
    expected = ["Z", "a", "a b", "a-b", "a.b", "full", "marked", "z", "~", "é", "ﬀ", "😀"]
    assert expected == sorted(expected, key=str.encode)
    entries = store.entries()
    assert [entry.name for entry in entries] == expected
    folders = {"a", "a-b", "é", "full", "marked"}
    assert {entry.name for entry in entries if entry.is_dir} == folders
    assert store.entries("a") == [Entry("a/x", is_dir=False), Entry("a/y", is_dir=True)]
    assert store.entries("full") == [Entry("full/file", is_dir=False)]
    assert store.entries("marked") == []
    assert store.kind("marked") == "folder"
    assert open_store(s3_server.uri(bucket)).names("") == ["top-secret"]


@pytest.mark.slow
def test_more_names_than_one_answer_holds(s3_server, bucket, store) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: s3_server.put(bucket, f"top/{i:05d}", b""), range(1003)))
    assert store.names("") == [f"{i:05d}" for i in range(1003)]


@pytest.mark.slow
def test_a_small_file_is_one_put_and_a_big_one_comes_in_parts(
    s3_server, flaky_s3: FlakyS3, bucket, tmp_path: Path
) -> None:
    store = open_store(flaky_s3.uri(bucket, "top"))
    store.kind()  # connects
    path = tmp_path / "file"

    def puts(data: bytes, *, written: bool) -> dict[str, int]:
        path.write_bytes(data)
        counts = {}
        for method in ("PUT", "POST"):
            flaky_s3.set(f"every:1000000@{method}")
            if written:
                store.write("file", data)
            else:
                path.write_bytes(data)
                store.put(path, "file")
            found = flaky_s3.counts()
            counts[method] = found["counted"]
        counts["all"] = found["requests"]
        assert s3_server.get(bucket, "top/file") == data
        return counts

    one = {"PUT": 1, "POST": 0, "all": 1}
    assert puts(b"small", written=True) == one
    assert puts(b"small", written=False) == one
    assert puts(b"", written=True) == one
    assert puts(BIG[: PART // 2], written=False) == one
    for written in (True, False):
        many = puts(BIG, written=written)
        assert many["PUT"] == 2  # parts
        assert many["POST"] == 2  # begin and complete
        assert many["all"] == 4
    store.fetch("file", path)
    assert path.read_bytes() == BIG == store.read("file")
    assert store.read_range("file", PART - 3, 7) == BIG[PART - 3 : PART + 4]
    with store.stream("file") as file:
        assert file.read() == BIG


# -- a server that fails ------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["every:4", "drop:4", "lost:4", "hang:7:0.3"])
def test_what_fails_now_and_then_succeeds(
    rule: str, quick, s3_server, flaky_s3: FlakyS3, bucket, tmp_path: Path
) -> None:
    store = open_store(flaky_s3.uri(bucket, "top"))
    small = {f"{i}/file é": bytes([i]) * (1000 + i) for i in range(4)}
    table = pa.table({"a": list(range(50_000))})
    buffer = io.BytesIO()
    pq.write_table(table, buffer, row_group_size=10_000, compression="none")
    flaky_s3.set(rule)
    for name, data in small.items():
        store.write(name, data)
    store.write("table", buffer.getvalue())
    (tmp_path / "big").write_bytes(BIG)
    store.put(tmp_path / "big", "big")
    assert {name: store.read(name) for name in small} == small
    assert store.read_range("0/file é", 990, 100) == bytes(10)
    assert [entry.name for entry in store.entries()] == ["0", "1", "2", "3", "big", "table"]
    assert [store.kind(name) for name in ("0", "1/file é", "none")] == ["folder", "file", "nothing"]
    with pytest.raises(FileNotFoundError):
        store.read("none")
    assert store.size("big") == len(BIG)
    store.fetch("big", tmp_path / "fetched")
    assert (tmp_path / "fetched").read_bytes() == BIG
    with store.open("table") as file:
        parquet = pq.ParquetFile(file)
        assert parquet.num_row_groups == 5
        assert pa.concat_tables([parquet.read_row_group(i) for i in range(5)]) == table
    with store.stream("big") as file:
        assert b"".join(iter(lambda: file.read(1_000_003), b"")) == BIG
    assert flaky_s3.counts()["failures"] >= 3
    flaky_s3.set("none")
    expected = {**small, "table": buffer.getvalue(), "big": BIG}
    assert {f"top/{name}" for name in expected} == set(s3_server.keys(bucket))
    assert {name: s3_server.get(bucket, f"top/{name}") for name in expected} == expected


def test_a_read_goes_on_where_it_was_when_the_store_is_back(
    quick, monkeypatch, flaky_s3: FlakyS3, bucket
) -> None:
    """The store retries longer than the library itself; an open file is not opened again."""
    monkeypatch.setattr(remote_store, "TRIES", 20)
    store = open_store(flaky_s3.uri(bucket))
    store.write("file", BIG[:100_000])
    with store.stream("file") as file:
        assert file.read(10) == BIG[:10]
    with store.open("file") as file:
        read = b""
        flaky_s3.set("all")
        healed = threading.Timer(1.5, flaky_s3.set, ["none"])
        healed.start()
        while piece := file.read(9_000):
            read += piece
        healed.join()
    assert read == BIG[:100_000]


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["all", "drop:1"])
def test_what_always_fails_is_one_line_with_name_and_cause(
    rule: str, quick, monkeypatch, flaky_s3: FlakyS3, bucket, tmp_path: Path
) -> None:
    monkeypatch.setattr(remote_store, "TRIES", 2)
    store = open_store(flaky_s3.uri(bucket, "top"))
    store.write("folder/file", b"data")
    (tmp_path / "mine").write_bytes(b"mine")
    with store.open("folder/file") as opened, store.stream("folder/file") as stream:
        calls = {
            "folder": lambda: store.entries("folder"),
            "folder/file": lambda: store.read("folder/file"),
            "folder/part": lambda: store.read_range("folder/part", 0, 1),
            "size": lambda: store.size("size"),
            "kind": lambda: store.kind("kind"),
            "write": lambda: store.write("write", b"data"),
            "put": lambda: store.put(tmp_path / "mine", "put"),
            "fetch": lambda: store.fetch("fetch", tmp_path / "f"),
            "open": lambda: store.open("open").__enter__(),
            "stream": lambda: store.stream("stream").__enter__(),
        }
        flaky_s3.set(rule)
        with ThreadPoolExecutor(len(calls)) as pool:  # so that their pauses overlap
            messages = dict(zip(calls, pool.map(failure, calls.values()), strict=True))
        for name, message in messages.items():
            assert message.startswith(f"{store.show(name)} failed {remote_store.TRIES} times: ")
            assert len(message.partition("times: ")[2]) > 20  # a cause
        # At most the documented number of attempts, each with up to two requests by the library,
        # and one more if an open connection broke.
        tries = remote_store.TRIES * len(calls)
        assert tries <= flaky_s3.counts()["requests"] <= 3 * tries
        for file in (opened, stream):
            message = failure(lambda file=file: file.read(4))
            assert message.startswith(
                f"{store.show('folder/file')} failed {remote_store.TRIES} times"
            )
        flaky_s3.set("none")
        assert opened.read(4) == stream.read(4) == b"data"
    assert (tmp_path / "mine").read_bytes() == b"mine"  # not lost


def failure(call) -> str:
    with pytest.raises(StorageError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    assert "testing" not in message  # both halves of the credentials
    return message


@pytest.mark.slow
def test_the_pauses_grow(monkeypatch, flaky_s3: FlakyS3, bucket) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(
        remote_store, "time", type("Clock", (), {"sleep": staticmethod(pauses.append)})
    )
    flaky_s3.set("all")
    message = failure(lambda: open_store(flaky_s3.uri(bucket)).read("x"))
    assert f" failed {remote_store.TRIES} times: " in message
    assert len(pauses) == remote_store.TRIES - 1
    for number, pause in enumerate(pauses):
        whole = remote_store.FIRST_PAUSE_S * 2**number
        assert whole / 2 <= pause <= whole * 3 / 2


def test_a_forked_process_opens_connections_of_its_own(bucket, s3_server) -> None:
    store = open_store(s3_server.uri(bucket))
    mine = store.filesystem()
    assert store.filesystem() is mine
    read, write = os.pipe()
    child = os.fork()
    if not child:
        os.write(write, b"own" if store.filesystem() is not mine else b"shared")
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(read, 10) == b"own"


@pytest.mark.slow
def test_no_answer_ends_after_the_time_for_a_request(
    monkeypatch, quick, flaky_s3: FlakyS3, bucket
) -> None:
    monkeypatch.setattr(remote_store, "REQUEST_TIMEOUT_S", 1.0)
    monkeypatch.setattr(remote_store, "TRIES", 1)
    remote_store.opened_filesystem.cache_clear()
    try:
        store = open_store(flaky_s3.uri(bucket))
        flaky_s3.set("hang:1:30")
        started = time.monotonic()
        failure(lambda: store.read("x"))
        assert time.monotonic() - started < 20
    finally:
        remote_store.opened_filesystem.cache_clear()


def test_nobody_listens(quick, monkeypatch) -> None:
    monkeypatch.setattr(remote_store, "TRIES", 2)
    store = open_store("s3://bucket/x?endpoint_override=127.0.0.1:1&scheme=http&region=us-east-1")
    message = failure(lambda: store.read("y"))
    assert "s3://bucket/x/y" in message
    assert "connect" in message.lower()


def test_a_bucket_that_is_not_there(quick, flaky_s3: FlakyS3) -> None:
    store = open_store(flaky_s3.uri("store-no-such-bucket", "top"))
    assert store.kind() == "nothing"
    with pytest.raises(FileNotFoundError):
        store.read("file")
    flaky_s3.set("none")
    message = failure(lambda: store.write("file", b"x"))
    assert "store-no-such-bucket/top/file" in message
    assert flaky_s3.counts()["requests"] == 1  # a retry would not help


@pytest.mark.parametrize(
    "location",
    [
        "s3://KEY:SECRET@bucket/photos",
        "s3://bucket/photos?access_key=KEY&secret_key=SECRET",
        "s3://bucket/photos?session_token=SECRET",
        "nosuch://bucket/SECRET",
        "s3://bucket/photos?colour=red",
    ],
)
def test_a_location_that_cannot_be_opened_is_refused_without_its_secret(location: str) -> None:
    with pytest.raises(LocationError) as caught:
        open_store(location)
    assert "SECRET" not in str(caught.value)
    assert "\n" not in str(caught.value)


# -- uploads that fail ----------------------------------------------------------------------------

HUGE = PART * 2 + 5_000


def uploads(s3_server, bucket: str) -> list[str]:
    """Keys of unfinished uploads, by boto3."""
    found = s3_server.client.list_multipart_uploads(Bucket=bucket)
    return sorted(upload["Key"] for upload in found.get("Uploads", ()))


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["all@PUT", "lost:2@PUT", "all@POST~never"])
@pytest.mark.parametrize("how", ["put", "write"])
def test_a_failed_upload_leaves_no_parts(
    how: str, rule: str, quick, monkeypatch, s3_server, flaky_s3: FlakyS3, bucket, tmp_path: Path
) -> None:
    monkeypatch.setattr(remote_store, "TRIES", 2)
    store = open_store(flaky_s3.uri(bucket, "top"))
    store.write("big", b"old")
    (tmp_path / "big").write_bytes(bytes(HUGE))
    flaky_s3.set(rule)
    failing = "never" not in rule
    call = store.write if how == "write" else lambda name, _: store.put(tmp_path / "big", name)
    if failing:
        with pytest.raises(StorageError, match="big"):
            call("big", bytes(HUGE))
    else:
        call("big", bytes(HUGE))
    flaky_s3.set("none")
    assert uploads(s3_server, bucket) == []
    assert s3_server.get(bucket, "top/big") == (b"old" if failing else bytes(HUGE))
    assert (tmp_path / "big").exists() == (failing or how == "write")


@pytest.mark.slow
@pytest.mark.parametrize("boto3", [True, False])
@pytest.mark.parametrize("size", [PART // 2, HUGE])
def test_part_of_a_file_is_no_object(
    size: int, boto3: bool, quick, monkeypatch, s3_server, bucket, store, tmp_path: Path
) -> None:
    """Closing pyarrow's stream completes the upload, whatever has become of the source."""
    monkeypatch.setattr(remote_store, "TRIES", 1)
    remote_store._boto3_client.cache_clear()
    if not boto3:
        monkeypatch.setitem(sys.modules, "boto3", None)
    (tmp_path / "file").write_bytes(bytes(size))

    def broken(path: Path) -> Iterator[bytes]:
        pieces = remote_pieces(path)
        if size > PART:
            yield next(pieces)
            yield next(pieces)
        raise OSError(5, "Input/output error")

    remote_pieces = remote_store._pieces
    monkeypatch.setattr(remote_store, "_pieces", broken)
    with pytest.raises(StorageError, match="Input/output error"):
        store.put(tmp_path / "file", "file")
    remote_store._boto3_client.cache_clear()
    assert "top/file" not in s3_server.keys(bucket)
    assert uploads(s3_server, bucket) == []
    assert (tmp_path / "file").exists()


def test_what_a_killed_process_left_is_dropped_below_the_store_only(
    s3_server, bucket, store, monkeypatch
) -> None:
    keys = ["top/a", "top/a.tar", "top/train/b.tar", "top-secret/c", "other"]
    for key in keys:
        s3_server.client.create_multipart_upload(Bucket=bucket, Key=key)
    assert store.drop_uploads("a") == 1
    assert uploads(s3_server, bucket) == sorted(set(keys) - {"top/a"})
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "boto3", None)
        remote_store._boto3_client.cache_clear()
        assert store.drop_uploads() == 0
    remote_store._boto3_client.cache_clear()
    assert store.drop_uploads() == 2
    assert uploads(s3_server, bucket) == ["other", "top-secret/c"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ("hang:1:0.6", ["waiting for an answer about {file}"]),
        ("all", ["waiting for an answer about {file}"]),
        ("none", []),
    ],
)
def test_a_store_that_keeps_a_command_waiting_is_named(
    rule: str, said: list[str], flaky_s3: FlakyS3, bucket, monkeypatch, caplog
) -> None:
    monkeypatch.setattr(waiting, "SAY_AFTER_S", 0.3)
    store = open_store(flaky_s3.uri(bucket, "top"))
    assert not store.exists("file")  # the connection is there
    flaky_s3.set(rule)
    with contextlib.suppress(StorageError):
        store.exists("file")
    assert caplog.messages == [line.format(file=store.show("file")) for line in said]


@pytest.mark.slow
def test_a_transfer_is_named_only_once_it_has_failed(
    flaky_s3: FlakyS3, bucket, monkeypatch, caplog
) -> None:
    monkeypatch.setattr(waiting, "SAY_AFTER_S", 0.3)
    store = open_store(flaky_s3.uri(bucket, "top"))
    store.write("file", b"1")
    assert not caplog.messages
    flaky_s3.set("all")
    with pytest.raises(StorageError):
        store.read("file")
    (line,) = caplog.messages
    assert line.startswith(f"waiting for {store.show('file')}, which failed once: ")


@pytest.mark.slow
def test_a_store_that_refuses_to_list_uploads_is_left_alone(
    quick, flaky_s3: FlakyS3, bucket
) -> None:
    store = open_store(flaky_s3.uri(bucket, "top"))
    flaky_s3.set("all")
    assert store.drop_uploads("a") == store.drop_uploads() == 0

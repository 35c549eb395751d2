"""Training on a dataset in a bucket: the same batches, through a bounded, shared cache."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from cli.main import main
from colorcore.dataset.layout import DatasetError, read_info
from colorcore.dataset.loader import TrainLoader, val_batches
from colorcore.dataset.samples import Samples
from colorcore.dataset.shard_cache import ShardCache
from colorcore.storage.location import open_store
from tests.conftest import build_dataset, jpeg, scene
from tests.servers.child import ROOT
from tests.servers.flaky_proxy import FlakyS3
from tests.servers.s3 import S3

BATCH = 4
BLOCK = 12
"""Samples per block of the epoch's order, so that a small dataset has several blocks."""


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    top = tmp_path_factory.mktemp("remote")
    (top / "photos").mkdir()
    for seed in range(80):
        (top / "photos" / f"{seed:02d}.jpg").write_bytes(jpeg(scene(seed, 72, 72)))
    build_dataset([top / "photos"], top / "dataset", size=32, photos_per_unit=4, val_percent=20)
    return top / "dataset"


@pytest.fixture(scope="module")
def bucket(local: Path, s3_server: S3) -> str:
    return upload(s3_server, "loader", local)


def upload(s3: S3, bucket: str, dataset: Path) -> str:
    s3.put_folder(s3.make_bucket(bucket), "set", dataset)
    return bucket


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("colorcore.dataset.order.BLOCK_SAMPLES", BLOCK)
    monkeypatch.setattr("colorcore.dataset.order.BLOCK_SHARDS", BLOCK)
    monkeypatch.setattr("colorcore.dataset.loader.BLOCK_SAMPLES", BLOCK)


def remote(location: str, folder: Path, limit: int = 10**9, split: str = "train") -> Samples:
    store = open_store(location)
    fingerprint = read_info(store).fingerprint or ""
    return Samples(store, split, cache=ShardCache(store, fingerprint, folder=folder, limit=limit))


def equal(one, other) -> None:
    one, other = list(one), list(other)
    assert len(one) == len(other) > 0
    for a, b in zip(one, other, strict=True):
        assert (a.epoch, a.step) == (b.epoch, b.step)
        np.testing.assert_array_equal(a.positions, b.positions)
        assert torch.equal(a.lab_u8, b.lab_u8)


def test_the_same_batches_as_from_a_local_copy(local, bucket, s3_server, tmp_path) -> None:
    uri = s3_server.uri(bucket, "set")
    here, there = Samples(local, "train"), remote(uri, tmp_path)
    everything = np.arange(len(here))
    assert there.keys(everything) == here.keys(everything)
    for epoch in (0, 1):
        loaders = (TrainLoader(samples, BATCH, seed=3) for samples in (here, there))
        equal(*(one.epoch(epoch) for one in loaders))
    val = [Samples(local, "val"), remote(uri, tmp_path, split="val")]
    pictures = [torch.cat(list(val_batches(samples, 5))) for samples in val]
    assert torch.equal(*pictures)
    assert len(pictures[0]) == len(val[0]) > 0


def test_an_epoch_goes_on_in_the_middle_on_other_ranks(local, bucket, s3_server, tmp_path) -> None:
    uri = s3_server.uri(bucket, "set")
    whole = list(TrainLoader(Samples(local, "train"), BATCH, seed=3).epoch(1))
    step = len(whole) // 2
    ranks = [
        list(
            TrainLoader(remote(uri, tmp_path), BATCH, seed=3, rank=rank, world=2).epoch(
                1, start_step=step
            )
        )
        for rank in (0, 1)
    ]
    for expected, *shares in zip(whole[step:], *ranks, strict=True):
        assert [share.step for share in shares] == [expected.step] * 2
        found = torch.stack([share.lab_u8 for share in shares], 1).flatten(0, 1)
        assert torch.equal(found, expected.lab_u8)


@contextmanager
def watched(folder: Path) -> Iterator[list[int]]:
    """Measure the bytes in a folder repeatedly while the block runs."""
    found, stop = [0], threading.Event()

    def look() -> None:
        while not stop.is_set():
            total = 0
            for path in folder.rglob("*.*"):
                try:
                    total += path.stat().st_size
                except FileNotFoundError:
                    continue
            found.append(total)
            time.sleep(0.001)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield found
    finally:
        stop.set()
        thread.join()


def mapped_but_gone(folder: Path) -> int:
    """Deleted files of a folder that this process still maps."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    return len({line for line in lines if str(folder) in line and line.endswith("(deleted)")})


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")
def test_the_cache_stays_within_its_bound(local, bucket, s3_server, tmp_path) -> None:
    here = Samples(local, "train")
    total = int(here.shard_bytes.sum())
    samples = remote(s3_server.uri(bucket, "set"), tmp_path, total * 6 // 10)
    gone, different = 0, set()
    with watched(tmp_path) as sizes:
        for epoch in range(4):
            expected = TrainLoader(here, BATCH).epoch(epoch)
            batches = TrainLoader(samples, BATCH).epoch(epoch)
            for one, other in zip(batches, expected, strict=True):
                assert torch.equal(one.lab_u8, other.lab_u8)
                gone = max(gone, mapped_but_gone(tmp_path))
                different |= set(samples.shards_of(one.positions).tolist())
    assert len(different) == len(samples.shards)  # all were read, through a smaller cache
    assert total // 3 < max(sizes) <= samples.cache.limit
    assert not list(tmp_path.rglob("*.part"))
    # Deleted files that are still mapped use disk space too.
    assert gone <= len(samples.shards) // 4


def test_a_cache_that_is_too_small_is_refused_with_what_is_needed(
    local, bucket, s3_server, tmp_path, monkeypatch
) -> None:
    uri = s3_server.uri(bucket, "set")
    total = int(Samples(local, "train").shard_bytes.sum())
    with pytest.raises(DatasetError, match="COLORCORE_CACHE_GB") as caught:
        TrainLoader(remote(uri, tmp_path, total // 5), BATCH)
    needed = float(re.search(r"at least (\S+) GB", str(caught.value))[1])
    assert total // 5 < needed * 1e9 < total
    monkeypatch.setenv("COLORCORE_CACHE_GB", str(needed))
    monkeypatch.setenv("COLORCORE_CACHE", str(tmp_path / "own"))
    loader = TrainLoader(Samples(uri, "train"), BATCH)
    assert sum(len(batch.positions) for batch in loader.epoch(0)) == BATCH * len(loader)
    assert list((tmp_path / "own").rglob("*.tar"))
    with pytest.raises(DatasetError, match="one shard's size"):
        remote(uri, tmp_path, 5_000).read(np.array([0]))


READER = f"""
import hashlib, sys
from pathlib import Path
import colorcore.dataset.loader, colorcore.dataset.order
colorcore.dataset.order.BLOCK_SAMPLES = colorcore.dataset.order.BLOCK_SHARDS = {BLOCK}
colorcore.dataset.loader.BLOCK_SAMPLES = {BLOCK}
from tests.colorcore.dataset.test_loader_remote import BATCH, TrainLoader, remote
loader = TrainLoader(remote(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])), BATCH)
print("ready", flush=True)
sys.stdin.readline()
digest = hashlib.sha256()
for epoch in range(int(sys.argv[4])):
    for batch in loader.epoch(epoch):
        digest.update(batch.lab_u8.numpy().tobytes())
        print("batch", flush=True)
print("digest", digest.hexdigest())
"""


@contextmanager
def reader(uri: str, folder: Path, limit: int, epochs: int) -> Iterator[subprocess.Popen[str]]:
    """A process that waits for a line, reads epochs and prints what it read."""
    words = [sys.executable, "-c", READER, uri, str(folder), str(limit), str(epochs)]
    with subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.kill()


def begin(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("go\n")
    process.stdin.flush()


def digest_of(process: subprocess.Popen[str]) -> str:
    said = process.communicate(timeout=200)[0]
    assert process.returncode == 0
    return said.split()[-1]


def expected_digest(local: Path, epochs: int) -> str:
    digest = hashlib.sha256()
    for epoch in range(epochs):
        for batch in TrainLoader(Samples(local, "train"), BATCH).epoch(epoch):
            digest.update(batch.lab_u8.numpy().tobytes())
    return digest.hexdigest()


@pytest.mark.slow
def test_processes_share_a_cache_and_fetch_a_shard_once(local, bucket, s3_server, tmp_path) -> None:
    """Two in turn with a cache for everything; two at once with a cache for about half."""
    uri, expected = s3_server.uri(bucket, "set"), expected_digest(local, 2)

    def cached() -> dict[str, int]:  # a shard that is fetched again gets another inode
        return {path.name: path.stat().st_ino for path in (tmp_path / "all").rglob("*.tar")}

    with reader(uri, tmp_path / "all", 10**9, 2) as first:
        begin(first)
        assert digest_of(first) == expected
    fetched = cached()
    assert len(fetched) == len(Samples(local, "train").shards)
    half = int(Samples(local, "train").shard_bytes.sum()) * 6 // 10
    with (
        reader(uri, tmp_path / "all", 10**9, 2) as second,
        reader(uri, tmp_path / "half", half, 2) as one,
        reader(uri, tmp_path / "half", half, 2) as other,
    ):
        begin(second)
        assert digest_of(second) == expected
        assert cached() == fetched
        with watched(tmp_path / "half") as sizes:
            begin(one)
            begin(other)
            assert {digest_of(one), digest_of(other)} == {expected}
    assert half // 2 < max(sizes) <= half
    assert not list(tmp_path.rglob("*.part"))


@pytest.mark.slow
def test_a_process_that_is_killed_while_it_fetches_holds_up_nobody(
    local, bucket, flaky_s3: FlakyS3, tmp_path
) -> None:
    uri = flaky_s3.uri(bucket, "set")
    with reader(uri, tmp_path, 10**9, 2) as killed, reader(uri, tmp_path, 10**9, 2) as other:
        flaky_s3.set("hang:4:300@GET~.tar")
        begin(killed)
        end = time.monotonic() + 60
        while not flaky_s3.counts()["failures"]:
            assert killed.poll() is None
            assert time.monotonic() < end
            time.sleep(0.02)
        os.kill(killed.pid, signal.SIGKILL)
        killed.wait()
        assert list(tmp_path.rglob("*.part"))
        flaky_s3.set("none")
        begin(other)
        assert digest_of(other) == expected_digest(local, 2)
    assert not list(tmp_path.rglob("*.part"))


@pytest.mark.slow
def test_a_shard_that_is_gone_is_named(local, s3_server, tmp_path) -> None:
    bucket = upload(s3_server, "loader-gone", local)
    samples = remote(s3_server.uri(bucket, "set"), tmp_path)
    shard = samples.shards[2].as_py()
    s3_server.client.delete_object(Bucket=bucket, Key=f"set/{shard}")
    with pytest.raises(DatasetError) as caught:
        list(TrainLoader(samples, BATCH).epoch(0))
    place = samples._dataset
    index = f"index/{Path(shard).name.partition('-')[0]}.parquet"
    assert str(caught.value) == (
        f"the shard {place.show(shard)} is gone; remove {place.show(index)}, "
        "then run the same cc shard command again"
    )
    s3_server.put(bucket, f"set/{shard}", b"short")
    with pytest.raises(DatasetError, match=r"has 5 bytes, expected [\d,]+; remove s3://"):
        list(TrainLoader(samples, BATCH).epoch(0))
    assert not list(tmp_path.rglob("*.part"))


def zeros(path: Path) -> None:
    """What a power cut leaves of a file that was never synced."""
    path.write_bytes(bytes(path.stat().st_size))


def test_a_damaged_copy_is_fetched_again(local, bucket, s3_server, tmp_path) -> None:
    samples = remote(s3_server.uri(bucket, "set"), tmp_path)
    everything = np.arange(len(samples))
    whole = samples.read(everything)
    copies = sorted(tmp_path.rglob("*.tar"))
    zeros(copies[0])
    os.truncate(copies[1], 0)
    again = remote(s3_server.uri(bucket, "set"), tmp_path)
    assert torch.equal(again.read(everything), whole)


def test_a_shard_mended_in_its_bucket_is_read_again(local, s3_server, tmp_path) -> None:
    bucket = upload(s3_server, "loader-mended", local)
    samples = remote(s3_server.uri(bucket, "set"), tmp_path)
    shard = f"set/{samples.shards[0].as_py()}"
    whole = s3_server.get(bucket, shard)
    s3_server.put(bucket, shard, bytes(len(whole)))
    with pytest.raises(DatasetError, match="does not match its index at byte 512"):
        samples.read(np.array([0]))
    s3_server.put(bucket, shard, whole)
    assert torch.equal(samples.read(np.array([0])), Samples(local, "train").read(np.array([0])))


@pytest.mark.slow
def test_the_other_commands_take_a_dataset_in_a_bucket(
    local, s3_server, tmp_path, monkeypatch, capsys
) -> None:
    bucket = upload(s3_server, "loader-commands", local)
    uri = s3_server.uri(bucket, "set")
    monkeypatch.chdir(tmp_path)

    def said(*words: str) -> dict:
        assert main(["colorcore", *words, "--json"]) == 0, capsys.readouterr().err
        return json.loads(capsys.readouterr().out)

    there, here = said("priors", uri, "--bins=16"), said("priors", str(local), "--bins=16")
    assert there["fingerprint"] == here["fingerprint"]
    made = set(s3_server.keys(bucket, "set/palette/"))
    assert made == {f"set/palette/{path.name}" for path in (local / "palette").iterdir()}
    for path in (local / "palette").iterdir():
        assert s3_server.get(bucket, f"set/palette/{path.name}") == path.read_bytes()

    facts = said("inspect", uri)
    assert facts["photos"] == 80
    assert facts["fingerprint"] == read_info(local).fingerprint
    there = (tmp_path / "contact-sheet.png").read_bytes()
    assert there.startswith(b"\x89PNG")

    for path in (local.parent / "photos").glob("0*.jpg"):
        s3_server.put(bucket, f"photos/{path.name}", path.read_bytes())
    before = s3_server.keys(bucket)
    looked = said("shard", "--dry-run=50", s3_server.uri(bucket, "photos"), uri + "-none")
    assert (looked["photos"], looked["kept"]) == (10, 10)
    assert s3_server.keys(bucket) == before

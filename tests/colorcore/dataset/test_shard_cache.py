"""The cache of shards: its limit, eviction, and what a killed process leaves behind."""

from __future__ import annotations

import mmap
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from colorcore.dataset.layout import DatasetError
from colorcore.dataset.shard_cache import DEFAULT_BYTES, ShardCache, default_bytes
from colorcore.storage.local import LocalStore, cache_folder

SIZE = 1000
SPAWN = multiprocessing.get_context("spawn")


class Counting(LocalStore):
    """Records the fetched names."""

    def fetch(self, name: str, target: Path) -> None:
        FETCHED.append(name)
        super().fetch(name, target)


FETCHED: list[str] = []


class Stuck(LocalStore):
    """Writes the first bytes of a shard, signals it, and hangs."""

    def fetch(self, name: str, target: Path) -> None:
        target.write_bytes(self.read(name)[:10])
        (self.path / "begun").touch()
        signal.pause()


def content(number: int, size: int = SIZE) -> bytes:
    return bytes([number]) * size


def shard(number: int) -> str:
    return f"train/{number:06d}-000.tar"


@pytest.fixture
def remote(tmp_path: Path) -> Path:
    FETCHED.clear()
    for number in range(20):
        LocalStore(tmp_path / "remote").write(shard(number), content(number))
    return tmp_path / "remote"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def cache_of(remote: Path, folder: Path, shards: float = 5, **options: Any) -> ShardCache:
    return ShardCache(
        Counting(remote), options.get("fingerprint", "0123"), folder=folder,
        limit=round(shards * SIZE),
    )  # fmt: skip


def held(folder: Path) -> list[str]:
    """The shards in the cache."""
    return sorted(f"{p.parent.name}/{p.name}" for p in folder.rglob("*.tar"))


def left_over(folder: Path) -> list[Path]:
    return [p for p in folder.rglob("*") if p.is_file() and p.suffix not in {".tar", ".lock"}
            and p.name != "lock"]  # fmt: skip


# One process


def test_a_shard_is_fetched_once(remote: Path, folder: Path) -> None:
    cache = cache_of(remote, folder)
    paths = {cache.path(shard(3), SIZE) for _ in range(3)}
    (path,) = paths
    assert path.read_bytes() == content(3)
    assert [shard(3)] == FETCHED
    assert cache_of(remote, folder).path(shard(3), SIZE) == path
    assert [shard(3)] == FETCHED
    assert not left_over(folder)


def test_the_least_recently_used_shard_is_evicted_first(remote: Path, folder: Path) -> None:
    cache = cache_of(remote, folder, shards=3)
    for number in (0, 1, 2, 0):  # 1 is now the oldest
        cache.path(shard(number), SIZE)
    cache.path(shard(3), SIZE)
    assert held(folder) == [shard(0), shard(2), shard(3)]
    cache.path(shard(4), SIZE)
    assert held(folder) == [shard(0), shard(3), shard(4)]
    assert len(FETCHED) == 5
    assert cache.path(shard(1), SIZE).read_bytes() == content(1)


def test_no_more_is_evicted_than_needed(remote: Path, folder: Path) -> None:
    LocalStore(remote).write("train/big.tar", bytes(2 * SIZE))
    cache = cache_of(remote, folder, shards=4)
    for number in range(4):
        cache.path(shard(number), SIZE)
    cache.path("train/big.tar", 2 * SIZE)
    assert held(folder) == [shard(2), shard(3), "train/big.tar"]


def test_the_bound_is_for_all_datasets_together(remote: Path, folder: Path, tmp_path: Path) -> None:
    """Two versions of a dataset count separately."""
    LocalStore(tmp_path / "other").write(shard(0), content(99))
    caches = [
        cache_of(remote, folder, 3),
        cache_of(remote, folder, 3, fingerprint="4567"),
        cache_of(tmp_path / "other", folder, 3),
    ]
    paths = [cache.path(shard(0), SIZE) for cache in caches]
    assert [path.read_bytes()[0] for path in paths] == [0, 0, 99]
    assert len(set(paths)) == 3
    caches[0].path(shard(1), SIZE)
    assert [path.exists() for path in paths] == [False, True, True]


def test_a_shard_of_exactly_the_bound_fits_and_a_larger_one_is_refused(
    remote: Path, folder: Path
) -> None:
    assert cache_of(remote, folder, 1).path(shard(0), SIZE).exists()
    with pytest.raises(DatasetError, match=r"a cache of at least .* one shard's size") as e:
        cache_of(remote, folder, 0.99).path(shard(1), SIZE)
    assert "raise COLORCORE_CACHE_GB" in str(e.value)
    assert held(folder) == [shard(0)]


@pytest.mark.parametrize("found", [0, SIZE - 1, SIZE + 1])
def test_a_shard_of_another_size_is_an_error(remote: Path, folder: Path, found: int) -> None:
    LocalStore(remote).write(shard(0), bytes(found))
    cache = cache_of(remote, folder)
    for _ in range(2):
        with pytest.raises(DatasetError) as error:
            cache.path(shard(0), SIZE)
        expected = f"the shard {remote / shard(0)} has {found:,} bytes, expected 1,000; remove "
        assert expected in str(error.value)
    assert not held(folder)
    assert not left_over(folder)
    LocalStore(remote).write(shard(0), content(0))
    assert cache.path(shard(0), SIZE).read_bytes() == content(0)


def test_a_missing_shard_is_an_error(remote: Path, folder: Path) -> None:
    cache = cache_of(remote, folder)
    with pytest.raises(
        DatasetError, match=r"999999-000\.tar is gone; remove .*index.999999\.parquet, then run"
    ):
        cache.path(shard(999_999), SIZE)
    assert not held(folder)
    assert not left_over(folder)
    assert cache.path(shard(0), SIZE).exists()


def test_a_fetch_that_fails_gives_its_room_back(remote: Path, folder: Path) -> None:
    class Failing(LocalStore):
        def fetch(self, name: str, target: Path) -> None:
            target.write_bytes(b"half")
            raise OSError("the network")

    failing = ShardCache(Failing(remote), "0123", folder=folder, limit=2 * SIZE)
    for number in range(5):
        with pytest.raises(OSError, match="the network"):
            failing.path(shard(number), SIZE)
    assert not left_over(folder)
    good = cache_of(remote, folder, 2)
    for number in (0, 1):
        good.path(shard(number), SIZE)
    assert held(folder) == [shard(0), shard(1)]


def test_what_is_mapped_stays_readable(remote: Path, folder: Path) -> None:
    cache = cache_of(remote, folder, shards=1)
    path = cache.path(shard(7), SIZE)
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    cache.path(shard(8), SIZE)
    assert not path.exists()
    assert mapped[:] == content(7)
    mapped.close()


def test_other_files_in_the_folder_are_left_alone(remote: Path, folder: Path) -> None:
    """The user's folder may contain other tars."""
    mine = [
        "mine.tar",
        "photos/mine.tar",
        "a/b/c/mine.tar",
        "x.part",
        "photos/y.1.part",
        "lockfile",
    ]
    for name in mine:
        LocalStore(folder).write(name, bytes(10 * SIZE))
    cache = cache_of(remote, folder, shards=2)
    for number in range(4):
        cache.path(shard(number), SIZE)
    for name in mine:
        assert (folder / name).stat().st_size == 10 * SIZE
    assert len([name for name in held(folder) if name.startswith("train/")]) == 2


# Threads and processes


def test_threads_that_want_the_same_shard_fetch_it_once(remote: Path, folder: Path) -> None:
    cache = cache_of(remote, folder)
    start = threading.Barrier(8)

    def want(_: int) -> bytes:
        start.wait()
        return cache.path(shard(5), SIZE).read_bytes()

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(want, range(8))) == {content(5)}
    assert [shard(5)] == FETCHED


class Looking(type(Path())):
    """A folder whose listing is outdated by the time it is used."""

    def glob(self, pattern: str) -> Iterator[Path]:
        found = list(super().glob(pattern))
        LISTED.set()
        ARRIVED.wait(0.5)  # a timeout: with the lock, nothing arrives while a process counts
        return iter(found)


LISTED, ARRIVED = threading.Event(), threading.Event()


def test_a_shard_that_arrives_while_another_process_counts_is_counted(
    remote: Path, folder: Path
) -> None:
    """The listing has the old name; the file is renamed before its size is read."""

    class Watched(LocalStore):
        def fetch(self, name: str, target: Path) -> None:
            super().fetch(name, target)
            fetched.set()
            assert LISTED.wait(10)

    def fetch_one() -> Path:
        one = ShardCache(Watched(remote), "0123", folder=folder, limit=SIZE * 3 // 2)
        try:
            return one.path(shard(0), SIZE)
        finally:
            ARRIVED.set()

    fetched = threading.Event()
    LISTED.clear()
    ARRIVED.clear()
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(fetch_one)
        assert fetched.wait(10)
        cache_of(remote, Looking(folder), 1.5).path(shard(1), SIZE)
        first.result()
    assert held(folder) == [shard(1)]
    assert not left_over(folder)


def _read_many(remote: Path, folder: Path, seed: int, limit: int, results: Any) -> None:
    """Read all shards in a random order; report the largest size of the folder."""
    import random

    cache = ShardCache(LocalStore(remote), "0123", folder=folder, limit=limit)
    order = list(range(20)) * 3
    random.Random(seed).shuffle(order)
    worst = 0
    for number in order:
        while True:
            try:
                data = cache.path(shard(number), SIZE).read_bytes()
                break
            except FileNotFoundError:  # evicted before it was opened, as may happen to the loader
                continue
        assert data == content(number)
        worst = max(worst, _used(folder))
    results.put(worst)


def _used(folder: Path) -> int:
    """Bytes on disk now; by inode, so that a file renamed meanwhile counts once."""
    sizes = {}
    for path in [*folder.rglob("*.part"), *folder.rglob("*.tar")]:
        try:
            status = path.stat()
        except FileNotFoundError:
            continue
        sizes[status.st_ino] = status.st_size
    return sum(sizes.values())


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_processes_together_keep_the_bound(remote: Path, folder: Path) -> None:
    results = SPAWN.Queue()
    limit = 4 * SIZE + SIZE // 2
    processes = [
        SPAWN.Process(target=_read_many, args=(remote, folder, seed, limit, results))
        for seed in range(3)
    ]
    for process in processes:
        process.start()
    watched = 0
    while any(process.is_alive() for process in processes):
        watched = max(watched, _used(folder))
        for process in processes:
            process.join(0.002)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    worst = [results.get(timeout=5) for _ in processes]
    # One shard may be evicted and another one added while the names are read.
    assert max(*worst, watched) <= limit + SIZE
    assert _used(folder) <= limit
    assert len(held(folder)) == 4
    assert not left_over(folder)


def _get_stuck(remote: Path, folder: Path) -> None:
    ShardCache(Stuck(remote), "0123", folder=folder, limit=2 * SIZE).path(shard(0), SIZE)


def _get_one(remote: Path, folder: Path, number: int) -> None:
    ShardCache(LocalStore(remote), "0123", folder=folder, limit=2 * SIZE).path(shard(number), SIZE)


@pytest.fixture
def stuck(remote: Path, folder: Path) -> Any:
    """A process in the middle of fetching shard 0."""
    process = SPAWN.Process(target=_get_stuck, args=(remote, folder))
    process.start()
    while not (remote / "begun").exists():
        assert process.is_alive()
        process.join(0.01)
    yield process
    if process.is_alive():
        process.kill()
    process.join()


@pytest.mark.timeout(120)
def test_a_process_killed_while_fetching_leaves_nothing_in_the_way(
    stuck: Any, remote: Path, folder: Path
) -> None:
    assert left_over(folder)
    os.kill(stuck.pid, signal.SIGKILL)
    stuck.join()
    assert left_over(folder)  # half of a shard
    cache = cache_of(remote, folder, shards=2)
    cache.path(shard(1), SIZE)
    cache.path(shard(2), SIZE)
    assert held(folder) == [shard(1), shard(2)]  # the half took no room
    assert cache.path(shard(0), SIZE).read_bytes() == content(0)
    assert not left_over(folder)
    assert held(folder) == [shard(0), shard(2)]


@pytest.mark.timeout(120)
def test_the_killed_ones_shard_can_be_fetched_at_once(
    stuck: Any, remote: Path, folder: Path
) -> None:
    os.kill(stuck.pid, signal.SIGKILL)
    stuck.join()
    cache = cache_of(remote, folder, shards=1)
    assert cache.path(shard(0), SIZE).read_bytes() == content(0)
    assert held(folder) == [shard(0)]
    assert not left_over(folder)


@pytest.mark.timeout(120)
def test_what_is_being_fetched_counts_and_is_not_evicted(
    stuck: Any, remote: Path, folder: Path
) -> None:
    """One of two places is reserved; other shards replace each other in the second."""
    cache = cache_of(remote, folder, shards=2)
    (part,) = left_over(folder)
    for number in (1, 2, 3):
        cache.path(shard(number), SIZE)
        assert held(folder) == [shard(number)]
        assert part.exists()


@pytest.mark.timeout(120)
def test_a_process_that_waits_for_a_killed_one_continues(
    stuck: Any, remote: Path, folder: Path
) -> None:
    """It waits for the lock, which the kernel drops."""
    waiting = SPAWN.Process(target=_get_one, args=(remote, folder, 0))
    waiting.start()
    waiting.join(0.5)
    assert waiting.is_alive()
    os.kill(stuck.pid, signal.SIGKILL)
    waiting.join(30)
    assert waiting.exitcode == 0
    assert held(folder) == [shard(0)]


# Environment variables


def test_the_folder_and_the_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("COLORCORE_CACHE", "COLORCORE_CACHE_GB", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "colorcore"
    assert default_bytes() == DEFAULT_BYTES == 50 * 10**9
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "colorcore"
    monkeypatch.setenv("COLORCORE_CACHE", str(tmp_path / "mine"))
    monkeypatch.setenv("COLORCORE_CACHE_GB", "0.5")
    cache = ShardCache(LocalStore(tmp_path), "0123")
    assert (cache.folder, cache.limit) == (tmp_path / "mine", 5 * 10**8)


@pytest.mark.parametrize("given", ["", "0", "-1", "many", "nan", "inf", "1e-12"])
def test_a_bound_that_is_no_number(monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    monkeypatch.setenv("COLORCORE_CACHE_GB", given)
    with pytest.raises(DatasetError, match="COLORCORE_CACHE_GB to be a positive number") as error:
        default_bytes()
    assert repr(given) in str(error.value)

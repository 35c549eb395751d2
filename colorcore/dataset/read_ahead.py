"""Threads that fetch shards and read batches before they are wanted."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor
from colorcore.dataset.samples import Samples

PREFETCH = 3
"""Batches that are read ahead."""
FETCHES = 4
"""Remote shards that are fetched at a time."""


@contextlib.contextmanager
def fetch_ahead(
    samples: Samples, shards: Iterable[int]
) -> Iterator[Callable[[NDArray[np.int64]], None]]:
    """Fetch remote shards in threads, up to half a cache ahead of their first use.

    Yields what is to be called with the positions that were read. A shard that cannot be fetched
    fails when it is read.
    """
    if samples.cache is None:
        yield lambda _: None
        return
    room = samples.cache.limit // 2
    change, waiting = threading.Condition(), 0
    fetched: set[int] = set()
    seen: set[int] = set()
    stopped = False

    def used(positions: NDArray[np.int64]) -> None:
        nonlocal waiting
        with change:
            for shard in set(samples.shards_of(positions).tolist()) - seen:
                seen.add(shard)
                if shard in fetched:
                    waiting -= int(samples.shard_bytes[shard])
                    change.notify_all()

    def fetch(shard: int) -> None:
        with contextlib.suppress(Exception):  # the reader meets it again, and raises
            samples.fetch(shard)

    def work() -> None:
        nonlocal waiting
        with ThreadPoolExecutor(FETCHES, "fetch") as pool:
            for shard in shards:
                size = int(samples.shard_bytes[shard])
                with change:
                    change.wait_for(lambda: stopped or not waiting or waiting + size <= room)  # noqa: B023
                    if stopped:
                        pool.shutdown(cancel_futures=True)
                        return
                    if shard not in seen:
                        fetched.add(shard)
                        waiting += size
                pool.submit(fetch, shard)

    thread = threading.Thread(target=work, name="fetch ahead", daemon=True)
    thread.start()
    try:
        yield used
    finally:
        with change:
            stopped = True
            change.notify_all()
        thread.join()


_Job = tuple[int, "NDArray[np.int64]"]


def read_ahead(
    samples: Samples, jobs: Iterator[_Job], *, pin: bool
) -> Iterator[tuple[int, NDArray[np.int64], Tensor]]:
    """Read jobs in a thread, at most ``PREFETCH`` batches ahead of the consumer."""
    ready: queue.Queue[tuple[int, NDArray[np.int64], Tensor] | BaseException | None]
    ready = queue.Queue(PREFETCH)
    stop = threading.Event()

    def put(item: tuple[int, NDArray[np.int64], Tensor] | BaseException | None) -> None:
        while not stop.is_set():
            with contextlib.suppress(queue.Full):
                ready.put(item, timeout=0.1)
                return

    def work() -> None:
        try:
            for step, positions in jobs:
                if stop.is_set():
                    return
                lab_u8 = samples.read(positions)
                put((step, positions, lab_u8.pin_memory() if pin else lab_u8))
            put(None)
        except BaseException as error:  # handed to the consumer
            put(error)

    thread = threading.Thread(target=work, name="loader", daemon=True)
    thread.start()
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stop.set()
        thread.join()

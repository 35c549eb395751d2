"""Batches from a dataset's shards, in an order that (seed, epoch) alone decides.

Global batch k is the slice [k·B, (k+1)·B) of the epoch's order (``colorcore.dataset.order``), and
rank r
of W takes every W-th of it from the r-th on. So every rank has the same number of steps, and any
step of any epoch can be resumed on any number of ranks with the very same global batches.

Local shards are memory-mapped; remote ones are fetched ahead into a bounded folder
(``colorcore.dataset.shard_cache``) and mapped there. Batches stay uint8 until they are on the
device. What is
held in memory is a row a shard; the index of a unit is read when one of its samples is.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from colorcore.dataset.layout import DatasetError
from colorcore.dataset.order import BLOCK_SAMPLES, EpochOrder
from colorcore.dataset.samples import Samples
from colorcore.dataset.shard_cache import gigabytes

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor


if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor
PREFETCH = 3
"""Batches that are read ahead."""
FETCHES = 4
"""Remote shards that are fetched at a time."""
_Job = tuple[int, "NDArray[np.int64]"]


@dataclass(frozen=True, slots=True)
class Batch:
    """One rank's share of a global batch, and where it stands in the run.

    lab_u8     (B, 3, H, W) uint8 stored LAB, on the CPU
    positions  (B,) the samples' positions in the split's index
    epoch, step  of this batch; training resumes at step + 1
    """

    lab_u8: Tensor
    positions: NDArray[np.int64]
    epoch: int
    step: int


class TrainLoader:
    """Shuffled training batches of one rank.

    batch_size is that of the global batch. Where ``world`` does not divide it, the first ranks
    have a photo more than the others, the same ones at every step.

    Attributes:
        share: photos of each batch that are this rank's.

    With ``pin`` batches lie in page-locked memory, which a GPU copies while others compute.

    Raises:
        DatasetError: see :class:`Samples`; or fewer samples than one global batch, or a cache
            that cannot hold two blocks of the order.
        ValueError: the batch has fewer photos than there are ranks.
    """

    def __init__(
        self,
        samples: Samples,
        batch_size: int,
        *,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        pin: bool = False,
    ) -> None:
        if batch_size < world:
            raise ValueError(
                f"expected a batch of at least a photo for each of the {world} workers, "
                f"got {batch_size}"
            )
        if len(samples) < batch_size:
            raise DatasetError(
                f"expected at least one batch of {batch_size} training samples, "
                f"found {len(samples)}; shard more photos or set data.batch lower"
            )
        self._samples, self._batch_size, self._seed = samples, batch_size, seed
        self._rank, self._world, self._pin = rank, world, pin
        self.share = len(range(rank, batch_size, world))
        if samples.cache is not None:
            total = int(samples.shard_bytes.sum())
            needed = min(total, round(2.1 * BLOCK_SAMPLES * total / len(samples)))
            if samples.cache.limit < needed:
                raise DatasetError(
                    f"expected a cache of at least {gigabytes(needed)} for this dataset, got "
                    f"{gigabytes(samples.cache.limit)}; set COLORCORE_CACHE_GB higher, "
                    "or copy the dataset here"
                )

    def __len__(self) -> int:
        """Steps an epoch, the same on every rank; what does not fill a batch waits an epoch."""
        return len(self._samples) // self._batch_size

    def positions(self, epoch: int, step: int) -> NDArray[np.int64]:
        """This rank's positions of one step: (share,)."""
        return self._share(EpochOrder(self._samples.shard_counts, self._seed, epoch), step)

    def epoch(self, epoch: int, *, start_step: int = 0) -> Iterator[Batch]:
        """The batches of an epoch from ``start_step`` on, read ahead by a thread."""
        order = EpochOrder(self._samples.shard_counts, self._seed, epoch)
        jobs = ((step, self._share(order, step)) for step in range(start_step, len(self)))
        with _fetch_ahead(self._samples, self._shards(order, start_step)) as used:
            for step, positions, lab_u8 in _read_ahead(self._samples, jobs, pin=self._pin):
                used(positions)
                yield Batch(lab_u8, positions, epoch, step)

    def _share(self, order: EpochOrder, step: int) -> NDArray[np.int64]:
        batch = order.slice(step * self._batch_size, (step + 1) * self._batch_size)
        return batch[self._rank :: self._world]

    def _shards(self, order: EpochOrder, start_step: int) -> Iterator[int]:
        """The shards that this rank reads, in order of first use."""
        start = start_step * self._batch_size
        for block in range(order.blocks):
            first, stop = int(order.starts[block]), int(order.starts[block + 1])
            if stop <= start:
                continue
            skip = max(0, start - first)
            mine = (np.arange(first + skip, stop) % self._batch_size) % self._world == self._rank
            shards = self._samples.shards_of(order.block(block)[skip:][mine])
            names, places = np.unique(shards, return_index=True)
            yield from names[np.argsort(places)].tolist()


def val_batches(
    samples: Samples, batch_size: int, *, rank: int = 0, world: int = 1, pin: bool = False
) -> Iterator[Tensor]:
    """Every sample once, in index order, shared out among the ranks: (<= batch_size, 3, H, W)."""
    size, count = len(samples), len(range(rank, len(samples), world))
    starts = range(0, count, batch_size)
    jobs = (
        (i, np.arange(rank + i * world, min(size, rank + (i + batch_size) * world), world))
        for i in starts
    )
    with _fetch_ahead(samples, range(len(samples.shards))) as used:
        for _, positions, lab_u8 in _read_ahead(samples, jobs, pin=pin):
            used(positions)
            yield lab_u8


@contextlib.contextmanager
def _fetch_ahead(
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


def _read_ahead(
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

"""Batches from a dataset's shards, in an order that (seed, epoch) alone decides.

Global batch k is the slice [k·B, (k+1)·B) of the epoch's order (``colorcore.dataset.order``), and
rank r of W takes every W-th photo of it, starting with the r-th. So every rank has the same number
of steps, and a training can resume at any step, on any number of ranks, with the same global
batches.

Local shards are memory-mapped; remote shards are fetched ahead into a bounded folder
(``colorcore.dataset.shard_cache``) and mapped there. Batches stay uint8 until they are on the
device. Memory holds one row per shard; the index of a unit is read with its first sample.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np

from colorcore.dataset.layout import DatasetError
from colorcore.dataset.order import BLOCK_SAMPLES, EpochOrder
from colorcore.dataset.samples import Samples
from colorcore.dataset.shard_cache import gigabytes

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

PREFETCH = 3
"""Batches read ahead of the training step."""
FETCHES = 4
"""Remote shards fetched at the same time."""
_Job = tuple[int, "NDArray[np.int64]"]


@dataclass(frozen=True, slots=True)
class Batch:
    """One rank's share of a global batch, and its place in the run.

    lab_u8     (B, 3, H, W) uint8 stored LAB, on the CPU
    positions  (B,) the samples' positions in the split's index
    epoch, step  place of this batch; training resumes at step + 1
    """

    lab_u8: Tensor
    positions: NDArray[np.int64]
    epoch: int
    step: int


class TrainLoader:
    """Shuffled training batches of one rank.

    ``batch_size`` is the size of the global batch. If ``world`` does not divide it, the first ranks
    get one photo more than the others, the same ranks at every step.

    Attributes:
        share: photos of each batch that go to this rank.

    With ``pin``, batches lie in page-locked memory, from which a GPU copies while it computes.

    Raises:
        DatasetError: see :class:`Samples`; or there are fewer samples than one global batch, or the
            cache cannot hold two blocks of the order.
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
                f"expected a batch of at least one photo for each of the {world} workers, "
                f"got {batch_size}"
            )
        if len(samples) < batch_size:
            raise DatasetError(
                f"expected at least one batch of {batch_size} training samples, "
                f"found {len(samples)}; shard more photos or lower data.batch"
            )
        self._samples, self._batch_size, self._seed = samples, batch_size, seed
        self._rank, self._world, self._pin = rank, world, pin
        self.share = len(range(rank, batch_size, world))
        if samples.cache is not None:
            # The samples of a block are scattered over all its shards, so a cache that cannot hold
            # the block being read and the next one would fetch each shard again for every sample.
            total = int(samples.shard_bytes.sum())
            needed = min(total, round(2.1 * BLOCK_SAMPLES * total / len(samples)))
            if samples.cache.limit < needed:
                raise DatasetError(
                    f"expected a cache of at least {gigabytes(needed)} for this dataset, got "
                    f"{gigabytes(samples.cache.limit)}; raise COLORCORE_CACHE_GB, "
                    "or copy the dataset to this machine"
                )

    def __len__(self) -> int:
        """Steps per epoch, the same on every rank.

        Samples that do not fill a last batch are left out of this epoch; the next one has another
        order. A short batch would leave some ranks without photos, waiting for the others.
        """
        return len(self._samples) // self._batch_size

    def positions(self, epoch: int, step: int) -> NDArray[np.int64]:
        """This rank's positions of one step: (share,)."""
        return self._share(EpochOrder(self._samples.shard_counts, self._seed, epoch), step)

    def epoch(self, epoch: int, *, start_step: int = 0) -> Generator[Batch]:
        """The batches of an epoch from ``start_step``, read ahead by a thread from now on.

        What fails raises where its batch is asked for. Close the generator unless it is read to
        its end.
        """
        batches = self._batches(epoch, start_step)
        next(batches)  # starts the threads
        return cast("Generator[Batch]", batches)

    def _batches(self, epoch: int, start_step: int) -> Generator[Batch | None]:
        order = EpochOrder(self._samples.shard_counts, self._seed, epoch)
        jobs = ((step, self._share(order, step)) for step in range(start_step, len(self)))
        with (
            _fetch_ahead(self._samples, self._shards(order, start_step)) as used,
            _reading_ahead(self._samples, jobs, pin=self._pin) as read,
        ):
            yield None
            for step, positions, lab_u8 in read:
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
                continue  # a resumed epoch: this block was read before
            # A block is laid out when its shards are due, not before: an epoch may have thousands.
            skip = max(0, start - first)
            mine = (np.arange(first + skip, stop) % self._batch_size) % self._world == self._rank
            shards = self._samples.shards_of(order.block(block)[skip:][mine])
            names, places = np.unique(shards, return_index=True)
            yield from names[np.argsort(places)].tolist()


def val_batches(
    samples: Samples, batch_size: int, *, rank: int = 0, world: int = 1, pin: bool = False
) -> Iterator[Tensor]:
    """Every sample once, in index order, divided among the ranks: (<= batch_size, 3, H, W).

    Ranks may get different numbers of batches: scores are summed at the end, not per step.
    """
    size, count = len(samples), len(range(rank, len(samples), world))
    starts = range(0, count, batch_size)
    jobs = (
        (i, np.arange(rank + i * world, min(size, rank + (i + batch_size) * world), world))
        for i in starts
    )
    with (
        _fetch_ahead(samples, range(len(samples.shards))) as used,
        _reading_ahead(samples, jobs, pin=pin) as read,
    ):
        for _, positions, lab_u8 in read:
            used(positions)
            yield lab_u8


@contextlib.contextmanager
def _fetch_ahead(
    samples: Samples, shards: Iterable[int]
) -> Iterator[Callable[[NDArray[np.int64]], None]]:
    """Fetch remote shards in threads, at most half a cache ahead of their first use.

    Yields a function to call with the positions that were read. If a shard cannot be fetched, the
    reader raises the error.
    """
    if samples.cache is None:
        yield lambda _: None
        return
    # Half: the other half keeps the shards in use, which fetching must not evict.
    room = samples.cache.limit // 2
    # ``waiting`` counts the bytes of shards that were fetched and not yet read.
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
        # The reader fetches a missing shard itself, and raises at the batch that needs it. The
        # error here may be about a shard that is never read.
        with contextlib.suppress(Exception):
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
                    if shard not in seen:  # the reader may have overtaken this thread
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


@contextlib.contextmanager
def _reading_ahead(
    samples: Samples, jobs: Iterator[_Job], *, pin: bool
) -> Iterator[Iterator[tuple[int, NDArray[np.int64], Tensor]]]:
    """Read jobs in a thread, at most ``PREFETCH`` batches ahead of the consumer.

    A thread, not a process: copying from a memory map and decompressing release the GIL, and
    batches need not be pickled.
    """
    ready: queue.Queue[tuple[int, NDArray[np.int64], Tensor] | BaseException | None]
    ready = queue.Queue(PREFETCH)
    stop = threading.Event()

    def put(item: tuple[int, NDArray[np.int64], Tensor] | BaseException | None) -> None:
        # Never block for good: a consumer that stops early no longer empties the queue, and joins
        # this thread.
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
        except BaseException as error:  # whatever it is, the consumer raises it
            put(error)

    thread = threading.Thread(target=work, name="loader", daemon=True)
    thread.start()

    def read() -> Iterator[tuple[int, NDArray[np.int64], Tensor]]:
        while (item := ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item

    try:
        yield read()
    finally:
        stop.set()
        thread.join()

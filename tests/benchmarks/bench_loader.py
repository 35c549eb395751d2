"""CPU time of an epoch of shuffled batches beside webdataset's reader, litdata and a plain copy.

All read in process, without worker processes, from files that the page cache holds.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import webdataset

import colorcore
from colorcore.dataset.loader import TrainLoader
from colorcore.dataset.samples import Samples
from tests.benchmarks.others import HERE, Peer, python_of
from tests.benchmarks.paired import compare, cpu_ms

BATCH = 64


def run(dataset: Path, work: Path, *, rounds: int) -> None:
    """Print the ratios."""
    torch.set_num_threads(1)
    samples = Samples(dataset, "train")
    loader = TrainLoader(samples, min(BATCH, len(samples)))
    shards = [str(path) for path in sorted((dataset / "train").glob("*.tar"))]
    whole = samples.read(np.arange(len(samples))).numpy()

    def ours() -> None:
        for batch in loader.epoch(0):
            assert len(batch.lab_u8) <= BATCH

    def stock() -> None:
        reader = webdataset.WebDataset(shards, shardshuffle=False, empty_check=False)
        for (lab,) in reader.shuffle(1000).decode().to_tuple("lab.npy").batched(BATCH):
            assert lab.shape[1:] == whole.shape[1:]

    def tensors() -> None:
        """As float tensors, four bytes for each stored one, checked against the index."""
        reader = colorcore.webdataset(dataset, "train").to_tuple("L", "ab")
        for L, ab in reader.batched(BATCH):
            assert L.shape[1] + ab.shape[1] == whole.shape[1]

    def copy() -> None:
        """The least that any loader does: each byte once, into a batch of its own."""
        for start in range(0, len(whole), BATCH):
            whole[start : start + BATCH].copy()

    script = HERE / "litdata_peer.py"
    with Peer(python_of("litdata"), script, dataset / "train", work / "litdata", str(BATCH)) as lit:
        compare(
            "load, CPU-ms per sample",
            cpu_ms(ours, per=len(loader) * min(BATCH, len(samples))),
            {
                "webdataset": cpu_ms(stock, per=len(samples)),
                "colorcore.webdataset": cpu_ms(tensors, per=len(samples)),
                "litdata": lit,
                "memcpy": cpu_ms(copy, per=len(samples)),
            },
            rounds=rounds,
        )

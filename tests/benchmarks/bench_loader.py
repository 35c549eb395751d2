"""CPU time of reading an epoch of shuffled batches against webdataset's own reader."""

from __future__ import annotations

from pathlib import Path

import webdataset

from colorcore.loader import Samples, TrainLoader
from tests.benchmarks.paired import compare

BATCH = 16


def run(dataset: Path, *, rounds: int) -> None:
    """Print the ratio."""
    loader = TrainLoader(Samples(dataset, "train"), BATCH)
    shards = [str(path) for path in sorted((dataset / "train").glob("*.tar"))]

    def ours() -> None:
        for batch in loader.epoch(0):
            assert len(batch.lab_u8) == BATCH

    def stock() -> None:
        reader = webdataset.WebDataset(shards, shardshuffle=False, empty_check=False)
        samples = reader.shuffle(1000).decode().to_tuple("lab.npy").batched(BATCH)
        for (lab,) in samples:
            assert lab.shape[0] <= BATCH

    per = len(loader) * BATCH
    compare("load, CPU-ms a sample", ours, stock, per=per, unit="ms", rounds=rounds)

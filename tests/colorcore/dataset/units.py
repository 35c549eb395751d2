"""Units made in memory, and a dataset's files read back with PyArrow and tarfile alone."""

import io
import tarfile
import threading
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from colorcore.dataset.layout import ShardSettings, UnitResult, done_units, index_name
from colorcore.dataset.unit import SourcePhoto, write_unit
from colorcore.photos.refusal import PhotoRefused

SETTINGS = ShardSettings(size=32, val_percent=30)


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def rows_of(dataset: Path, name=index_name) -> list[dict]:
    tables = [pq.read_table(dataset / name(unit)) for unit in done_units(dataset)]
    return [row for table in tables for row in table.to_pylist()]


def tars_of(dataset: Path) -> list[Path]:
    return sorted([*dataset.glob("train/*.tar"), *dataset.glob("val/*.tar")])


def members_of(tar: Path) -> dict[str, bytes]:
    with tarfile.open(tar) as opened:
        return {info.name: opened.extractfile(info).read() for info in opened}


def unit_of(
    folder: Path,
    photos: dict[str, bytes | PhotoRefused],
    unit: int = 0,
    settings: ShardSettings = SETTINGS,
) -> UnitResult:
    """One unit of photos in memory, written under ``folder``."""
    return write_unit(folder, unit, given(photos), settings)


def given(photos: dict[str, bytes | PhotoRefused]) -> Iterable[SourcePhoto]:
    return (SourcePhoto(0, name, content) for name, content in photos.items())


def threads_left() -> int:
    return sum(thread.name == "loader" for thread in threading.enumerate())


def tar_arrays(dataset: Path, split: str) -> dict[str, np.ndarray]:
    """key -> array of every sample in a split's tars, by tarfile and NumPy."""
    arrays = {}
    for path in sorted((dataset / split).glob("*.tar")):
        with tarfile.open(path) as tar:
            for info in tar:
                if info.name.endswith(".lab.npy"):
                    data = tar.extractfile(info).read()
                    arrays[info.name.removesuffix(".lab.npy")] = np.load(io.BytesIO(data))
    return arrays

"""Fixtures that more than one folder of tests uses."""

import io
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from tests.servers.flaky_proxy import FlakyS3, flaky_proxy
from tests.servers.s3 import CREDENTIALS, S3, UNSET, serve_s3

torch.set_num_threads(1)
cv2.setNumThreads(1)


# -- photos and datasets: made-up photos, and a dataset of them made in process, without Ray ----

PHOTO_COUNT = 36
SIZE = 64


def scene(seed: int, height: int = 96, width: int = 128):
    """A colourful picture of smooth fields and a few discs. (H, W, 3) uint8."""
    rng = np.random.default_rng(seed)
    coarse = rng.uniform(10, 245, (4, 5, 3)).astype(np.float32)
    picture = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    y, x = np.mgrid[:height, :width]
    for _ in range(3):
        middle, radius = rng.uniform(0, 1, 2) * (height, width), rng.uniform(8, 24)
        disc = (y - middle[0]) ** 2 + (x - middle[1]) ** 2 < radius**2
        picture[disc] = rng.uniform(10, 245, 3)
    return np.clip(np.rint(picture), 0, 255).astype(np.uint8)


def jpeg(picture, quality: int = 92) -> bytes:
    out = io.BytesIO()
    Image.fromarray(picture).save(out, "JPEG", quality=quality)
    return out.getvalue()


@dataclass(frozen=True)
class PhotoFolder:
    """Photos on disk and what must become of them: names are relative to ``path``.

    kept     photos that pass the filter, the exact copy included
    copies   (an exact copy, its original)
    refused  name -> reason
    ignored  suffix -> files that are no photos
    """

    path: Path
    kept: list[str] = field(default_factory=list)
    copies: tuple[str, str] = ("", "")
    refused: dict[str, str] = field(default_factory=dict)
    ignored: dict[str, int] = field(default_factory=dict)


@pytest.fixture(scope="session")
def photo_folder(tmp_path_factory) -> PhotoFolder:
    """A few dozen small colourful JPEGs under awkward names, and one of each kind of misfit."""
    top = tmp_path_factory.mktemp("photos")
    names = [f"garden/{seed:03d}.jpg" for seed in range(PHOTO_COUNT - 6)]
    names += ["beach/000.jpg", "Été 写真/naïve ñ.jpg", "a b/c d.jpg", "a b/.e.jpg"]
    names += ["garden/v1.2.final.jpeg", "LOUD.JPG"]
    folder = PhotoFolder(top, copies=("zoo/again.jpg", "garden/000.jpg"))
    files = {name: jpeg(scene(seed)) for seed, name in enumerate(names)}
    files["zoo/again.jpg"] = files["garden/000.jpg"]
    folder.kept.extend(sorted(files))

    picture = scene(900)
    grey = np.repeat(picture.mean(axis=2, keepdims=True), 3, axis=2).astype(np.uint8)
    misfits = {
        "misfits/grey.jpg": (jpeg(grey), "greyscale"),
        "misfits/sepia.jpg": (jpeg((grey * [1.0, 0.8, 0.55]).astype(np.uint8)), "single_hue"),
        "misfits/dull.jpg": (jpeg((115 + 0.09 * scene(901)).astype(np.uint8)), "not_colorful"),
        "misfits/tiny.jpg": (jpeg(scene(902, 24, 32)), "too_small"),
        "misfits/narrow.jpg": (jpeg(scene(903, 64, 400)), "too_narrow"),
        "misfits/cut.jpg": (jpeg(scene(904))[:1500], "truncated"),
        "misfits/empty.jpg": (b"", "empty"),
        "misfits/page.jpg": (b"<html>404</html>", "unreadable"),
    }
    files |= {name: data for name, (data, _) in misfits.items()}
    folder.refused.update({name: reason for name, (_, reason) in misfits.items()})
    files |= {"misfits/readme.txt": b"text", "garden/clip.MOV": b"film", "LICENSE": b"text"}
    folder.ignored.update({".txt": 1, ".mov": 1, "(none)": 1})

    for name, data in files.items():
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_bytes(data)
    (top / "misfits/gone.jpg").symlink_to(top / "nowhere.jpg")
    folder.refused["misfits/gone.jpg"] = "unreadable"
    (top / "garden/loop").symlink_to(top, target_is_directory=True)
    return folder


def build_dataset(sources: Sequence[Path], dataset: Path, **settings):
    """What the job of `cc shard` does, in this process. Returns the finished DatasetInfo."""
    from colorcore.dataset import DatasetInfo, ShardSettings, write_info
    from colorcore.storage import open_store
    from pipelines.plan import plan_units
    from pipelines.shard import finish, shard_unit
    from pipelines.sources import open_sources

    chosen = ShardSettings(**{"size": SIZE, "photos_per_unit": 10, "val_percent": 30, **settings})
    info = DatasetInfo(settings=chosen, sources=tuple(map(str, sources)))
    write_info(dataset, info)
    store, opened = open_store(dataset), open_sources(sources)
    for planned in plan_units(store, opened, chosen.photos_per_unit, Counter()):
        shard_unit((store, opened, chosen), planned.unit, planned.plan)
    return finish(store, info)


@pytest.fixture(scope="session", name="build_dataset")
def _build_dataset():
    """:func:`build_dataset` for tests that need a dataset of their own."""
    return build_dataset


@pytest.fixture(scope="session")
def dataset(photo_folder, tmp_path_factory) -> Path:
    """The finished dataset of ``photo_folder``: read it, never write to it."""
    path = tmp_path_factory.mktemp("made") / "dataset"
    build_dataset([photo_folder.path], path)
    return path


@pytest.fixture(scope="session", name="scene")
def _scene():
    """:func:`scene`, a picture from a seed."""
    return scene


@pytest.fixture(scope="session", name="jpeg")
def _jpeg():
    """:func:`jpeg`, a picture's bytes."""
    return jpeg


# -- end of photos and datasets -----------------------------------------------------------------


# -- storage: an S3 server, and one that fails on purpose (tests/servers) -------------------------


@pytest.fixture(scope="session", autouse=True)
def _made_up_credentials() -> Iterator[None]:
    """First of all, so that Ray's workers, whenever they start, have them too."""
    with pytest.MonkeyPatch.context() as patch:
        for name in UNSET:
            patch.delenv(name, raising=False)
        for name, value in CREDENTIALS.items():
            patch.setenv(name, value)
        yield


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3]:
    """An S3 server for the whole run: make a bucket of your own."""
    with serve_s3() as s3:
        yield s3


@pytest.fixture(scope="session")
def _proxied_s3(s3_server: S3) -> Iterator[FlakyS3]:
    with flaky_proxy(s3_server.endpoint) as flaky:
        yield flaky


@pytest.fixture
def flaky_s3(_proxied_s3: FlakyS3) -> Iterator[FlakyS3]:
    """The same server through a proxy that fails as `.set(rule)` tells it; first by no rule."""
    _proxied_s3.set("none")
    yield _proxied_s3
    _proxied_s3.set("none")


# -- end of storage -----------------------------------------------------------------------------

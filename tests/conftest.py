"""Fixtures that more than one folder of tests uses."""

import io
import os
import re
import shutil
import signal
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

# Before torch is loaded: one thread per process, because several processes share few cores, and
# threads of one network that wait for each other would waste them.
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
os.environ["OMP_NUM_THREADS"] = "1"
# Ray's workers have a niceness of 15, with which the other test process would leave them a
# twentieth of a CPU: trainings would run into the tests' time limits.
os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 - as Ray spells it
# What one process of the hundreds that tests start has compiled, the next one need not.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

import cv2
import numpy as np
import psutil
import pytest
import torch
from PIL import Image

from tests.servers.flaky_proxy import FlakyS3, flaky_proxy
from tests.servers.s3 import CREDENTIALS, S3, UNSET, serve_s3

if TYPE_CHECKING:
    from colorcore.recipes.recipe import Recipe
    from pipelines.training.driver import TrainReport
    from tune.study import StudyReport

# A shell without job control starts what it puts into the background with Ctrl-C ignored, which
# processes pass on: those that tests interrupt would not notice.
if threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGINT, signal.default_int_handler)
torch.set_num_threads(1)
cv2.setNumThreads(1)


# -- tiers and test processes ---------------------------------------------------------------------

RAY_GROUP = "ray"
SERVERS = re.compile(
    r"(\S*/)?(raylet|gcs_server|chrom\w*|postgres|slurm\w+) "
    r"|.*\b(playwright/driver/node|mlflow server|tests\.(clusters|servers\.(mlflow|postgres))) "
)
"""Commands that only tests marked slow may run."""
_started: list[str] = []


@pytest.hookimpl(tryfirst=True)  # before -m leaves tests out, and before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests of the local Ray as slow, and decide what test process runs each test.

    One process runs all files that use the local Ray, because its size, its workers and what was
    trained on it belong to them. The tests of any other file stay together, too. Slow files come
    first, so that all processes end at about the same time.
    """
    with_ray = {_file(item) for item in items if "local_ray" in getattr(item, "fixturenames", ())}
    for item in items:
        if "local_ray" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.slow)
        name = RAY_GROUP if _file(item) in with_ray else _file(item).removesuffix(".py")
        item.add_marker(pytest.mark.xdist_group(name))
    slow = {_file(item) for item in items if item.get_closest_marker("slow")}
    if items and hasattr(items[0].config, "workerinput"):
        items.sort(key=lambda item: (_file(item) not in with_ray, _file(item) not in slow))


def _file(item: pytest.Item) -> str:
    return item.nodeid.partition("::")[0]


def _notice_servers(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "subprocess.Popen":
        words = arguments[1] if isinstance(arguments[1], list | tuple) else [arguments[1]]
        command = " ".join(map(os.fsdecode, words))
        if SERVERS.match(f"{command} "):
            _started.append(command)


sys.addaudithook(_notice_servers)


@pytest.fixture(autouse=True)
def _fast_tests_start_no_servers(request: pytest.FixtureRequest) -> Iterator[None]:
    """Keep `make check` short: what starts Ray, a server or a browser is marked slow."""
    if request.node.get_closest_marker("slow"):
        yield
        return
    rays = _rays()
    _started.clear()
    yield
    found = [*_started, *(["Ray"] if _rays() != rays else [])]
    if found:
        pytest.fail(f"mark this test slow: it started {', '.join(found)}", pytrace=False)


def _rays() -> list[str]:
    """The sessions of Ray that this process and its children have started."""
    return sorted(path.name for path in Path(tempfile.gettempdir()).glob("ray/session_2*"))


@pytest.fixture(scope="session", autouse=True)
def _own_temporary_folder(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[None]:
    """What this process and its children write unasked, Ray's files too, lies in a folder of its
    own, and no Ray there outlives the tests.

    Its name is short, for the paths of Ray's sockets lie below and have at most 107 bytes.
    """
    tmp_path_factory.getbasetemp()  # where it always is: pytest keeps the last few
    folder = tempfile.mkdtemp(prefix="cc-")
    Path(folder).chmod(0o711)  # a test becomes nobody
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", folder)
        patch.delenv("RAY_TMPDIR", raising=False)
        patch.setattr("tempfile.tempdir", folder)
        yield
    left = _processes_of(folder)
    _, left = psutil.wait_procs(left, timeout=30)
    for process in left:
        process.kill()
    if not request.session.testsfailed:  # else one wants to read Ray's logs
        shutil.rmtree(folder, ignore_errors=True)
    assert not left


def _processes_of(folder: str) -> list[psutil.Process]:
    """Those whose command names something in the folder, as Ray's do."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if any(folder in word for word in process.cmdline()):
                found.append(process)
    return found


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
    from colorcore.dataset.layout import DatasetInfo, ShardSettings, write_info
    from colorcore.storage.location import open_store
    from pipelines.sharding.merge_tasks import merge_units
    from pipelines.sharding.plan import plan_units
    from pipelines.sharding.task import shard_unit
    from pipelines.sources.source import open_sources

    chosen = ShardSettings(**{"size": SIZE, "photos_per_unit": 10, "val_percent": 30, **settings})
    info = DatasetInfo(settings=chosen, sources=tuple(map(str, sources)))
    write_info(dataset, info)
    store, opened = open_store(dataset), open_sources(sources)
    for planned in plan_units(store, opened, chosen.photos_per_unit, Counter()):
        shard_unit((store, opened, chosen), planned.unit, planned.plan)
    return merge_units(store, info)


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


# -- jobs: one local Ray, one MLflow store, one trained model and one study for all tests ---------


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    """A Ray with two CPUs that ends with the tests; a test that uses it is slow."""
    from pipelines.cluster import ray_session

    with ray_session(cpus=2):
        yield


@pytest.fixture(scope="session")
def tracking(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The URI of the MLflow store, which other tests log into, too."""
    from tests.mlflow_store import new_store

    return new_store(tmp_path_factory.mktemp("mlflow"))


@pytest.fixture(scope="session")
def tiny() -> "Recipe":
    """The recipe of ``trained`` and of ``study``."""
    from colorcore.recipes.recipe import load_recipe
    from tests.trainings import TINY

    return load_recipe("unet-l1", TINY)


@pytest.fixture(scope="session")
def dataset_with_palette(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of ``dataset`` with 16 bins: read it, never write to it."""
    from pipelines.priors import make_palette

    copy = shutil.copytree(dataset, tmp_path_factory.mktemp("with-palette") / "dataset")
    make_palette(copy, bins=16)
    return copy


@pytest.fixture(scope="session")
def trained(
    local_ray: None,
    dataset_with_palette: Path,
    tiny: "Recipe",
    tracking: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> "TrainReport":
    """What `cc train` says of ``tiny``; read its folder, never write to it."""
    from pipelines.training.driver import train

    out = tmp_path_factory.mktemp("trained") / "model"
    return train(dataset_with_palette, tiny, out, tracking_uri=tracking, name="trained")


@pytest.fixture(scope="session")
def study(
    local_ray: None,
    dataset_with_palette: Path,
    tiny: "Recipe",
    tracking: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> "StudyReport":
    """What `cc tune` says of five trials, some of which ASHA stops; its name wants quoting."""
    from tests.trainings import settings_for
    from tune.study import tune

    return tune(
        dataset_with_palette, settings_for(tiny), tmp_path_factory.mktemp("studies") / "small",
        trials=5, tracking_uri=tracking, name="it's small", concurrent=1, register="small-model",
        keep=1,
    )  # fmt: skip


# -- commands --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Answer:
    """What a command that ran in this process returned and printed."""

    code: int
    stdout: str
    stderr: str


Run = Callable[..., Answer]


@pytest.fixture
def cc(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Run the command in this process, in an empty folder."""
    from cli.main import main

    monkeypatch.chdir(tmp_path)

    def run(*arguments: str | Path) -> Answer:
        code = main(["colorcore", *map(str, arguments)])
        return Answer(code, *capsys.readouterr())

    return run

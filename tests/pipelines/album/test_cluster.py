"""`cc colorize --address`: the pictures and the report of one process, whatever dies meanwhile."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import ray
import torch
from PIL import Image

from cli.main import main
from colorcore.checkpoints.shipped import START
from pipelines.album import cluster
from pipelines.album import colorize as job
from pipelines.album.cluster import Places, SliceJob
from pipelines.album.colorize import colorize_photos
from pipelines.album.settings import ColorizeReport, ColorizeSettings
from pipelines.album.slices import STOP, slice_size
from pipelines.errors import JobError
from pipelines.export.job import export_model
from tests.clusters import several_nodes, wait_for
from tests.conftest import jpeg, scene
from tests.mounts import mounted
from tests.pipelines.album.test_colorize import files
from tests.servers.child import ROOT
from tests.servers.s3 import S3

CPU = ColorizeSettings(device="cpu")
PNG = replace(CPU, suffix=".png")
IN_FOLDERS = [
    "one/A-4.png", "one/A.png", "one/a-2.png", "one/a-3.png",
    "sub.tar/a-2.png", "sub.tar/a.png", "sub.tar/b.png", "sub.tar/c.png",
]  # fmt: skip
TASK = "ray::colorize_slice"
"""How Ray names the process of a task."""


def grey(folder: Path, count: int, side: int = 96) -> Path:
    """A folder of grey photos, 000.jpg and so on."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        pixels = scene(number, side, side + 32).mean(axis=2).astype(np.uint8)
        (folder / f"{number:03d}.jpg").write_bytes(jpeg(pixels))
    return folder


def grey_tar(path: Path, names: list[str], folder: Path) -> Path:
    """A tar of the photos of a folder, under other names."""
    with tarfile.open(path, "w") as file:
        for name, photo in zip(names, sorted(folder.glob("*.jpg")), strict=False):
            data = photo.read_bytes()
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return path


def pictures(folder: Path) -> dict[str, bytes]:
    """All files below a folder, temporary ones too, without the claim's."""
    return {name: data for name, data in files(folder).items() if name != ".writer"}


def once(there: Callable[[], bool], act: Callable[[], None]) -> threading.Thread:
    """Do something in a thread as soon as a condition holds."""

    def wait() -> None:
        end = time.monotonic() + 120
        while not there() and time.monotonic() < end:
            time.sleep(0.01)
        act()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread


def tasks() -> list[psutil.Process]:
    """The processes that work for this one at a task."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            if TASK in " ".join(process.cmdline()):
                found.append(process)
    return found


@pytest.fixture(scope="module")
def album(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 grey photos, a damaged one, three in colour, tars and a file that is none of these.

    The pictures of one.tar and of one/A.jpg would have the same names.
    """
    folder = grey(tmp_path_factory.mktemp("album") / "album", 20)
    grey_tar(folder / "one.tar", ["x/a.jpg", "y/a.jpg", "note.txt", "z/A.jpg"], folder)
    grey_tar(folder / "sub.tar", ["a.jpg", "b.jpg"], folder)
    (folder / "007b.jpg").write_bytes(jpeg(scene(3))[:700])
    for number in range(3):
        (folder / f"color{number}.jpg").write_bytes(jpeg(scene(number)))
    (folder / "one").mkdir()
    (folder / "one" / "A.jpg").write_bytes((folder / "000.jpg").read_bytes())
    (folder / "notes.txt").touch()
    grey_tar(folder.parent / "sub.tar", ["a.jpg", "c.jpg"], folder)
    return folder


@pytest.fixture(scope="module")
def sources(album: Path) -> list[str]:
    """The album, and a tar whose pictures go into the same folder as those of one in it."""
    return [str(album), str(album.parent / "sub.tar")]


@pytest.fixture(scope="module")
def here(sources: list[str], tmp_path_factory: pytest.TempPathFactory) -> ColorizeReport:
    """What one process makes of the album."""
    return colorize_photos(START, sources, tmp_path_factory.mktemp("here") / "out", PNG)


def below(report: ColorizeReport) -> list[str]:
    return sorted(path.relative_to(report.out).as_posix() for path in report.written)


@pytest.mark.parametrize("threads", [1, 2])
def test_the_files_and_the_report_are_those_of_one_process(
    threads: int,
    local_ray: None,
    sources: list[str],
    here: ColorizeReport,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Bytes are equal because slices are whole batches of the same photos, in the same order.

    With other batches, or with more threads than the tests' one, the network sums in another order,
    so the last bit of a colour may differ, and with it a pixel by one level.
    """
    monkeypatch.chdir(tmp_path)
    done: list[tuple[int, int]] = []
    there = colorize_photos(
        START,
        sources,
        Path("out"),
        replace(PNG, threads=threads),
        address="auto",
        on_progress=lambda *counts: done.append(counts),
    )
    assert below(there) == below(here) == sorted(pictures(there.out))
    if threads == 1:
        assert pictures(there.out) == pictures(here.out)
    for name in below(here):
        ours, theirs = (np.asarray(Image.open(one.out / name), int) for one in (there, here))
        assert abs(ours - theirs).max() <= 1, name
    assert [name for name in below(there) if "/" in name] == IN_FOLDERS
    assert {path.parts[0] for path in there.written} == {"out"}
    assert there.refused == here.refused
    assert [Path(place).name for place in there.refused] == ["007b.jpg"]
    assert (there.colored, there.ignored) == (here.colored, here.ignored)
    assert len(there.colored) == 3
    assert there.ignored == Counter({".txt": 2})
    assert (there.kept, there.left, there.decoding) == ([], 0, here.decoding)
    assert done == sorted(done)
    assert done[-1] == (28, 28)


def test_an_exported_file_goes_to_the_nodes(local_ray: None, album: Path, tmp_path: Path) -> None:
    file, photos = (
        tmp_path / "start.onnx",
        [str(album / f"{number:03d}.jpg") for number in range(3)],
    )
    export_model(START, file)
    mine = colorize_photos(file, photos, tmp_path / "here", PNG)
    there = colorize_photos(file, photos, tmp_path / "there", PNG, address="auto")
    assert below(there) == below(mine) == ["000.png", "001.png", "002.png"]
    for name in below(mine):
        ours, theirs = (np.asarray(Image.open(one.out / name), int) for one in (there, mine))
        assert abs(ours - theirs).max() <= 1, name


def test_a_second_call_does_nothing(
    local_ray: None, album: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a cluster, if all photos have their pictures; tars have to be read again."""
    photos = [str(album / f"{number:03d}.jpg") for number in range(3)]
    out = tmp_path / "out"
    first = colorize_photos(START, photos, out, CPU, address="auto")
    before = {path: path.stat().st_mtime_ns for path in first.written}
    with monkeypatch.context() as patch:
        patch.setattr(cluster, "ray_session", None)
        again = colorize_photos(START, photos, out, CPU, address="nowhere:1")
    assert (again.written, again.kept, again.left) == ([], first.written, 0)
    tars = [str(album / "one.tar"), *photos]
    colorize_photos(START, tars, out, CPU, address="auto")
    again = colorize_photos(START, tars, out, CPU, address="auto")
    assert again.written == []
    assert len(again.kept) == 6
    assert before == {path: path.stat().st_mtime_ns for path in first.written}
    anew = colorize_photos(START, tars, out, replace(CPU, overwrite=True), address="auto")
    assert len(anew.written) == 6


def test_a_killed_process_loses_nothing_and_counts_nothing_twice(
    local_ray: None, tmp_path: Path
) -> None:
    photos = grey(tmp_path / "photos", 40, side=400)
    grey_tar(photos / "t.tar", [f"{number}.jpg" for number in range(12)], photos)
    expected = colorize_photos(START, [str(photos)], tmp_path / "here", CPU)
    report = ColorizeReport(tmp_path / "there")
    killed: list[int] = []

    def kill() -> None:
        for process in tasks():
            process.kill()
            killed.append(process.pid)

    thread = once(lambda: len(list(report.out.rglob("[!.]*.jpg"))) >= 5, kill)
    (report.out / ".000.jpg.part").parent.mkdir()
    (report.out / ".000.jpg.0123abcd.part").touch()  # as a killed process leaves it
    colorize_photos(START, [str(photos)], report.out, CPU, address="auto", report=report)
    thread.join()
    assert killed
    assert pictures(report.out) == pictures(tmp_path / "here")
    assert below(report) == below(expected)
    assert (report.kept, report.refused, report.left) == ([], {}, 0)


def die_of_white(_: object, inputs: tuple[torch.Tensor]) -> None:
    """A hook of a network that ends its process if a photo is white."""
    if (inputs[0].amin(dim=(1, 2, 3)) > 0.99 * inputs[0].amax()).any():
        os.kill(os.getpid(), signal.SIGKILL)


def before_each_pass(monkeypatch: pytest.MonkeyPatch, hook: Callable[..., None]) -> None:
    """Let the job's network call a function before each of its passes, in every process."""
    whole = job._colorizer

    def hooked(*arguments: Any) -> Any:
        colorizer = whole(*arguments)
        colorizer.network.register_forward_pre_hook(hook)
        return colorizer

    monkeypatch.setattr(job, "_colorizer", hooked)


def test_a_photo_that_kills_its_process_is_refused(
    local_ray: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = grey(tmp_path / "photos", 10)
    (photos / "004.jpg").write_bytes(jpeg(np.full((96, 128), 250, np.uint8)))
    before_each_pass(monkeypatch, die_of_white)
    monkeypatch.setattr(cluster, "RETRIES", 0)
    report = colorize_photos(START, [str(photos)], tmp_path / "out", CPU, address="auto")
    assert len(report.written) == 9
    ((place, why),) = report.refused.items()
    assert place == str(photos / "004.jpg")
    assert why.startswith("the process that colourized it died 1 times (WorkerCrashedError: ")
    assert report.left == 0


def fail(*_: object) -> None:
    raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")


def test_other_errors_are_not_hidden(
    local_ray: None, album: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before_each_pass(monkeypatch, fail)
    report = ColorizeReport(tmp_path / "out")
    with pytest.raises(RuntimeError, match=r"^mat1 and mat2 shapes cannot be multiplied$"):
        colorize_photos(START, [str(album)], report.out, CPU, address="auto", report=report)
    assert (report.written, report.refused) == ([], {})


def test_photos_in_an_object_store(
    local_ray: None, s3_server: S3, here: ColorizeReport, album: Path, tmp_path: Path
) -> None:
    bucket = s3_server.make_bucket("colorize-cluster")
    s3_server.put_folder(bucket, "album", album)
    source = s3_server.uri(bucket, "album")
    there = colorize_photos(START, [source], tmp_path / "out", PNG, address="auto")
    assert [name for name in below(there) if "/" not in name] == [
        name for name in below(here) if "/" not in name
    ]
    one = "003.png"
    assert (there.out / one).read_bytes() == (here.out / one).read_bytes()
    ((place, _),) = there.refused.items()
    assert place.startswith("s3://colorize-cluster/album/007b.jpg")


def test_ctrl_c_reports_what_is_done(
    local_ray: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without ray.cancel, which can end the driver: see ``SliceJob._stop``."""
    cancelled: list[Any] = []
    monkeypatch.setattr(ray, "cancel", lambda *arguments, **_: cancelled.append(arguments))
    count = 256  # enough that the signal comes before the last one is done
    photos = grey(tmp_path / "photos", count, side=400)
    report = ColorizeReport(tmp_path / "out")
    there = once(
        lambda: len(list(report.out.glob("[!.]*.jpg"))) >= 5,
        lambda: os.kill(os.getpid(), signal.SIGINT),
    )
    with pytest.raises(KeyboardInterrupt):
        colorize_photos(START, [str(photos)], report.out, CPU, address="auto", report=report)
    there.join()
    assert tasks() == []
    assert cancelled == []
    names = sorted(path.name for path in report.out.iterdir() if path.name != ".writer")
    assert below(report) == names
    assert 5 <= len(names) < count
    assert report.left == count - len(names)
    rest = colorize_photos(START, [str(photos)], report.out, CPU, address="auto")
    assert sorted(rest.kept) == sorted(report.written)
    assert len(rest.written) == count - len(names)


def test_a_driver_that_was_killed_while_it_ended_its_tasks_stops_no_later_one(
    local_ray: None, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / STOP).touch()
    report = colorize_photos(START, [str(grey(tmp_path / "photos", 3))], out, CPU, address="auto")
    assert len(report.written) == 3
    assert not (out / STOP).exists()


def test_few_tasks_are_in_flight(
    local_ray: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = grey(tmp_path / "photos", 60, side=32)
    most: list[int] = []
    start = SliceJob._start

    def counted(self: SliceJob, *arguments: Any) -> None:
        start(self, *arguments)
        most.append(len(self._running))

    monkeypatch.setattr(SliceJob, "_start", counted)
    colorize_photos(START, [str(photos)], tmp_path / "out", CPU, address="auto")
    assert len(most) == 8  # of eight photos, because there are few
    assert max(most) <= cluster.IN_FLIGHT * 2


def test_the_size_of_slices() -> None:
    sizes = [slice_size(photos, 16) for photos in (3, 1_000, 1_100, 4_000, 10**6)]
    assert sizes == [8, 8, 16, 56, 64]


def test_nodes_without_the_folder_are_told_from_others(
    local_ray: None, album: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "here", lambda: ("elsewhere", 1))
    with pytest.raises(JobError, match=r"that all nodes mount, found another .*out on "):
        colorize_photos(START, [str(album)], tmp_path / "out", CPU, address="auto")
    assert pictures(tmp_path / "out") == {}


def test_a_gpu_that_is_asked_for_and_not_there(
    local_ray: None, album: Path, tmp_path: Path
) -> None:
    for settings, why in [
        (ColorizeSettings(device="cuda"), "expected GPUs for --device cuda, found none"),
        (replace(CPU, threads=64), "expected a node with 64 CPUs for --threads 64, found at most"),
    ]:
        with pytest.raises(JobError, match=why):
            colorize_photos(START, [str(album)], tmp_path / "out", settings, address="auto")


@pytest.mark.parametrize(
    ("device", "threads", "expected"),
    [
        (None, None, ("cuda", 4, {"num_cpus": 4, "num_gpus": 1}, 3)),
        ("cuda:1", 2, ("cuda", 2, {"num_cpus": 2, "num_gpus": 1}, 3)),
        ("cpu", None, ("cpu", 1, {"num_cpus": 1, "num_gpus": 0}, 44)),
        ("cpu", 4, ("cpu", 4, {"num_cpus": 4, "num_gpus": 0}, 11)),
    ],
)
def test_where_tasks_run(
    device: str | None,
    threads: int | None,
    expected: tuple[str, int, dict[str, int], int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Three nodes: 16 CPUs with two GPUs, 4 CPUs with one, 24 CPUs without."""
    kinds = [{"CPU": 16.0, "GPU": 2.0}, {"CPU": 4.0, "GPU": 1.0}, {"CPU": 24.0}]
    nodes = [{"Alive": True, "Resources": kind} for kind in kinds]
    monkeypatch.setattr("ray.nodes", lambda: [*nodes, {"Alive": False, "Resources": {}}])
    monkeypatch.setattr("ray.cluster_resources", lambda: {"CPU": 44.0, "GPU": 3.0})
    places = Places(device, threads)
    assert (places.device, places.threads, places.resources, places.count()) == expected


def test_a_full_disk_ends_the_job(
    local_ray: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if no slice is as long as the number of failures that it takes."""
    place = tmp_path / "disk"
    place.mkdir()
    photos = grey(tmp_path / "photos", 32)
    monkeypatch.setattr(cluster, "IN_FLIGHT", 1)
    with mounted(place, "size=8k"):
        report = ColorizeReport(place / "out")
        with pytest.raises(JobError, match=r"the last 1\d pictures failed: cannot write"):
            colorize_photos(START, [str(photos)], report.out, CPU, address="auto", report=report)
        assert len(report.written) == len(pictures(report.out))
    assert len(report.refused) >= 10
    assert report.left == 32 - len(report.written) - len(report.refused)


def test_what_a_cluster_cannot_do(album: Path, tmp_path: Path, capsys) -> None:
    words = ["cc", "colorize", START, "--address", "auto", "--out"]
    assert main([*words, str(tmp_path / "out"), "-"]) == 2
    assert "expected files with --address, got standard input" in capsys.readouterr().err
    assert main([*words, "s3://bucket/out", str(album)]) == 2
    assert "expected a local path for --out" in capsys.readouterr().err
    page = ["--before-after", str(tmp_path / "page.html")]
    assert main([*words, str(tmp_path / "out"), str(album), *page]) == 2
    assert "expected no --before-after with --address" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_without_an_address_no_ray_is_needed(album: Path, tmp_path: Path) -> None:
    code = (
        "import sys\nsys.modules['ray'] = None\nfrom cli.main import main\n"
        "sys.exit(main(['colorcore', *sys.argv[1:]]))"
    )
    words = ["colorize", START, str(album / "000.jpg"), "--out", str(tmp_path), "--device", "cpu"]
    done = subprocess.run(
        [sys.executable, "-c", code, *words],
        capture_output=True, text=True, check=False, cwd=ROOT, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "000.jpg").is_file()


@pytest.mark.slow
def test_a_node_that_dies_costs_nothing_but_time(tmp_path: Path) -> None:
    photos = grey(tmp_path / "photos", 64, side=400)
    out = tmp_path / "out"
    words = ["colorize", START, str(photos), "--out", str(out), "--json"]
    with several_nodes(2) as nodes:
        call = [sys.executable, "-m", "cli.main", *words, "--address", nodes.address]
        driver = nodes.start(call, cwd=ROOT, stderr=subprocess.PIPE)
        wait_for(lambda: len(list(out.glob("[!.]*.jpg"))) >= 5, driver)
        nodes.kill(nodes.nodes[0])
        said, warned = driver.communicate(timeout=240)
    assert driver.returncode == 0, warned
    found = json.loads(said)
    assert found["written"] == sorted(str(path) for path in out.glob("[!.]*.jpg"))
    assert len(found["written"]) == 64
    assert (found["kept"], found["refused"], found["left"]) == ([], {}, 0)
    assert [path.name for path in out.glob(".*") if path.name != ".writer"] == []

"""After SIGKILL at any moment, the same command gives the dataset of an uninterrupted run."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from colorcore.dataset.layout import DatasetError, read_info
from colorcore.storage.locks import WRITER
from tests.clusters import Cluster, several_nodes
from tests.conftest import build_dataset
from tests.pipelines.sharding.folders import (
    OPTIONS,
    command,
    contents,
    files,
    leftovers,
    of_units,
    photos,
    run,
    units,
    wait,
)
from tests.servers.child import ROOT

pytestmark = pytest.mark.slow

PHOTOS, UNITS = 40, 10

# What the command's own process does before it starts: it kills itself at a moment.
KILL = """
import os, signal
def kill():
    os.kill(os.getpid(), signal.SIGKILL)
"""
SMALL_PLANS = """
import pipelines.sharding.plan
pipelines.sharding.plan.PLAN_UNITS = 3
"""


def killed_after(function: str, nth: int = 1, when: str = "True", *, before: bool = False) -> str:
    """Hooks: SIGKILL after (or before) the n-th call of a function whose ``args`` match."""
    place, _, name = function.rpartition(".")
    return f"""{KILL}
import pkgutil
place = pkgutil.resolve_name({place!r})
inner, calls = place.{name}, []
def outer(*args, **options):
    if {when}:
        calls.append(args)
    if {before} and len(calls) == {nth}:
        kill()
    result = inner(*args, **options)
    if len(calls) == {nth}:
        kill()
    return result
place.{name} = outer
"""


def killed_at_index(number: int, dataset: Path) -> str:
    """Hooks: SIGKILL once that many units have an index, while others are running."""
    return f"""{KILL}
import threading, time, pathlib
def watch():
    folder = pathlib.Path({str(dataset / "index")!r})
    while not folder.is_dir() or len(list(folder.glob("[!.]*.parquet"))) < {number}:
        time.sleep(0.001)
    kill()
threading.Thread(target=watch, daemon=True).start()
"""


@pytest.fixture(scope="module")
def ray() -> Cluster:
    """A running Ray, so that each command starts quickly."""
    with several_nodes(0, head_cpus=2) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return photos(tmp_path_factory.mktemp("source") / "photos", PHOTOS)


@pytest.fixture(scope="module")
def whole(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The dataset of an uninterrupted run, made in this process."""
    dataset = tmp_path_factory.mktemp("whole") / "dataset"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipelines.sharding.plan.PLAN_UNITS", 3)
        build_dataset([source], dataset, **OPTIONS)
    assert len(units(contents(dataset))) == UNITS
    return dataset


def on(ray: Cluster, *places: object, hooks: str = "", code: int = 0) -> str:
    """Run the command on that Ray; return its output."""
    words = [*command(*places, hooks=SMALL_PLANS + hooks), "--address", ray.address]
    done = ray.driver(words, timeout=200, cwd=ROOT)
    assert done.returncode == code, done.stdout
    return done.stdout


def finish_alone(*places: object, hooks: str = "", code: int = 0) -> str:
    """Run the command without Ray, which it needs only for units."""
    no_ray = "import ray\ndef init(**_): raise AssertionError('ray was started')\nray.init = init\n"
    done = run(*places, hooks=SMALL_PLANS + no_ray + hooks, code=code)
    return done.stdout + done.stderr


def settle(ray: Cluster) -> None:
    """Wait until the workers of a killed driver are gone."""
    end = time.monotonic() + 60
    while at_work(ray._keeper.process.pid):
        assert time.monotonic() < end
        time.sleep(0.02)


def at_work(pid: int) -> list[psutil.Process]:
    """Ray workers below a process that are running a unit."""
    found = []
    for process in psutil.Process(pid).children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if "ray::shard_unit" in " ".join(process.cmdline()):
                found.append(process)
    return found


def test_a_driver_that_is_killed_over_and_over(
    ray: Cluster, source: Path, whole: Path, tmp_path: Path
) -> None:
    """Killed while listing, after the first, middle and last unit; each call continues there."""
    dataset = tmp_path / "dataset"
    stages = [
        killed_after("pathlib.Path.replace", when="args[1].name == 'dataset.json'", before=True),
        killed_after("pipelines.sharding.job.write_info"),
        killed_after("pipelines.sharding.plan.write_plan", 2, before=True),
        killed_at_index(1, dataset),
        killed_at_index(UNITS // 2, dataset),
        killed_after("pipelines.sharding.job.merge_units", before=True),
    ]
    for number, hooks in enumerate(stages):
        before = files(dataset) if dataset.exists() else {}
        on(ray, source, dataset, hooks=hooks, code=-signal.SIGKILL)
        settle(ray)
        there = files(dataset)
        done = of_units(before, units(before))
        assert {name: there[name] for name in done} == done, f"stage {number} did units again"
        plans = {name: file for name, file in before.items() if name.startswith("units/")}
        assert {name: there[name] for name in plans} == plans
        least = [0, 0, 0, 1, UNITS // 2, UNITS][number]
        assert least <= len(units(there))
        if least < UNITS:
            assert len(units(there)) < UNITS  # it was in the middle
        with pytest.raises(DatasetError):
            read_info(dataset)
    before = files(dataset)
    finish_alone(source, dataset)
    after = files(dataset)
    done = of_units(before, range(UNITS))
    assert {name: after[name] for name in done} == done
    assert contents(dataset) == contents(whole)
    assert leftovers(dataset) == []


@pytest.fixture
def unfinished(whole: Path, tmp_path: Path) -> Path:
    """All units are done, but not merged yet."""
    dataset = shutil.copytree(whole, tmp_path / "unfinished")
    record = json.loads((dataset / "dataset.json").read_bytes())
    record = {name: record[name] for name in ("format", "settings", "sources")}
    text = json.dumps(record, indent=2, ensure_ascii=False)
    (dataset / "dataset.json").write_text(text + "\n")
    for name in ("histogram.npy", "duplicates.parquet", "shards.parquet"):
        (dataset / name).unlink()
    return dataset


@pytest.mark.parametrize(
    ("last", "there"),
    [
        ("histogram.npy", {"histogram.npy"}),
        ("shards.parquet", {"histogram.npy", "duplicates.parquet", "shards.parquet"}),
    ],
)
def test_a_kill_while_it_finishes(
    last: str, there: set[str], source: Path, whole: Path, unfinished: Path
) -> None:
    when = f"args[1].name == {last!r}"
    hooks = killed_after("pathlib.Path.replace", when=when)
    before = files(unfinished)
    finish_alone(source, unfinished, hooks=hooks, code=-signal.SIGKILL)
    assert files(unfinished).keys() - before.keys() - {WRITER} == there
    with pytest.raises(DatasetError, match="unfinished"):
        read_info(unfinished)
    finish_alone(source, unfinished)
    assert contents(unfinished) == contents(whole)
    assert {name: files(unfinished)[name] for name in of_units(before, range(UNITS))} == of_units(
        before, range(UNITS)
    )
    assert leftovers(unfinished) == []


def test_a_kill_while_it_finishes_in_tasks(
    ray: Cluster, source: Path, whole: Path, unfinished: Path
) -> None:
    """Merging in tasks gives the same bytes, even after a kill."""
    in_tasks = (
        "import pipelines.sharding.merge_tasks\npipelines.sharding.merge_tasks.GROUP_UNITS = 3\n"
    )
    in_tasks += "pipelines.sharding.merge_tasks.PIECE_SAMPLES = 10\n"
    hooks = in_tasks + killed_after("pipelines.sharding.merge_tasks.task_result", 2)
    on(ray, source, unfinished, hooks=hooks, code=-signal.SIGKILL)
    assert not (unfinished / "shards.parquet").exists()
    on(ray, source, unfinished, hooks=in_tasks)
    assert contents(unfinished) == contents(whole)

    # What is wrong there is said in one line, as it is without tasks.
    (unfinished / "shards.parquet").unlink()
    damaged = next(unfinished.glob("train/*.tar"))
    damaged.write_bytes(damaged.read_bytes()[:1000])
    said = on(ray, source, unfinished, hooks=in_tasks, code=1)
    (line,) = [line for line in said.splitlines() if line.startswith("error: ")]
    assert line.startswith(f"error: the shard {damaged} does not match its index: expected")
    assert "Traceback" not in said


def test_a_second_run_touches_nothing(source: Path, whole: Path, tmp_path: Path) -> None:
    dataset = shutil.copytree(whole, tmp_path / "dataset")

    def state() -> dict[str, tuple[int, int]]:
        found = dataset.rglob("*")  # not the folder itself, into which each writer puts its name
        return {str(path): (path.stat().st_mtime_ns, path.stat().st_ino) for path in found}

    before = state()
    said = finish_alone(source, dataset)
    assert f"nothing to do: {dataset} is complete" in said
    assert state() == before


def test_a_worker_that_is_killed_costs_no_more_than_its_unit(tmp_path: Path) -> None:
    """A worker of the job's Ray dies during a unit, and Ray retries the unit."""
    source, dataset = photos(tmp_path / "photos", 16, side=1600), tmp_path / "dataset"
    build_dataset([source], tmp_path / "whole", **OPTIONS)
    with subprocess.Popen(
        command(source, dataset), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        cwd=ROOT,
    ) as job:  # fmt: skip
        try:
            busy: list[psutil.Process] = []

            def in_a_unit() -> bool:
                begun = [path for path in dataset.glob(".unit-*") if (path / "train").exists()]
                busy[:] = at_work(job.pid)
                return bool(begun and busy)

            wait(in_a_unit, job)
            busy[0].send_signal(signal.SIGKILL)
            assert list(dataset.glob(".unit-*"))
            said = job.communicate(timeout=200)[0]
        finally:
            job.kill()
    assert job.returncode == 0, said
    assert not re.search(r"unit \d+ failed", said)
    assert contents(dataset) == contents(tmp_path / "whole")
    assert leftovers(dataset) == []


@pytest.fixture
def grown(source: Path, tmp_path: Path) -> tuple[Path, Path, Path]:
    """A source, its dataset, more photos, and the dataset that grew without interruption."""
    mine = shutil.copytree(source, tmp_path / "photos")
    dataset, expected = tmp_path / "dataset", tmp_path / "expected"
    build_dataset([mine], dataset, **OPTIONS)
    shutil.copytree(dataset, expected)
    photos(mine / "000", 9, first=PHOTOS)
    (mine / "z-copy.jpg").write_bytes((mine / "003.jpg").read_bytes())
    build_dataset([mine], expected, **OPTIONS)
    return mine, dataset, expected


def test_a_kill_while_a_dataset_grows(ray: Cluster, grown: tuple[Path, Path, Path]) -> None:
    source, dataset, expected = grown
    before = files(dataset)
    old = read_info(dataset)
    on(ray, source, dataset, hooks=killed_at_index(UNITS + 1, dataset), code=-signal.SIGKILL)
    settle(ray)
    assert read_info(dataset) == old  # still whole, without the new photos
    on(
        ray,
        source,
        dataset,
        hooks=killed_after("pipelines.sharding.job.merge_units", before=True),
        code=-9,
    )
    settle(ray)
    assert len(units(files(dataset))) == UNITS + 3
    when = "args[1].name == 'shards.parquet'"
    hooks = killed_after("pathlib.Path.replace", when=when)
    finish_alone(source, dataset, hooks=hooks, code=-signal.SIGKILL)
    finish_alone(source, dataset)
    assert contents(dataset) == contents(expected)
    info = read_info(dataset)
    assert (info.counts["photos"], info.counts["units"]) == (PHOTOS + 10, UNITS + 3)
    assert info.counts["duplicates"] == 1
    after = files(dataset)
    done = of_units(before, range(UNITS))
    assert {name: after[name] for name in done} == done
    assert leftovers(dataset) == []


def test_a_kill_while_a_unit_of_a_finished_dataset_is_done_again(
    ray: Cluster, source: Path, tmp_path: Path
) -> None:
    """With an index removed and a photo changed, dataset.json must not stay as it was."""
    mine, dataset = shutil.copytree(source, tmp_path / "photos"), tmp_path / "dataset"
    build_dataset([mine], dataset, **OPTIONS)
    stale = read_info(dataset)
    (mine / "009.jpg").write_bytes((mine / "001.jpg").read_bytes())
    build_dataset([mine], tmp_path / "expected", **OPTIONS)
    (dataset / "index" / "000002.parquet").unlink()
    before = files(dataset)
    hooks = killed_after("pipelines.sharding.job.merge_units", before=True)
    on(ray, mine, dataset, hooks=hooks, code=-signal.SIGKILL)
    settle(ray)
    assert (dataset / "index" / "000002.parquet").exists()
    with pytest.raises(DatasetError, match="unfinished"):
        read_info(dataset)
    finish_alone(mine, dataset)
    assert contents(dataset) == contents(tmp_path / "expected")
    assert read_info(dataset).fingerprint != stale.fingerprint
    assert read_info(dataset).counts["duplicates"] == 1
    others = of_units(before, [unit for unit in range(UNITS) if unit != 2])
    after = files(dataset)
    assert {name: after[name] for name in others} == others
    assert leftovers(dataset) == []

"""`cc shard` from and to buckets: the same bytes as a local run, even if the store fails."""

from __future__ import annotations

import io
import json
import os
import random
import tarfile
import threading
import time
from collections import Counter
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cli.main import main
from colorcore.dataset.layout import ShardSettings
from colorcore.photos.refusal import PhotoRefused, Reason
from colorcore.storage import location as location_module
from colorcore.storage import remote as remote_store
from colorcore.storage.store import StorageError
from pipelines.sharding import job
from pipelines.sharding import task as unit_task
from pipelines.sources import listing, reading
from pipelines.sources import source as sources
from pipelines.sources.source import PlannedPhoto
from tests.conftest import build_dataset, jpeg, scene
from tests.pipelines.sharding.folders import OPTIONS, contents
from tests.servers.flaky_proxy import FlakyS3
from tests.servers.s3 import S3

SETTINGS = ShardSettings(**OPTIONS)
WORDS = [f"--{name.replace('_', '-')}={value}" for name, value in OPTIONS.items()]


@dataclass(frozen=True)
class Photos:
    """The same photos in a folder and in a bucket, and their local dataset."""

    folder: Path
    bucket: str
    places: tuple[str, ...]
    expected: dict[str, bytes]

    def here(self) -> list[str]:
        return [str(self.folder / place) for place in self.places]

    def there(self, s3: S3) -> list[str]:
        return [s3.uri(self.bucket, place) for place in self.places]


@pytest.fixture(scope="module")
def taken(s3_server: S3, tmp_path_factory: pytest.TempPathFactory) -> Photos:
    top, bucket = tmp_path_factory.mktemp("taken"), s3_server.make_bucket("shard-photos")
    made = [jpeg(scene(seed, 72, 72)) for seed in range(22)]
    names = ["a-b/1.jpg", "a/1.jpg", "a/2.JPG", "été 写真/ñ 100%+.jpg", "z.jpeg", "0.jpg"]
    files = {f"album/{name}": made[number] for number, name in enumerate(names)}
    files["album/broken.jpg"] = made[6][:900]
    files["album/notes.txt"] = b"no photo"
    files["single.jpg"] = made[7]
    files |= {f"listed/{i}.jpg": made[i] for i in range(8, 14)}
    s3_server.put(bucket, "far/20.jpg", made[20])
    rows = [f"listed/{i}.jpg" for i in (13, 8, 9)]
    rows += [s3_server.uri(bucket, "far/20.jpg"), "listed/missing.jpg", "", "listed/10.jpg"]
    files["list.txt"] = "\n".join(rows).encode()
    files["list.csv"] = b"width,url\n9,listed/11.jpg\n9,listed/12.jpg\n"
    files["00000.tar"] = _tar(
        {
            f"{i:09d}{suffix}": data
            for i in range(14, 20)
            for suffix, data in ((".jpg", made[i]), (".json", b"{}"), (".txt", b"a caption"))
        }
    )
    for name, data in files.items():
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_bytes(data)
        s3_server.put(bucket, name, data)
    places = ("album", "single.jpg", "list.txt", "list.csv", "00000.tar")
    build_dataset([top / place for place in places], top / "dataset", **OPTIONS)
    expected = contents(top / "dataset")
    info = json.loads(expected["dataset.json"])
    assert info["counts"]["photos"] == 22
    assert info["refused"] == {"truncated": 1, "unreadable": 1}
    return Photos(top, bucket, places, expected)


def _tar(members: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def bucket_contents(s3: S3, bucket: str) -> dict[str, bytes]:
    # pyarrow marks a folder with an empty object when a file in it is removed.
    keys = [key for key in s3.keys(bucket) if not key.endswith("/")]
    return {key.removeprefix("made/"): s3.get(bucket, key) for key in keys}


def same(found: dict[str, bytes], expected: dict[str, bytes], places: list[str]) -> None:
    """The same files, apart from the sources in dataset.json."""
    found, expected = dict(found), dict(expected)
    one, other = (json.loads(files.pop("dataset.json")) for files in (found, expected))
    assert one.pop("sources") == places
    other.pop("sources")
    assert one == other
    assert found.keys() == expected.keys()
    assert [name for name in found if found[name] != expected[name]] == []


@pytest.mark.parametrize(
    ("where", "rule"),
    [
        ("there and there", "none"),
        ("here and there", "none"),
        ("there and here", "none"),
        ("there and there", "every:7"),
        ("there and there", "drop:11"),
    ],
)
def test_the_same_bytes_wherever_photos_and_dataset_are(
    where: str, rule: str, local_ray, taken: Photos, s3_server, flaky_s3: FlakyS3, tmp_path: Path
) -> None:
    first, _, second = where.split()
    bucket = s3_server.make_bucket(f"shard-{first}-{second}-{rule.replace(':', '-')}")
    s3 = s3_server if rule == "none" else flaky_s3
    flaky_s3.set(rule)
    places = taken.here() if first == "here" else taken.there(s3)
    target = str(tmp_path / "made") if second == "here" else s3.uri(bucket, "made")
    report = job.shard(places, target, SETTINGS)
    assert not report.failed
    assert report.photos == 22
    assert report.ignored == {".txt": 7, ".json": 6}  # a list in a folder, and captions in tars
    if rule != "none":
        assert flaky_s3.counts()["failures"] > 5
    made = contents(tmp_path / "made") if second == "here" else bucket_contents(s3_server, bucket)
    same(made, taken.expected, places)

    # Once more: nothing is written.
    written = _objects(s3_server, bucket)
    flaky_s3.set("none")
    again = job.shard(places, target, SETTINGS)
    assert (again.new_photos, again.fingerprint) == (0, report.fingerprint)
    assert _objects(s3_server, bucket) == written


@pytest.mark.slow
def test_uploads_of_killed_workers_are_dropped(s3_server, tmp_path: Path) -> None:
    """Also by a call that finds nothing else to do, and so needs no Ray."""
    bucket = s3_server.make_bucket("shard-killed")
    (tmp_path / "photos").mkdir()
    for number in range(3):
        (tmp_path / f"photos/{number}.jpg").write_bytes(jpeg(scene(number)))
    build_dataset([tmp_path / "photos"], tmp_path / "made", **OPTIONS)
    for name, data in contents(tmp_path / "made").items():
        s3_server.client.put_object(Bucket=bucket, Key=f"made/{name}", Body=data)
    for key in ("made/train/000000-000.tar", "other"):
        s3_server.client.create_multipart_upload(Bucket=bucket, Key=key)
    target = s3_server.uri(bucket, "made")
    assert job.shard([str(tmp_path / "photos")], target, SETTINGS).new_photos == 0
    (left,) = s3_server.client.list_multipart_uploads(Bucket=bucket)["Uploads"]
    assert left["Key"] == "other"


shard_unit = job.shard_unit


def _impatient(fixed: Any, unit: int, plan: int) -> Any:
    """A task without retries, whose store fails before unit 3."""
    pause, tries = remote_store.FIRST_PAUSE_S, remote_store.TRIES
    remote_store.FIRST_PAUSE_S, remote_store.TRIES = 0.01, 2
    try:
        if unit == 3:
            endpoint = fixed[0].query.partition("endpoint_override=")[2].partition("&")[0]
            FlakyS3(endpoint).set("all")
        return shard_unit(fixed, unit, plan)
    finally:
        remote_store.FIRST_PAUSE_S, remote_store.TRIES = pause, tries


def test_a_store_that_goes_away_and_comes_back(
    local_ray, taken: Photos, s3_server, flaky_s3: FlakyS3, monkeypatch, capsys
) -> None:
    bucket = s3_server.make_bucket("shard-gone")
    places, target = taken.there(flaky_s3), flaky_s3.uri(bucket, "made")
    command = ["colorcore", "shard", *places, target, *WORDS, "--max-damaged-percent=50"]
    with monkeypatch.context() as patch:
        patch.setattr(job, "shard_unit", _impatient)
        patch.setattr(job, "TASK_RETRIES", 1)
        assert main(command) == 1
    said = capsys.readouterr().err.splitlines()
    failed = [line for line in said if line.startswith("unit ")]
    assert failed
    for line in failed:
        assert "failed: StorageError: s3://" in line
        assert "failed 2 times: " in line
    assert said[-1] == f"error: {len(failed)} of 5 units failed; rerun the same command"
    done = {key: s3_server.get(bucket, key) for key in s3_server.keys(bucket, "made/index/")}
    assert len(done) == 5 - len(failed) >= 1
    assert "made/shards.parquet" not in s3_server.keys(bucket)

    # Now the command does not even begin: the store is still away.
    with monkeypatch.context() as patch:
        patch.setattr(remote_store, "FIRST_PAUSE_S", 0.01)
        patch.setattr(remote_store, "TRIES", 2)
        assert main(command) == 1
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(said) == 1
    assert said[0].startswith(f"error: {places[0]} failed 2 times: ")
    assert "testing" not in said[0]

    flaky_s3.set("none")
    before = {o["Key"]: o["LastModified"] for o in _objects(s3_server, bucket)}
    assert main(command) == 0, capsys.readouterr().err
    same(bucket_contents(s3_server, bucket), taken.expected, places)
    after = {o["Key"]: o["LastModified"] for o in _objects(s3_server, bucket)}
    assert {key: after[key] for key in done} == {key: before[key] for key in done}


def _objects(s3: S3, bucket: str) -> list[dict[str, Any]]:
    found = s3.client.list_objects_v2(Bucket=bucket).get("Contents", [])
    return [each for each in found if not each["Key"].endswith("/")]  # as in bucket_contents


# -- reading ahead ------------------------------------------------------------------------------


BOUND = 50_000


@pytest.fixture(scope="module")
def sizes(s3_server: S3) -> list[int]:
    """Objects 0000, 0001, … of these sizes in a bucket of their own; one beyond the bound."""
    s3_server.make_bucket("shard-ahead")
    rng = random.Random(5)
    found = [rng.choice([0, 1, 700, 9_000, 24_000, 49_999, 50_000]) for _ in range(90)]
    found[40] = 3 * BOUND
    for number, size in enumerate(found):
        s3_server.put("shard-ahead", f"{number:04d}.jpg", _photo(number, size))
    return found


def _photo(number: int, size: int) -> bytes:
    return (f"{number:04d}".encode() * (size // 4 + 1))[:size]


@pytest.fixture
def bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "AHEAD_BYTES", BOUND)
    monkeypatch.setattr(remote_store, "FIRST_PAUSE_S", 0.01)


def planned(count: int) -> list[PlannedPhoto]:
    return [PlannedPhoto(0, f"{number:04d}.jpg".encode()) for number in range(count)]


def readers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("photos")]


@pytest.mark.parametrize("pause", [0.0, 0.004])
def test_photos_are_read_ahead_in_order_within_the_bound(
    pause: float, bound, sizes: list[int], s3_server
) -> None:
    opened = sources.open_sources([s3_server.uri("shard-ahead")])
    held = []
    with reading._ReadAhead(opened, planned(len(sizes)), 10**6) as ahead:
        for number, content in enumerate(ahead):
            assert content == _photo(number, sizes[number])
            time.sleep(pause)
            held.append((sum(ahead._held.values()), ahead._held.get(number, 0)))
    # What is consumed was admitted whatever its size; all else fits the bound.
    assert all(total - current <= BOUND for total, current in held)
    assert max(total for total, _ in held) > BOUND // 2  # it did read ahead
    assert not readers()


def test_what_cannot_be_read_is_refused_among_the_others(
    bound, sizes: list[int], s3_server, flaky_s3: FlakyS3
) -> None:
    opened = sources.open_sources([flaky_s3.uri("shard-ahead")])
    photos = [*planned(3), PlannedPhoto(0, b"gone.jpg"), *planned(41)[38:]]
    read = list(reading.read_photos(opened, photos, 2 * BOUND))
    assert [photo.source for photo in read] == [photo.source for photo in photos]
    refused = {p.source: p.content for p in read if isinstance(p.content, PhotoRefused)}
    assert {name: refusal.reason for name, refusal in refused.items()} == {
        "gone.jpg": Reason.UNREADABLE,
        "0040.jpg": Reason.TOO_LARGE,
    }
    assert refused["gone.jpg"].detail == "no such file"
    flaky_s3.set("every:1000000@GET")
    (large,) = reading.read_photos(opened, [PlannedPhoto(0, b"0040.jpg")], 2 * BOUND)
    assert large.content.reason is Reason.TOO_LARGE
    assert flaky_s3.counts()["counted"] == 0  # not a byte of it was fetched


@pytest.mark.slow
def test_a_store_that_goes_away_ends_the_reading(
    bound, sizes: list[int], flaky_s3: FlakyS3, monkeypatch
) -> None:
    monkeypatch.setattr(remote_store, "TRIES", 2)
    opened = sources.open_sources([flaky_s3.uri("shard-ahead")])
    read = []

    def consume() -> None:
        for number, photo in enumerate(reading.read_photos(opened, planned(90), 10**6)):
            assert photo.content == _photo(number, sizes[number])
            read.append(photo)
            if number == 20:
                flaky_s3.set("all")

    with pytest.raises(StorageError, match=r"shard-ahead/00\d\d\.jpg\?.* failed 2 times"):
        consume()
    assert 20 < len(read) < 60
    assert not readers()


def test_who_stops_early_leaves_nothing_running(bound, sizes: list[int], flaky_s3: FlakyS3) -> None:
    opened = sources.open_sources([flaky_s3.uri("shard-ahead")])
    with closing(reading.read_photos(opened, planned(90), 10**6)) as photos:
        assert next(photos).content == _photo(0, sizes[0])
        assert readers()
    assert not readers()
    counted = flaky_s3.counts()["requests"]
    assert counted < 2 * 3 * reading.REMOTE_READS  # not all 90
    time.sleep(0.2)
    assert flaky_s3.counts()["requests"] == counted


def test_a_folder_is_listed_alike_here_and_there(taken: Photos, s3_server) -> None:
    here, there = (
        list(listing.list_photos(sources.open_sources([place]), Counter()))
        for place in (taken.here()[0], taken.there(s3_server)[0])
    )
    assert here == there
    assert [photo.source for photo in here] == [
        "0.jpg", "a/1.jpg", "a/2.JPG", "a-b/1.jpg", "broken.jpg", "z.jpeg", "été 写真/ñ 100%+.jpg",
    ]  # fmt: skip


def test_what_a_killed_worker_left_goes_and_what_is_in_use_stays(
    monkeypatch, s3_server, tmp_path: Path
) -> None:
    """Units of remote datasets are written in the machine's temporary folder."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    dataset = location_module.open_store(s3_server.uri("shard-scratch"))
    left, fresh = tmp_path / ".unit-000001-left", tmp_path / ".unit-000001-fresh"
    for folder in (left, fresh):
        (folder / "train").mkdir(parents=True)
    os.utime(left, (time.time() - unit_task.SCRATCH_AGE_S - 1,) * 2)
    with unit_task._scratch(dataset, 2) as mine:
        assert set(tmp_path.iterdir()) == {fresh, mine}
        monkeypatch.setattr(unit_task, "SCRATCH_AGE_S", 0.0)
        with unit_task._scratch(dataset, 3) as other:
            assert set(tmp_path.iterdir()) == {mine, other}
    assert not list(tmp_path.iterdir())

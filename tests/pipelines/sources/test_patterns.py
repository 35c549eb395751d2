"""Patterns of tars as sources: the names that webdataset expands, and what is wrong with them."""

from __future__ import annotations

import shutil
import time
from collections import Counter
from pathlib import Path

import pytest
import webdataset
from webdataset.shardlists import expand_urls

from cli.main import main
from colorcore.dataset.layout import DatasetInfo, ShardSettings, read_info
from colorcore.storage.local import LocalStore
from colorcore.storage.location import open_store
from colorcore.storage.store import Entry
from pipelines.errors import WrongCallError
from pipelines.sharding.job import shard
from pipelines.sources.listing import list_photos
from pipelines.sources.patterns import MOST_NAMES, expand_pattern
from pipelines.sources.reading import photos_of, read_photos
from pipelines.sources.source import open_sources
from tests.conftest import build_dataset, jpeg, scene
from tests.pipelines.sources.files import BIG, make, names
from tests.servers.s3 import S3

# The names


@pytest.mark.parametrize(
    "pattern",
    [
        "photos-{00000..00012}.tar",
        "s3://bucket/a-{0..3}.tar?endpoint_override=127.0.0.1:9&scheme=http",
        "{train,val}/{000..002}.tar",
        "x-{9..0..3}.tar",
        "{a..c}-{b,{0..2}}.tar",
        r"odd \{name\} {1..2}.tar",
        "Été 写真/{1..2}.tar",
    ],
)
def test_they_are_those_of_webdataset(pattern: str) -> None:
    found = expand_pattern(pattern)
    assert found == expand_urls(pattern)
    assert len(found) > 1


@pytest.mark.parametrize(
    "name", ["photos", "a{1}.tar", "a{b.tar", "a}b{.tar", "{}", "a{..}.tar", ""]
)
def test_other_names_are_no_patterns(name: str) -> None:
    assert expand_pattern(name) is None


@pytest.mark.slow
@pytest.mark.parametrize(
    "pattern",
    [f"x-{{0..{10**7}}}.tar", f"x-{{{10**30}..0}}.tar", "{0..9999}{0..9999}.tar", "{0..9}" * 12],
)
def test_too_many_names_are_refused_at_once(pattern: str) -> None:
    started = time.process_time()
    with pytest.raises(WrongCallError) as refused:
        expand_pattern(pattern)
    assert "expected a pattern of at most 1,000,000 names, got more from " in str(refused.value)
    assert time.process_time() - started < 20


def test_a_large_step_makes_a_long_range_short() -> None:
    found = expand_pattern(f"{{0..{10**9}..{10**8}}}")
    assert found is not None
    assert len(found) == 11 < MOST_NAMES


# As sources


def tar(path: Path, first: int, count: int = 3) -> Path:
    """A tar of photos, each with its caption and facts, as webdataset writes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file, webdataset.TarWriter(file) as writer:
        for number in range(first, first + count):
            photo = {"jpg": jpeg(scene(number, 72, 72)), "txt": "a caption", "json": {"n": number}}
            writer.write({"__key__": f"{number:05d}", **photo})
    return path


@pytest.fixture(scope="module")
def tars(tmp_path_factory: pytest.TempPathFactory) -> Path:
    top = tmp_path_factory.mktemp("tars")
    for number in range(4):
        tar(top / f"photos-{number:05d}.tar", 3 * number)
    return top


def test_a_pattern_is_one_source_in_its_own_order(tmp_path: Path) -> None:
    make(tmp_path, "b-1.tar", "b-2.tar", "b-3.tar", "c.tar")
    pattern = tmp_path / "b-{3..1}.tar"
    assert names(tmp_path / "c.tar", pattern) == [
        "c.tar", *(str(tmp_path / f"b-{number}.tar") for number in (3, 2, 1))
    ]  # fmt: skip
    _, source = open_sources([tmp_path / "c.tar", pattern])
    assert (source.kind, source.location) == ("pattern", str(pattern))


def test_its_photos_are_read(tars: Path) -> None:
    found = list(photos_of(open_sources([tars / "photos-{00001..00002}.tar"]), BIG, Counter()))
    assert [photo.data() for photo in found] == [jpeg(scene(n, 72, 72)) for n in range(3, 9)]
    assert found[0].source == f"{tars}/photos-00001.tar#00003.jpg"


def test_from_another_folder(tars: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in Ray's workers."""
    monkeypatch.chdir(tars)
    (source,) = open_sources(["photos-{00000..00001}.tar"])
    absolute = source.absolute()
    monkeypatch.chdir("/")
    planned = list(list_photos([absolute], Counter()))
    assert [photo.source for photo in planned] == ["photos-00000.tar", "photos-00001.tar"]
    read = list(read_photos([absolute], planned, BIG))
    assert [photo.data() for photo in read] == [jpeg(scene(n, 72, 72)) for n in range(6)]


def test_names_with_braces_are_taken_as_they_are(tmp_path: Path) -> None:
    make(tmp_path, "a-{0..1}.tar", "a-0.tar", "a-1.tar", "{x,y}/1.jpg", "x/2.jpg", "y/3.jpg")
    assert names(tmp_path / "a-{0..1}.tar") == ["a-{0..1}.tar"]
    assert names(tmp_path / "{x,y}") == ["1.jpg"]
    (tmp_path / "a-{0..1}.tar").unlink()
    assert names(tmp_path / "a-{0..1}.tar") == [str(tmp_path / f"a-{n}.tar") for n in range(2)]


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("a-{0..2}.tar", "expected the 3 files of {}, found 2; missing: {top}/a-1.tar; correct"),
        ("b-{0..9}.tar", "the 10 files of {}, found 0; missing: {top}/b-0.tar, {top}/b-1.tar, "
         "{top}/b-2.tar, …; correct the pattern or fetch them"),
        ("no/{0..1}.tar", "found 0; missing: {top}/no/0.tar, {top}/no/1.tar; correct"),
        ("a-0.tar/{0..1}.tar", "found 0; missing"),
        ("d-{0..1}.tar", "found 1; missing: {top}/d-1.tar; correct"),
        ("{x,y}", "expected a pattern of tars or photos, found {top}/x in {}; pass folders and"),
        ("l-{0..1}.txt", "expected a pattern of tars or photos, found {top}/l-0.txt in {}"),
        ("a-{0..99999999}.tar", "expected a pattern of at most 1,000,000 names, got more from {}"),
        ("a-{0..1.tar", "expected a folder of photos, a photo, a list or a tar, found nothing at"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_in_one_line(tmp_path: Path, pattern: str, said: str) -> None:
    make(tmp_path, "a-0.tar", "a-2.tar", "x/1.jpg", "y/1.jpg", "l-0.txt", "l-1.txt", "d-0.tar")
    (tmp_path / "d-1.tar").mkdir()
    place = f"{tmp_path}/{pattern}"
    with pytest.raises(WrongCallError) as refused:
        open_sources([place])
    assert said.replace("{top}", str(tmp_path)).replace("{}", place) in str(refused.value)
    assert "\n" not in str(refused.value)


# As a dataset


def test_the_dataset_holds_the_pattern(tars: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tars)
    info = build_dataset(["photos-{00000..00003}.tar"], tmp_path / "one")  # type: ignore[list-item]
    assert info.sources == ("photos-{00000..00003}.tar",)
    assert info.counts is not None
    assert (info.counts["photos"], info.counts["units"]) == (12, 4)
    there = build_dataset([tars], tmp_path / "folder")
    assert info.fingerprint == there.fingerprint  # the same slices, paths and bytes


def test_the_same_command_finds_nothing_new(tars: Path, tmp_path: Path, capsys) -> None:
    """Without Ray: all units are done, so none is started."""
    pattern = f"{tars}/photos-{{00000..00002}}.tar"
    build_dataset([Path(pattern)], tmp_path / "d")
    options = ["--size=64", "--photos-per-unit=10", "--val-percent=30"]
    before = read_info(tmp_path / "d")
    assert main(["cc", "shard", pattern, str(tmp_path / "d"), *options]) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert read_info(tmp_path / "d") == before
    more = pattern.replace("2}", "3}")
    assert main(["cc", "shard", more, str(tmp_path / "d"), *options]) == 2
    assert "was made with other settings: sources was" in capsys.readouterr().err


def test_a_pattern_in_place_of_the_dataset(tars: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    pattern = f"{tars}/photos-{{00000..00002}}.tar"
    assert main(["cc", "shard", str(tars), pattern]) == 2
    error = capsys.readouterr().err
    assert (
        f"expected the dataset as the last argument, got a pattern of tars, {pattern}; add" in error
    )
    assert main(["cc", "shard", "--dry-run", "50", f"{tars}/photos-00003.tar", pattern]) == 0
    assert "of 12 random photos" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == [tmp_path / "contact-sheet.png"]


@pytest.mark.slow
def test_the_job_takes_patterns_and_resumes(local_ray, tars: Path, tmp_path: Path) -> None:
    settings = ShardSettings(size=64, photos_per_unit=10, val_percent=30)
    pattern = f"{tars}/photos-{{00000..00003}}.tar"
    report = shard([pattern], str(tmp_path / "d"), settings)
    assert (report.photos, report.units, report.new_photos) == (12, 4, 12)
    whole = {path: path.read_bytes() for path in (tmp_path / "d").rglob("*") if path.is_file()}
    (tmp_path / "d/index/000002.parquet").unlink()
    shutil.rmtree(tmp_path / "d/train")
    for unit in range(4):
        (tmp_path / f"d/index/{unit:06d}.parquet").unlink(missing_ok=True)
    assert shard([pattern], str(tmp_path / "d"), settings).new_photos == 12
    assert {p: p.read_bytes() for p in (tmp_path / "d").rglob("*") if p.is_file()} == whole


# In a bucket


def test_a_pattern_in_a_bucket(tars: Path, s3_server: S3, tmp_path: Path) -> None:
    bucket = s3_server.make_bucket("patterns")
    s3_server.put_folder(bucket, "in", tars)
    pattern = s3_server.uri(bucket, "in/photos-{00000..00003}.tar")
    found = [photo.data() for photo in photos_of(open_sources([pattern]), BIG, Counter())]
    assert found == [jpeg(scene(number, 72, 72)) for number in range(12)]
    info = build_dataset([pattern], tmp_path / "d")  # type: ignore[list-item]
    assert isinstance(info, DatasetInfo)
    assert info.sources == (pattern,)
    more = s3_server.uri(bucket, "in/photos-{00002..00007}.tar")
    with pytest.raises(WrongCallError, match=r"the 6 files of s3://.*, found 2; missing: s3://"):
        open_sources([more])


def test_an_object_with_braces_in_its_name(s3_server: S3) -> None:
    bucket = s3_server.make_bucket("braces")
    s3_server.put(bucket, "a-{0..1}.tar", b"x")
    uri = s3_server.uri(bucket, "a-{0..1}.tar")
    assert open_store(uri).kind() == "file"
    assert [source.kind for source in open_sources([uri])] == ["file"]


def test_one_listing_per_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, *(f"{folder}/{n}.tar" for folder in "ab" for n in range(50)))
    listed: list[str] = []
    entries = LocalStore.entries

    def counted(self: LocalStore, folder: str = "") -> list[Entry]:
        listed.append(self.show(folder))
        return entries(self, folder)

    monkeypatch.setattr(LocalStore, "entries", counted)
    open_sources([tmp_path / "{a,b}/{0..49}.tar"])
    assert listed == [str(tmp_path / "a"), str(tmp_path / "b")]


def test_a_tar_in_a_tar_is_no_photo(tmp_path: Path) -> None:
    inner = tar(tmp_path / "inner.tar", 0).read_bytes()
    with (tmp_path / "outer.tar").open("wb") as file, webdataset.TarWriter(file) as writer:
        writer.write({"__key__": "a", "tar": inner, "jpg": jpeg(scene(1))})
    (photo,) = photos_of(open_sources([tmp_path / "outer.tar"]), BIG, Counter())
    assert photo.source == "outer.tar#a.jpg"

"""The shorter jobs: priors, evaluate, colorize, inspect, and the demo's photographs."""

from __future__ import annotations

import io
import os
import shutil
import tarfile
from pathlib import Path

import numpy as np
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from skimage.color import rgb2lab

from colorcore.checkpoints.checkpoint import CheckpointError
from colorcore.color.palette import load_palette
from colorcore.storage.local import LocalStore
from colorcore.storage.location import open_store
from colorcore.storage.locks import BusyError, claim
from pipelines import demo
from pipelines.album.colorize import colorize_photos
from pipelines.album.names import Names
from pipelines.album.names import relative as relative_path
from pipelines.album.settings import ColorizeSettings
from pipelines.errors import JobError, WrongCallError
from pipelines.evaluation.job import evaluate_model
from pipelines.inference.inspect import inspect_dataset, inspect_model
from pipelines.priors import make_palette
from pipelines.sources.listing import is_tar
from pipelines.sources.source import PlannedPhoto, Source
from pipelines.training.driver import TrainReport
from tests.processes import listening

PNG = ColorizeSettings(suffix=".png", force=True)


@pytest.fixture
def photos(scene, jpeg, tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    (folder / "trip").mkdir(parents=True)
    (folder / "a.jpg").write_bytes(jpeg(scene(1)))
    Image.fromarray(scene(2, 101, 67)).save(folder / "a.png")
    Image.fromarray(scene(3)).convert("L").save(folder / "trip" / "grey.bmp")
    return folder


@pytest.mark.slow
def test_priors_are_the_same_bytes_every_time(dataset: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(dataset, tmp_path / "dataset")
    report = make_palette(copy, bins=24)
    first = {path.name: path.read_bytes() for path in (copy / "palette").iterdir()}
    make_palette(copy, bins=24)
    assert {path.name: path.read_bytes() for path in (copy / "palette").iterdir()} == first
    assert set(first) == {
        "palette.json",
        "centroids.npy",
        "priors.npy",
        "weights.npy",
        "palette.png",
    }
    assert len(load_palette(copy / "palette")) == 24
    assert report.pixels == sum(inspect_dataset(copy).summary[s] for s in ["train"]) * 64 * 64


def test_priors_of_a_dataset_that_another_command_writes(dataset: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(dataset, tmp_path / "dataset")
    with (
        claim(open_store(copy), "cc shard"),
        pytest.raises(BusyError, match=r"cc shard \(process \d+ on .*\) is writing to"),
    ):
        make_palette(copy, bins=100_000)  # too many, which is found out later
    assert not (copy / "palette").exists()


@pytest.mark.slow
def test_priors_take_anyones_centroids(dataset: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(dataset, tmp_path / "dataset")
    theirs = np.array([[0.0, 0.0], [40.0, 30.0], [-30.0, 10.0]])
    np.save(tmp_path / "points.npy", theirs)
    palette = make_palette(copy, centroids=tmp_path / "points.npy").palette
    np.testing.assert_allclose(palette.centroids, theirs)
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object))
    with pytest.raises(WrongCallError, match="pickle"):
        make_palette(copy, centroids=tmp_path / "objects.npy")


def test_too_many_bins_is_a_wrong_call(dataset: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(dataset, tmp_path / "dataset")
    with pytest.raises(WrongCallError):
        make_palette(copy, bins=65_000)


def test_eval_of_a_folder_counts_what_it_cannot_read(
    trained: TrainReport, photo_folder, tmp_path: Path
) -> None:
    report = evaluate_model(trained.out, photo_folder.path, picture=tmp_path / "p.png")
    unreadable = {"greyscale", "single_hue", "not_colorful"}  # colours do not matter here
    refused = [r for r in photo_folder.refused.values() if r not in unreadable]
    assert sum(report.refused.values()) == len(refused)
    scored = len(photo_folder.kept) + len(photo_folder.refused) - len(refused)
    assert report.scores["model"]["photos"] == scored
    assert report.scores["grey"]["cf"] == pytest.approx(0.0, abs=0.1)
    with Image.open(tmp_path / "p.png") as picture:
        assert picture.size == (3 * 64 + 2 * 4, 16 * 64 + 15 * 4)


def test_eval_refuses_samples_smaller_than_the_models(
    trained: TrainReport, build_dataset, photo_folder, tmp_path: Path
) -> None:
    build_dataset([photo_folder.path], tmp_path / "small", size=32)
    with pytest.raises(WrongCallError, match="expected samples of at least 64 px"):
        evaluate_model(trained.out, tmp_path / "small")


def test_eval_of_larger_samples_is_that_of_the_same_photos_at_the_models_size(
    trained: TrainReport, build_dataset, photo_folder, tmp_path: Path
) -> None:
    """But for resampling twice: the split is that of the photos' bytes."""
    build_dataset([photo_folder.path], tmp_path / "large", size=128)
    large = evaluate_model(trained.out, tmp_path / "large")
    build_dataset([photo_folder.path], tmp_path / "same", size=64)
    same = evaluate_model(trained.out, tmp_path / "same")
    assert large.size == same.size == 64
    assert large.scores["grey"]["photos"] == same.scores["grey"]["photos"]
    assert large.scores["model"]["ab_l1"] == pytest.approx(same.scores["model"]["ab_l1"], rel=0.05)


def test_eval_of_an_empty_folder(trained: TrainReport, tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"expected photos in .*, found none: it is empty"):
        evaluate_model(trained.out, tmp_path)


def test_colorize_keeps_tree_size_and_lightness(
    trained: TrainReport, photos: Path, tmp_path: Path
) -> None:
    report = colorize_photos(trained.out, [str(photos)], tmp_path / "out", PNG)
    names = sorted(str(path.relative_to(tmp_path / "out")) for path in report.written)
    assert names == ["a.jpg.png", "a.png.png", "trip/grey.png"]
    for source, made in [("a.png", "a.png.png"), ("trip/grey.bmp", "trip/grey.png")]:
        before = np.asarray(Image.open(photos / source).convert("RGB"))
        after = np.asarray(Image.open(tmp_path / "out" / made))
        assert after.shape == before.shape
        assert np.abs(rgb2lab(after)[..., 0] - rgb2lab(before)[..., 0]).max() < 0.8


def test_colorize_goes_on_after_a_bad_file(
    trained: TrainReport, photos: Path, tmp_path: Path
) -> None:
    (photos / "bad.jpg").write_bytes(b"no photo")
    report = colorize_photos(
        trained.out, [str(photos), str(photos / "a.jpg")], tmp_path / "out", PNG
    )
    assert len(report.written) == 4
    assert list(report.refused) == [str(photos / "bad.jpg")]


def test_colorize_writes_inside_its_folder_alone(
    trained: TrainReport, photos: Path, tmp_path: Path, jpeg, scene
) -> None:
    """A list and a tar with names that lead outside, collide, are too long, or are no names."""
    data = jpeg(scene(5))
    members = ["../../evil.jpg", "/abs.jpg", "x/a.jpg", "y/a.jpg", "a.png", "n" * 300 + ".jpg"]
    with tarfile.open(photos / "some#1.tar", "w") as tar:
        for name in [*members, "a.json", "bad.jpg"]:
            info = tarfile.TarInfo(name)
            info.size = len(data) if name != "bad.jpg" else 0
            tar.addfile(info, io.BytesIO(data))
    shutil.copy(photos / "some#1.tar", photos / "...tar")
    rows = ["../photos/a.jpg", str(photos / "a.jpg"), (photos / "a.png").as_uri(), "a.jpg",
            "trip/grey.bmp", "trip/../a.jpg", ".", "..", "/", "gone.jpg", "...tar"]  # fmt: skip
    (photos / "list.txt").write_text("\n".join(rows))
    out = tmp_path / "in" / "out"
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    given = [str(photos / "list.txt"), str(photos / "some#1.tar"), str(photos)]
    report = colorize_photos(trained.out, given, out, PNG)
    after = {path for path in tmp_path.rglob("*") if path.is_file()}
    assert set(report.written) == after - before
    assert len(set(report.written)) == len(report.written) == 6 + 6 + 6 + 3 + 6
    assert all(path.resolve().is_relative_to(out.resolve()) for path in report.written)
    assert all(path.read_bytes().startswith(b"\x89PNG\r\n") for path in report.written)
    names = [path.relative_to(out).as_posix() for path in report.written]
    assert [name for name in names if name.startswith("some#1")] == [
        *(f"some#1.tar/{name}.png" for name in ("evil", "abs", "a", "a-2", "a-3", "n" * 200)),
        *(f"some#1.tar/{name}.png" for name in ("evil-2", "abs-2", "a-4", "a-5", "a-6")),
        f"some#1.tar/{'n' * 200}-2.png",
    ]
    refused = {name for name in report.refused if "bad.jpg" in name}
    assert refused == {str(photos / "some#1.tar") + "#bad.jpg", str(photos / "...tar") + "#bad.jpg"}
    assert str(photos / "gone.jpg") in report.refused
    assert len(report.refused) == len(refused) + 4


FILE_NAMES = st.sampled_from(
    ["a.jpg", "a.png", "b.jpg", "a.tar", "...jpg", "..jpg", "...tar", ".."]
)
ROWS = st.builds(
    "".join,
    st.tuples(st.sampled_from(["", "/", "x/", "../", "x/../", "s3://b/", "./"]), FILE_NAMES),
)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.booleans(), ROWS, st.lists(ROWS, min_size=1, max_size=3)), max_size=8))
def test_no_two_photos_share_a_picture_and_none_leaves_the_folder(photos) -> None:
    out = Path("/somewhere/out")
    sources = [
        Source("l.txt", "list", LocalStore(Path())),
        Source("a.jpg", "file", LocalStore(Path())),
    ]
    planned = [PlannedPhoto(int(by_itself), row.encode()) for by_itself, row, _ in photos]
    relative = [relative_path(sources[photo.root], photo) for photo in planned]
    names = Names(out, ".png", relative)
    targets = []
    for path, photo, (_, _, members) in zip(relative, planned, photos, strict=True):
        inside = members if is_tar(photo) else [""]
        targets += [Path(os.path.normpath(names.target(path, member))) for member in inside]
    assert len(set(targets)) == len(targets)
    for target in targets:
        assert target.is_relative_to(out)
        assert target != out
        assert target.suffix == ".png"


def test_colorize_says_what_is_missing(trained: TrainReport, photos: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="expected a checkpoint folder"):
        colorize_photos(tmp_path / "none", [str(photos)], tmp_path / "out")
    with pytest.raises(WrongCallError, match="found nothing at"):
        colorize_photos(trained.out, [str(photos / "gone.jpg")], tmp_path / "out")


def test_inspect_a_dataset(dataset: Path, photo_folder, tmp_path: Path) -> None:
    facts = inspect_dataset(dataset, picture=tmp_path / "sheet.png")
    assert facts.summary["train"] + facts.summary["val"] == sum(facts.colorfulness.values())
    assert sum(facts.refused.values()) >= len(photo_folder.refused)
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size[0] == 10 + 12 * (112 + 10)


def test_inspect_a_model(trained: TrainReport) -> None:
    facts = inspect_model(trained.out)
    assert sum(facts.layers.values()) == facts.summary["parameters"]
    assert facts.scores == pytest.approx(trained.scores)
    assert facts.decoded == pytest.approx(trained.decoded)


def test_the_demos_photographs_fill_a_dataset(tmp_path: Path) -> None:
    whole = demo.installed_photos(tmp_path / "tiles", tmp_path / "whole")
    tiles = list((tmp_path / "tiles").iterdir())
    assert [path.name for path in whole] == [Path(name).name for name in demo.HELD_OUT]
    assert len(tiles) > 150
    for tile in tiles:
        with Image.open(tile) as picture:
            assert min(picture.size) >= 64


def test_the_demo_only_clears_its_own_folder(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(WrongCallError, match="holds other files"):
        demo.start_demo(tmp_path)
    assert not demo.start_demo(tmp_path / "demo")
    (tmp_path / "demo" / "old").write_text("x")
    assert demo.start_demo(tmp_path / "demo")
    assert not (tmp_path / "demo" / "old").exists()


def test_the_demo_links_ones_own_photos(photos: Path, tmp_path: Path) -> None:
    assert demo.own_photos(photos, tmp_path / "links") == 3
    assert {path.suffix for path in (tmp_path / "links").iterdir()} == {".jpg", ".png", ".bmp"}
    assert all(path.read_bytes() for path in (tmp_path / "links").iterdir())


def test_the_local_ray_listens_on_loopback_alone(local_ray: None) -> None:
    mine = [process.pid for process in psutil.Process().children(recursive=True)]
    assert {address for address, _ in listening([*mine, os.getpid()])} == {"127.0.0.1"}

"""What survives a power cut: each rename into place comes after a sync of the file, and before one
of its folder, on which whatever is renamed next may count.

The calls are recorded at the level of the system, so it does not matter which function makes them.
"""

from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch

from cli.main import main
from colorcore.checkpoints.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from colorcore.color.fit_palette import fit_palette
from colorcore.color.palette import save_palette
from colorcore.dataset.layout import done_units, index_name
from colorcore.models import build_model
from colorcore.photos.write import save_picture
from colorcore.recipes.recipe import load_recipe
from colorcore.storage import atomic
from colorcore.storage.atomic import replace_bytes, sync_folder
from colorcore.storage.local import LocalStore
from colorcore.storage.location import absolute_store, open_store
from tests.conftest import SIZE


@dataclass
class Calls:
    """``sync`` of an inode, and ``rename`` of a path, in order."""

    made: list[tuple[str, int, Path]] = field(default_factory=list)

    def renames(self, below: Path) -> list[tuple[int, int, Path]]:
        """(position, inode, target) of what was moved into place, not within a scratch folder."""
        return [
            (at, inode, target)
            for at, (call, inode, target) in enumerate(self.made)
            if call == "rename"
            and target.is_relative_to(below)
            and not any(part.startswith(".") for part in target.relative_to(below).parts)
        ]

    def synced(self, inode: int, first: int, stop: int) -> bool:
        return any(call[:2] == ("sync", inode) for call in self.made[first:stop])

    def check(self, below: Path) -> list[str]:
        """Assert what this module promises; returns the names of the files moved into place."""
        moves = self.renames(below)
        for at, inode, target in moves:
            assert self.synced(inode, 0, at), f"{target} was renamed before it was synced"
            folder = target.parent.stat().st_ino
            assert self.synced(folder, at, len(self.made)), f"the folder of {target} was not synced"
        return [target.relative_to(below).as_posix() for _, _, target in moves]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    recorded = Calls()
    fsync, replace = os.fsync, os.replace

    def recorded_fsync(descriptor: int) -> None:
        fsync(descriptor)
        recorded.made.append(("sync", os.fstat(descriptor).st_ino, Path()))

    def recorded_replace(source: str | Path, target: str | Path) -> None:
        recorded.made.append(("rename", os.stat(source).st_ino, Path(target)))  # noqa: PTH116
        replace(source, target)

    monkeypatch.delenv(atomic.SYNC, raising=False)
    monkeypatch.setattr(os, "fsync", recorded_fsync)
    monkeypatch.setattr(os, "replace", recorded_replace)
    monkeypatch.setattr(Path, "replace", recorded_replace)
    monkeypatch.setattr(Path, "rename", recorded_replace)
    return recorded


def write_checkpoint(folder: Path) -> None:
    recipe = load_recipe("simple", ["model.channels=4", "model.depth=2"])
    model = build_model(recipe.model.name, **recipe.model.options())
    histogram = np.zeros((256, 256), np.int64)
    histogram[100:160:10, 100:160:10] = np.arange(1, 37).reshape(6, 6)
    palette = fit_palette(histogram, bins=5)
    weights = model.state_dict()
    training = {"model.x": torch.zeros(3)}
    save_checkpoint(
        Checkpoint(recipe, weights, palette, (0.0, 0.0), 32, "0" * 16, training=training), folder
    )


# -- everything that is renamed into place --------------------------------------------------------


def test_a_dataset(photo_folder, build_dataset, tmp_path: Path, calls: Calls) -> None:
    dataset = tmp_path / "dataset"
    build_dataset([photo_folder.path], dataset)
    moved = calls.check(dataset)
    assert moved[0] == moved[-1] == "dataset.json"
    expected = {
        path.relative_to(dataset).as_posix() for path in dataset.rglob("*") if path.is_file()
    }
    assert set(moved) == expected
    # A unit's index counts only once all its other files are in place for good.
    units = done_units(dataset)
    assert len(units) > 1
    for unit in units:
        moves = [
            (at, target)
            for at, _, target in calls.renames(dataset)
            if target.parent.name != "units" and target.name.startswith(f"{unit:06d}")
        ]
        index, name = moves[-1]
        assert name == dataset / index_name(unit)
        assert len(moves) >= 4
        for at, target in moves[:-1]:
            assert calls.synced(target.parent.stat().st_ino, at, index), target
    # So do the units' indexes, before the dataset is complete.
    ends = [at for at, _, target in calls.renames(dataset) if target.parent.name == "index"]
    complete = calls.renames(dataset)[-1][0]
    assert calls.synced((dataset / "index").stat().st_ino, max(ends), complete)


def test_a_checkpoint(tmp_path: Path, calls: Calls) -> None:
    last = tmp_path / "out" / "last"
    for _ in range(2):
        calls.made.clear()
        write_checkpoint(last)
        (move,) = calls.renames(tmp_path)
        at, inode, target = move
        assert target == last
        assert inode == last.stat().st_ino
        files = list(last.iterdir())
        assert len(files) == 4
        for path in files:
            assert calls.synced(path.stat().st_ino, 0, at), path
        assert calls.synced(last.stat().st_ino, 0, at)
        assert calls.synced(last.parent.stat().st_ino, at, len(calls.made))


def test_the_old_checkpoint_goes_when_the_new_one_is_in_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the renames are lost in a power cut, the old one must still be there."""
    last = tmp_path / "last"
    write_checkpoint(last)
    seen = []

    def sync(folder: Path, *, sync: bool | None = None) -> None:
        if folder == tmp_path and last.exists():
            seen.append((tmp_path / ".last.old" / "checkpoint.json").exists())
        sync_folder(folder, sync=sync)

    monkeypatch.setattr("colorcore.checkpoints.checkpoint.sync_folder", sync)
    write_checkpoint(last)
    assert seen == [True]
    assert not (tmp_path / ".last.old").exists()
    load_checkpoint(last)


def test_palettes_pictures_and_other_files(tmp_path: Path, calls: Calls) -> None:
    histogram = np.zeros((256, 256), np.int64)
    histogram[100:160:10, 100:160:10] = 1
    save_palette(fit_palette(histogram, bins=5), tmp_path / "palette")
    save_picture(tmp_path / "a.png", np.zeros((4, 4, 3), np.uint8))
    replace_bytes(tmp_path / "b.json", b"{}")
    open_store(tmp_path).write("c/d", b"x")
    (tmp_path / "scratch").write_bytes(b"y")
    open_store(tmp_path).put(tmp_path / "scratch", "e")
    names = ["centroids.npy", "priors.npy", "weights.npy", "palette.json"]
    expected = [*(f"palette/{name}" for name in names), "a.png", "b.json", "c/d", "e"]
    assert calls.check(tmp_path) == expected


def test_new_folders_are_synced_in_their_own(tmp_path: Path, calls: Calls) -> None:
    replace_bytes(tmp_path / "a" / "b" / "c", b"x")
    synced = {inode for call, inode, _ in calls.made if call == "sync"}
    for folder in (tmp_path, tmp_path / "a", tmp_path / "a" / "b"):
        assert folder.stat().st_ino in synced, folder


# -- without --------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["environment", "store"])
def test_nothing_is_synced_on_a_scratch_disk(
    how: str, tmp_path: Path, calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    if how == "environment":
        monkeypatch.setenv(atomic.SYNC, "0")
        write_checkpoint(tmp_path / "last")
        save_picture(tmp_path / "a.png", np.zeros((4, 4, 3), np.uint8))
    store = open_store(tmp_path) if how == "environment" else LocalStore(tmp_path, sync=False)
    store.write("a/b", b"x")
    store.below("a").write("c", b"x")
    store.put(tmp_path / "a" / "c", "d")
    assert not [call for call in calls.made if call[0] == "sync"]
    assert (tmp_path / "d").read_bytes() == b"x"


@pytest.mark.parametrize("options", [[], ["--no-sync"]])
def test_the_option_of_cc_shard(
    options: list[str], dataset: Path, photo_folder, tmp_path: Path, calls: Calls,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """A dataset that is complete needs no Ray; what is written then is the mark of its writer."""
    copied = Path(shutil.copytree(dataset, tmp_path / "copied"))
    monkeypatch.setenv(atomic.SYNC, "1")  # what the command sets ends with the test
    words = ["cc", "shard", str(photo_folder.path), str(copied), f"--size={SIZE}"]
    asked = ["--photos-per-unit=10", "--val-percent=30", "--max-damaged-percent=100"]
    assert main([*words, *asked, *options]) == 0
    synced = [call for call in calls.made if call[0] == "sync"]
    assert bool(synced) != bool(options)


def test_other_processes_learn_it_from_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker on another node does not have the environment of the command."""
    monkeypatch.setenv(atomic.SYNC, "0")
    sent = pickle.dumps(absolute_store(tmp_path).below("a"))
    monkeypatch.delenv(atomic.SYNC)
    assert not pickle.loads(sent).sync  # noqa: S301 (our own)
    assert open_store(tmp_path).sync  # type: ignore[attr-defined]


@pytest.mark.parametrize("number", [22, 38, 95])
def test_a_file_system_that_cannot_sync_is_taken_as_it_is(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", raising(OSError(number, os.strerror(number))))
    replace_bytes(tmp_path / "a", b"x")
    assert (tmp_path / "a").read_bytes() == b"x"


def test_a_disk_that_fails_keeps_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel reports at the sync what it could not write: the file must not count."""
    replace_bytes(tmp_path / "a", b"old")
    monkeypatch.setattr(os, "fsync", raising(OSError(5, "Input/output error")))
    with pytest.raises(OSError, match="Input/output"):
        replace_bytes(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"old"


def raising(error: Exception) -> Callable[..., None]:
    def call(*_: object) -> None:
        raise error

    return call

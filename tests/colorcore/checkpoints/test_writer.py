"""Checkpoints that are written in the background: what is in them, and what is left by a kill."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from colorcore.checkpoints import checkpoint as checkpoint_module
from colorcore.checkpoints import host_copy
from colorcore.checkpoints import writer as module
from colorcore.checkpoints.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from colorcore.checkpoints.host_copy import HostCopies
from colorcore.checkpoints.writer import CheckpointWriter
from colorcore.storage.local import LocalStore
from colorcore.training.fit import fit
from tests.colorcore.training.made_up import CPU, Photos, data_of, recipe_of, same_tensors
from tests.mounts import mounted


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder = tmp_path_factory.mktemp("trained")
    photos = Photos(8, seed=0)
    fit(recipe_of("train.epochs=1"), data_of(photos, photos), folder)
    return load_checkpoint(folder / "last", training=True)


class Held:
    """A save_checkpoint that waits until it may write."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.may_write = threading.Event()
        self.folders: list[str] = []
        monkeypatch.setattr(module, "save_checkpoint", self)

    def __call__(self, checkpoint: Checkpoint, folder: LocalStore, **more: Any) -> None:
        assert self.may_write.wait(30)
        self.folders.append(folder.path.name)
        save_checkpoint(checkpoint, folder, **more)


# Copies


def test_copies_stay_what_they_are_while_the_tensors_change():
    tensors = {
        "scalar": torch.tensor(3.0),
        "counter": torch.tensor(7),
        "empty": torch.empty(0, 4),
        "half": torch.rand(5, 3).half(),
        "nhwc": torch.rand(4, 3, 5, 7).to(memory_format=torch.channels_last),
        "view": torch.rand(6, 6)[:, 1:4],
    }
    before = {name: value.clone() for name, value in tensors.items()}
    copies, finish = HostCopies(CPU).take(tensors)
    for value in tensors.values():
        value.zero_()
    finish()
    assert same_tensors(copies, before)
    assert copies["nhwc"].is_contiguous(memory_format=torch.channels_last)


def test_copies_use_the_same_memory_again_and_no_more_than_they_need(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(host_copy, "SLAB", 1 << 16)
    room = HostCopies(CPU)
    small = {f"{i}": torch.rand(3000) for i in range(20)}  # five to a slab of 65,536 bytes
    gaps = {f"gap{i}": torch.rand(1000) for i in range(4)}  # that fit into what is left of them
    first, _ = room.take({**gaps, **small})
    held = room.size
    assert held == 4 * (1 << 16)
    second, _ = room.take({name: value + 1 for name, value in {**gaps, **small}.items()})
    assert room.size == held
    assert {v.data_ptr() for v in first.values()} == {v.data_ptr() for v in second.values()}
    large = {"whole": torch.rand(1 << 17), **small}
    copies, _ = room.take(large)
    assert same_tensors(copies, large)
    assert room.size <= (1 << 19) + held
    room.take({"0": small["0"]})
    assert room.size <= 1 << 19
    copies, _ = room.take(small)
    assert same_tensors(copies, small)


# The writer


def test_what_is_written_is_the_state_when_it_was_submitted(
    trained: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    held = Held(monkeypatch)
    live = replace(
        trained,
        weights={name: value.clone() for name, value in trained.weights.items()},
        training={name: value.clone() for name, value in trained.training.items()},
    )
    writer = CheckpointWriter(CPU)
    writer.submit(live, LocalStore(tmp_path / "last"), LocalStore(tmp_path / "best"))
    assert writer.is_busy
    for tensors in (live.weights, live.training):
        for value in tensors.values():
            value.add_(1)
    held.may_write.set()
    writer.wait()
    assert not writer.is_busy
    assert held.folders == ["best", "last"]
    last = load_checkpoint(tmp_path / "last", training=True)
    assert same_tensors(last.weights, trained.weights)
    assert same_tensors(last.training, trained.training)
    assert same_tensors(load_checkpoint(tmp_path / "best").weights, trained.weights)
    assert not (tmp_path / "best/training.safetensors").exists()
    writer.close()


def test_a_save_waits_for_the_one_before(
    trained: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    held = Held(monkeypatch)
    writer = CheckpointWriter(CPU)
    writer.submit(replace(trained, epoch=1), LocalStore(tmp_path / "one"))
    second = threading.Thread(
        target=writer.submit, args=(replace(trained, epoch=2), LocalStore(tmp_path / "two"))
    )
    second.start()
    second.join(0.2)
    assert second.is_alive()  # its copies would overwrite those that are being written
    held.may_write.set()
    second.join(30)
    writer.wait()
    writer.close()
    assert [load_checkpoint(tmp_path / name).epoch for name in ("one", "two")] == [1, 2]


@pytest.mark.parametrize("asked", ["submit", "wait", "is_busy"])
def test_an_error_of_the_thread_is_raised_once_by_whatever_comes_next(
    trained: Checkpoint, tmp_path: Path, asked: str
):
    (tmp_path / "file").write_text("no folder")
    writer = CheckpointWriter(CPU)
    writer.submit(trained, LocalStore(tmp_path / "file/last"))
    writer._pending.exception()
    ask = {
        "submit": lambda: writer.submit(trained, LocalStore(tmp_path / "last")),
        "wait": writer.wait,
        "is_busy": lambda: writer.is_busy,
    }[asked]
    with pytest.raises(FileExistsError):
        ask()
    writer.submit(trained, LocalStore(tmp_path / "last"))
    writer.wait()
    writer.close()
    assert load_checkpoint(tmp_path / "last").epoch == trained.epoch


# Shared files


def test_best_and_last_share_their_bytes(trained: Checkpoint, tmp_path: Path):
    best, last = tmp_path / "best", tmp_path / "last"
    save_checkpoint(replace(trained, training={}), best)
    save_checkpoint(trained, last, same_as=best)
    for name in ("model", "palette"):
        assert (best / f"{name}.safetensors").samefile(last / f"{name}.safetensors")
    assert (best / "checkpoint.json").stat().st_nlink == 1
    # What replaces one of them leaves the other as it was.
    changed = replace(trained, weights={n: v * 0 for n, v in trained.weights.items()})
    save_checkpoint(changed, last)
    assert same_tensors(load_checkpoint(best).weights, trained.weights)
    assert (best / "model.safetensors").stat().st_nlink == 1


def test_a_new_record_leaves_the_tensors_alone(trained: Checkpoint, tmp_path: Path):
    best, last = tmp_path / "best", tmp_path / "last"
    save_checkpoint(replace(trained, training={}), best)
    save_checkpoint(trained, last, same_as=best)
    save_checkpoint(replace(trained, training={}, decoded={"psnr": 1.0}), best, same_as=best)
    assert load_checkpoint(best).decoded == {"psnr": 1.0}
    assert load_checkpoint(last).decoded == trained.decoded
    assert (best / "model.safetensors").samefile(last / "model.safetensors")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best", "last"]


@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK])
def test_where_there_are_no_links_both_are_written(
    trained: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
):
    def refused(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", refused)
    save_checkpoint(replace(trained, training={}), tmp_path / "best")
    save_checkpoint(trained, tmp_path / "last", same_as=tmp_path / "best")
    assert same_tensors(load_checkpoint(tmp_path / "last").weights, trained.weights)
    assert (tmp_path / "last/model.safetensors").stat().st_nlink == 1


def test_on_another_file_system_both_are_written(trained: Checkpoint, tmp_path: Path):
    (tmp_path / "mount").mkdir()
    save_checkpoint(replace(trained, training={}), tmp_path / "best")
    with mounted(tmp_path / "mount", "size=16m"):
        save_checkpoint(trained, tmp_path / "mount/last", same_as=tmp_path / "best")
        assert same_tensors(load_checkpoint(tmp_path / "mount/last").weights, trained.weights)


def test_a_full_disk_leaves_the_old_one_and_says_so(trained: Checkpoint, tmp_path: Path):
    save_checkpoint(trained, tmp_path / "given")
    size = sum(path.stat().st_size for path in (tmp_path / "given").iterdir())
    with mounted(tmp_path, f"size={size * 3 // 2 // 1024}k"):
        writer = CheckpointWriter(CPU)
        writer.submit(replace(trained, epoch=1), LocalStore(tmp_path / "last"))
        writer.wait()
        writer.submit(replace(trained, epoch=2), LocalStore(tmp_path / "last"))
        with pytest.raises(Exception, match="No space left"):
            writer.wait()
        writer.close()
        assert load_checkpoint(tmp_path / "last", training=True).epoch == 1


# Kills


@pytest.mark.slow
@pytest.mark.parametrize("place", ["tensors", "record", "swap"])
def test_killed_in_the_middle_of_a_write_the_previous_one_is_there(
    trained: Checkpoint, tmp_path: Path, place: str
):
    """A process of its own, which SIGKILL ends while its thread writes and its main thread runs."""
    save_checkpoint(trained, tmp_path / "given")
    with subprocess.Popen([sys.executable, __file__, str(tmp_path), place]) as child:
        try:
            until = time.monotonic() + 60
            while not (tmp_path / "there").exists():
                assert time.monotonic() < until
                assert child.poll() is None
                time.sleep(0.02)
        finally:
            child.kill()
    last = load_checkpoint(tmp_path / "out/last", training=True)
    assert last.epoch == 1
    assert same_tensors(last.weights, trained.weights)
    assert same_tensors(last.training, trained.training)
    assert load_checkpoint(tmp_path / "out/best").epoch == (2 if place == "swap" else 1)
    save_checkpoint(replace(trained, epoch=3), tmp_path / "out/last")
    assert load_checkpoint(tmp_path / "out/last").epoch == 3
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert [name for name in names if "last" in name] == ["last"]


def _write_and_hang(folder: Path, place: str) -> None:
    def hang(*_: object, **__: object) -> None:
        (folder / "there").touch()
        time.sleep(600)

    given, out = load_checkpoint(folder / "given", training=True), LocalStore(folder / "out")
    writer = CheckpointWriter(CPU)
    writer.submit(replace(given, epoch=1), out.below("last"), out.below("best"))
    writer.wait()
    if place == "tensors":
        save = checkpoint_module.save_file

        def cut(tensors: dict[str, torch.Tensor], path: Path) -> None:
            save(tensors, path)
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
            hang()

        checkpoint_module.save_file = cut
    elif place == "record":
        checkpoint_module.json.dumps = hang  # type: ignore[assignment]
    else:
        swap = checkpoint_module._swap

        def swapped(fresh: Path, target: Path, *, sync: bool) -> None:
            if target.name == "last":
                target.replace(target.with_name(".last.old"))
                hang()
            swap(fresh, target, sync=sync)

        checkpoint_module._swap = swapped
    writer.submit(replace(given, epoch=2), out.below("last"), out.below("best"))
    writer.wait()


if __name__ == "__main__":
    _write_and_hang(Path(sys.argv[1]), sys.argv[2])

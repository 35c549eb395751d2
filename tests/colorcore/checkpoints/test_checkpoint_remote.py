"""Checkpoints in an object store, which renames nothing: on a real S3 server."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from colorcore.checkpoints import checkpoint as module
from colorcore.checkpoints.checkpoint import (
    Checkpoint,
    CheckpointError,
    has_checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from colorcore.storage import store as storage
from colorcore.storage.location import open_store
from colorcore.storage.remote import RemoteStore
from colorcore.training.fit import fit
from tests.colorcore.training.made_up import (
    Diary,
    Killed,
    Killer,
    Photos,
    data_of,
    recipe_of,
    same_tensors,
)


@pytest.fixture
def out(s3_server, bucket: str) -> storage.Store:
    return open_store(s3_server.uri(bucket, "some/model"))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """A checkpoint of a training, its training's state too."""
    folder = tmp_path_factory.mktemp("trained")
    photos = Photos(8, seed=0)
    fit(recipe_of("train.epochs=1"), data_of(photos, photos), folder)
    return load_checkpoint(folder / "last", training=True)


def files(s3_server, bucket: str) -> list[str]:
    """The keys, but for the empty ones that pyarrow marks folders with."""
    return [key for key in s3_server.keys(bucket) if not key.endswith("/")]


def test_a_remote_checkpoint_comes_back_bit_for_bit(saved, s3_server, bucket, out) -> None:
    assert not has_checkpoint(out.below("last"))
    save_checkpoint(saved, out.below("last"))
    assert has_checkpoint(out.below("last"))
    loaded = load_checkpoint(s3_server.uri(bucket, "some/model/last"), training=True)
    assert same_tensors(loaded.weights, saved.weights)
    assert same_tensors(loaded.training, saved.training)
    assert loaded.palette.fingerprint == saved.palette.fingerprint
    for name in ("recipe", "mean_ab", "scores", "best", "history", "signs", "epoch", "step"):
        assert getattr(loaded, name) == getattr(saved, name), name
    # A training's folder stands for its best, and where there is none yet for its last.
    assert load_checkpoint(out).epoch == saved.epoch
    save_checkpoint(replace(saved, epoch=9, training={}), out.below("best"))
    assert load_checkpoint(out).epoch == 9
    with pytest.raises(CheckpointError, match=r"some/model/best.* has no training state"):
        load_checkpoint(out.below("best"), training=True)


def test_saving_drops_what_a_killed_training_was_uploading(saved, s3_server, bucket, out) -> None:
    keys = ["some/model/last/model-0123456789ab.safetensors", "some/model/best/other", "another"]
    for key in keys:
        s3_server.client.create_multipart_upload(Bucket=bucket, Key=key)
    save_checkpoint(saved, out.below("last"))
    left = s3_server.client.list_multipart_uploads(Bucket=bucket)["Uploads"]
    assert sorted(upload["Key"] for upload in left) == ["another", "some/model/best/other"]


def test_a_remote_checkpoint_is_one_here_when_it_is_copied(
    saved, s3_server, bucket, out, tmp_path: Path
) -> None:
    save_checkpoint(saved, out.below("last"))
    for key in files(s3_server, bucket):
        (tmp_path / Path(key).name).write_bytes(s3_server.get(bucket, key))
    loaded = load_checkpoint(tmp_path, training=True)
    assert same_tensors(loaded.weights, saved.weights)
    assert same_tensors(loaded.training, saved.training)


def test_nothing_of_a_replaced_one_is_left(saved, s3_server, bucket, out) -> None:
    for epoch in range(3):
        save_checkpoint(replace(saved, epoch=epoch), out.below("last"))
    names = [key.removeprefix("some/model/last/") for key in files(s3_server, bucket)]
    record = json.loads(s3_server.get(bucket, "some/model/last/checkpoint.json"))
    assert sorted(names) == sorted(["checkpoint.json", *record["files"].values()])
    assert record["files"].keys() == {"model", "palette", "training"}


@pytest.mark.slow
@pytest.mark.parametrize("before", [False, True], ids=["first", "later"])
def test_killed_at_any_moment_the_old_one_or_the_new_one_is_there(
    saved, s3_server, bucket, out, before: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before each request that changes something, until a save gets through."""
    last, done = out.below("last"), 0
    stops = iter(range(1000))
    for stop in stops:
        for key in s3_server.keys(bucket):
            s3_server.client.delete_object(Bucket=bucket, Key=key)
        old = replace(saved, epoch=1)
        if before:
            save_checkpoint(old, last)
        weights = {name: value + 1 for name, value in saved.weights.items()}
        state = {name: value + 1 for name, value in saved.training.items()}
        new = replace(saved, epoch=2, weights=weights, training=state)
        calls = [0]
        with monkeypatch.context() as patch:
            for name in ("write", "put", "remove"):
                patch.setattr(RemoteStore, name, killing(getattr(RemoteStore, name), calls, stop))
            try:
                save_checkpoint(new, last)
                done += 1
            except Killed:
                pass
        if has_checkpoint(last):
            found = load_checkpoint(last, training=True)
            wanted = {1: old, 2: new}[found.epoch]
            assert same_tensors(found.weights, wanted.weights)
            assert same_tensors(found.training, wanted.training)
        else:
            assert not before
            assert not done
        if done:
            assert found.epoch == 2
            break
        save_checkpoint(new, last)  # what is tried again leaves nothing of the killed one
        assert len(files(s3_server, bucket)) == 4
    assert stop == (7 if before else 4)  # three files of tensors, the record, three removals


def killing(action: Callable[..., Any], calls: list[int], stop: int) -> Callable[..., Any]:
    def run(*arguments: Any) -> Any:
        if calls[0] == stop:
            raise Killed
        calls[0] += 1
        return action(*arguments)

    return run


def test_one_that_is_replaced_while_it_is_read_is_read_again(
    saved, out, monkeypatch: pytest.MonkeyPatch
) -> None:
    last = out.below("last")
    save_checkpoint(replace(saved, epoch=1), last)
    read, times = module._read_tensors, []

    def replaced(store: storage.Store, name: str) -> dict[str, torch.Tensor]:
        if not times:
            times.append(name)
            save_checkpoint(replace(saved, epoch=2), last)
        return read(store, name)

    monkeypatch.setattr(module, "_read_tensors", replaced)
    loaded = load_checkpoint(last, training=True)
    assert loaded.epoch == 2
    assert same_tensors(loaded.training, saved.training)


def test_a_record_that_is_cut_off_as_it_is_replaced_is_read_again(
    saved, out, monkeypatch: pytest.MonkeyPatch
) -> None:
    last = out.below("last")
    save_checkpoint(saved, last)
    read, cut = RemoteStore.read, [1]

    def torn(store: RemoteStore, name: str, **options) -> bytes:
        data = read(store, name, **options)
        if name == "checkpoint.json" and cut[0]:
            cut[0] -= 1
            return data[:-40]
        return data

    monkeypatch.setattr(RemoteStore, "read", torn)
    assert same_tensors(load_checkpoint(last, training=True).training, saved.training)
    cut[0] = 1000
    with pytest.raises(CheckpointError, match=r"last.* is damaged: JSONDecodeError"):
        load_checkpoint(last)
    assert 1000 - cut[0] == 5


def test_tensors_that_are_gone_are_damage(saved, s3_server, bucket, out) -> None:
    save_checkpoint(saved, out.below("last"))
    (model,) = [key for key in s3_server.keys(bucket) if "/model-" in key]
    s3_server.client.delete_object(Bucket=bucket, Key=model)
    with pytest.raises(CheckpointError, match=r"last.* is damaged: FileNotFoundError"):
        load_checkpoint(out.below("last"))


@pytest.mark.parametrize("name", ["../../etc/passwd", "model.pt", "model-../x.safetensors"])
def test_a_record_cannot_name_other_files(saved, s3_server, bucket, out, name: str) -> None:
    save_checkpoint(saved, out.below("last"))
    key = "some/model/last/checkpoint.json"
    record = json.loads(s3_server.get(bucket, key))
    record["files"]["model"] = name
    s3_server.put(bucket, key, json.dumps(record).encode())
    with pytest.raises(CheckpointError, match="is damaged: ValueError: it lists a file named"):
        load_checkpoint(out.below("last"))


def test_none_there_is_said_with_the_place(s3_server, bucket, out) -> None:
    with pytest.raises(CheckpointError, match=rf"found none at s3://{bucket}/some/model\?"):
        load_checkpoint(out)


def test_no_temporary_file_is_left(saved, out, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    save_checkpoint(saved, out.below("last"))
    load_checkpoint(out.below("last"), training=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_store_that_fails_in_passing_is_asked_again(saved, flaky_s3, quick, bucket) -> None:
    out = open_store(flaky_s3.uri(bucket, "model"))
    flaky_s3.set("every:3")
    save_checkpoint(saved, out.below("last"))
    assert same_tensors(load_checkpoint(out.below("last"), training=True).training, saved.training)


@pytest.mark.slow
def test_a_training_whose_out_is_remote_ends_as_one_here(out, tmp_path: Path) -> None:
    """Killed in the middle of an epoch, and resumed from the store."""
    photos = Photos(21, seed=0)
    data = data_of(photos, Photos(7, seed=1))
    recipe = recipe_of("train.save_every=3")
    fit(recipe, data, tmp_path / "here")
    with pytest.raises(Killed):
        fit(recipe, data, out, observers=[Killer(9)])
    diary = Diary()
    resume = load_checkpoint(out.below("last"), training=True)
    fit(recipe, data, out, resume=resume, observers=[diary])
    assert diary.starts == [(15, 6)]
    for name in ("last", "best"):
        there, here = load_checkpoint(out.below(name)), load_checkpoint(tmp_path / "here" / name)
        assert same_tensors(there.weights, here.weights)
        assert (there.scores, there.decoding, there.decoded) == (
            here.scores, here.decoding, here.decoded
        )  # fmt: skip
    state = load_checkpoint(out.below("last"), training=True).training
    assert same_tensors(state, load_checkpoint(tmp_path / "here/last", training=True).training)


def test_best_and_last_are_one_upload(
    saved, s3_server, bucket, out, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store copies best's weights to last by itself, and a new record uploads no tensors."""
    sent: list[str] = []
    original = RemoteStore.put

    def put(store: RemoteStore, path: Path, name: str) -> None:
        sent.append(f"{store.prefix.rpartition('/')[2]}/{name.partition('-')[0]}")
        original(store, path, name)

    monkeypatch.setattr(RemoteStore, "put", put)
    best, last = out.below("best"), out.below("last")
    save_checkpoint(replace(saved, training={}), best)
    save_checkpoint(saved, last, same_as=best)
    assert sent == ["best/model", "best/palette", "last/training"]
    assert same_tensors(load_checkpoint(last, training=True).weights, saved.weights)
    save_checkpoint(replace(saved, training={}, decoded={"psnr": 1.0}), best, same_as=best)
    assert len(sent) == 3
    assert load_checkpoint(best).decoded == {"psnr": 1.0}
    assert same_tensors(load_checkpoint(best).weights, saved.weights)
    # Each has its own objects, so what replaces one does not touch the other.
    save_checkpoint(replace(saved, training={}, epoch=9), best)
    assert same_tensors(load_checkpoint(last, training=True).weights, saved.weights)
    assert len(files(s3_server, bucket)) == 7


def test_a_store_that_cannot_copy_gets_a_second_upload(
    saved, out, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RemoteStore, "copy_from", lambda *_: False)
    save_checkpoint(replace(saved, training={}), out.below("best"))
    save_checkpoint(saved, out.below("last"), same_as=out.below("best"))
    assert same_tensors(load_checkpoint(out.below("last"), training=True).weights, saved.weights)


@pytest.mark.slow
def test_only_a_file_of_the_same_bucket_can_be_copied(s3_server, bucket, out, tmp_path) -> None:
    out.write("one", b"bytes")
    assert out.copy_from(out, "one", "two")
    assert out.read("two") == b"bytes"
    assert not out.copy_from(out, "missing", "three")
    assert not out.copy_from(open_store(tmp_path), "one", "three")
    assert not open_store(tmp_path).copy_from(out, "one", "three")
    assert out.names("") == ["one", "two"]


def test_a_card_lies_next_to_its_remote_model_and_goes_with_it(
    saved, s3_server, bucket, out
) -> None:
    best = out.below("best")
    save_checkpoint(replace(saved, card="# Model card\n"), best)
    assert best.read("MODEL_CARD.md") == b"# Model card\n"
    assert load_checkpoint(best).card == "# Model card\n"
    save_checkpoint(saved, best)  # a better one, in a training that has not ended
    assert not best.exists("MODEL_CARD.md")
    save_checkpoint(replace(saved, card="# Again\n"), best)
    module.remove_checkpoint(best)
    assert files(s3_server, bucket) == []

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from colorcore.checkpoints import checkpoint as module
from colorcore.checkpoints.checkpoint import (
    Checkpoint,
    CheckpointError,
    has_checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from colorcore.checkpoints.optimizer_state import optimizer_state, restore_optimizer
from colorcore.color.fit_palette import fit_palette
from colorcore.color.palette import Palette
from colorcore.decoding import Decoding
from colorcore.models import build_model
from colorcore.recipes.recipe import Recipe, load_recipe

SMALL = ["model.channels=4", "model.depth=2", "optim.clip=none", "data.crop=0.5"]


@pytest.fixture(scope="module")
def palette() -> Palette:
    histogram = np.zeros((256, 256), np.int64)
    histogram[100:160:10, 100:160:10] = np.arange(1, 37).reshape(6, 6)
    return fit_palette(histogram, bins=5, dataset="0123456789abcdef")


def small_model(recipe: Recipe) -> nn.Module:
    model = build_model(recipe.model.name, **recipe.model.options())
    return model.to(memory_format=torch.channels_last)


def adamw(model: nn.Module) -> torch.optim.AdamW:
    return torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05, betas=(0.8, 0.95))


def one_step(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    L = torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(seed))
    model(L)["ab"].square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()


@pytest.fixture
def trained(palette: Palette) -> tuple[Checkpoint, nn.Module, torch.optim.AdamW]:
    """A checkpoint of a model that has taken three steps, that model and its optimiser."""
    torch.manual_seed(0)
    recipe = load_recipe("simple", SMALL)
    model = small_model(recipe)
    optimizer = adamw(model)
    for step in range(3):
        one_step(model, optimizer, step)
    average = {k: v * 2 if v.is_floating_point() else v for k, v in model.state_dict().items()}
    tensors, numbers = optimizer_state(optimizer)
    checkpoint = Checkpoint(
        recipe=recipe,
        weights=average,
        palette=palette,
        mean_ab=(0.1 + 0.2, -1 / 3),
        size=32,
        dataset="fedcba9876543210",
        epoch=7,
        step=3,
        scores={"psnr": 21.123456789012345, "photos": 5.0},
        best=0.1,
        run_id="a-run",
        training={**{f"model.{k}": v for k, v in model.state_dict().items()}, **tensors},
        optimizer=numbers,
    )
    return checkpoint, model, optimizer


def same_tensors(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(
        a[name].dtype == b[name].dtype and torch.equal(a[name], b[name]) for name in a
    )


# Save and load


def test_a_checkpoint_comes_back_bit_for_bit(trained, tmp_path: Path):
    saved = trained[0]
    save_checkpoint(saved, tmp_path / "last")
    loaded = load_checkpoint(tmp_path / "last", training=True)
    assert same_tensors(loaded.weights, saved.weights)
    assert same_tensors(loaded.training, saved.training)
    assert loaded.palette.fingerprint == saved.palette.fingerprint
    assert loaded.palette.about == saved.palette.about
    for name in ("recipe", "mean_ab", "size", "dataset", "epoch", "step", "scores", "best"):
        assert getattr(loaded, name) == getattr(saved, name), name
    assert loaded.run_id == "a-run"
    assert loaded.recipe.optim.clip is None
    assert (loaded.decoding, loaded.decoded) == (Decoding(), {})


def test_the_chosen_decoding_comes_back(trained, tmp_path: Path):
    chosen = replace(trained[0], decoding=Decoding(0.6, 1.2), decoded={"psnr": 1 / 3})
    save_checkpoint(chosen, tmp_path / "best")
    loaded = load_checkpoint(tmp_path / "best")
    assert (loaded.decoding, loaded.decoded) == (Decoding(0.6, 1.2), {"psnr": 1 / 3})
    record = json.loads((tmp_path / "best/checkpoint.json").read_text())
    assert record["decoding"] == {"temperature": 0.6, "chroma": 1.2}
    assert record["format"] == 1
    record["decoding"]["chroma"] = -1.0
    (tmp_path / "best/checkpoint.json").write_text(json.dumps(record))
    with pytest.raises(CheckpointError, match=r"is damaged: .*chroma must be above 0"):
        load_checkpoint(tmp_path / "best")


def test_a_checkpoint_from_before_there_were_decodings(trained, tmp_path: Path):
    save_checkpoint(trained[0], tmp_path / "old")
    record = json.loads((tmp_path / "old/checkpoint.json").read_text())
    del record["decoding"], record["decoded"]
    (tmp_path / "old/checkpoint.json").write_text(json.dumps(record))
    loaded = load_checkpoint(tmp_path / "old")
    assert (loaded.decoding, loaded.decoded) == (Decoding(), {})


def test_the_training_state_has_moments_and_steps(trained, tmp_path: Path):
    """What the round trip above is worth: the state is that of an AdamW which took three steps."""
    checkpoint, model, optimizer = trained
    save_checkpoint(checkpoint, tmp_path / "last")
    training = load_checkpoint(tmp_path / "last", training=True).training
    for index, parameter in enumerate(model.parameters()):
        assert training[f"optimizer.{index}.step"] == 3
        for name in ("exp_avg", "exp_avg_sq"):
            saved = training[f"optimizer.{index}.{name}"]
            assert torch.equal(saved, optimizer.state[parameter][name])
            assert saved.any()


def test_without_asking_nothing_of_the_training_is_read(trained, tmp_path: Path):
    save_checkpoint(trained[0], tmp_path / "last")
    (tmp_path / "last" / "training.safetensors").write_bytes(b"never looked at")
    assert load_checkpoint(tmp_path / "last").training == {}


def test_saving_what_was_loaded_gives_the_same_bytes(trained, tmp_path: Path):
    save_checkpoint(trained[0], tmp_path / "one")
    save_checkpoint(load_checkpoint(tmp_path / "one", training=True), tmp_path / "two")
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes(), path.name


def test_the_model_has_the_averaged_weights_and_predicts(trained, tmp_path: Path):
    checkpoint = trained[0]
    save_checkpoint(checkpoint, tmp_path / "last")
    model = load_checkpoint(tmp_path / "last").model()
    assert not model.training
    assert same_tensors(model.state_dict(), checkpoint.weights)
    L = torch.rand(1, 1, 20, 24)
    assert torch.equal(model(L)["ab"], checkpoint.model()(L)["ab"])


def test_a_loaded_optimiser_goes_on_as_one_that_was_never_saved(trained, tmp_path: Path):
    """Bit for bit, with another lr and other moments before loading, in channels-last memory."""
    checkpoint, model, optimizer = trained
    save_checkpoint(checkpoint, tmp_path / "last")
    loaded = load_checkpoint(tmp_path / "last", training=True)
    torch.manual_seed(99)
    other = small_model(loaded.recipe)
    fresh = torch.optim.AdamW(other.parameters(), lr=0.5)
    one_step(other, fresh, 1234)
    raw = {k.removeprefix("model."): v for k, v in loaded.training.items() if k[:6] == "model."}
    other.load_state_dict(raw)
    restore_optimizer(fresh, loaded)
    for step in range(3, 8):
        one_step(model, optimizer, step)
        one_step(other, fresh, step)
    assert same_tensors(other.state_dict(), model.state_dict())
    assert same_tensors(optimizer_state(fresh)[0], optimizer_state(optimizer)[0])
    assert fresh.param_groups[0]["lr"] == 1e-3
    assert tuple(fresh.param_groups[0]["betas"]) == (0.8, 0.95)


# What is on disk


def test_a_folder_holds_json_and_safetensors_and_nothing_else(trained, tmp_path: Path):
    save_checkpoint(trained[0], tmp_path / "last")
    assert sorted(path.name for path in (tmp_path / "last").iterdir()) == [
        "checkpoint.json",
        "model.safetensors",
        "palette.safetensors",
        "training.safetensors",
    ]
    json.loads((tmp_path / "last" / "checkpoint.json").read_text())
    for path in (tmp_path / "last").glob("*.safetensors"):
        header = path.read_bytes()
        length = int.from_bytes(header[:8], "little")
        json.loads(header[8 : 8 + length])  # a safetensors file: length, JSON header, raw bytes
    assert [path.name for path in tmp_path.iterdir()] == ["last"]


def test_nothing_is_ever_unpickled(trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("something was pickled or unpickled")

    for target in ("pickle.load", "pickle.loads", "pickle.Unpickler", "pickle.dump", "torch.load"):
        monkeypatch.setattr(target, refuse)
    save_checkpoint(trained[0], tmp_path / "last")
    load_checkpoint(tmp_path / "last", training=True)


def test_one_without_a_training_state_has_no_file_for_it(trained, tmp_path: Path):
    save_checkpoint(trained[0], tmp_path / "best")
    save_checkpoint(replace(trained[0], training={}), tmp_path / "best")
    assert not (tmp_path / "best" / "training.safetensors").exists()
    load_checkpoint(tmp_path / "best")
    with pytest.raises(CheckpointError, match=r"no training state.*resume from the folder last"):
        load_checkpoint(tmp_path / "best", training=True)


def test_a_relative_folder_will_do(trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    save_checkpoint(trained[0], Path("last"))
    assert load_checkpoint(Path("last")).epoch == 7


# Killed while saving


class Killed(BaseException):
    """As sudden as a kill: no handler of ours catches it."""


def test_replacing_leaves_the_new_one_alone(trained, tmp_path: Path):
    for epoch in (1, 2, 3):
        save_checkpoint(replace(trained[0], epoch=epoch), tmp_path / "last")
        assert load_checkpoint(tmp_path / "last").epoch == epoch
        assert [path.name for path in tmp_path.iterdir()] == ["last"]


def test_killed_between_the_two_renames_the_old_one_is_read(
    trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    last = tmp_path / "last"
    save_checkpoint(replace(trained[0], epoch=1), last)
    rename = Path.replace

    def second_is_killed(self: Path, target: Path) -> Path:
        if self.name == ".last.new":
            raise Killed
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", second_is_killed)
        with pytest.raises(Killed):
            save_checkpoint(replace(trained[0], epoch=2), last)
    assert not last.exists()
    assert (tmp_path / ".last.old").is_dir()
    assert has_checkpoint(last)
    assert load_checkpoint(last, training=True).epoch == 1
    assert load_checkpoint(tmp_path).epoch == 1
    save_checkpoint(replace(trained[0], epoch=2), last)
    assert load_checkpoint(last).epoch == 2
    assert [path.name for path in tmp_path.iterdir()] == ["last"]


@pytest.mark.parametrize("file", range(3))
def test_killed_while_writing_the_old_one_is_read(
    trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: int
):
    """The n-th tensor file is cut in half and nothing more is written."""
    last = tmp_path / "last"
    save_checkpoint(replace(trained[0], epoch=1), last)
    written = []

    def cut_short(tensors: dict[str, torch.Tensor], path: Path) -> None:
        save_file(tensors, path)
        written.append(path)
        if len(written) > file:
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(module, "save_file", cut_short)
        with pytest.raises(Killed):
            save_checkpoint(replace(trained[0], epoch=2), last)
    assert (tmp_path / ".last.new").is_dir()
    assert load_checkpoint(last, training=True).epoch == 1
    save_checkpoint(replace(trained[0], epoch=2), last)
    assert load_checkpoint(last, training=True).epoch == 2
    assert [path.name for path in tmp_path.iterdir()] == ["last"]


def test_killed_before_the_first_one_was_whole_there_is_none(trained, tmp_path: Path):
    save_checkpoint(trained[0], tmp_path / "last")
    (tmp_path / "last").rename(tmp_path / ".last.new")
    assert not has_checkpoint(tmp_path / "last")
    with pytest.raises(CheckpointError, match="found none"):
        load_checkpoint(tmp_path / "last")


def test_killed_while_removing_the_old_one_the_new_one_is_read(trained, tmp_path: Path):
    last = tmp_path / "last"
    save_checkpoint(replace(trained[0], epoch=2), last)
    shutil.copytree(last, tmp_path / ".last.old")
    (tmp_path / ".last.old" / "checkpoint.json").write_text("{")
    assert load_checkpoint(last).epoch == 2
    save_checkpoint(replace(trained[0], epoch=3), last)
    assert load_checkpoint(last).epoch == 3


# Which folder


def test_a_training_folder_stands_for_its_best(trained, tmp_path: Path):
    save_checkpoint(replace(trained[0], epoch=5), tmp_path / "last")
    assert load_checkpoint(tmp_path).epoch == 5
    save_checkpoint(replace(trained[0], epoch=3), tmp_path / "best")
    assert load_checkpoint(tmp_path).epoch == 3
    assert load_checkpoint(tmp_path / "last").epoch == 5
    save_checkpoint(replace(trained[0], epoch=1), tmp_path / "own")
    shutil.copytree(tmp_path / "best", tmp_path / "own" / "best")
    assert load_checkpoint(tmp_path / "own").epoch == 1


def test_what_is_no_checkpoint_is_refused_with_where_they_come_from(tmp_path: Path):
    for place in (tmp_path, tmp_path / "nowhere"):
        assert not has_checkpoint(place)
        with pytest.raises(CheckpointError, match=r"expected a checkpoint folder.*cc train writes"):
            load_checkpoint(place)


# Damage


@pytest.mark.parametrize("name", ["model", "palette", "training"])
@pytest.mark.parametrize("damage", ["cut", "garbled", "empty", "missing"])
def test_a_damaged_file_is_refused(trained, tmp_path: Path, name: str, damage: str):
    save_checkpoint(trained[0], tmp_path / "last")
    path = tmp_path / "last" / f"{name}.safetensors"
    data = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes({"cut": data[:-1], "garbled": b"\xff" * 99, "empty": b""}[damage])
    what = "training" if (name, damage) == ("training", "missing") else "is damaged.*train again"
    with pytest.raises(CheckpointError, match=what) as refusal:
        load_checkpoint(tmp_path / "last", training=True)
    assert str(tmp_path / "last") in str(refusal.value)


def rewrite(folder: Path, **changes: object) -> None:
    path = folder / "checkpoint.json"
    record = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({k: v for k, v in record.items() if v != "drop it"}))


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "null", "3"])
def test_a_record_that_is_none_is_refused(trained, tmp_path: Path, text: str):
    save_checkpoint(trained[0], tmp_path / "last")
    (tmp_path / "last" / "checkpoint.json").write_text(text)
    with pytest.raises(CheckpointError, match="is damaged"):
        load_checkpoint(tmp_path / "last")


@pytest.mark.parametrize("key", ["format", "recipe", "palette", "mean_ab", "epoch", "optimizer"])
def test_a_record_with_a_key_missing_is_refused(trained, tmp_path: Path, key: str):
    save_checkpoint(trained[0], tmp_path / "last")
    rewrite(tmp_path / "last", **{key: "drop it"})
    with pytest.raises(CheckpointError, match=f"is damaged: KeyError: '{key}'"):
        load_checkpoint(tmp_path / "last")


def test_another_format_is_refused_with_both_numbers(trained, tmp_path: Path):
    save_checkpoint(trained[0], tmp_path / "last")
    rewrite(tmp_path / "last", format=2)
    with pytest.raises(CheckpointError, match="expected checkpoint format 1, found 2"):
        load_checkpoint(tmp_path / "last")


def test_a_recipe_of_another_version_is_refused(trained, tmp_path: Path):
    save_checkpoint(trained[0], tmp_path / "last")
    rewrite(tmp_path / "last", recipe={"loss": {"ab_l1": 1.0}, "model": {"layers": 3}})
    with pytest.raises(CheckpointError, match=r"unknown key model\.layers"):
        load_checkpoint(tmp_path / "last")


def test_a_palette_that_is_none_is_refused(trained, tmp_path: Path):
    save_checkpoint(trained[0], tmp_path / "last")
    path = tmp_path / "last" / "palette.safetensors"
    save_file({**load_file(path), "priors": torch.zeros(5)}, path)
    with pytest.raises(CheckpointError, match="expected finite priors above 0"):
        load_checkpoint(tmp_path / "last")


def test_weights_of_another_model_are_refused(trained, tmp_path: Path):
    checkpoint = replace(trained[0], recipe=load_recipe("simple", ["model.channels=8"]))
    save_checkpoint(checkpoint, tmp_path / "last")
    with pytest.raises(CheckpointError, match="the weights do not fit the recipe's model"):
        load_checkpoint(tmp_path / "last").model()

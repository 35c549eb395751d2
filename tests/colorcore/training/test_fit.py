import json
import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, distributed, nn
from torch.optim.lr_scheduler import OneCycleLR

from colorcore.checkpoints.checkpoint import (
    Checkpoint,
    CheckpointError,
    load_checkpoint,
    save_checkpoint,
)
from colorcore.color.fit_palette import fit_palette
from colorcore.color.lab import decode_lab, encode_lab
from colorcore.dataset.loader import TrainLoader
from colorcore.dataset.samples import Samples
from colorcore.inference.decoding_search import choose_decoding
from colorcore.inference.evaluate import evaluate, score_with_baselines
from colorcore.losses.term import LossError
from colorcore.models import MultiScaleDiscriminator, build_model
from colorcore.models.decoding import Decoding
from colorcore.recipes.recipe import Recipe, load_recipe, parse_recipe, recipe_names
from colorcore.recipes.schedule import lr_factor
from colorcore.storage.local import LocalStore
from colorcore.training import fit as module
from colorcore.training import state as state_module
from colorcore.training.events import (
    DecodingEvent,
    Observer,
    StepEvent,
    TrainingDivergedError,
    TrainingStoppedError,
    ValidationEvent,
)
from colorcore.training.fit import fit
from colorcore.training.state import PICTURES, FitData, Training
from tests.colorcore.losses.conftest import made_up_weights

CPU = torch.device("cpu")


class Photos:
    """What training asks of ``colorcore.dataset.samples.Samples``, in memory: smooth, colourful
    photos.
    """

    def __init__(self, photos: int, *, seed: int, size: int = 32) -> None:
        generator = torch.Generator().manual_seed(seed)
        coarse = torch.rand(photos, 3, 4, 4, generator=generator)
        rgb = nn.functional.interpolate(coarse, size=size, mode="bilinear")
        rgb_u8 = (rgb * 255).byte().permute(0, 2, 3, 1).numpy()
        self.lab_u8 = torch.from_numpy(np.stack([encode_lab(photo) for photo in rgb_u8]))
        self.size = size
        self.shard_counts = np.array([photos // 2, photos - photos // 2])
        self.shards = ["train/000000-000.tar", "train/000001-000.tar"]
        self.cache = None

    def __len__(self) -> int:
        return len(self.lab_u8)

    def read(self, positions: NDArray[np.int64]) -> Tensor:
        return self.lab_u8[torch.from_numpy(positions)]

    def keys(self, positions: NDArray[np.int64]) -> list[str]:
        return [f"photo-{position}" for position in positions]


def data_of(train: Photos, val: Photos, fingerprint: str = "0123456789abcdef") -> FitData:
    ab = train.lab_u8[:, 1:].transpose(0, 1).reshape(2, -1).long()
    histogram = torch.bincount(ab[0] * 256 + ab[1], minlength=65_536).reshape(256, 256)
    palette = fit_palette(histogram.numpy(), bins=8, dataset=fingerprint)
    return FitData(train, val, palette, (1.5, -2.5), fingerprint)  # type: ignore[arg-type]


def small_data() -> FitData:
    """Five steps of four, and a number of validation photos that two ranks cannot halve."""
    return data_of(Photos(21, seed=0), Photos(7, seed=1))


def recipe_of(*overrides: str) -> Recipe:
    small = ["model.channels=4", "model.depth=2", "data.batch=4", "train.epochs=3", "optim.lr=1e-3"]
    return load_recipe("simple", [*small, "train.ema=0.9", *overrides])


@pytest.fixture(scope="module")
def data() -> FitData:
    return small_data()


@dataclass
class Diary(Observer):
    """Keeps all that it is told."""

    starts: list[tuple[int, int]] = field(default_factory=list)
    steps: list[StepEvent] = field(default_factory=list)
    validations: list[ValidationEvent] = field(default_factory=list)
    saved: list[ValidationEvent] = field(default_factory=list)
    decodings: list[DecodingEvent] = field(default_factory=list)
    stops: list[int] = field(default_factory=list)

    def on_start(self, total_steps: int, first_step: int) -> None:
        self.starts.append((total_steps, first_step))

    def on_step(self, event: StepEvent) -> None:
        self.steps.append(event)

    def on_validation(self, event: ValidationEvent) -> None:
        self.validations.append(event)

    def on_saved(self, event: ValidationEvent) -> None:
        self.saved.append(event)

    def on_decoding(self, event: DecodingEvent) -> None:
        self.decodings.append(event)

    def on_stop(self, step: int) -> None:
        self.stops.append(step)


class Killed(BaseException):
    """As sudden as a kill: no handler of ours catches it."""


@dataclass
class Killer(Observer):
    """Ends the run in the middle of an epoch."""

    step: int

    def on_step(self, event: StepEvent) -> None:
        if event.step == self.step:
            raise Killed


def bytes_of(out: Path) -> dict[str, bytes]:
    """Every file of a training's folder."""
    return {str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.is_file()}


def weights_of(folder: Path) -> dict[str, Tensor]:
    """Averaged and raw weights of a checkpoint, and those of its discriminator."""
    checkpoint = load_checkpoint(folder, training=True)
    kinds = ("model.", "discriminator.")
    raw = {name: value for name, value in checkpoint.training.items() if name.startswith(kinds)}
    return {**checkpoint.weights, **raw}


def close(here: dict[str, Tensor], there: dict[str, Tensor], atol: float = 1e-5) -> None:
    assert here.keys() == there.keys()
    for name, value in here.items():
        torch.testing.assert_close(value, there[name], atol=atol, rtol=0, msg=name)


# It starts


def test_a_model_that_answers_in_bins_starts_from_palette_and_pretrained_weights(
    data: FitData, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    def load_torchvision(encoder: nn.Module, path: str) -> None:
        assert path == "weights.pth"
        nn.init.constant_(encoder.conv1.weight, 0.25)

    monkeypatch.setattr("colorcore.models.resnet34.ResNet34.load_torchvision", load_torchvision)
    model = "model={name = 'resnet-unet', channels = 4, bins = 8, encoder_weights = 'weights.pth'}"
    recipe = load_recipe("simple", [model, "data.batch=4"])
    training = Training(recipe, data, CPU, None)
    for network in (training.model, training.average):
        assert np.array_equal(network.centroids.numpy(), data.palette.centroids)
        assert (network.encoder.conv1.weight == 0.25).all()
    # A checkpoint carries all of that: neither is needed to colorize, nor to go on.
    save_checkpoint(training.checkpoint({}), tmp_path)
    monkeypatch.undo()
    checkpoint = load_checkpoint(tmp_path, training=True)
    assert np.array_equal(checkpoint.model().centroids.numpy(), data.palette.centroids)
    resumed = Training(recipe, data, CPU, checkpoint)
    assert (resumed.model.encoder.conv1.weight == 0.25).all()
    with pytest.raises(ValueError, match=r"encoder_weights: cannot read weights\.pth"):
        Training(recipe, data, CPU, None)


def test_model_and_average_start_from_given_weights(data: FitData):
    torch.manual_seed(7)
    given = build_model("unet", channels=4, depth=2).state_dict()
    training = Training(recipe_of(), data, torch.device("cpu"), None, given)
    for network in (training.model, training.average):
        assert all(torch.equal(value, given[name]) for name, value in network.state_dict().items())
    with pytest.raises(RuntimeError, match="Missing key"):
        Training(recipe_of(), data, torch.device("cpu"), None, {})


def test_a_palette_of_another_size_is_refused(data: FitData):
    recipe = load_recipe("simple", ["model={name = 'resnet-unet', channels = 4, bins = 9}"])
    with pytest.raises(ValueError, match=r"expected a palette of 9 bins.*got one of 8"):
        Training(recipe, data, CPU, None)


def test_photos_too_small_for_the_discriminators_are_refused(data: FitData):
    with pytest.raises(LossError, match="at least 64 pixels a side for 4 discriminators, got 32"):
        Training(recipe_of(*JUDGED, "discriminator.scales=4"), data, CPU, None)


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_takes_a_step(name: str, data: FitData, tmp_path: Path):
    """Each term says something finite and every weight gets a gradient.

    The pretrained weights of perceptual terms are made up here, and AlexNet's for all.
    """
    bins = ["model.bins=8"] if "model.bins" in load_recipe(name).flat() else []
    judge = ["discriminator.channels=4"] if "adversarial" in load_recipe(name).loss else []
    perceptual = []
    if "perceptual" in load_recipe(name).loss:
        torch.save(made_up_weights("alex"), tmp_path / "alex.pth")
        options = "loss_options.perceptual"
        perceptual = [f"{options}.net=alex", f"{options}.weights={tmp_path / 'alex.pth'}"]
    recipe = load_recipe(name, ["model.channels=4", "data.batch=4", *bins, *judge, *perceptual])
    training = Training(recipe, data, CPU, None)
    loss, terms, _ = training.train_step(next(iter(training.loader.epoch(0))))
    assert loss.isfinite()
    expected = {*recipe.loss, *(["discriminator"] if judge else [])}
    assert set(terms) == expected
    assert all(value.isfinite() for value in terms.values())
    assert len(training.optimizer.state) == len(list(training.model.parameters()))


# It learns


@pytest.mark.parametrize(("term", "steps"), [("ab_l1", 150), ("weighted_mse", 250)])
def test_eight_photos_are_learned_by_heart(term: str, steps: int, tmp_path: Path):
    """Overfitting one batch: grey scores less than 20 dB on it, the network more than 30."""
    photos = Photos(8, seed=0)
    data = data_of(photos, photos)
    recipe = recipe_of(
        "model.channels=16",
        "data.batch=8",
        "data.flip=false",
        "optim.lr=1e-2",
        f"loss={{{term} = 1.0}}",
        f"train.epochs={steps}",
        f"train.eval_every={steps}",
    )
    diary = Diary()
    scores = fit(recipe, data, tmp_path, observers=[diary])
    assert diary.steps[-1].loss < diary.steps[0].loss / 12
    model = load_checkpoint(tmp_path / "last").model()
    beside = score_with_baselines(model, [photos.lab_u8], data.palette, data.mean_ab)
    assert beside["grey"]["psnr"] < 20.0
    assert beside["model"]["psnr"] > 30.0
    assert beside["model"]["auc"] > 0.95 > beside["grey"]["auc"] + 0.1
    assert beside["model"] == pytest.approx(scores, rel=1e-5)


def test_a_training_is_this_plain_loop(data: FitData, tmp_path: Path):
    """The same by hand: PyTorch's scheduler and AdamW, the batches that the loader plans."""
    recipe = recipe_of(
        "data.flip=false", "optim.weight_decay=0.3", "optim.betas=[0.7, 0.8]", "optim.clip=0.1"
    )
    fit(recipe, data, tmp_path)
    torch.manual_seed(recipe.train.seed)
    model = build_model("unet", channels=4, depth=2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.3, betas=(0.7, 0.8))
    schedule = OneCycleLR(optimizer, 1e-3, total_steps=15, pct_start=0.1, cycle_momentum=False)
    plan = TrainLoader(data.train, 4, seed=recipe.train.seed)
    norms = []
    for step in range(15):
        positions = plan.positions(step // 5, step % 5)
        lab = decode_lab(data.train.read(positions))
        ab = model(lab[:, :1] / 50 - 1)["ab"]
        chroma = lab[:, 1:].square().sum(1, keepdim=True).sqrt()
        weight = 0.5 + (chroma / 40).clamp(max=1)
        loss = (weight * ((ab - lab[:, 1:]) / 128).square()).mean()
        optimizer.zero_grad()
        loss.backward()
        norms.append(float(nn.utils.clip_grad_norm_(model.parameters(), 0.1)))
        optimizer.step()
        if step < 14:
            schedule.step()
    assert max(norms) > 0.1  # so that clipping did something
    raw = load_checkpoint(tmp_path / "last", training=True).training
    close(
        {f"model.{k}": v for k, v in model.state_dict().items()},
        {k: v for k, v in raw.items() if k.startswith("model.")},
    )


def test_shards_on_disk_train_as_the_same_photos_in_memory(dataset: Path, tmp_path: Path):
    """Which is also what makes the photos in memory, of all other tests here, fair ones."""
    splits = [Samples(dataset, split) for split in ("train", "val")]
    memory = []
    for samples in splits:
        photos = Photos(1, seed=0, size=samples.size)
        photos.lab_u8 = samples.read(np.arange(len(samples)))
        photos.shard_counts = samples.shard_counts
        memory.append(photos)
    in_memory = data_of(*memory)
    on_disk = replace(in_memory, train=splits[0], val=splits[1])
    for name, data in (("memory", in_memory), ("disk", on_disk)):
        fit(recipe_of("train.epochs=2"), data, tmp_path / name)
    assert len(splits[0]) > 8
    assert bytes_of(tmp_path / "memory") == bytes_of(tmp_path / "disk")


# A run says what it does


def test_observers_see_every_step_once_with_its_learning_rate(data: FitData, tmp_path: Path):
    recipe = recipe_of("train.epochs=5", "train.eval_every=2", "loss.ab_l1=0.5")
    diary = Diary()
    scores = fit(recipe, data, tmp_path, observers=[diary])
    assert diary.starts == [(25, 0)]
    assert [event.step for event in diary.steps] == list(range(1, 26))
    assert [event.epoch for event in diary.steps] == [n // 5 for n in range(25)]
    assert [event.lr for event in diary.steps] == [
        recipe.optim.lr * lr_factor(recipe.optim, n, 25) for n in range(25)
    ]
    for event in diary.steps:
        assert event.total_steps == 25
        assert list(event.terms) == ["weighted_mse", "ab_l1"]
        assert event.loss == pytest.approx(event.terms["weighted_mse"] + 0.5 * event.terms["ab_l1"])
        assert event.grad_norm > 0
        assert event.photos_per_s > 0
    assert [(event.epoch, event.step) for event in diary.validations] == [(2, 10), (4, 20), (5, 25)]
    assert diary.saved == diary.validations
    assert scores == diary.validations[-1].scores


def test_the_same_pictures_are_shown_each_time(data: FitData, tmp_path: Path):
    diary = Diary()
    fit(recipe_of("train.epochs=2"), data, tmp_path, observers=[diary])
    first, second = (event.pairs for event in diary.validations)
    true = decode_lab(data.val.lab_u8[:PICTURES])  # type: ignore[attr-defined]
    assert torch.equal(first[:, 1], true)
    assert torch.equal(second[:, 1], true)
    assert not torch.equal(first[:, 0], second[:, 0])


def test_a_validation_is_saved_when_its_observers_hear_that_it_is(data: FitData, tmp_path: Path):
    class Reader(Observer):
        epochs: list[tuple[int, int]] = []  # noqa: RUF012

        def on_validation(self, event: ValidationEvent) -> None:
            self.before = load_checkpoint(tmp_path / "last").epoch if event.epoch > 1 else 0

        def on_saved(self, event: ValidationEvent) -> None:
            self.epochs.append((self.before, load_checkpoint(tmp_path / "last").epoch))

    fit(recipe_of(), data, tmp_path, observers=[reader := Reader()])
    assert reader.epochs == [(0, 1), (1, 2), (2, 3)]


def test_a_checkpoint_says_what_it_was_trained_on_and_scores_as_it_says(
    data: FitData, tmp_path: Path
):
    recipe = recipe_of()
    scores = fit(recipe, data, tmp_path, run_id="run-1")
    last = load_checkpoint(tmp_path / "last", training=True)
    assert (last.recipe, last.dataset, last.run_id) == (recipe, data.fingerprint, "run-1")
    assert (last.epoch, last.step, last.size, last.mean_ab) == (3, 0, 32, (1.5, -2.5))
    assert last.palette.fingerprint == data.palette.fingerprint
    assert last.scores == scores
    again, _ = evaluate(last.model(), [data.val.lab_u8], last.palette)  # type: ignore[attr-defined]
    assert again.compute() == pytest.approx(scores, rel=1e-5)


# The same again


EVERYTHING_RANDOM = (
    "model.dropout=0.3",
    "data.crop=0.6",
    "data.jitter=0.2",
    "data.flip=true",
    "loss.ab_l1=0.2",
)
JUDGED = (
    "loss.adversarial=0.1",
    "loss.feature_matching=0.5",
    "discriminator.channels=4",
    "discriminator.scales=2",
)


def test_the_same_seed_gives_the_same_bytes(data: FitData, tmp_path: Path):
    recipe = recipe_of(*EVERYTHING_RANDOM)
    torch.manual_seed(1)
    fit(recipe, data, tmp_path / "one")
    torch.manual_seed(2)
    fit(recipe, data, tmp_path / "two")
    assert bytes_of(tmp_path / "one") == bytes_of(tmp_path / "two")
    assert len(bytes_of(tmp_path / "one")) == 7  # four files of last, three of best
    fit(recipe_of(*EVERYTHING_RANDOM, "train.seed=1"), data, tmp_path / "other")
    one, other = weights_of(tmp_path / "one/last"), weights_of(tmp_path / "other/last")
    assert not torch.equal(one["head.weight"], other["head.weight"])


@pytest.mark.parametrize(
    "setting", ["model.dropout=0.3", "data.crop=0.6", "data.flip=false", "data.jitter=0.2"]
)
def test_each_setting_that_is_random_has_an_effect(data: FitData, tmp_path: Path, setting: str):
    """Without which the tests of repetition around this one would prove little."""
    fit(recipe_of("train.epochs=1"), data, tmp_path / "without")
    fit(recipe_of("train.epochs=1", setting), data, tmp_path / "with")
    without, with_ = weights_of(tmp_path / "without/last"), weights_of(tmp_path / "with/last")
    assert not torch.equal(without["head.weight"], with_["head.weight"])


@pytest.mark.parametrize("killed_at", [7, 14])
@pytest.mark.parametrize("more", [(), JUDGED, ("train.precision=fp16",)], ids=["", "gan", "fp16"])
def test_a_killed_run_that_is_resumed_ends_as_one_that_never_was(
    data: FitData, tmp_path: Path, killed_at: int, more: tuple[str, ...]
):
    """In the middle of the second or third epoch of three: bit for bit, best and last."""
    recipe = recipe_of(*EVERYTHING_RANDOM, *more)
    whole, parts = Diary(), Diary()
    scores = fit(recipe, data, tmp_path / "whole", run_id="r", observers=[whole])
    with pytest.raises(Killed):
        fit(recipe, data, tmp_path / "parts", run_id="r", observers=[Killer(killed_at)])
    resume = load_checkpoint(tmp_path / "parts/last", training=True)
    resumed = fit(recipe, data, tmp_path / "parts", resume=resume, observers=[parts])
    first = killed_at // 5 * 5
    assert parts.starts == [(15, first)]
    assert [e.step for e in parts.steps] == list(range(first + 1, 16))
    assert [e.loss for e in parts.steps] == [e.loss for e in whole.steps[first:]]
    assert resumed == scores
    assert bytes_of(tmp_path / "parts") == bytes_of(tmp_path / "whole")


def test_a_run_goes_on_from_the_middle_of_an_epoch(data: FitData, tmp_path: Path):
    recipe = recipe_of(*EVERYTHING_RANDOM)
    whole = Training(recipe, data, CPU, None)
    batches = list(whole.loader.epoch(0))
    for batch in batches[:3]:
        whole.train_step(batch)
    save_checkpoint(whole.checkpoint({}), tmp_path / "last")
    resumed = Training(recipe, data, CPU, load_checkpoint(tmp_path / "last", training=True))
    assert (resumed.epoch, resumed.step_in_epoch, resumed.steps_done) == (0, 3, 3)
    rest = list(resumed.loader.epoch(0, start_step=resumed.step_in_epoch))
    assert [batch.step for batch in rest] == [3, 4]
    for training, its in ((whole, batches[3:]), (resumed, rest)):
        for batch in its:
            training.train_step(batch)
    save_checkpoint(whole.checkpoint({}), tmp_path / "whole")
    save_checkpoint(resumed.checkpoint({}), tmp_path / "resumed")
    assert bytes_of(tmp_path / "whole") == bytes_of(tmp_path / "resumed")


@pytest.mark.parametrize("more", [(), JUDGED, ("train.precision=fp16",)], ids=["", "gan", "fp16"])
def test_a_run_that_is_stopped_writes_last_at_that_step_and_ends_as_one_that_never_was(
    data: FitData, tmp_path: Path, more: tuple[str, ...]
):
    """Twice, the second time at the last step of an epoch, whose validation is then still due."""
    recipe = recipe_of(*EVERYTHING_RANDOM, *more)
    whole, parts = Diary(), Diary()
    fit(recipe, data, tmp_path / "whole", run_id="r", observers=[whole])
    for wanted, validated in ((7, 1), (10, 1)):
        there = tmp_path / "parts/last"
        resume = load_checkpoint(there, training=True) if there.exists() else None
        first = len(parts.steps)
        with pytest.raises(TrainingStoppedError, match=f"after step {wanted} of 15") as stop:
            fit(
                recipe, data, tmp_path / "parts", run_id="r", observers=[parts], resume=resume,
                stop=lambda first=first, wanted=wanted: len(parts.steps) - first >= 0
                and len(parts.steps) == wanted - 1,
            )  # fmt: skip
        assert (stop.value.step, stop.value.total_steps) == (wanted, 15)
        last = load_checkpoint(there)
        assert (last.epoch, last.step) == ((wanted - 1) // 5, (wanted - 1) % 5 + 1)
        assert len(parts.validations) == validated
    fit(
        recipe, data, tmp_path / "parts", observers=[parts],
        resume=load_checkpoint(there, training=True),
    )  # fmt: skip
    assert parts.starts == [(15, 0), (15, 7), (15, 10)]
    assert parts.stops == [7, 10]
    assert [(e.step, e.loss) for e in parts.steps] == [(e.step, e.loss) for e in whole.steps]
    assert [(e.step, e.signs) for e in parts.validations] == [
        (e.step, e.signs) for e in whole.validations
    ]
    assert bytes_of(tmp_path / "parts") == bytes_of(tmp_path / "whole")


@pytest.mark.parametrize(("killed_at", "goes_on"), [(3, 0), (6, 5), (9, 8), (12, 12)])
def test_a_run_that_saves_within_epochs_goes_on_from_there(
    data: FitData, tmp_path: Path, killed_at: int, goes_on: int
):
    """Every fourth step, and after epochs of five, whichever is later before the kill."""
    recipe = recipe_of(*EVERYTHING_RANDOM, "train.save_every=4")
    fit(recipe, data, tmp_path / "whole")
    with pytest.raises(Killed):
        fit(recipe, data, tmp_path / "parts", observers=[Killer(killed_at)])
    there, parts = tmp_path / "parts/last", Diary()
    resume = load_checkpoint(there, training=True) if there.exists() else None
    if killed_at == 12:  # the observers hear of a step before it is saved
        goes_on = 10
    fit(recipe, data, tmp_path / "parts", resume=resume, observers=[parts])
    assert parts.starts == [(15, goes_on)]
    assert bytes_of(tmp_path / "parts") == bytes_of(tmp_path / "whole")


def test_what_is_saved_within_epochs_changes_nothing_else(data: FitData, tmp_path: Path):
    fit(recipe_of(), data, tmp_path / "without")
    fit(recipe_of("train.save_every=2"), data, tmp_path / "with")
    assert load_recipe("simple").train.save_every is None
    assert recipe_of("train.save_every=none").train.save_every is None
    one, other = weights_of(tmp_path / "with/last"), weights_of(tmp_path / "without/last")
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("epoch", [1, 2])
def test_a_run_killed_between_best_and_last_loses_neither(
    data: FitData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, epoch: int
):
    recipe = recipe_of("train.metric=psnr", *EVERYTHING_RANDOM)
    fit(recipe, data, tmp_path / "whole")

    def killed_at_last(checkpoint: Checkpoint, folder: LocalStore) -> None:
        if folder.path.name == "last" and checkpoint.epoch == epoch:
            raise Killed
        save_checkpoint(checkpoint, folder)

    with monkeypatch.context() as patch:
        patch.setattr(module, "save_checkpoint", killed_at_last)
        with pytest.raises(Killed):
            fit(recipe, data, tmp_path / "parts")
    assert (tmp_path / "parts/last").exists() == (epoch > 1)
    resume = load_checkpoint(tmp_path / "parts/last", training=True) if epoch > 1 else None
    fit(recipe, data, tmp_path / "parts", resume=resume)
    assert bytes_of(tmp_path / "parts") == bytes_of(tmp_path / "whole")


def test_a_finished_run_has_nothing_to_resume(data: FitData, tmp_path: Path):
    scores = fit(recipe_of("train.epochs=1"), data, tmp_path)
    before = bytes_of(tmp_path)
    diary = Diary()
    resume = load_checkpoint(tmp_path / "last", training=True)
    again = fit(recipe_of("train.epochs=1"), data, tmp_path, resume=resume, observers=[diary])
    assert again == scores
    best = load_checkpoint(tmp_path / "best")
    told = DecodingEvent(5, best.decoding, best.decoded)  # so that it is not lost with a kill
    assert diary == Diary(starts=[(5, 5)], decodings=[told])
    assert bytes_of(tmp_path) == before


def test_what_does_not_fit_is_not_resumed(data: FitData, tmp_path: Path):
    recipe = recipe_of("train.epochs=1")
    fit(recipe, data, tmp_path)
    last = load_checkpoint(tmp_path / "last", training=True)
    elsewhere = data_of(Photos(8, seed=5), Photos(2, seed=6), "fedcba9876543210")
    with pytest.raises(CheckpointError, match=r"0123456789abcdef, this one is fedcba9876543210"):
        fit(recipe, elsewhere, tmp_path, resume=last)
    repainted = replace(data, palette=elsewhere.palette)
    with pytest.raises(CheckpointError, match=r"with the palette \w+, the dataset's is \w+ now"):
        fit(recipe, repainted, tmp_path, resume=last)
    wider = recipe_of("model.channels=8")
    with pytest.raises(CheckpointError, match="does not fit the recipe's model"):
        fit(wider, data, tmp_path, resume=last)
    with pytest.raises(CheckpointError, match="does not fit the recipe's model"):
        fit(recipe, data, tmp_path, resume=load_checkpoint(tmp_path / "best"))


@pytest.mark.parametrize(
    "setting", ["model.dropout=0.5", "data.flip=true", "data.crop=0.5", "data.jitter=0.3"]
)
def test_ranks_and_steps_draw_different_random_numbers(data: FitData, setting: str):
    """The same photos and weights; what differs is the step's number, or the rank's."""
    losses = []
    for rank, step in ((0, 0), (0, 0), (1, 0), (0, 1)):
        training = Training(recipe_of("data.batch=16", "data.flip=false", setting), data, CPU, None)
        batch = next(iter(training.loader.epoch(0)))
        training.rank, training.step_in_epoch = rank, step
        losses.append(float(training.train_step(batch)[0]))
    assert losses[0] == losses[1]
    assert len(set(losses)) == 3


# Averaged weights


def test_the_average_is_that_of_the_formula(data: FitData):
    """avg ← d·avg + (1 − d)·now with d = min(ema, (1 + n) / (10 + n)), buffers included."""
    training = Training(recipe_of("train.ema=0.2", "optim.lr=0.1"), data, CPU, None)
    by_hand = {name: value.double() for name, value in training.model.state_dict().items()}
    decays = []
    for n, batch in enumerate(training.loader.epoch(0)):
        training.train_step(batch)
        decays.append(d := min(0.2, (1 + n) / (10 + n)))
        for name, value in training.model.state_dict().items():
            if name.endswith("num_batches_tracked"):
                by_hand[name] = value.double()
            else:
                by_hand[name] = d * by_hand[name] + (1 - d) * value.double()
    assert decays == pytest.approx([1 / 10, 2 / 11, 0.2, 0.2, 0.2])
    average = training.average.state_dict()
    assert any(name.endswith("running_var") for name in average)
    assert average.keys() == by_hand.keys()
    for name, value in average.items():
        torch.testing.assert_close(value.double(), by_hand[name], atol=1e-6, rtol=1e-5)
        if value.dtype.is_floating_point:
            assert not torch.equal(value, training.model.state_dict()[name]), name
    assert average["encoder.0.1.num_batches_tracked"] == 5


def test_the_average_is_what_is_scored_and_saved(data: FitData, tmp_path: Path):
    training = Training(recipe_of("optim.lr=0.1"), data, CPU, None)
    for batch in training.loader.epoch(0):
        training.train_step(batch)
    scores = training.validate().scores
    average, raw = (
        evaluate(model, [data.val.lab_u8], data.palette)[0].compute()  # type: ignore[attr-defined]
        for model in (training.average, training.model)
    )
    assert scores == pytest.approx(average, rel=1e-5)
    assert scores["psnr"] != pytest.approx(raw["psnr"], rel=1e-5)
    save_checkpoint(training.checkpoint(scores), tmp_path / "last")
    saved = load_checkpoint(tmp_path / "last").weights
    assert torch.equal(saved["head.weight"], training.average.state_dict()["head.weight"])


# Gradients


def test_accumulating_over_halves_is_training_on_the_whole(data: FitData, tmp_path: Path):
    """With group norm, whose answer for a photo does not depend on the others."""
    for parts in (1, 2):
        recipe = recipe_of("model.norm=group", f"train.accumulate={parts}", *EVERYTHING_RANDOM[1:])
        fit(recipe, data, tmp_path / str(parts))
    close(weights_of(tmp_path / "1/last"), weights_of(tmp_path / "2/last"))


def test_unequal_parts_of_a_batch_weigh_by_their_photos(data: FitData):
    """As a rank's share of a batch may be: the gradient is that of the mean over its photos."""
    lab = decode_lab(data.val.lab_u8)  # type: ignore[attr-defined]
    assert len(lab) == 7
    gradients, losses = [], []
    for parts in (1, 2):
        recipe = recipe_of("model.norm=group", f"train.accumulate={parts}", "loss.ab_l1=0.1")
        training = Training(recipe, data, CPU, None)
        total, terms = training._forward_backward(lab)
        gradients.append([p.grad for p in training.model.parameters()])
        losses.append({"total": total, **terms})
    torch.testing.assert_close(losses[0], losses[1])
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-7, rtol=1e-4)


@pytest.mark.parametrize(("clip", "kept"), [("1e-3", 1e-3), ("none", None), ("1e6", None)])
def test_gradients_are_clipped_to_the_norm_of_the_recipe(
    data: FitData, clip: str, kept: float | None
):
    """After one step AdamW's first moment is (1 − β₁) times the gradient that it was given."""
    training = Training(recipe_of(f"optim.clip={clip}"), data, CPU, None)
    _, _, norm = training.train_step(next(iter(training.loader.epoch(0))))
    moments = [state["exp_avg"] for state in training.optimizer.state.values()]
    given = math.sqrt(sum(float(m.double().square().sum()) for m in moments)) / 0.1
    assert norm > 1e-3
    assert given == pytest.approx(kept if kept is not None else float(norm), rel=1e-3)


def test_half_precision_is_nearly_fp32_and_its_weights_stay_fp32(data: FitData):
    losses = {}
    for precision in ("fp32", "bf16", "fp16", "auto"):
        training = Training(recipe_of(f"train.precision={precision}"), data, CPU, None)
        loss, _, _ = training.train_step(next(iter(training.loader.epoch(0))))
        losses[precision] = float(loss)
        assert {p.dtype for p in training.model.parameters()} == {torch.float32}
    assert losses["auto"] == losses["fp32"]
    assert len(set(losses.values())) == 3
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.02)
    assert losses["fp16"] == pytest.approx(losses["fp32"], rel=0.003)


# A discriminator


def test_a_training_with_a_discriminator_is_this_plain_loop(data: FitData, tmp_path: Path):
    """By hand: both losses written out, both networks updated against each other as they were."""
    recipe = recipe_of(
        *JUDGED,
        "loss_options.adversarial.kind=least_squares",
        "discriminator.lr=3e-3",
        "discriminator.warmup=0.2",
        "data.flip=false",
        "optim.schedule=constant",
        "optim.warmup=0.5",
        "optim.clip=0.7",
    )
    diary = Diary()
    fit(recipe, data, tmp_path, observers=[diary])
    torch.manual_seed(recipe.train.seed)
    model = build_model("unet", channels=4, depth=2)
    build_model("unet", channels=4, depth=2)  # the average is built next
    judge = MultiScaleDiscriminator(channels=4, scales=2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=1e-5)
    other = torch.optim.Adam(judge.parameters(), lr=3e-3, betas=(0.5, 0.999))
    plan = TrainLoader(data.train, 4, seed=recipe.train.seed)
    losses = []
    for step in range(15):
        rate = min((step + 1) / 7.5, 1.0)
        optimizer.param_groups[0]["lr"], other.param_groups[0]["lr"] = 1e-3 * rate, 3e-3 * rate
        lab = decode_lab(data.train.read(plan.positions(step // 5, step % 5)))
        ab = model(lab[:, :1] / 50 - 1)["ab"]
        fake = torch.cat([lab[:, :1], ab], dim=1)
        halves = [scale.chunk(2) for scale in judge(torch.cat([lab, fake.detach()]))[0]]
        game = [((r - 1).square().mean() + f.square().mean()) / 2 for r, f in halves]
        (sum(game) / 2).backward()
        judge.eval()
        (logits, features), (_, real) = judge(fake, features=True), judge(lab, features=True)
        judge.train()
        chroma = lab[:, 1:].square().sum(1, keepdim=True).sqrt()
        loss = ((0.5 + (chroma / 40).clamp(max=1)) * ((ab - lab[:, 1:]) / 128).square()).mean()
        fooled = sum((f - 1).square().mean() / 2 for f in logits) / 2
        matched = sum(
            (r.detach() - f).abs().mean()
            for pair in zip(real, features, strict=True)
            for r, f in zip(*pair, strict=True)
        )
        share = min(max((step + 1 - 3) / 3, 0), 1)  # alone for 3 steps, faded in over 3
        parts = torch.autograd.grad(
            loss + share * (0.1 * fooled + 0.5 * matched / 2), list(model.parameters())
        )
        for parameter, gradient in zip(model.parameters(), parts, strict=True):
            parameter.grad = gradient
        for network, one in ((model, optimizer), (judge, other)):
            nn.utils.clip_grad_norm_(network.parameters(), 0.7)
            one.step()
            one.zero_grad()
        losses.append([x.item() for x in (loss, fooled, matched / 2, sum(game) / 2)])
    names = ("weighted_mse", "adversarial", "feature_matching", "discriminator")
    seen = [[event.terms[name] for name in names] for event in diary.steps]
    np.testing.assert_allclose(seen, losses, rtol=2e-3, atol=1e-5)
    by_hand = {f"model.{k}": v for k, v in model.state_dict().items()}
    by_hand |= {f"discriminator.{k}": v for k, v in judge.state_dict().items()}
    trained = load_checkpoint(tmp_path / "last", training=True).training
    for name, value in by_hand.items():
        torch.testing.assert_close(trained[name], value, atol=1e-3, rtol=1e-2, msg=name)


def test_a_model_does_not_listen_to_a_discriminator_that_warms_up(data: FitData):
    """Four of five steps: the model is as without one, while the discriminator learns."""

    def after_four_steps(*overrides: str) -> Training:
        training = Training(recipe_of("train.epochs=1", *overrides), data, CPU, None)
        for batch in list(training.loader.epoch(0))[:4]:
            training.train_step(batch)
        return training

    alone = after_four_steps().model.state_dict()
    beside = after_four_steps(*JUDGED, "discriminator.warmup=0.8")
    listening = after_four_steps(*JUDGED, "discriminator.warmup=0.4")
    for name, value in beside.model.state_dict().items():
        assert torch.equal(value, alone[name]), name
    assert not torch.equal(listening.model.state_dict()["head.weight"], alone["head.weight"])
    start = Training(recipe_of(*JUDGED), data, CPU, None).adversary
    assert start is not None
    assert beside.adversary is not None
    for before, now in zip(
        start.model.parameters(), beside.adversary.model.parameters(), strict=True
    ):
        # The last biases see a loss that pushes photos up as much as answers down.
        assert now.shape == (1,) or not torch.equal(before, now)


# Half precision


def test_a_step_that_overflows_is_left_out_and_the_next_one_is_scaled_less(
    data: FitData, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(state_module, "build_terms", diverging(2, lambda ab: (ab * 0).sqrt().sum()))
    training = Training(recipe_of("train.precision=fp16"), data, CPU, None)
    training.scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
    seen = [(step.grad_norm, training.scaler.get_scale()) for step in module._epoch(training)]
    assert len(seen) == 5
    assert [math.isfinite(norm) for norm, _ in seen] == [True, False, True, True, True]
    assert [scale for _, scale in seen] == [256.0, *[128.0] * 4]
    assert all(value.isfinite().all() for value in training.model.state_dict().values())
    assert all(float(state["step"]) == 4 for state in training.optimizer.state.values())


def test_gradients_that_no_scale_makes_finite_stop_the_run(
    data: FitData, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(state_module, "build_terms", diverging(1, lambda ab: (ab * 0).sqrt().sum()))
    training = Training(recipe_of("train.precision=fp16"), data, CPU, None)
    training.scaler = torch.amp.GradScaler("cpu", init_scale=1.0)
    with pytest.raises(TrainingDivergedError, match=r"gradient nan at step 1; lower optim\.lr"):
        list(module._epoch(training))


# A loss that is no number


def diverging(step: int, spoil: Callable[[Tensor], Tensor]) -> Callable[..., object]:
    """A stand-in for build_terms: mean |ab|, to which ``spoil(ab)`` is added at one step."""
    calls = []

    class Spoiled:
        needs_discriminator = False

        def prepare(self, device: torch.device) -> None:
            pass

        def __call__(self, *args, influence: float) -> tuple[Tensor, dict[str, Tensor]]:
            return loss(*args)

    def loss(prediction: dict[str, Tensor], lab: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        calls.append(lab)
        total = prediction["ab"].abs().mean()
        if len(calls) == step:
            total = total + spoil(prediction["ab"])
        return total, {"ab": total.detach()}

    return lambda *_: Spoiled()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda ab: ab.mean() * math.nan, "the loss is nan"),
        (lambda ab: ab.mean() + math.inf, "the loss is inf"),
        (lambda ab: (ab * 0).sqrt().sum(), "the norm of its gradient nan"),
    ],
    ids=["nan", "inf", "gradient"],
)
def test_a_loss_that_is_no_number_stops_the_run(
    data: FitData,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    spoil: Callable[[Tensor], Tensor],
    message: str,
):
    """At the third step of the second epoch; what was saved before is left as it was."""
    monkeypatch.setattr(state_module, "build_terms", diverging(8, spoil))
    diary = Diary()
    with pytest.raises(TrainingDivergedError, match=message) as stop:
        fit(recipe_of(), data, tmp_path, observers=[diary])
    assert "at step 8; lower optim.lr (now 0.001) or set optim.clip" in str(stop.value)
    batch = Training(recipe_of(), data, CPU, None).loader.positions(1, 2)
    assert f"the batch held {', '.join(f'photo-{n}' for n in batch)}" in str(stop.value)
    assert [event.step for event in diary.steps] == list(range(1, 8))
    assert load_checkpoint(tmp_path / "last").epoch == 1
    assert all(value.isfinite().all() for value in weights_of(tmp_path / "last").values())


def test_a_model_of_bins_is_trained_with_the_datasets_palette(data: FitData, tmp_path: Path):
    parts = {
        "model": {"name": "resnet-unet", "channels": 4, "bins": 8},
        "loss": {"bins_ce": 1.0, "histogram": 0.5, "confidence": 0.1, "residual": 0.5},
        "data": {"batch": 4},
        "train": {"epochs": 1},
    }
    recipe = parse_recipe(parts, "here")
    diary = Diary()
    fit(recipe, data, tmp_path, observers=[diary])
    assert set(diary.steps[0].terms) == set(parts["loss"])
    assert all(math.isfinite(value) for step in diary.steps for value in step.terms.values())
    checkpoint = load_checkpoint(tmp_path / "last")
    np.testing.assert_allclose(checkpoint.weights["centroids"].numpy(), data.palette.centroids)
    L_norm = torch.linspace(-1, 1, 32 * 32).reshape(1, 1, 32, 32)
    assert checkpoint.model()(L_norm)["logits"].shape == (1, 8, 8, 8)


# The best one


class Judged:
    """An evaluation with the score that it was given."""

    def __init__(self, metric: str, score: float) -> None:
        self.scores = {metric: score}

    def compute(self) -> dict[str, float]:
        return self.scores


@pytest.mark.parametrize(
    ("metric", "scores", "best"),
    [
        ("psnr", [3.0, 5.0, 5.0, 4.0], [True, True, False, False]),
        ("auc_balanced", [0.9, 0.2, 0.3, 0.91], [True, False, False, True]),
        ("ab_l1", [3.0, 5.0, 2.0, 2.0], [True, False, True, False]),
        ("cf_gap", [3.0, 2.0, 1.0, 4.0], [True, True, True, False]),
    ],
)
def test_the_best_is_chosen_by_the_metric_in_its_direction(
    data: FitData,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    metric: str,
    scores: list[float],
    best: list[bool],
):
    """Also over a resume after the second epoch, and a draw is no improvement."""
    verdicts = iter(scores)
    monkeypatch.setattr(
        state_module, "evaluate", lambda *_, **__: (Judged(metric, next(verdicts)), torch.empty(0))
    )
    recipe = recipe_of("train.epochs=4", f"train.metric={metric}")
    diary = Diary()
    with pytest.raises(Killed):
        fit(recipe, data, tmp_path, observers=[diary, Killer(12)])
    resume = load_checkpoint(tmp_path / "last", training=True)
    assert fit(recipe, data, tmp_path, resume=resume, observers=[diary]) == {metric: scores[-1]}
    assert [event.is_best for event in diary.validations] == best
    winner = max(epoch for epoch, is_best in enumerate(best, start=1) if is_best)
    checkpoint, last = load_checkpoint(tmp_path / "best"), load_checkpoint(tmp_path / "last")
    assert (checkpoint.epoch, checkpoint.scores) == (winner, {metric: scores[winner - 1]})
    assert checkpoint.best == last.best == scores[winner - 1]
    assert last.epoch == 4
    assert (tmp_path / "last/training.safetensors").exists()
    assert not (tmp_path / "best/training.safetensors").exists()


# What the best one is decoded with


def test_the_decoding_of_the_best_is_chosen_at_the_end(data: FitData, tmp_path: Path):
    """By the recipe's metric: the colourfulness gap makes pale answers as vivid as may be."""
    diary = Diary()
    recipe = recipe_of("train.metric=cf_gap", "train.epochs=2")
    scores = fit(recipe, data, tmp_path, observers=[diary])
    best, last = load_checkpoint(tmp_path / "best"), load_checkpoint(tmp_path / "last")
    assert best.decoding == Decoding(None, 2.0)
    assert best.decoded["cf_gap"] < best.scores["cf_gap"]
    assert diary.decodings == [DecodingEvent(10, best.decoding, best.decoded)]
    beside = score_with_baselines(
        best.model(), [data.val.lab_u8], data.palette, data.mean_ab, decoding=best.decoding
    )
    assert beside["model"] == pytest.approx(best.decoded, rel=1e-5)
    # The curve, and what goes on from it, stay those of the model itself.
    assert (last.decoding, last.decoded, last.scores) == (Decoding(), {}, scores)
    own, _ = evaluate(best.model(), [data.val.lab_u8], data.palette)
    assert own.compute() == pytest.approx(best.scores, rel=1e-5)


def test_a_run_killed_while_choosing_has_a_decoding_after_all(
    data: FitData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def killed(*_: object, **__: object) -> None:
        raise Killed

    recipe = recipe_of("train.epochs=1")
    fit(recipe, data, tmp_path / "whole")
    for name in ("choose_decoding", "save_checkpoint"):
        with monkeypatch.context() as patch:
            if name == "save_checkpoint":
                patch.setattr(module, name, _killed_when_decoded)
            else:
                patch.setattr(module, name, killed)
            with pytest.raises(Killed):
                fit(recipe, data, tmp_path / name)
        assert load_checkpoint(tmp_path / name / "best").decoded == {}
        resume = load_checkpoint(tmp_path / name / "last", training=True)
        fit(recipe, data, tmp_path / name, resume=resume)
        assert bytes_of(tmp_path / name) == bytes_of(tmp_path / "whole")


def _killed_when_decoded(checkpoint: Checkpoint, folder: LocalStore) -> None:
    if checkpoint.decoded:
        raise Killed
    save_checkpoint(checkpoint, folder)


def test_a_run_that_ended_before_there_were_decodings_gets_one(data: FitData, tmp_path: Path):
    fit(recipe_of("train.epochs=1"), data, tmp_path)
    whole = bytes_of(tmp_path)
    for record in (tmp_path / "best/checkpoint.json", tmp_path / "last/checkpoint.json"):
        values = json.loads(record.read_text())
        del values["decoding"], values["decoded"]
        record.write_text(json.dumps(values))
    resume = load_checkpoint(tmp_path / "last", training=True)
    fit(recipe_of("train.epochs=1"), data, tmp_path, resume=resume)
    assert bytes_of(tmp_path)["best/checkpoint.json"] == whole["best/checkpoint.json"]


# Several processes

DISTRIBUTED = ("data.batch=8", "train.epochs=2", "data.flip=false")
GROUP = recipe_of("model.norm=group", "train.accumulate=2", *DISTRIBUTED)
BATCH = recipe_of(*DISTRIBUTED)
GAN = recipe_of("model.norm=group", "train.accumulate=2", *DISTRIBUTED, *JUDGED)
RECIPES = {"group": GROUP, "batch": BATCH, "gan": GAN}


def distributed_worker(rank: int, world: int, folder: Path) -> None:
    """One of several ranks: all trainings, and what this rank saw of them as a file.

    The one with batch norm is done again, stopped by the last rank alone and resumed.
    """
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=world
    )
    for name, recipe in RECIPES.items():
        diary = Diary()
        scores = fit(recipe, small_data(), folder / name, observers=[diary])
        seen = {
            "scores": scores,
            "starts": diary.starts,
            "steps": [asdict(event) for event in diary.steps],
            "validations": [(e.epoch, e.step, e.is_best) for e in diary.validations],
            "pictures": [len(event.pairs) for event in diary.validations],
            "decodings": [asdict(event) for event in diary.decodings],
        }
        (folder / f"{name}-{rank}.json").write_text(json.dumps(seen))
    diary = Diary()
    parts = folder / "parts"
    with pytest.raises(TrainingStoppedError, match="after step 3 of 4"):
        fit(
            BATCH, small_data(), parts, observers=[diary],
            stop=lambda: rank == world - 1 and len(diary.steps) == 2,
        )  # fmt: skip
    assert diary.stops == [3]
    distributed.barrier()
    resume = load_checkpoint(parts / "last", training=True)
    distributed.barrier()
    fit(BATCH, small_data(), parts, observers=[diary], resume=resume)
    assert diary.starts == [(4, 0), (4, 3)]
    distributed.destroy_process_group()


def run_ranks(world: int, folder: Path) -> Path:
    command = [sys.executable, __file__, str(folder), str(world)]
    ranks = [
        subprocess.Popen([*command, str(rank)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        for rank in range(world)
    ]
    try:
        output = [rank.communicate(timeout=120)[0].decode() for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0] * world, "\n".join(output)
    return folder


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which two processes have trained."""
    return run_ranks(2, tmp_path_factory.mktemp("two-ranks"))


@pytest.fixture(scope="module")
def three_ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same of three, whose shares of a batch of eight are three, three and two."""
    return run_ranks(3, tmp_path_factory.mktemp("three-ranks"))


def seen_by(folder: Path, name: str, world: int = 2) -> list[dict[str, object]]:
    return [json.loads((folder / f"{name}-{rank}.json").read_text()) for rank in range(world)]


@pytest.mark.parametrize("ranks", ["two_ranks", "three_ranks"])
@pytest.mark.parametrize("name", ["group", "gan"])
def test_several_ranks_train_what_one_does(
    request: pytest.FixtureRequest, data: FitData, tmp_path: Path, name: str, ranks: str
):
    """A part of every batch each: with group norm the gradient is the same but for rounding.

    Adam divides a gradient by its own size, so a few weights, whose gradients are next to
    nothing, take the rounding for a direction: at most a twentieth of a step of 1e-3 each time,
    or a tenth where three ranks add up otherwise than one does.
    """
    exact = ranks == "two_ranks"
    folder: Path = request.getfixturevalue(ranks)
    diary = Diary()
    scores = fit(RECIPES[name], data, tmp_path, observers=[diary])
    here, there = weights_of(folder / name / "last"), weights_of(tmp_path / "last")
    close(here, there, atol=2e-4 if exact else 4e-4)
    apart = torch.cat([(value - there[name]).abs().flatten() for name, value in here.items()])
    assert float((apart > 1e-5).float().mean()) < (0.05 if exact else 0.1)
    for seen in seen_by(folder, name, 2 if exact else 3):
        assert seen["scores"] == pytest.approx(scores, rel=1e-4)
        for step, alone in zip(seen["steps"], diary.steps, strict=True):  # type: ignore[call-overload]
            assert step["loss"] == pytest.approx(alone.loss, rel=1e-4)
            assert step["terms"] == pytest.approx(alone.terms, rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("ranks", ["two_ranks", "three_ranks"])
def test_several_ranks_stop_when_one_is_told_to_and_end_as_ranks_that_never_did(
    request: pytest.FixtureRequest, ranks: str
):
    """Bit for bit, with the course of the loss that all of them saw."""
    folder: Path = request.getfixturevalue(ranks)
    assert bytes_of(folder / "parts") == bytes_of(folder / "batch")


@pytest.mark.parametrize("name", ["group", "batch", "gan"])
def test_both_ranks_take_the_same_steps_and_see_the_same_scores(two_ranks: Path, name: str):
    first, second = seen_by(two_ranks, name)
    assert first["starts"] == second["starts"] == [[4, 0]]
    assert [step["step"] for step in first["steps"]] == [1, 2, 3, 4]  # type: ignore[attr-defined]
    assert [step["step"] for step in second["steps"]] == [1, 2, 3, 4]  # type: ignore[attr-defined]
    for what in ("grad_norm", "loss", "terms"):
        of_both = [[step[what] for step in seen["steps"]] for seen in (first, second)]  # type: ignore[attr-defined]
        assert of_both[0] == of_both[1]
    assert first["scores"] == second["scores"]
    assert first["validations"] == second["validations"]
    assert first["pictures"] == [4, 4]
    assert second["pictures"] == [3, 3]


@pytest.mark.parametrize("name", ["group", "batch", "gan"])
def test_two_ranks_score_what_is_saved_as_one_does(two_ranks: Path, data: FitData, name: str):
    """Seven photos, four and three. With batch norm, too, whose statistics differ by rank."""
    saved = load_checkpoint(two_ranks / name / "last")
    alone, _ = evaluate(saved.model(), [data.val.lab_u8], data.palette)  # type: ignore[attr-defined]
    assert alone.compute()["photos"] == 7
    for seen in seen_by(two_ranks, name):
        assert seen["scores"] == pytest.approx(alone.compute(), rel=1e-5)


@pytest.mark.parametrize("name", ["group", "batch"])
def test_two_ranks_choose_what_one_would(two_ranks: Path, data: FitData, name: str):
    best = load_checkpoint(two_ranks / name / "best")
    chosen, scores = choose_decoding(best.model(), data.val, data.palette, "auc_balanced")
    assert (best.decoding, best.decoded["photos"]) == (chosen, 7)
    assert best.decoded == pytest.approx(scores, rel=1e-5)
    for seen in seen_by(two_ranks, name):
        assert seen["decodings"] == [
            {"step": 4, "decoding": asdict(best.decoding), "scores": best.decoded}
        ]


if __name__ == "__main__":
    distributed_worker(int(sys.argv[3]), int(sys.argv[2]), Path(sys.argv[1]))

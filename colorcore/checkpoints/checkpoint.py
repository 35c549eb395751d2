"""A checkpoint: one folder with all that is needed to colorize, evaluate or resume training.

::

    checkpoint.json        recipe, sizes, scores, decoding, position of the run; written last
    model.safetensors      the averaged (EMA) weights, which predictions use
    palette.safetensors    centroids, priors, weights
    training.safetensors   raw weights, optimizer state, the discriminator if there is one; only
                           needed to resume training

Nothing is ever unpickled. A folder is replaced as a whole: the new one is written next to the old
one, synced and renamed into place, so a kill or a power cut at any moment leaves one of the two
readable. Files are never changed in place, so two checkpoints of the same weights share them: by
hard links, or in an object store by copies that the store makes itself.

Object stores cannot rename. There the tensors get a new name each time
(``model-0123456789ab.safetensors``). checkpoint.json, which lists these names under ``files``, is
written last, in one PUT; then the previous tensors are removed.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from colorcore.checkpoints.shipped import CARD, SHIPPED, with_encoder, without_encoder
from colorcore.color.palette import Palette
from colorcore.decoding import Decoding
from colorcore.models import build_model
from colorcore.recipes.recipe import Recipe, RecipeError, TrainPart, parse_recipe
from colorcore.storage.atomic import make_folder, sync_file, sync_folder
from colorcore.storage.local import LocalStore
from colorcore.storage.location import open_store
from colorcore.storage.store import Store

if TYPE_CHECKING:
    from torch import Tensor, nn


FORMAT = 1
RECORD = "checkpoint.json"
_TENSORS = ("model", "palette", "training")
_SHARED = ("model", "palette")
"""Tensors that two checkpoints of the same weights have in common."""
_NAME = re.compile(r"(model|palette|training)(-[0-9a-f]{12})?\.safetensors")
"""Names of tensor files. A name in a checkpoint becomes a path, so no other name is allowed."""
_READS = 5
"""Attempts to read a remote checkpoint that is replaced meanwhile."""


class CheckpointError(Exception):
    """A folder is not a checkpoint, or does not match the recipe, dataset or model."""


@dataclass(slots=True)
class Checkpoint:
    """A trained model, and the state of its training.

    recipe        of the run
    weights       the EMA weights by parameter name
    palette       of the dataset it was trained on
    mean_ab       (a, b) of the training pixels, ab units: the constant baseline
    size          side of the training samples in pixels
    dataset       fingerprint of the dataset
    epoch, step   position of the training: epochs done, and steps done in the next one
    scores        of the latest validation
    best          the best score so far of the recipe's metric
    waited        validations since then
    run_id        of the tracking run, which a resumed training continues
    training      raw weights ("model.*", "discriminator.*") and optimizer state ("optimizer.*",
                  "discriminator_optimizer.*"); {} when not loaded
    optimizer     plain values of that state: for each optimizer, and of the gradient scaler
                  under "scaler"
    decoding      of predictions: the model's own until one is chosen
    decoded       scores with the chosen decoding, on the validation photos; {} until then
    equal_cf      scores at a fixed share of the validation photos' colourfulness
                  (colorcore.inference.equal_colorfulness); {} if it cannot be read there
    history       the course of the loss (LossHistory.state); [] if unknown
    signs         of the latest validation, each as the fields of a Sign
    origin        what its weights started from besides the recipe's own; "" for nothing
    card          the text of its MODEL_CARD.md (colorcore.checkpoints.card); "" until the
                  training has ended
    """

    recipe: Recipe
    weights: dict[str, Tensor]
    palette: Palette
    mean_ab: tuple[float, float]
    size: int
    dataset: str
    epoch: int = 0
    step: int = 0
    scores: dict[str, float] = field(default_factory=dict)
    best: float | None = None
    waited: int = 0
    run_id: str | None = None
    training: dict[str, Tensor] = field(default_factory=dict)
    optimizer: dict[str, Any] = field(default_factory=dict)
    decoding: Decoding = field(default_factory=Decoding)
    decoded: dict[str, float] = field(default_factory=dict)
    equal_cf: dict[str, float] = field(default_factory=dict)
    history: list[float] = field(default_factory=list)
    signs: list[dict[str, Any]] = field(default_factory=list)
    origin: str = ""
    card: str = ""

    @property
    def is_last(self) -> bool:
        """Whether the training ends here, after its epochs or out of patience."""
        return ends(self.recipe.train, self.epoch, self.waited)

    def model(self, device: torch.device | str = "cpu") -> nn.Module:
        """The model with the EMA weights, ready to predict.

        Raises:
            CheckpointError: the weights do not fit the recipe's model.
        """
        model = build_model(self.recipe.model.name, **self.recipe.model.options())
        try:
            model.load_state_dict(self.weights)
        except RuntimeError as error:
            raise CheckpointError(
                f"the weights do not fit the recipe's model: {str(error).splitlines()[-1].strip()}"
            ) from error
        return model.to(device).eval()


_FACTS = ("mean_ab", "size", "dataset", "epoch", "step", "scores", "best", "run_id", "optimizer")
_LATER_FACTS = ("decoded", "equal_cf", "history", "signs", "waited", "origin", "card")
"""Facts that checkpoints of older versions lack."""


def ends(train: TrainPart, epoch: int, waited: int) -> bool:
    """Whether a training ends after ``epoch`` epochs, ``waited`` validations after its best one."""
    return epoch >= train.epochs or (train.patience is not None and waited >= train.patience)


def save_checkpoint(
    checkpoint: Checkpoint,
    folder: str | Path | Store,
    *,
    same_as: str | Path | Store | None = None,
    more: Mapping[str, Any] | None = None,
) -> None:
    """Write a checkpoint to a folder, replacing the one that is there.

    Args:
        checkpoint: what is written.
        folder: where to.
        same_as: a saved checkpoint with the same weights and palette, whose files are shared where
            that is possible. It may be ``folder`` itself, of which then only the record changes.
        more: further entries of the record.

    Raises:
        OSError: a local folder cannot be written.
        StorageError: a remote store does not answer, or refuses.
    """
    store, shared = open_store(folder), None if same_as is None else open_store(same_as)
    record = {**_record_of(checkpoint), **(more or {})}
    if isinstance(store, LocalStore):
        _save_here(checkpoint, record, store.path, shared, sync=store.sync)
    else:
        _save_there(checkpoint, record, store, shared)


def _save_here(
    checkpoint: Checkpoint, record: Any, folder: Path, shared: Store | None, *, sync: bool
) -> None:
    fresh = _fresh(folder)
    make_folder(folder.parent, sync=sync)
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir()
    for kind, tensors in _tensors_of(checkpoint).items():
        file = f"{kind}.safetensors"
        if not _share(shared, kind, file, LocalStore(fresh), file):
            _save_tensors(tensors, fresh / file)
    (fresh / RECORD).write_text(json.dumps(record, indent=2), encoding="utf-8")
    if checkpoint.card:
        (fresh / CARD).write_text(checkpoint.card, encoding="utf-8")
    for path in fresh.iterdir():
        sync_file(path, sync=sync)
    sync_folder(fresh, sync=sync)
    _swap(fresh, folder, sync=sync)


def _share(shared: Store | None, kind: str, theirs: str, store: Store, name: str) -> bool:
    """Whether a file of the checkpoint ``shared`` now serves as ``name`` in the store, too."""
    return shared is not None and kind in _SHARED and store.copy_from(shared, theirs, name)


def _save_there(checkpoint: Checkpoint, record: Any, store: Store, shared: Store | None) -> None:
    version = uuid.uuid4().hex[:12]
    theirs = {} if shared is None else _files_of(json.loads(shared.read(RECORD)))
    files = {}
    with tempfile.TemporaryDirectory(prefix="colorcore-save-") as scratch:
        for kind, tensors in _tensors_of(checkpoint).items():
            if shared == store and kind in _SHARED:
                files[kind] = theirs[kind]  # only the record changes
                continue
            files[kind] = f"{kind}-{version}.safetensors"
            if _share(shared, kind, theirs.get(kind, ""), store, files[kind]):
                continue
            path = Path(scratch) / files[kind]
            _save_tensors(tensors, path)
            store.put(path, files[kind])
    record = {**record, "files": files}
    if checkpoint.card:
        store.write(CARD, checkpoint.card.encode())
    store.write(RECORD, json.dumps(record, indent=2).encode())
    for name in store.names(""):
        stale = name not in files.values() if _NAME.fullmatch(name) else name == CARD
        if stale and not (name == CARD and checkpoint.card):
            store.remove(name)
    store.drop_uploads()  # of a training that was killed: a new one never writes the same names


def _files_of(record: Mapping[str, Any]) -> dict[str, str]:
    """The name of each kind's file, by a checkpoint's record."""
    names: dict[str, str] = {kind: f"{kind}.safetensors" for kind in _TENSORS}
    names.update(record.get("files", {}))
    return names


def _tensors_of(checkpoint: Checkpoint) -> dict[str, dict[str, Tensor]]:
    """The tensors of each file; "training" only if there are any."""
    palette = checkpoint.palette
    arrays = {name: getattr(palette, name) for name in ("centroids", "priors", "weights")}
    tensors = {
        "model": checkpoint.weights,
        "palette": {name: torch.from_numpy(array.copy()) for name, array in arrays.items()},
        "training": checkpoint.training,
    }
    return {kind: tensors[kind] for kind in _TENSORS if tensors[kind]}


def _record_of(checkpoint: Checkpoint) -> dict[str, Any]:
    return {
        "format": FORMAT,
        **{name: getattr(checkpoint, name) for name in (*_FACTS, *_LATER_FACTS)},
        "decoding": asdict(checkpoint.decoding),
        "palette": checkpoint.palette.about,
        "recipe": checkpoint.recipe.values(),
    }


def ship_checkpoint(checkpoint: Checkpoint, folder: Path) -> None:
    """Write a checkpoint small enough for this package: see :mod:`colorcore.checkpoints.shipped`.

    Raises:
        ValueError: its encoder is not ImageNet's.
    """
    encoder = checkpoint.recipe.model.options().get("encoder", "")
    weights = without_encoder(checkpoint.weights, encoder)
    small = replace(checkpoint, weights=weights, training={}, run_id=None)
    save_checkpoint(small, folder, more={"encoder": encoder})


def load_checkpoint(folder: str | Path | Store, *, training: bool = False) -> Checkpoint:
    """Read a checkpoint, here or in an object store; with ``training``, its training state too.

    A name in :data:`SHIPPED` is a checkpoint in this package; a folder of that name is ``./name``.
    For a folder that contains ``best`` or ``last``, such as `cc train` writes, ``best`` is read.

    Raises:
        CheckpointError: there is none, it is damaged or of another format, or it lacks the
            training state.
        StorageError: a remote store does not answer, or refuses.
    """
    store = _resolve(open_store(SHIPPED.get(str(folder), folder)))
    for reads in range(1, _READS + 1):
        try:
            return _load(store, training=training)
        except CheckpointError as error:
            # It was replaced between reading its record and its tensors, or while the record was
            # read, which then was cut to the old one's length: there is a new record by now.
            replaced = isinstance(error.__cause__, (FileNotFoundError, json.JSONDecodeError))
            if store.local is not None or not replaced or reads == _READS:
                raise
    raise AssertionError  # the loop returns or raises


def _load(store: Store, *, training: bool) -> Checkpoint:
    where, file = store.show(), RECORD
    try:
        record = json.loads(store.read(RECORD))
        if record["format"] != FORMAT:
            raise CheckpointError(
                f"expected checkpoint format {FORMAT}, found {record['format']!r} in {where}; "
                "load it with the version of colorcore that wrote it"
            )
        files = _files_of(record)
        if strange := [name for name in files.values() if not _NAME.fullmatch(name)]:
            raise ValueError(f"it lists a file named {strange[0]!r}")
        named = "training" in record.get("files", {}) or "files" not in record
        if training and not (named and store.exists(files["training"])):
            raise CheckpointError(
                f"{where} has no training state (training.safetensors) to resume from; "
                "resume from the folder last in the training's --out"
            )
        recipe = parse_recipe(record["recipe"], where)
        tensors: dict[str, dict[str, Tensor]] = {"training": {}}
        for kind in _TENSORS if training else _TENSORS[:2]:
            file = files[kind]
            tensors[kind] = _read_tensors(store, file)
        if "encoder" in record:
            tensors["model"] = _with_encoder(tensors["model"], record["encoder"], where)
        file = files["palette"]
        arrays = {name: tensor.numpy() for name, tensor in tensors["palette"].items()}
        palette = Palette(**arrays, about=record["palette"])
        file = RECORD
        return Checkpoint(
            recipe=recipe,
            weights=tensors["model"],
            palette=palette,
            training=tensors["training"],
            **{**{name: record[name] for name in _FACTS}, "mean_ab": tuple(record["mean_ab"])},
            # Checkpoints of older versions have no decoding.
            decoding=Decoding(**record.get("decoding", {})),
            **{name: record[name] for name in _LATER_FACTS if name in record},
        )
    except (
        OSError,
        KeyError,
        TypeError,
        ValueError,
        AttributeError,
        RecipeError,
        SafetensorError,
    ) as error:
        cause = " ".join(str(error).split())
        raise CheckpointError(
            f"{store.show(file)} is damaged: {type(error).__name__}: {cause}; "
            f"copy {where} again from its source, or train again"
        ) from error


def _with_encoder(weights: dict[str, Tensor], encoder: str, where: str) -> dict[str, Tensor]:
    try:
        return with_encoder(weights, encoder)
    except ValueError as error:
        raise CheckpointError(f"{where} needs an encoder: {error}") from error


def _read_tensors(store: Store, name: str) -> dict[str, Tensor]:
    """The tensors of a file; a remote file is downloaded and deleted after reading."""
    if store.local is not None:
        return load_file(store.local / name)
    with tempfile.TemporaryDirectory(prefix="colorcore-load-") as scratch:
        path = Path(scratch) / name
        store.fetch(name, path)
        return load_file(path)


def has_checkpoint(folder: str | Path | Store) -> bool:
    """Whether there is a checkpoint in the folder itself.

    Raises:
        StorageError: a remote store does not answer, or refuses.
    """
    store = open_store(folder)
    return any(place.exists(RECORD) for place in _versions(store))


def fetch_checkpoint(folder: Store, scratch: Path) -> Path:
    """A checkpoint as a local folder: itself, or a copy of a remote one in ``scratch``.

    Raises:
        CheckpointError, StorageError: as :func:`load_checkpoint`.
    """
    if folder.local is not None:
        return folder.local
    copy = scratch / "checkpoint"
    save_checkpoint(load_checkpoint(folder), copy)
    return copy


def remove_checkpoint(folder: Store) -> None:
    """Remove a checkpoint, if there is one; a local one that cannot be removed stays.

    Raises:
        StorageError: a remote store does not answer, or refuses.
    """
    if folder.local is not None:
        for place in (folder.local, _fresh(folder.local), _previous(folder.local)):
            shutil.rmtree(place, ignore_errors=True)
        return
    folder.remove(RECORD)  # first: without it, the rest is no checkpoint
    for name in folder.names(""):
        if _NAME.fullmatch(name) or name == CARD:
            folder.remove(name)


def _save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    save_file({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, path)


def _resolve(folder: Store) -> Store:
    for place in (folder, folder.below("best"), folder.below("last")):
        for version in _versions(place):
            if version.exists(RECORD):
                return version
    raise CheckpointError(
        f"expected a checkpoint folder (with a checkpoint.json), found none at {folder.show()}; "
        "cc train writes them to its --out folder"
    )


def _versions(folder: Store) -> list[Store]:
    """A checkpoint's folder, and the place it has while it is being replaced."""
    if folder.local is None:
        return [folder]
    return [folder, LocalStore(_previous(folder.local))]


def _fresh(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.new")


def _previous(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.old")


def _swap(fresh: Path, folder: Path, *, sync: bool) -> None:
    """Replace ``folder`` by ``fresh``; at every moment one of the two is readable."""
    old = _previous(folder)
    if folder.exists():
        shutil.rmtree(old, ignore_errors=True)
        folder.replace(old)
    fresh.replace(folder)
    sync_folder(folder.parent, sync=sync)  # before the old one goes
    shutil.rmtree(old, ignore_errors=True)

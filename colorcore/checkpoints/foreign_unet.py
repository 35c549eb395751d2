"""Old ``.pt`` files: weights of a UNet that something else trained, by the names of ours.

The UNet of many repositories is two 3x3 convolutions with BatchNorm and ReLU at each of a few
scales, max pooling down, transposed convolutions up, and a 1x1 head. Its files hold ``model``
(also ``state_dict``, ``model_state_dict``, or the weights alone) beside ``opt``, ``scaler``,
``cfg``, ``epoch`` and ``epoch_loss``. Nothing of a file is ever unpickled but tensors and plain
values (``torch.load(weights_only=True)``).

Names differ, so each tensor is placed twice: by its stage's name (:data:`FAMILIES`, below any
:data:`WRAPPERS`), and by its order and shape within the stage. Both must agree, and together they
must be a bijection onto the weights of :class:`~colorcore.models.unet.UNet`. A convolution's bias
before a BatchNorm is folded into its running mean, which gives the same function.

What no weight tells is a :class:`Reading`: how lightness was scaled, and whether a skip connection
came first or last in the concatenation.
"""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch

from colorcore.checkpoints.checkpoint import CheckpointError
from colorcore.models.unet import UNet

if TYPE_CHECKING:
    from torch import Tensor

MAX_BYTES = 16 * 10**9
"""Of a file, and of what it unpacks to: a UNet of 128 channels with AdamW's state has 1.5 GB."""
STATES = ("model", "state_dict", "model_state_dict", "net")
"""Where the weights are, in this order; or they are all that there is."""
WRAPPERS = ("_orig_mod", "module", "model", "net", "unet", "generator")
"""What torch.compile, DataParallel and classes around the network put before every name."""
FAMILIES: dict[str, tuple[str, ...]] = {
    "encoder": ("enc", "encoder", "down", "inc", "in_conv", "conv_in", "econv", "d"),
    "bottleneck": ("bottleneck", "bottle_neck", "mid", "middle", "center", "bridge", "bottom"),
    "decoder": ("dec", "decoder", "up", "upconv", "up_conv", "upsample", "deconv", "dconv", "u"),
    "head": (
        "head", "out", "outc", "out_conv", "conv_out", "outconv", "final", "final_conv", "last",
    ),
}  # fmt: skip
"""Names of stages, alone, in the plural, with "block" or "layer" behind, and with a number."""
_NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
_SHOWN = 3

Scale = Literal["centered", "unit", "percent"]
"""Lightness as the network saw it: -1..1, 0..1 or 0..100."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What a file's weights do not tell: lightness' scale, and what comes first in a decoder."""

    scale: Scale = "unit"
    skip_first: bool = True

    @property
    def name(self) -> str:
        """Such as "unit/skip-first"."""
        return f"{self.scale}/{'skip' if self.skip_first else 'up'}-first"


READINGS = {
    reading.name: reading
    for scale in get_args(Scale)
    for reading in (Reading(scale), Reading(scale, skip_first=False))
}


@dataclass(frozen=True, slots=True)
class OldCheckpoint:
    """A file's network.

    options    of :class:`UNet`: channels, depth, head
    names      each of the file's tensors -> where it went in our UNet
    folded     convolution biases that went into a running mean
    wrapper    what stood before every name
    epoch, loss  as the file has them
    """

    path: Path
    options: dict[str, Any]
    names: dict[str, str]
    folded: tuple[str, ...]
    wrapper: str
    epoch: int | None = None
    loss: float | None = None
    _weights: dict[str, Tensor] = field(default_factory=dict, repr=False)

    def model_options(self, reading: Reading) -> dict[str, Any]:
        """What our UNet is built with to be the same function, dropout aside."""
        lightness = "centered" if reading.scale == "centered" else "unit"
        return {**self.options, "norm": "batch", "attention": False, "lightness": lightness}

    def weights(self, reading: Reading) -> dict[str, Tensor]:
        """The weights of our UNet: the same function of a photo as the file's network.

        A network that saw L in 0..100 is one that sees 0..1 with a hundredfold first layer.
        """
        weights = dict(self._weights)
        if reading.scale == "percent":
            weights["encoder.0.0.weight"] = weights["encoder.0.0.weight"] * 100
        if not reading.skip_first:
            for level in range(self.options["depth"]):
                name = f"decoder.{level}.0.weight"
                up, skip = weights[name].chunk(2, dim=1)
                weights[name] = torch.cat([skip, up], dim=1)
        return weights

    def model(self, reading: Reading) -> UNet:
        """Our UNet with the weights, ready to predict."""
        unet = UNet(**self.model_options(reading))
        unet.load_state_dict(self.weights(reading))
        return unet.eval()

    def about(self) -> str:
        """One line on what was mapped."""
        parts = [f"{len(self.names)} tensors mapped, {len(self.folded)} of them conv biases folded"]
        parts.append(f"wrapper '{self.wrapper}' removed" if self.wrapper else "no wrapper")
        parts += [f"epoch {self.epoch}"] if self.epoch is not None else []
        parts += [f"loss {self.loss:.4g}"] if self.loss is not None else []
        return "; ".join(parts)


def load_old_checkpoint(path: Path) -> OldCheckpoint:
    """Read a ``.pt`` file of a UNet; strictly, and never by running what is in it.

    Raises:
        CheckpointError: it is no such file, would need unpickling, or does not match.
    """
    content = _read(path)
    state = _state(content, path)
    stripped, wrapper = _unwrap(state)
    try:
        options, places = _place(stripped)
    except ValueError as error:
        raise CheckpointError(
            f"{path} does not match our UNet: {error}; rename its keys, or train without --from"
        ) from error
    weights, folded = _fold({ours: stripped[theirs] for theirs, ours in places.items()})
    original = dict(zip(stripped, state, strict=True))
    epoch, loss = (content.get(key) for key in ("epoch", "epoch_loss"))
    return OldCheckpoint(
        path=path,
        options=options,
        names={original[theirs]: ours for theirs, ours in places.items()},
        folded=folded,
        wrapper=wrapper,
        epoch=epoch if isinstance(epoch, int) else None,
        loss=float(loss) if isinstance(loss, int | float) else None,
        _weights=weights,
    )


# -- reading -----------------------------------------------------------------------------------


def _read(path: Path) -> dict[str, Any]:
    """The file's dictionary, tensors mapped from disk where the format allows."""
    none = f"expected a checkpoint that torch.save wrote, found none in {path}"
    try:
        size = path.stat().st_size
        is_zip = zipfile.is_zipfile(path)
        if is_zip:
            with zipfile.ZipFile(path) as archive:
                size = max(size, sum(member.file_size for member in archive.infolist()))
        if size > MAX_BYTES:
            raise CheckpointError(
                f"{path} has {size / 1e9:.1f} GB, expected at most {MAX_BYTES / 1e9:g}; write its "
                "weights alone into a file: torch.save({'model': checkpoint['model']}, 'small.pt')"
            )
        with warnings.catch_warnings(action="ignore"):  # of a pickle protocol it may not know
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        if found is None:
            raise CheckpointError(f"{none}; name a .pt file, or a checkpoint folder") from error
        raise CheckpointError(
            f"{path} holds an object of {found[1]}, which only running code from the file could "
            "read, so nothing was read; where it came from, write plain values: "
            "torch.save({'model': checkpoint['model'], 'epoch': checkpoint['epoch']}, 'plain.pt')"
        ) from error
    except (OSError, EOFError, ValueError, RuntimeError, KeyError, TypeError, AttributeError,
            IndexError, zipfile.BadZipFile) as error:  # fmt: skip
        said = str(error).splitlines()[:1] if isinstance(error, OSError | RuntimeError) else []
        raise CheckpointError(f"{': '.join([none, *said])}; name a .pt file") from error
    if not isinstance(content, dict):
        raise CheckpointError(
            f"expected a dictionary with {', '.join(STATES[:3])} in {path}, "
            f"found {type(content).__name__}; save the network's state_dict()"
        )
    return content


def _state(content: dict[str, Any], path: Path) -> dict[str, Tensor]:
    state = next((content[key] for key in STATES if isinstance(content.get(key), dict)), content)
    others = [str(key) for key, value in state.items() if not isinstance(value, torch.Tensor)]
    if others or not state or not all(isinstance(key, str) for key in state):
        raise CheckpointError(
            f"expected weights by name in {path} ({', '.join(STATES[:3])}), found "
            f"{_some(others) if others else 'none'}; save the network's state_dict()"
        )
    return state


def _unwrap(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], str]:
    """The same tensors without what stands before every name, and that prefix."""
    removed = ""
    while True:
        first = next(iter(state)).partition(".")[0]
        if first not in WRAPPERS or not all(key.startswith(f"{first}.") for key in state):
            return state, removed
        state = {key.partition(".")[2]: value for key, value in state.items()}
        removed += f"{first}."


# -- placing -----------------------------------------------------------------------------------


@dataclass(slots=True)
class _Stage:
    """The leaf modules of one stage, by kind, in the file's order: each a prefix of keys."""

    family: str
    root: str
    number: int
    convs: list[str] = field(default_factory=list)
    norms: list[str] = field(default_factory=list)
    ups: list[str] = field(default_factory=list)
    heads: list[str] = field(default_factory=list)


def _place(state: dict[str, Tensor]) -> tuple[dict[str, Any], dict[str, str]]:
    """Options of our UNet, and their key -> our key.

    Raises:
        ValueError: something did not match; the message says what.
    """
    stages = _stages(state)
    blocks: dict[tuple[str, int], tuple[str, _Stage]] = {}
    first = [s for s in stages.values() if s.convs and state[f"{s.convs[0]}.weight"].shape[1] == 1]
    if len(first) != 1:
        raise ValueError(f"expected one stage that takes lightness alone, found {len(first)}")
    channels = state[f"{first[0].convs[0]}.weight"].shape[0]
    for name, stage in stages.items():
        for place in _roles(name, stage, state, channels):
            if place in blocks:
                raise ValueError(
                    f"{name} and {blocks[place][0]} are both a {place[0]} of one width"
                )
            blocks[place] = (name, stage)
    depth = max((level for role, level in blocks if role == "encoder"), default=0)
    if depth < 1:
        raise ValueError("expected stages of doubling widths, found one")
    blocks[("bottleneck", depth)] = blocks.pop(("encoder", depth))
    levels = range(depth)
    expected = {(role, level) for role in ("encoder", "up", "decoder") for level in levels}
    expected |= {("bottleneck", depth), ("head", 0)}
    if blocks.keys() != expected:
        missing = sorted(
            f"{role} at {channels * 2**n} channels" for role, n in expected - blocks.keys()
        )
        extra = sorted(blocks[place][0] for place in blocks.keys() - expected)
        what = [f"no {_some(missing)}"] if missing else []
        raise ValueError(
            " and ".join([*what, *([f"no place for {_some(extra)}"] if extra else [])])
        )
    _check_names(blocks)
    options = {
        "channels": channels,
        "depth": depth,
        "head": "ab" if state[f"{blocks['head', 0][1].heads[0]}.weight"].shape[0] == 2 else "rgb",
    }
    places: dict[str, str] = {}
    for (role, level), (_, stage) in blocks.items():
        places |= _renamed(stage, role, level, depth, state)
    _check_shapes(options, places, state)
    return options, places


def _stages(state: dict[str, Tensor]) -> dict[str, _Stage]:
    stages: dict[str, _Stage] = {}
    unknown: list[str] = []
    leaves: dict[str, list[str]] = defaultdict(list)
    for key in state:
        leaves[key.rpartition(".")[0]].append(key.rpartition(".")[2])
    for leaf, members in leaves.items():
        weight = state.get(f"{leaf}.weight")
        kind = None if weight is None else _kind(tuple(weight.shape), members)
        named = _family(leaf.split("."), alone=kind == "ups")
        if named is None or weight is None:
            unknown.append(leaf or next(iter(state)))
            continue
        name, family, root, number = named
        stage = stages.setdefault(name, _Stage(family, root, number))
        if kind is None:
            unknown.append(f"{leaf}.weight {tuple(weight.shape)}")
        else:
            getattr(stage, kind).append(leaf)
    if unknown:
        raise ValueError(f"no place for {_some(unknown)}")
    return stages


def _family(parts: list[str], *, alone: bool) -> tuple[str, str, str, int] | None:
    """A stage's own name, family, root and number: of enc1.net.0, or of downs.3.conv.1.

    ``alone`` says that the leaf is all of its stage, so that one number is the stage's own.
    """
    match = re.fullmatch(r"([a-z_]+?)_?(\d*)", parts[0].lower())
    if match is None:
        return None
    root, number = match[1], match[2]
    name = parts[0]
    if not number and len(parts) > 1 and parts[1].isdigit():
        below = [part for part in parts[1:] if part.isdigit()]
        if len(below) > 1 or alone:  # a list of stages
            name, number = f"{parts[0]}.{parts[1]}", parts[1]
    short = re.sub(r"_?(block|layer|conv|stage)?s?$", "", root)
    for family, known in FAMILIES.items():
        if root in known or short in known:
            return name, family, root, int(number or 0)
    return None


def _kind(shape: tuple[int, ...], members: Iterable[str]) -> str | None:
    found = set(members)
    kinds = {(3, 3): "convs", (2, 2): "ups", (1, 1): "heads"}
    if len(shape) == 4 and found <= {"weight", "bias"}:
        return kinds.get(shape[2:])
    if len(shape) == 1 and found == set(_NORM):
        return "norms"
    return None


def _roles(
    name: str, stage: _Stage, state: Mapping[str, Tensor], channels: int
) -> Iterable[tuple[str, int]]:
    """What a stage is by its shapes: (role, level), two of them if it is up and decoder in one."""
    if len(stage.convs) not in (0, 2) or len(stage.norms) != len(stage.convs):
        raise ValueError(
            f"{name} has {len(stage.convs)} convolutions and {len(stage.norms)} BatchNorms, "
            "expected two of each"
        )
    if stage.convs:
        width, before = state[f"{stage.convs[0]}.weight"].shape[:2]
        if before not in (1, width // 2, 2 * width):
            raise ValueError(f"{name} takes {before} channels to {width}, expected half or twice")
        is_decoder = before == 2 * width
        yield ("decoder" if is_decoder else "encoder"), _level(name, width, channels)
    for up in stage.ups:
        yield "up", _level(name, state[f"{up}.weight"].shape[1], channels)
    for head in stage.heads:
        outputs = state[f"{head}.weight"].shape[0]
        if outputs not in (2, 3):
            raise ValueError(f"{name} answers in {outputs} channels, expected 2 (ab) or 3 (RGB)")
        yield "head", 0


def _level(name: str, width: int, channels: int) -> int:
    level = (width // channels).bit_length() - 1
    if channels << max(level, 0) != width:
        raise ValueError(f"{name} has {width} channels, expected {channels} times a power of two")
    return level


def _check_names(blocks: Mapping[tuple[str, int], tuple[str, _Stage]]) -> None:
    """Names say the same as shapes: the family, and numbers that go up or down with the levels."""
    allowed = {
        "encoder": {"encoder"},
        "bottleneck": {"bottleneck", "encoder"},
        "up": {"decoder"},
        "decoder": {"decoder"},
        "head": {"head"},
    }
    numbers: dict[tuple[str, str], list[int]] = defaultdict(list)
    for (role, level), (name, stage) in sorted(blocks.items(), key=lambda item: item[0]):
        if stage.family not in allowed[role]:
            raise ValueError(f"{name} has the shapes of the {role} at level {level}")
        numbers[role, stage.root].append(stage.number)
    for (role, root), found in numbers.items():
        if found not in (sorted(set(found)), sorted(set(found), reverse=True)):
            raise ValueError(f"the numbers of {root} ({role}) are in no order of widths: {found}")


def _renamed(
    stage: _Stage, role: str, level: int, depth: int, state: Mapping[str, Tensor]
) -> dict[str, str]:
    """Keys of one stage's part -> keys of our UNet."""
    upwards = depth - 1 - level
    if role == "head":
        leaves = {stage.heads[0]: "head"}
    elif role == "up":
        leaves = {stage.ups[0]: f"up.{upwards}"}
    else:
        ours = {
            "encoder": f"encoder.{level}",
            "bottleneck": "bottleneck",
            "decoder": f"decoder.{upwards}",
        }[role]
        leaves = {
            theirs: f"{ours}.{index}"
            for theirs, index in zip([*stage.convs, *stage.norms], (0, 3, 1, 4), strict=True)
        }
    return {
        key: f"{leaves[leaf]}.{member}"
        for key in state
        for leaf, _, member in [key.rpartition(".")]
        if leaf in leaves
    }


def _check_shapes(
    options: Mapping[str, Any], places: Mapping[str, str], state: Mapping[str, Tensor]
) -> None:
    """The map is a bijection onto our UNet's weights, conv biases aside, with equal shapes."""
    with torch.device("meta"):
        ours = {name: tuple(value.shape) for name, value in UNet(**options).state_dict().items()}
    left = [key for key in state if key not in places]
    missing = [name for name in ours if name not in places.values()]
    wrong = [
        f"{key} {tuple(state[key].shape)} (expected {ours[name]})"
        for key, name in places.items()
        if tuple(state[key].shape) != ours.get(name, _bias_shape(ours, name))
    ]
    for what, names in (("no place for", left), ("nothing for", missing), ("wrong shapes:", wrong)):
        if names:
            raise ValueError(f"{what} {_some(names)}")
    if len(set(places.values())) != len(places):
        raise ValueError("two tensors for one place")


def _bias_shape(ours: Mapping[str, tuple[int, ...]], name: str) -> tuple[int, ...] | None:
    weight = ours.get(f"{name.removesuffix('.bias')}.weight")
    return weight[:1] if name.endswith(".bias") and weight else None


def _fold(weights: dict[str, Tensor]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Conv biases into the running means of the BatchNorms behind: (x + b) - m = x - (m - b)."""
    biases = tuple(
        name
        for name in weights
        if re.fullmatch(r"(encoder\.\d+|decoder\.\d+|bottleneck)\.[03]\.bias", name)
    )
    folded = {name: value for name, value in weights.items() if name not in biases}
    for name in biases:
        block, index, _ = name.rsplit(".", 2)
        mean = f"{block}.{int(index) + 1}.running_mean"
        folded[mean] = folded[mean] - weights[name]
    return {
        name: value.float() if value.is_floating_point() else value.clone()
        for name, value in folded.items()
    }, biases


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{', '.join(names[:_SHOWN])}{more}"

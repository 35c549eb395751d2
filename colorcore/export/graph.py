"""From a network in torch to a graph in ONNX that takes L and returns ab, for any size and batch.

All that lies between a photo's lightness and its colours is inside: normalization, padding to the
network's stride, decoding of bins, chroma, and the limits of ab. Temperature and chroma are inputs
with default values, those of the checkpoint, so a program need not know of them. Batch norm is
folded into the convolution before it. Group norm cannot be: its statistics are the photo's.
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from colorcore.color.lab import AB_NORM, normalize_L
from colorcore.colorizing.onnx_facts import INPUT, OUTPUT
from colorcore.models import AnswersInBins
from colorcore.models.decoding import completed

if TYPE_CHECKING:
    from torch import Tensor

    from colorcore.decoding import Decoding

OPSET = 20
"""Version of ONNX's operators, which onnxruntime has known since 1.17 (2024)."""
NORMS = ("BatchNormalization", "InstanceNormalization", "GroupNormalization")
_EXAMPLE = (2, 1, 70, 90)
"""No network takes it without padding."""


class _Colors(nn.Module):
    """From L and how it is decoded to ab."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, L: Tensor, chroma: Tensor, temperature: Tensor | None = None) -> Tensor:
        """L (B, 1, H, W) 0..100, chroma () and temperature () -> ab (B, 2, H, W), ab units."""
        prediction = self.network(normalize_L(L))
        ab = prediction["ab"]
        if temperature is not None and isinstance(self.network, AnswersInBins):
            ab = self.network.decode(
                prediction["logits"] / temperature,
                prediction["residual"],
                prediction["confidence"],
                size=(L.shape[-2], L.shape[-1]),
                temperature=1.0,
            )
        limited: Tensor = (ab * chroma).clamp(-AB_NORM, AB_NORM)
        return limited


def settings_of(network: nn.Module, decoding: Decoding) -> dict[str, float]:
    """The graph's inputs other than L: chroma, and the temperature of a network with bins."""
    decoding = completed(network, decoding)
    settings = {"chroma": decoding.chroma}
    if decoding.temperature is not None:
        settings["temperature"] = decoding.temperature
    return settings


def onnx_graph(network: nn.Module, settings: Mapping[str, float]) -> Any:
    """A network as an ``onnx.ModelProto``, without default values of its settings.

    Its inputs are L (batch, 1, height, width) and the scalars of :func:`settings_of`.
    """
    colors = _Colors(copy.deepcopy(network).to("cpu").eval())
    for parameter in colors.parameters():
        parameter.requires_grad_(False)
    dynamic = torch.export.Dim.DYNAMIC
    example = (
        torch.linspace(0, 100, 2 * 70 * 90).reshape(_EXAMPLE),
        *(torch.tensor(value) for value in settings.values()),
    )
    shapes = ({0: dynamic, 2: dynamic, 3: dynamic}, *({} for _ in settings))
    # Of itself, such as packages that it does not need.
    with quiet("torch.onnx"):
        program = torch.onnx.export(
            colors,
            example,
            input_names=[INPUT, *settings],
            output_names=[OUTPUT],
            dynamic_shapes=shapes,
            opset_version=OPSET,
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    assert program is not None  # noqa: S101 - for the type checker: only without dynamo
    model = program.model_proto
    _name_sizes(model)
    del model.metadata_props[:]
    for node in model.graph.node:  # torch's notes on where in the code each came from
        del node.metadata_props[:]
        node.doc_string = ""
    for value in (*model.graph.value_info, *model.graph.input, *model.graph.output):
        del value.metadata_props[:]
    model.graph.name = "colorcore"
    model.producer_name, model.doc_string = "colorcore", ""
    return model


def finished(model: Any, settings: Mapping[str, float], metadata: Mapping[str, str]) -> Any:
    """A copy of a graph with the default values of its settings, and its metadata."""
    import onnx
    from onnx import numpy_helper

    model = copy.deepcopy(model)
    for name, value in settings.items():
        default = torch.tensor(value, dtype=torch.float32).numpy()
        model.graph.initializer.append(numpy_helper.from_array(default, name))
    onnx.helper.set_model_props(model, dict(metadata))
    onnx.checker.check_model(model)
    return model


def norms_left(model: Any) -> int:
    """The number of normalizations that could not be folded into a convolution."""
    counted = Counter(node.op_type for node in model.graph.node)
    return sum(counted[name] for name in NORMS)


def _name_sizes(model: Any) -> None:
    """Name the sizes of the input and the output, which programs show to their users."""
    names = {INPUT: ("batch", None, "height", "width"), OUTPUT: ("batch", None, "height", "width")}
    for value in (*model.graph.input, *model.graph.output):
        for dimension, name in zip(
            value.type.tensor_type.shape.dim, names.get(value.name, ()), strict=False
        ):
            if name:
                dimension.dim_param = name
    del model.graph.value_info[:]  # of the old names


@contextmanager
def quiet(name: str | None) -> Iterator[None]:
    """Leave out warnings, and what a logger says short of errors; None: all loggers together."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)

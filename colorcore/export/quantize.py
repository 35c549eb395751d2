"""Convolutions in 8 bits: static quantization, calibrated on photos.

Weights become int8 with one scale per output channel, the maps between convolutions uint8 with one
scale each (Jacob et al. 2018, "Quantization and training of neural networks for efficient
integer-arithmetic-only inference", section 2). The scales of maps come from the smallest and
largest value that photos give them.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from colorcore.colorizing.onnx_facts import INPUT, OUTPUT
from colorcore.export.graph import quiet

if TYPE_CHECKING:
    from numpy.typing import NDArray

QUANTIZED = ("Conv", "MaxPool", "Concat", "Add", "Resize", "Clip", "Relu")
"""Operators that onnxruntime runs in 8 bits or that only pass values on between convolutions."""
_UPWARD = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})


def quantized(
    model: Any, settings: Mapping[str, float], photos: Sequence[NDArray[np.float32]]
) -> Any:
    """A graph of :func:`colorcore.export.graph.onnx_graph` with its convolutions in 8 bits.

    The first convolution and the last ones, the heads, stay in float32, and so does all that
    follows them: the first sees lightness, whose steps would show, and the heads' outputs are the
    colours. photos L (1, 1, H, W), 0..100, as the model sees them.
    """
    import onnx
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.calibrate import CalibrationDataReader

    feeds = [
        {INPUT: L, **{name: np.asarray(value, np.float32) for name, value in settings.items()}}
        for L in photos
    ]

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._rest = iter(feeds)

        def get_next(self) -> Any:
            return next(self._rest, None)

    # Without onnxruntime's advice on preprocessing, which the exporter has done.
    with quiet(None), tempfile.TemporaryDirectory(prefix="colorcore-int8-") as folder:
        target = Path(folder) / "int8.onnx"
        quantize_static(
            copy.deepcopy(model),  # whose weights it moves to a file
            str(target),
            Reader(),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(QUANTIZED),
            nodes_to_exclude=sorted(kept_in_float(model)),
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            extra_options={"WeightSymmetric": True},
        )
        made = onnx.load(str(target))
    del made.metadata_props[:]
    return made


def kept_in_float(model: Any) -> set[str]:
    """The names of nodes that stay in float32: the first convolution, and from the heads on."""
    nodes = list(model.graph.node)
    convolutions = [node.name for node in nodes if node.op_type in _UPWARD]
    made_by = {output: node for node in nodes for output in node.output}
    # Backwards from ab to the first convolutions that are met.
    heads: set[str] = set()
    tail: set[str] = set()
    waiting = [made_by[OUTPUT]]
    while waiting:
        node = waiting.pop()
        if node.name in tail:
            continue
        tail.add(node.name)
        if node.op_type in _UPWARD:
            heads.add(node.name)
            continue
        waiting += [made_by[name] for name in node.input if name in made_by]
    return tail | {convolutions[0]}

"""What an exported ONNX file says about itself, and which files are taken for one.

An ONNX file is data, but a runtime does what it says. So a file is refused unless it is one whole
graph of ONNX's standard operators, without files next to it, other domains, functions or nested
graphs (loops), and unless its metadata has the keys that ``cc export`` writes::

    colorcore.format    "1"
    colorcore.version   of colorcore that wrote it
    colorcore.model     class of the model, and colorcore.recipe, the recipe as JSON
    colorcore.size      shorter side in pixels of the copies that it was trained on
    colorcore.decoding  default temperature and chroma, as JSON
    colorcore.dataset   fingerprint, and colorcore.mean_ab and colorcore.palette, as JSON
    colorcore.changes   what was done to the model, such as int8: JSON
    colorcore.input, colorcore.output, colorcore.licence   for people
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from colorcore.decoding import Decoding

if TYPE_CHECKING:
    from numpy.typing import NDArray

FORMAT = 1
SUFFIX = ".onnx"
MAX_BYTES = 1 << 30
"""Largest file that is written or read: twice that of the largest model anyone has trained here."""
MAX_SIZE = 4096
"""Largest ``size`` in pixels."""
INPUT = "L"
OUTPUT = "ab"
DOMAINS = ("", "ai.onnx")
_KEY = "colorcore."
_ARRAYS = ("centroids", "priors", "weights")
ABOUT_INPUT = (
    "L: float32 (batch, 1, height, width), CIELAB lightness 0..100 (D65). Any size; the model was "
    "trained on photos whose shorter side is colorcore.size pixels. Optional: temperature, chroma."
)
ABOUT_OUTPUT = "ab: float32 (batch, 2, height, width), CIELAB a and b within -128..128"


class OnnxFileError(Exception):
    """An ONNX file is missing, damaged, or none that ``cc export`` wrote; one line for the user."""


@dataclass(frozen=True, slots=True)
class OnnxFacts:
    """The metadata of an exported file.

    model     class of the network, for messages
    size      shorter side in pixels of the copies that it sees
    decoding  default temperature (None: it has none) and chroma
    recipe    of the training, as in a checkpoint
    dataset   fingerprint of the dataset
    mean_ab   (a, b) of the training pixels, ab units
    palette   centroids (Q, 2), priors (Q,) and weights (Q,), float32
    about     how the palette was made
    changes   what was done to the model: {"int8": {…}, "pruned": {…}}
    licence   of weights that the training started from; "" if there are none
    version   of colorcore that wrote the file
    """

    model: str
    size: int
    decoding: Decoding
    recipe: dict[str, Any]
    dataset: str
    mean_ab: tuple[float, float]
    palette: Mapping[str, NDArray[np.float32]]
    about: dict[str, Any] = field(default_factory=dict)
    changes: dict[str, Any] = field(default_factory=dict)
    licence: str = ""
    version: str = ""

    @property
    def predicts_bins(self) -> bool:
        """Whether the model has a temperature."""
        return self.decoding.temperature is not None

    def as_metadata(self) -> dict[str, str]:
        """The keys and values of the file's ``metadata_props``."""
        arrays = {
            name: base64.b64encode(self.palette[name].astype("<f4").tobytes()).decode()
            for name in _ARRAYS
        }
        values = {
            "format": str(FORMAT),
            "version": self.version,
            "model": self.model,
            "size": str(self.size),
            "decoding": json.dumps(asdict(self.decoding)),
            "recipe": json.dumps(self.recipe),
            "dataset": self.dataset,
            "mean_ab": json.dumps(list(self.mean_ab)),
            "palette": json.dumps({"about": self.about, **arrays}),
            "changes": json.dumps(self.changes),
            "licence": self.licence,
            "input": ABOUT_INPUT,
            "output": ABOUT_OUTPUT,
        }
        return {f"{_KEY}{name}": value for name, value in values.items()}


def facts_of(metadata: Mapping[str, str], where: str) -> OnnxFacts:
    """The facts in a file's metadata; ``where`` names the file.

    Raises:
        OnnxFileError: they are missing, damaged, or of another format.
    """
    values = {
        key.removeprefix(_KEY): value for key, value in metadata.items() if key.startswith(_KEY)
    }
    if "format" not in values:
        raise OnnxFileError(
            f"expected an ONNX file that cc export wrote, found one without its metadata: {where}; "
            "export the model again: cc export MODEL FILE.onnx"
        )
    if values["format"] != str(FORMAT):
        raise OnnxFileError(
            f"expected export format {FORMAT}, found {values['format'][:20]!r} in {where}; load it "
            "with the version of colorcore that wrote it, or export the model again"
        )
    try:
        palette = json.loads(values["palette"])
        a, b = json.loads(values["mean_ab"])
        size = int(values["size"])
        if not 1 <= size <= MAX_SIZE:
            raise ValueError(f"expected a size in 1..{MAX_SIZE}, found {size}")
        return OnnxFacts(
            model=values["model"],
            size=size,
            decoding=Decoding(**json.loads(values["decoding"])),
            recipe=dict(json.loads(values["recipe"])),
            dataset=values["dataset"],
            mean_ab=(float(a), float(b)),
            palette=_palette(palette),
            about=dict(palette["about"]),
            changes=dict(json.loads(values["changes"])),
            licence=values["licence"],
            version=values["version"],
        )
    except (KeyError, TypeError, ValueError, binascii.Error) as error:
        cause = " ".join(str(error).split())
        raise OnnxFileError(
            f"the metadata of {where} is damaged: {type(error).__name__}: {cause}; export the "
            "model again"
        ) from error


def _palette(values: Mapping[str, Any]) -> dict[str, NDArray[np.float32]]:
    arrays = {
        name: np.frombuffer(base64.b64decode(values[name], validate=True), "<f4").astype(np.float32)
        for name in _ARRAYS
    }
    arrays["centroids"] = arrays["centroids"].reshape(-1, 2)
    return arrays


def read_facts(data: bytes, where: str) -> OnnxFacts:
    """Check the bytes of an ONNX file, and read its facts; ``where`` names it.

    Raises:
        OnnxFileError: it is no ONNX file, contains what an export never does, or lacks the facts.
    """
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load_model_from_string(data)
    except (DecodeError, ValueError) as error:
        raise OnnxFileError(
            f"expected an ONNX file, {where} is damaged or something else ({len(data):,} bytes); "
            "copy it again, or export the model again"
        ) from error
    facts = facts_of({each.key: each.value for each in model.metadata_props}, where)
    if found := next(_strange(model), None):
        raise OnnxFileError(
            f"expected a graph of ONNX's own operators in one file, found {found} in {where}; "
            "cc export writes no such file, so do not trust it"
        )
    return facts


def _strange(model: Any) -> Iterator[str]:
    """What an exported file never contains."""
    from onnx import TensorProto

    if model.functions or model.training_info:
        yield "functions"
    yield from (
        f"the domain {each.domain!r}" for each in model.opset_import if each.domain not in DOMAINS
    )
    graph = model.graph
    tensors = list(graph.initializer)
    if graph.sparse_initializer:
        yield "sparse tensors"
    for node in graph.node:
        if node.domain not in DOMAINS:
            yield f"the domain {node.domain!r}"
        for each in node.attribute:
            if each.HasField("g") or each.graphs:
                yield f"a nested graph ({node.op_type})"
            if each.HasField("sparse_tensor") or each.sparse_tensors:
                yield "sparse tensors"
            tensors += [*each.tensors, each.t]
    if any(t.external_data or t.data_location == TensorProto.EXTERNAL for t in tensors):
        yield "weights in another file"


def weights_in(data: bytes) -> dict[str, NDArray[np.float32]]:
    """The weights in the bytes of an exported file by name, those of 8 bits times their scales.

    Scalars and what belongs to the quantization itself are left out.
    """
    import onnx
    from onnx import TensorProto, numpy_helper

    tensors = {each.name: each for each in onnx.load_model_from_string(data).graph.initializer}
    found = {}
    for name, tensor in tensors.items():
        base = name.removesuffix("_quantized")
        if tensor.data_type == TensorProto.INT8 and f"{base}_scale" in tensors:
            scale = numpy_helper.to_array(tensors[f"{base}_scale"])
            steps = numpy_helper.to_array(tensor).astype(np.float32)
            shape = (-1, *[1] * (steps.ndim - 1))
            found[base] = steps * scale.reshape(shape if scale.ndim else ())
        elif tensor.data_type == TensorProto.FLOAT and not name.endswith("_scale"):
            values = numpy_helper.to_array(tensor)
            if values.size > 1:
                found[name] = values
    return found

"""A colorizer whose network is an exported ONNX file, run by onnxruntime; torch stays away."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from colorcore.colorizing.colorizer import Colorizer
from colorcore.colorizing.onnx_facts import (
    INPUT,
    MAX_BYTES,
    OUTPUT,
    SUFFIX,
    OnnxFileError,
    read_facts,
)
from colorcore.cpu import usable_cpus
from colorcore.storage.location import open_store
from colorcore.storage.store import Store

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from colorcore.colorizing.colorizer import AB
    from colorcore.colorizing.onnx_facts import OnnxFacts

EXTRA = "pip install 'colorcore[export]'"
_CUDA = "CUDAExecutionProvider"


def is_onnx(place: str | Path | Store) -> bool:
    """Whether a place is an ONNX file, by its name; a folder of such a name is a checkpoint."""
    name = place.location if isinstance(place, Store) else str(place)
    if not name.partition("?")[0].lower().endswith(SUFFIX):
        return False
    return "://" in name or not Path(name).is_dir()


def read_onnx(place: str | Path | Store) -> bytes:
    """The bytes of an ONNX file, here or in an object store.

    Raises:
        OnnxFileError: there is none, or it is larger than ``MAX_BYTES``.
        StorageError: a remote store does not answer, or refuses.
    """
    store = open_store(place)
    where = store.show()

    def admit(size: int) -> None:
        if size > MAX_BYTES:
            raise OnnxFileError(
                f"expected an ONNX file of at most {MAX_BYTES:,} bytes, {where} has {size:,}"
            )

    try:
        return store.read("", admit=admit)
    except FileNotFoundError as error:
        raise OnnxFileError(f"expected an ONNX file, found no file {where}") from error
    except OSError as error:
        raise OnnxFileError(f"cannot read {where}: {error.strerror or error}") from error


def load_onnx(place: str | Path | Store, device: str | None = None) -> OnnxColorizer:
    """The colorizer of an exported file, on the CPU unless ``device`` is "cuda" or "cuda:1".

    Raises:
        OnnxFileError: there is no such file, it is damaged, or not one that ``cc export`` wrote;
            or onnxruntime is not installed.
        ValueError: onnxruntime cannot run there.
        StorageError: a remote store does not answer, or refuses.
    """
    require_onnx()
    data, where = read_onnx(place), open_store(place).show()
    return OnnxColorizer(data, read_facts(data, where), where=where, device=device or "cpu")


def require_onnx() -> None:
    """Check that what reads and runs ONNX files is installed.

    Raises:
        OnnxFileError: it is not.
    """
    missing = [name for name in ("onnx", "onnxruntime") if find_spec(name) is None]
    if missing:
        raise OnnxFileError(
            f"expected the package {' and '.join(missing)} for ONNX files; install it with {EXTRA}"
        )


class OnnxColorizer(Colorizer):
    """An exported model in onnxruntime.

    It can be pickled, which copies the file's bytes. Copies of it with another decoding share one
    session.

    Attributes:
        facts: the file's metadata.
        data: the file's bytes.

    Raises:
        OnnxFileError: onnxruntime cannot run the graph.
        ValueError: onnxruntime cannot run on the device.
    """

    def __init__(
        self,
        data: bytes,
        facts: OnnxFacts,
        *,
        where: str = "the ONNX file",
        device: str = "cpu",
        threads: int | None = None,
    ) -> None:
        super().__init__(facts.model, facts.size, facts.decoding, predicts_bins=facts.predicts_bins)
        self.facts, self.data = facts, data
        self._session = _Session(data, where, _checked_device(device), threads)
        self._session.start()

    def with_versions(self, count: int) -> Self:
        """The same model; an exported file has one answer.

        Raises:
            ValueError: more than one version is asked for.
        """
        if count > 1:
            raise ValueError(
                f"expected a checkpoint for {count} versions, got an exported file, which has one "
                "answer; use the model that it was exported from"
            )
        return self

    @property
    def device(self) -> str:
        """Where onnxruntime runs the graph."""
        return self._session.device

    def to(self, device: str) -> Self:
        """Run on another device; returns the colorizer itself.

        Raises:
            ValueError: onnxruntime cannot run there.
        """
        self._session.change(device=_checked_device(device))
        return self

    def use_threads(self, count: int) -> Self:
        """Let a pass of the network use ``count`` threads; returns the colorizer itself."""
        self._session.change(threads=count)
        return self

    def predict_ab(self, L: NDArray[np.float32]) -> AB:
        """The colours of one batch; see :meth:`Colorizer.predict_ab`."""
        feeds = {INPUT: np.ascontiguousarray(L, np.float32)}
        feeds["chroma"] = np.asarray(self.decoding.chroma, np.float32)
        if self.predicts_bins:
            feeds["temperature"] = np.asarray(self.decoding.temperature, np.float32)
        ab: AB = self._session.start().run([OUTPUT], feeds)[0]
        return ab


class _Session:
    """onnxruntime's session, which is made again after unpickling and after a change."""

    def __init__(self, data: bytes, where: str, device: str, threads: int | None) -> None:
        self._data, self._where = data, where
        self.device, self._threads = device, threads
        self._running: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_running": None}

    def change(self, *, device: str | None = None, threads: int | None = None) -> None:
        now = (self.device, self._threads)
        self.device, self._threads = device or self.device, threads or self._threads
        if now != (self.device, self._threads):
            self._running = None

    def start(self) -> Any:
        if self._running is None:
            self._running = self._made()
        return self._running

    def _made(self) -> Any:
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.intra_op_num_threads = self._threads or usable_cpus()
        options.inter_op_num_threads = 1
        # Threads that spin while they wait take CPU time from decoding and encoding photos.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        name, _, number = self.device.partition(":")
        providers: list[Any] = ["CPUExecutionProvider"]
        if name == "cuda":
            providers.insert(0, (_CUDA, {"device_id": int(number or 0)}))
        try:
            return ort.InferenceSession(self._data, options, providers=providers)
        except Exception as error:  # onnxruntime has a class of its own for each kind
            if not type(error).__module__.startswith("onnxruntime"):
                raise
            first = (str(error).splitlines() or [type(error).__name__])[0]
            raise OnnxFileError(
                f"onnxruntime cannot run {self._where}: {first}; export the model again"
            ) from error


def _checked_device(device: str) -> str:
    """The device, if onnxruntime can run there.

    Raises:
        ValueError: it cannot.
    """
    name, colon, number = device.partition(":")
    if device == "cpu" or (name == "cuda" and (number.isdigit() if colon else True)):
        import onnxruntime as ort

        if device == "cpu" or _CUDA in ort.get_available_providers():
            return device
        raise ValueError(
            f"expected cpu, got {device}: onnxruntime has no CUDA here; install onnxruntime-gpu in "
            "place of onnxruntime, or leave the device out"
        )
    raise ValueError(f"expected the device cpu or cuda for an ONNX file, got {device!r}")

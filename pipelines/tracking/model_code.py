"""The code that MLflow runs when it loads a logged model ("models from code").

Next to it in the model are the checkpoint (safetensors and JSON) and the package colorcore; nothing
is pickled. This file is not meant to be imported.
"""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import numpy as np
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel

from colorcore.colorizing.files import colorize_file
from colorcore.loading import load_colorizer
from colorcore.photos.refusal import PhotoRefused
from colorcore.photos.write import EncoderLimitError


class Colorizer(PythonModel):
    """Photos in, photos with predicted colours and unchanged lightness out."""

    def load_context(self, context: Any) -> None:
        """Read the checkpoint among the model's artifacts."""
        self._colorizer = load_colorizer(Path(context.artifacts["checkpoint"]))

    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
        """Photos, grey or not -> the same, colourized as `cc colorize --force` does.

        =============================================  ===========================================
        given                                          returned
        =============================================  ===========================================
        (N, H, W, 3) uint8 sRGB                        the same shape and type
        (N,) of objects: the bytes of N photos' files  (N,) of objects: their pictures' bytes
        params["files"]: the same in base64; the       list of their pictures' bytes in base64
        input is ignored
        =============================================  ===========================================

        Further params: strength, chroma, temperature. The model's signature states the types:
        MLflow would read type hints here as a second one.
        """
        given = params or {}
        files, strength = given.get("files"), given.get("strength", 1.0)
        try:
            colorizer = self._colorizer.with_decoding(given.get("temperature"), given.get("chroma"))
            if files is not None and len(files):
                return [
                    base64.b64encode(
                        _file(colorizer, number, _decoded(number, text), strength)
                    ).decode("ascii")
                    for number, text in enumerate(files)
                ]
            photos = np.asarray(model_input)
            if photos.dtype == object:
                pictures = np.empty(len(photos), object)
                for number, data in enumerate(photos):
                    pictures[number] = _file(colorizer, number, data, strength)
                return pictures
            images = list(photos.astype(np.uint8))
            return np.stack(colorizer.colorize(images, strength=strength))
        except ValueError as error:
            raise MlflowException.invalid_parameter_value(str(error)) from error


def _decoded(number: int, text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except ValueError as error:
        raise ValueError(f"file {number}: expected base64, got {text[:20]!r}: {error}") from error


def _file(colorizer: Any, number: int, data: Any, strength: float) -> bytes:
    if not isinstance(data, bytes):
        raise ValueError(f"file {number}: expected bytes, got {type(data).__name__}")
    if not 0.0 <= strength <= 1.0:
        raise ValueError(f"expected a strength within 0..1, got {strength:g}")
    try:
        return colorize_file(colorizer, data, strength=strength)
    except (PhotoRefused, EncoderLimitError) as error:
        raise ValueError(f"file {number}: {error}") from error


set_model(Colorizer())

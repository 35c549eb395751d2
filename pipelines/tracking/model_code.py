"""The code that MLflow runs when it loads a logged model ("models from code").

Next to it in the model are the checkpoint (safetensors and JSON) and the package colorcore; nothing
is pickled. This file is not meant to be imported.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel

from colorcore.loading import load_colorizer


class Colorizer(PythonModel):
    """Photos in, photos with predicted colours and unchanged lightness out."""

    def load_context(self, context: Any) -> None:
        """Read the checkpoint among the model's artifacts."""
        self._colorizer = load_colorizer(Path(context.artifacts["checkpoint"]))

    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
        """(N, H, W, 3) uint8 sRGB, grey or not -> the same, colourized, as `cc colorize` does.

        The model's signature states the types: MLflow would read type hints here as a second one.
        """
        photos = np.asarray(model_input, np.uint8)
        return np.stack(self._colorizer.colorize(list(photos)))


set_model(Colorizer())

"""Everything this project uses of MLflow that MLflow does not document; tested with MLflow 3.17.

After an upgrade of MLflow, look here first: how its pages find pictures, how they keep a saved
view, and which classes measure a node. tests/ui sees the first two in a real browser.
"""

from __future__ import annotations

import base64
import contextlib
import json
import re
import zlib
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import quote, unquote, urlencode

# -- pictures, as MlflowClient.log_image stores them ----------------------------------------------

PICTURES = "images"
"""The artifact folder in which the pages look for pictures."""
HAS_PICTURES_TAG = "mlflow.loggedImages"
"""A run without this tag, set to "True", shows no pictures."""
THUMBNAIL = 256
"""Longer side, in pixels, of the copy that the grid of pictures shows."""


def picture_files(key: str, step: int, at: int, mark: str) -> list[str]:
    """The names of a picture and its thumbnail; ``at`` in ms, ``mark`` any unique text."""
    name = f"{_in_file_name(key)}+step+{step}+timestamp+{at}+{mark}"
    return [f"{name}.png", f"{name}+compressed.webp"]


def picture_step(path: str, key: str) -> int | None:
    """The step of the picture at an artifact path, or None if it was logged under another key.

    ``log_image`` itself separates the parts of a name with ``%`` on Windows.
    """
    name = unquote(path).removeprefix(f"{PICTURES}/").removeprefix(_in_file_name(key))
    match = re.match(r"[+%]step[+%](\d+)[+%]", name)
    return int(match[1]) if match else None


def _in_file_name(key: str) -> str:
    return key.replace("/", "~")


# -- saved views of an experiment -----------------------------------------------------------------

VIEW_TAG = "mlflow.sharedViewState."
"""Prefix of the experiment's tags that hold saved views; the rest is the view's key."""
VIEW_LIMIT = 5000
"""Characters that every MLflow 3 accepts in an experiment's tag; 3.17 accepts 20,000."""


def pack_view(name: str, created_ms: int, state: Mapping[str, Any]) -> str:
    """A saved view, as the pages write it into a tag: the state as deflated JSON in base64."""
    text = json.dumps(state, separators=(",", ":")).encode()
    packed = base64.b64encode(zlib.compress(text, 9)).decode("ascii")
    value = {"name": name, "createdAt": created_ms, "state": f"deflate;{packed}"}
    return json.dumps(value, separators=(",", ":"))


def view_facet(key: str) -> dict[str, str]:
    """The query parameter that opens a saved view."""
    return {"viewStateShareKey": key}


def runs_page(at: str, experiment_id: str, **parameters: str) -> str:
    """The address of an experiment's runs as charts, on the server at ``at``.

    Without the workflow type MLflow opens the page of chat traces.
    """
    words = {"workflowType": "machine_learning", "compareRunsMode": "CHART", **parameters}
    return f"{at}/#/experiments/{experiment_id}/runs?{urlencode(words, quote_via=quote)}"


# -- measuring a node -----------------------------------------------------------------------------


def node_monitors() -> list[Any]:
    """MLflow's own monitors of CPU, disk, network and GPUs, without those that cannot work here."""
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
    from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
    from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

    kinds: list[Callable[[], Any]] = [CPUMonitor, DiskMonitor, NetworkMonitor, GPUMonitor]
    monitors = []
    for kind in kinds:
        with contextlib.suppress(Exception):  # no GPU, or no nvidia-ml-py to ask it with
            monitors.append(kind())
    return monitors

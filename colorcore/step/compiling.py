"""Whether a network is compiled, how long that takes, and where compiled code is kept.

Compiled code lives in ``inductor`` and ``triton`` below the cache folder (``COLORCORE_CACHE``), for
all runs, trials and workers of a user; ``compile.json`` there says how long it took the last time.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import torch

from colorcore.storage.atomic import replace_bytes
from colorcore.storage.local import cache_folder

EXPECTED_S = {"unet": 25.0, "resnet-unet": 65.0}
"""Seconds until the first step of a model that was never compiled before, on one H100; that of the
resnet-unet when it was compiled whole, so an upper limit."""
UNKNOWN_S = 60.0
"""Of any other model: assumed, until it was compiled once."""
SAVED_S = 0.018
"""Seconds that compilation saves per step: unet of 64 channels, batch 64 at 256 px, one H100."""
_RECORD = "compile.json"


def why_not(setting: str, device: torch.device, steps: int, seconds: float) -> str | None:
    """Why a network is not compiled; None if it is, and "" if nobody needs to know.

    Args:
        setting: ``train.compile`` of the recipe: "auto", "on" or "off".
        device: where the network runs.
        steps: that are left to take.
        seconds: that compiling is expected to take.

    "auto" compiles on a GPU only: on a CPU, compiled steps are hardly shorter. There it compiles if
    the steps that are left save more time than it takes.
    """
    if setting == "off" or (setting == "auto" and device.type == "cpu"):
        return ""
    if missing := _missing_compiler(device):
        return "" if setting == "auto" else f"not compiling the network: {missing}"
    if setting == "auto" and steps * SAVED_S < seconds:
        return ""
    return None


def _missing_compiler(device: torch.device) -> str | None:
    if device.type == "cuda":
        if importlib.util.find_spec("triton") is None:
            return "expected the package triton, found none"
        return None
    name = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")
    if shutil.which(name) is None:
        return f"expected the C++ compiler {name}, found none; install it or set CXX"
    return None


def key_of(device: torch.device, *facts: object) -> str:
    """What a compilation depends on, as a name in the record: model, batch, size, device, torch."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    text = json.dumps([name, torch.__version__, *facts], default=str, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def expected_seconds(model: str, key: str) -> tuple[float, bool]:
    """Seconds that compiling will take, and whether an earlier compilation measured them."""
    seconds = _record().get(key)
    if isinstance(seconds, int | float) and seconds > 0:
        return float(seconds), True
    return EXPECTED_S.get(model, UNKNOWN_S), False


def note_seconds(key: str, seconds: float) -> None:
    """Remember how long compiling took, if the cache folder can be written."""
    with contextlib.suppress(OSError):
        data = json.dumps({**_record(), key: round(seconds, 1)}, indent=1).encode()
        replace_bytes(cache_folder() / _RECORD, data, sync=False, writer=str(os.getpid()))


def announcement(seconds: float, *, measured: bool) -> str:
    """What users read before they wait."""
    if measured:
        return f"compiling the network; last time this took {seconds:.0f} s"
    return f"compiling the network, about {seconds:.0f} s; later runs reuse what is compiled"


def use_cache_folder() -> None:
    """Let compilers keep their code below the cache folder, unless their own variables are set.

    The folders are private, because what is in them is executed. Where they cannot be made, the
    compilers use their default, a temporary folder.
    """
    for variable, name in (("TORCHINDUCTOR_CACHE_DIR", "inductor"), ("TRITON_CACHE_DIR", "triton")):
        if variable in os.environ:
            continue
        folder = cache_folder().absolute() / name
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            folder.chmod(0o700)
            if _is_ours(folder):
                os.environ[variable] = str(folder)


def _is_ours(folder: Path) -> bool:
    return not hasattr(os, "getuid") or folder.stat().st_uid == os.getuid()


def _record() -> dict[str, Any]:
    try:
        found = json.loads((cache_folder() / _RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}

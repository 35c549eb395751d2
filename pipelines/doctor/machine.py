"""Checks of the machine for `cc doctor`: versions, devices, disk, Ray, MLflow and the `cc` on PATH.

The checks leave nothing behind: no database, no cache folder and no running Ray.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
from packaging.requirements import Requirement
from packaging.version import Version

from colorcore import __version__
from colorcore.cpu import usable_cpus
from colorcore.dataset.layout import DatasetError
from colorcore.dataset.shard_cache import default_bytes
from colorcore.storage.local import cache_folder
from pipelines.cluster import ray_session, require_listener
from pipelines.doctor.finding import Check, Finding, fail, ok, warn
from pipelines.errors import JobError
from pipelines.ray_internals import uses_token_auth
from pipelines.tracking.mlflow_env import environment
from pipelines.tracking.redact import without_secrets
from pipelines.tracking.store import client_for, sqlite_file

PROJECT = "colorcore"
TESTED = Path(__file__).parents[2] / "constraints.txt"
"""The versions that were tested together; exists in a source tree, not in an installed wheel."""
DISK_FAIL, DISK_WARN = 1e9, 10e9
"""Free bytes: a training writes a few checkpoints; 10 GB hold 50,000 samples of 256 px."""
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108
SHARED_WARN = 2e9
"""Bytes of shared memory below which Ray's object store uses the disk (it wants 30% of the RAM)."""
ANSWER_S = 10.0
NODES_ASKED = 64
"""Nodes of a cluster whose versions are checked."""


def machine_checks(
    *, address: str | None, tracking_uri: str, folder: Path, ray: bool = True
) -> list[Check]:
    """All checks that need no dataset; ``ray=False`` neither starts nor contacts Ray."""
    checks: list[Check] = [
        ("python", check_python),
        ("packages", check_packages),
        ("cpu", check_cpu),
        ("gpu", check_gpu),
        ("disk, here", lambda: check_disk(folder)),
        ("disk, cache", check_cache),
        ("disk, temporary", lambda: check_disk(Path(tempfile.gettempdir()))),
        ("shared memory", check_shared_memory),
        ("mlflow", lambda: check_mlflow(tracking_uri)),
        ("cc on PATH", check_command),
    ]
    if ray:
        checks.append(("ray", lambda: check_ray(address)))
    return checks


# -- versions ----------------------------------------------------------------------------------


def check_python() -> Finding:
    """Python has the version that the project's metadata requires."""
    version = platform.python_version()
    found = f"{version} at {sys.executable}, {platform.platform(terse=True)}"
    try:
        wanted = importlib.metadata.metadata(PROJECT)["Requires-Python"]
    except importlib.metadata.PackageNotFoundError:
        wanted = ">=3.11"
    if not Requirement(f"python{wanted}").specifier.contains(version):
        return fail(found, f"install Python {wanted}, then run: make setup PYTHON=…")
    return ok(found)


def check_packages() -> Finding:
    """Installed packages satisfy the project's metadata, and are the tested versions."""
    try:
        wanted = importlib.metadata.requires(PROJECT) or []
    except importlib.metadata.PackageNotFoundError:
        return warn(
            f"{PROJECT} {__version__} runs from {Path(__file__).parents[2]} without "
            "being installed, so its requirements are unknown",
            "install it: make setup, or pip install -e .",
        )
    installed = _installed(wanted)
    wrong = [
        f"{one.name} {installed[one.name] or 'is missing'} (expected {one.specifier})"
        for one in map(Requirement, wanted)
        if one.name in installed and not _satisfies(one, installed[one.name])
    ]
    main = ", ".join(f"{n} {installed[n]}" for n in ("torch", "ray", "mlflow") if installed.get(n))
    if wrong:
        return fail("; ".join(wrong), "install the tested versions: make setup")
    other = _untested(installed)
    if other:
        return warn(
            f"{PROJECT} {__version__}, {main}; tested with {', '.join(other)}",
            "if you see errors, install the tested versions: make setup",
        )
    return ok(f"{PROJECT} {__version__}, {main}; {len(installed)} packages as required")


def _installed(wanted: list[str]) -> dict[str, str | None]:
    """Installed version of each required package, without extras; None if missing."""
    found: dict[str, str | None] = {}
    for one in map(Requirement, wanted):
        if one.marker is None or one.marker.evaluate({"extra": ""}):
            try:
                found[one.name] = importlib.metadata.version(one.name)
            except importlib.metadata.PackageNotFoundError:
                found[one.name] = None
    return found


def _satisfies(one: Requirement, version: str | None) -> bool:
    return version is not None and one.specifier.contains(version, prereleases=True)


def _untested(installed: Mapping[str, str | None]) -> list[str]:
    """Packages in another version than the tested one."""
    if not TESTED.is_file():
        return []
    lines = TESTED.read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if "==" in line and not line.startswith("#"))
    return [
        f"{name} {pins[name]} (here {version})"
        for name, version in installed.items()
        if name in pins and version and Version(version).public != Version(pins[name]).public
    ]


# -- devices -----------------------------------------------------------------------------------


def check_cpu() -> Finding:
    """CPUs available to this process, and free memory."""
    there = os.cpu_count() or 1
    usable = usable_cpus()
    memory = psutil.virtual_memory()
    found = (
        f"{usable} of {there} CPUs, {memory.total / 1e9:.1f} GB of memory, "
        f"{memory.available / 1e9:.1f} GB free"
    )
    if memory.available < 2e9:
        return warn(found, "expected 2 GB free: end other programs, or train with a smaller batch")
    return ok(found)


def check_gpu() -> Finding:
    """GPUs as torch sees them, with memory, bf16 and driver."""
    import torch

    card, driver = _nvidia_smi()
    if not torch.cuda.is_available():
        build = f"torch {torch.__version__}"
        if card is None:
            return ok(f"none ({build}); training runs on the CPU")
        if torch.version.cuda is None:
            return warn(
                f"{card}, but {build} is built without CUDA",
                "install torch's CUDA build: https://pytorch.org/get-started/locally",
            )
        return fail(
            f"{build} (CUDA {torch.version.cuda}) cannot use {card} with driver {driver}",
            "install a newer driver, or torch for an older CUDA; pass the GPUs into a container",
        )
    lines, weak = [], []
    for index in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(index)
        free, total = torch.cuda.mem_get_info(index)
        bf16 = about.major >= 8 or torch.version.hip is not None  # since Ampere
        lines.append(
            f"{about.name}, {free / 1e9:.0f} of {total / 1e9:.0f} GB free, "
            f"{'bf16' if bf16 else 'no bf16'}"
        )
        weak += [] if bf16 else [about.name]
    found = f"{'; '.join(lines)}; driver {driver or 'unknown'}, CUDA {torch.version.cuda}"
    if weak:
        return warn(found, "train with --set train.precision=fp32")
    if not any(map(shutil.which, (os.environ.get("CC") or "gcc", "gcc", "clang"))):
        return warn(found, "torch.compile needs a C compiler: install gcc, or set CC")
    return ok(found)


def _nvidia_smi() -> tuple[str | None, str | None]:
    """The first card and the driver's version, or None."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None, None
    try:
        answer = subprocess.run(
            [tool, "--query-gpu=name,driver_version", "--format=csv,noheader"],
            capture_output=True, text=True, check=True, timeout=ANSWER_S,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None, None
    name, _, driver = next(iter(answer.stdout.splitlines()), "").partition(",")
    return name.strip() or None, driver.strip() or None


# -- disk and memory ---------------------------------------------------------------------------


def check_disk(folder: Path) -> Finding:
    """A folder is writable and has free space."""
    place = _existing(folder)
    free = shutil.disk_usage(place).free
    found = f"{free / 1e9:.1f} GB free in {folder}"
    if not os.access(place, os.W_OK | os.X_OK):
        return fail(f"{folder} is not writable", "choose another folder, or change its permissions")
    if free < DISK_FAIL:
        return fail(
            found, f"expected {DISK_FAIL / 1e9:g} GB: free some space or work in another folder"
        )
    if free < DISK_WARN:
        return warn(
            found,
            f"that holds {int(free / 200e3):,} samples of 256 px: free some space if you need more",
        )
    return ok(found)


def check_cache() -> Finding:
    """The cache for shards of remote datasets is writable, and its limit fits on the disk."""
    folder = cache_folder()
    try:
        limit = default_bytes()
    except DatasetError as error:
        return fail(str(error), "set COLORCORE_CACHE_GB to a number of GB, or unset it")
    place = check_disk(folder)
    if place.verdict == "FAIL":
        return Finding("FAIL", place.found, "set COLORCORE_CACHE to another folder")
    used = sum(file.stat().st_size for file in folder.rglob("*.tar")) if folder.is_dir() else 0
    found = f"{place.found}; {used / 1e9:.2f} GB cached"
    if shutil.disk_usage(_existing(folder)).free + used < limit:
        return warn(
            f"{found}, which may grow to {limit / 1e9:g} GB",
            "if you use remote datasets, lower COLORCORE_CACHE_GB or set COLORCORE_CACHE elsewhere",
        )
    return ok(f"{found}, limit {limit / 1e9:g} GB")


def check_shared_memory() -> Finding:
    """Ray's object store fits in shared memory."""
    folder = SHARED_MEMORY
    if not folder.is_dir():
        return ok(f"this system has no {folder}; Ray uses temporary files")
    free = shutil.disk_usage(folder).free
    found = f"{free / 1e9:.1f} GB free in {folder}"
    if free < min(SHARED_WARN, 0.3 * psutil.virtual_memory().total):
        return warn(
            found,
            "Ray's object store will use the disk: start the container with e.g. --shm-size=4g",
        )
    return ok(found)


def _existing(folder: Path) -> Path:
    """The folder, or its nearest existing parent."""
    folder = folder.absolute()
    return next(place for place in (folder, *folder.parents) if place.is_dir())


# -- Ray and MLflow ----------------------------------------------------------------------------


def check_ray(address: str | None) -> Finding:
    """Ray starts here or the cluster answers, and every node has the same versions."""
    try:
        with ray_session(address):
            import ray

            nodes = [node for node in ray.nodes() if node["Alive"]]
            total = ray.cluster_resources()
            answers = _ask(nodes[:NODES_ASKED])
    except JobError as error:
        return fail(
            str(error),
            "check that the cluster runs (ray status) and that its port is open"
            if address
            else "stop a Ray of another version (ray stop), then see what ray start --head prints",
        )
    where = f"cluster {address}" if address else "local Ray starts"
    cpus, gpus = total.get("CPU", 0.0), total.get("GPU", 0.0)
    token = uses_token_auth()
    count = f"{len(nodes)} node{'' if len(nodes) == 1 else 's'}"
    found = (
        f"{where}: {count}, {cpus:g} CPUs, {gpus:g} GPUs, "
        f"token authentication {'on' if token else 'off'}"
    )
    others = {answer: n for answer, n in answers.items() if answer != _hello()}
    if others:
        kinds = "; ".join(
            f"{n} of {answers.total()} nodes: {answer}" for answer, n in others.items()
        )
        return fail(
            f"{found}; {kinds}; here: {_hello()}",
            "install the same colorcore, Python and torch on every node",
        )
    if cpus < 1:
        return fail(found, "expected at least one CPU: add workers to the cluster")
    if not token:
        return warn(
            found,
            "anyone who reaches its port can run code there: start Ray with RAY_AUTH_MODE=token",
        )
    return ok(found)


def _hello() -> str:
    """The versions on a node, as its task reports them."""
    torch = importlib.metadata.version("torch").partition("+")[0]
    return f"{PROJECT} {__version__}, Python {platform.python_version()}, torch {torch}"


def _ask(nodes: list[dict[str, Any]]) -> Counter[str]:
    """The nodes' answers, with the number of nodes per answer."""
    import ray
    from ray.exceptions import GetTimeoutError, RayError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    tasks = [
        ray.remote(num_cpus=0, max_retries=0)(_hello)
        .options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False))
        .remote()
        for node in nodes
    ]
    answers = Counter[str]()
    ray.wait(tasks, num_returns=len(tasks), timeout=6 * ANSWER_S)
    for task in tasks:
        try:
            answers[str(ray.get(task, timeout=0.1))] += 1
        except GetTimeoutError:
            answers[f"no answer in {6 * ANSWER_S:.0f} s"] += 1
        except RayError as error:
            lines = str(error).strip().splitlines() or [type(error).__name__]
            answers[lines[-1].strip()] += 1
    return answers


def check_mlflow(uri: str) -> Finding:
    """The tracking store answers; a missing SQLite file is not created."""
    shown = without_secrets(uri)
    if (path := sqlite_file(uri)) is not None:
        if not path.exists():
            place = _existing(path.parent)
            if not os.access(place, os.W_OK | os.X_OK):
                return fail(
                    f"{place} is not writable, so {shown} cannot be created",
                    "choose another store with --tracking-uri or MLFLOW_TRACKING_URI",
                )
            return ok(f"no store yet; cc train creates {shown}")
        if problem := _sqlite_problem(path):
            return fail(
                f"{path}: {problem}",
                "move the file away, or choose another store with --tracking-uri",
            )
    try:
        if uri.startswith(("http://", "https://")):
            parts = urlsplit(uri)
            default = 443 if parts.scheme == "https" else 80
            require_listener(parts.hostname or "", parts.port or default)
        with environment(
            {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}
        ):
            experiments = client_for(uri).search_experiments()
    except (JobError, OSError) as error:
        text = str(error)
        return fail(
            text if shown in text else f"cannot reach the tracking store {shown}: {text}",
            "check that the server runs, and check MLFLOW_TRACKING_URI or --tracking-uri",
        )
    names = [experiment.name for experiment in experiments]
    has = "with" if PROJECT in names else "without"
    return ok(f"{shown}: {len(names)} experiments, {has} {PROJECT}")


def _sqlite_problem(path: Path) -> str | None:
    """Why a file is not an MLflow store, or None; opens it read-only."""
    try:
        database = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
    except sqlite3.Error as error:
        return str(error)
    try:
        tables = database.execute("SELECT name FROM sqlite_master WHERE name = 'experiments'")
        return None if tables.fetchone() else "a SQLite file without MLflow's tables"
    except sqlite3.Error as error:
        return str(error)
    finally:
        database.close()


# -- the command -------------------------------------------------------------------------------


def check_command() -> Finding:
    """The shell finds our `cc`, and our `cc` finds the C compiler."""
    found, short = shutil.which("cc"), shutil.which(PROJECT)
    if found is None or not _is_ours(found):
        what = f"cc is {found}, not this program" if found else "no cc on PATH"
        call = PROJECT if short else f"{sys.executable} -m cli.main"
        return warn(
            what, f"activate the environment that {PROJECT} is installed in, or run: {call}"
        )
    here = Path(found).absolute().parent
    others = [
        folder
        for folder in os.environ.get("PATH", os.defpath).split(os.pathsep)
        if Path(folder).absolute() != here
    ]
    compilers = [place for folder in others if (place := shutil.which("cc", path=folder))]
    compiler = next((place for place in compilers if not _is_ours(place)), None)
    if compiler is None:
        return warn(
            f"cc is {found}; PATH has no C compiler named cc after it",
            "install one if you compile C here; this program does not need it",
        )
    return ok(f"cc is {found}; compiler calls go to {compiler}")


def _is_ours(program: str) -> bool:
    try:
        answer = subprocess.run(
            [program, "--version"], capture_output=True, text=True, check=False, timeout=ANSWER_S
        )
    except (OSError, subprocess.SubprocessError):
        return False
    return answer.stdout.startswith(PROJECT)

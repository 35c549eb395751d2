"""`cc doctor`: each check can fail, and a failed check never stops the others."""

from __future__ import annotations

import json
import pickle
import shutil
import socket
import sqlite3
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from colorcore.dataset.layout import read_info, write_info
from colorcore.storage.location import open_store
from pipelines.doctor import job as doctor
from pipelines.doctor import machine, precursor
from pipelines.doctor.dataset import (
    check_colours,
    check_counts,
    check_decoding,
    check_palette,
    check_samples,
    check_shards,
    dataset_checks,
)
from pipelines.doctor.finding import Finding
from pipelines.doctor.job import Health, examine
from pipelines.run_log.runs import end_run, start_run


def health(dataset: Path | None, tmp_path: Path) -> Health:
    return examine(dataset, tracking_uri=f"sqlite:///{tmp_path}/mlflow.db", quick=True)


def by_name(found: Health) -> dict[str, str]:
    return {line.check: line.verdict for line in found.lines}


@pytest.fixture
def copied(dataset_with_palette: Path, tmp_path: Path) -> Path:
    """A copy of the dataset, to be damaged."""
    return Path(shutil.copytree(dataset_with_palette, tmp_path / "copied"))


# -- all of it ---------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_sound_dataset_passes_and_the_precursor_learns_from_it(
    dataset_with_palette: Path, tmp_path: Path
) -> None:
    seen: list[tuple[int, int]] = []
    found = examine(
        dataset_with_palette,
        tracking_uri=f"sqlite:///{tmp_path}/mlflow.db",
        quick=True,
        on_check=lambda done, total, _: seen.append((done, total)),
    )
    verdicts = by_name(found)
    assert found.count("FAIL") == 0, found.lines
    assert {"python", "packages", "gpu", "mlflow", "decoding", "precursor: resume"} <= set(verdicts)
    assert "precursor: made-up photos" not in verdicts
    assert not {"ray", "precursor: DDP, gloo"} & set(verdicts)
    assert seen[-1] == (len(found.lines), len(found.lines))
    assert not list(tmp_path.iterdir())
    assert json.loads(json.dumps(found.facts()))["fail"] == 0


@pytest.mark.slow
def test_without_a_dataset_photos_are_made_up(tmp_path: Path) -> None:
    verdicts = by_name(health(None, tmp_path))
    assert verdicts["precursor: made-up photos"] == "ok"
    assert verdicts["precursor: learning"] == "ok"


@pytest.mark.slow
def test_a_damaged_dataset_is_told_from_damaged_machinery(copied: Path, tmp_path: Path) -> None:
    shard = sorted(copied.glob("train/*.tar"))[0]
    shard.write_bytes(shard.read_bytes()[:-20_000])
    found = health(copied, tmp_path)
    verdicts = by_name(found)
    assert verdicts["shards"] == "FAIL"
    assert verdicts["precursor: made-up photos"] == verdicts["precursor: learning"] == "ok"
    advice = {line.check: line.advice for line in found.lines}["shards"]
    assert "rerun the same cc shard command" in advice


def test_a_broken_resume_is_one_failed_line(dataset_with_palette, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(precursor, "restore_optimizer", lambda *_: None)
    verdicts = by_name(health(dataset_with_palette, tmp_path))
    failed = {name for name, verdict in verdicts.items() if verdict == "FAIL"}
    assert failed == {"precursor: checkpoint", "precursor: resume"}


def test_a_check_that_raises_has_failed_and_the_next_is_looked_at(monkeypatch) -> None:
    def broken() -> Finding:
        raise ZeroDivisionError("two\nlines")

    line = doctor._line("a", broken)
    assert (line.verdict, line.found) == ("FAIL", "ZeroDivisionError: two lines")
    assert line.advice


def test_made_up_photos_that_cannot_be_read_stop_the_proofs(tmp_path, monkeypatch) -> None:
    """Like an OpenCV build without a decoder."""
    monkeypatch.setattr(doctor, "made_up_photo", lambda seed: np.zeros((96, 128, 3), np.uint8))
    verdicts = by_name(health(None, tmp_path))
    assert verdicts["precursor: made-up photos"] == "FAIL"
    assert not {"precursor: learning", "precursor: batching"} & set(verdicts)


@pytest.mark.slow
def test_a_dataset_in_a_bucket(dataset_with_palette, s3_server, monkeypatch, tmp_path) -> None:
    s3_server.make_bucket("doctor")
    for path in dataset_with_palette.rglob("*"):
        if path.is_file():
            name = f"set/{path.relative_to(dataset_with_palette)}"
            s3_server.put("doctor", name, path.read_bytes())
    monkeypatch.setenv("COLORCORE_CACHE", str(tmp_path / "cache"))
    store = open_store(s3_server.uri("doctor", "set"))
    assert pickle.loads(pickle.dumps(store)).location == store.location  # noqa: S301 (our own)
    lines = [doctor._line(*check) for check in dataset_checks(store)]
    assert [line.verdict for line in lines if line.check != "counts"] == ["ok"] * 6, lines
    monkeypatch.setattr(precursor, "PHOTOS", 1)
    proofs = precursor.proofs(store, "cpu", tmp_path / "scratch", ranks=False)
    proved = [doctor._line(name, partial(doctor._prove, proof)) for name, proof in proofs]
    assert [line.verdict for line in proved] == ["ok"] * 6, proved


# -- datasets ----------------------------------------------------------------------------------


def test_no_dataset_says_how_to_make_one(tmp_path: Path) -> None:
    lines = [doctor._line(*check) for check in dataset_checks(open_store(tmp_path / "nowhere"))]
    assert lines[0].verdict == "FAIL"
    assert "cc shard" in lines[0].advice
    assert all(line.verdict == "FAIL" for line in lines)


def test_an_unfinished_dataset(copied: Path) -> None:
    write_info(copied, read_info(copied).model_copy(update={"fingerprint": None}))
    line = doctor._line(*dataset_checks(open_store(copied))[0])
    assert line.verdict == "FAIL"
    assert line.advice == "run the same cc shard command again"


def test_a_dataset_without_palette_and_with_another_ones(copied: Path) -> None:
    store = open_store(copied)
    assert check_palette(store).verdict == "ok"
    write_info(copied, read_info(copied).model_copy(update={"fingerprint": "0" * 16}))
    assert check_palette(store).verdict == "warn"
    shutil.rmtree(copied / "palette")
    found = check_palette(store)
    assert found.verdict == "FAIL"
    assert "cc priors" in found.advice


def test_a_shard_that_is_gone_or_holds_other_samples(copied: Path) -> None:
    store = open_store(copied)
    assert check_shards(store).verdict == "ok"
    shards = sorted(copied.glob("train/*.tar"))
    data = bytearray(shards[0].read_bytes())
    middle = data.index(b".lab.npy", len(data) // 3)
    data[middle : middle + 200] = bytes(200)  # a member's header; the size is as before
    shards[0].write_bytes(data)
    found = check_shards(store)
    assert found.verdict == "FAIL"
    assert shards[0].name in found.found
    shards[1].unlink()
    assert "is missing" in check_shards(store).found


def test_samples_that_are_not_where_the_index_says(copied: Path) -> None:
    store = open_store(copied)
    assert check_samples(store).verdict == "ok"
    for shard in copied.glob("val/*.tar"):
        shard.write_bytes(bytes(shard.stat().st_size))
    line = doctor._line("samples", lambda: check_samples(store))
    assert line.verdict == "FAIL"
    assert "does not match its index" in line.found


def test_values_that_are_no_colours(copied: Path) -> None:
    store = open_store(copied)
    assert check_decoding(store).verdict == "ok"
    shard = sorted(copied.glob("train/*.tar"))[0]
    data = bytearray(shard.read_bytes())
    start = data.index(b"\x93NUMPY") + 128
    noise = np.random.default_rng(0).integers(0, 256, 64 * 64 * 3, np.uint8)
    data[start : start + noise.size] = noise.tobytes()
    shard.write_bytes(data)
    found = check_decoding(store)
    assert found.verdict == "FAIL"
    assert found.found.startswith("1 of ")


def test_greyish_data_is_warned_of(tmp_path, scene, jpeg, build_dataset, dataset) -> None:
    assert check_colours(open_store(dataset)).verdict == "ok"
    photos = tmp_path / "photos"
    photos.mkdir()
    for seed in range(12):
        (photos / f"{seed}.jpg").write_bytes(jpeg((100 + 0.17 * scene(seed)).astype(np.uint8)))
    build_dataset([photos], tmp_path / "dull", min_colorfulness=5)
    found = check_colours(open_store(tmp_path / "dull"))
    assert found.verdict == "warn"
    assert "--min-colorfulness" in found.advice


def test_too_few_samples(dataset, tmp_path, scene, jpeg, build_dataset) -> None:
    assert check_counts(open_store(dataset)).verdict == "warn"  # two dozen photos
    photos = tmp_path / "photos"
    photos.mkdir()
    for seed in range(12):
        (photos / f"{seed}.jpg").write_bytes(jpeg(scene(seed)))
    build_dataset([photos], tmp_path / "few")
    assert check_counts(open_store(tmp_path / "few")).verdict == "FAIL"


# -- the machine -------------------------------------------------------------------------------


def test_an_old_python(monkeypatch) -> None:
    assert machine.check_python().verdict == "ok"
    monkeypatch.setattr(machine.platform, "python_version", lambda: "3.10.12")
    found = machine.check_python()
    assert found.verdict == "FAIL"
    assert ">=3.11" in found.advice


def test_packages_that_are_too_old_missing_or_untested(monkeypatch, tmp_path) -> None:
    assert machine.check_packages().verdict in {"ok", "warn"}
    requires = ["numpy>=2.0", "torch>=99", "no-such-package>=1", 'extra-one>=1; extra == "dev"']
    monkeypatch.setattr(machine.importlib.metadata, "requires", lambda _: requires)
    found = machine.check_packages()
    assert found.verdict == "FAIL"
    assert "torch" in found.found
    assert "no-such-package is missing" in found.found
    assert "extra-one" not in found.found
    assert "numpy" not in found.found
    monkeypatch.setattr(machine.importlib.metadata, "requires", lambda _: ["numpy>=2.0"])
    pins = tmp_path / "constraints.txt"
    monkeypatch.setattr(machine, "TESTED", pins)
    pins.write_text(f"# pins\nnumpy=={np.__version__}\n")
    assert machine.check_packages().verdict == "ok"
    pins.write_text("numpy==2.0.0\n")
    assert machine.check_packages().verdict == "warn"


def test_little_disk(monkeypatch, tmp_path) -> None:
    free = SimpleNamespace(free=50e9)
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda _: free)
    monkeypatch.setenv("COLORCORE_CACHE", str(tmp_path / "cache" / "deeper"))
    monkeypatch.setenv("COLORCORE_CACHE_GB", "40")
    assert machine.check_disk(tmp_path / "not" / "yet").verdict == "ok"
    assert machine.check_cache().verdict == "ok"
    monkeypatch.setattr(machine, "SHARED_MEMORY", tmp_path)
    assert machine.check_shared_memory().verdict == "ok"
    free.free = 5e9
    assert machine.check_disk(tmp_path).verdict == "warn"
    assert machine.check_cache().verdict == "warn"
    free.free = 0.06e9  # a container's shared memory
    assert machine.check_disk(tmp_path).verdict == "FAIL"
    assert machine.check_cache().verdict == "FAIL"
    assert "--shm-size" in machine.check_shared_memory().advice
    monkeypatch.setattr(machine, "SHARED_MEMORY", tmp_path / "none")
    assert machine.check_shared_memory().verdict == "ok"
    monkeypatch.setenv("COLORCORE_CACHE_GB", "much")
    assert "COLORCORE_CACHE_GB" in machine.check_cache().advice
    assert not (tmp_path / "cache").exists()


def test_a_folder_that_may_not_be_written_to(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(machine.os, "access", lambda *_: False)
    assert machine.check_disk(tmp_path).verdict == "FAIL"
    assert machine.check_mlflow(f"sqlite:///{tmp_path}/mlflow.db").verdict == "FAIL"


@pytest.mark.parametrize(
    ("card", "cuda", "verdict"),
    [(None, None, "ok"), ("NVIDIA X", None, "warn"), ("NVIDIA X", "13.0", "FAIL")],
)
def test_a_gpu_that_torch_does_not_see(monkeypatch, card, cuda, verdict) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(machine, "_nvidia_smi", lambda: (card, card and "500.1"))
    assert machine.check_gpu().verdict == verdict


@pytest.mark.parametrize(("major", "verdict"), [(9, "ok"), (7, "warn")])
def test_a_gpu_with_and_without_bf16(monkeypatch, major, verdict) -> None:
    import torch

    about = SimpleNamespace(name="NVIDIA X", major=major)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: about)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (70e9, 80e9))
    monkeypatch.setenv("CC", sys.executable)  # something that is there
    found = machine.check_gpu()
    assert found.verdict == verdict
    assert "70 of 80 GB free" in found.found


def test_ray_answers(local_ray: None) -> None:
    found = machine.check_ray(None)
    assert found.verdict == "ok", found
    assert "1 node, 2 CPUs" in found.found
    assert "authentication on" in found.found


def test_nodes_with_other_versions(local_ray: None, monkeypatch) -> None:
    monkeypatch.setattr(machine, "_ask", lambda _: machine.Counter({"colorcore 9, Python 4": 1}))
    assert "1 of 1 nodes: colorcore 9" in machine.check_ray(None).found


def test_ray_without_a_token_is_warned_of(local_ray: None, monkeypatch) -> None:
    monkeypatch.setattr(machine, "uses_token_auth", lambda: False)
    assert machine.check_ray(None).verdict == "warn"


def test_a_ray_address_at_which_nothing_listens(closed_port: int) -> None:
    """In a separate process, because Ray may already be connected in this one."""
    code = (
        "import sys\nfrom pipelines.doctor.machine import check_ray\n"
        "found = check_ray(sys.argv[1])\nprint(found.verdict, found.found)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, f"127.0.0.1:{closed_port}"],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.stdout.startswith(f"FAIL cannot reach 127.0.0.1:{closed_port}"), done.stderr


def test_a_tracking_store_that_is_there(tracking: str) -> None:
    end_run(start_run(tracking, "a run", {}, {}, None), "FINISHED", {})
    found = machine.check_mlflow(tracking)
    assert found.verdict == "ok"
    assert found.found.endswith("with colorcore")


def test_a_store_that_is_not_there_yet_is_not_made(tmp_path: Path) -> None:
    assert machine.check_mlflow(f"sqlite:///{tmp_path}/new/mlflow.db").verdict == "ok"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", [b"", b"no database at all, but long enough to be read as one"])
def test_a_file_that_is_no_store_is_left_alone(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "mlflow.db"
    path.write_bytes(content)
    assert machine.check_mlflow(f"sqlite:///{path}").verdict == "FAIL"
    assert path.read_bytes() == content


def test_another_programs_database(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        database.execute("CREATE TABLE birds (name TEXT)")
    assert machine.check_mlflow(f"sqlite:///{tmp_path}/mlflow.db").verdict == "FAIL"


def test_a_tracking_server_that_does_not_answer(closed_port: int) -> None:
    found = machine.check_mlflow(f"http://who:secret@127.0.0.1:{closed_port}")
    assert found.verdict == "FAIL"
    assert "secret" not in found.found


@pytest.fixture
def closed_port():
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # a port of ours that takes no connection
        yield closed.getsockname()[1]


def test_which_cc(tmp_path: Path, monkeypatch) -> None:
    for name, says in (("ours", "colorcore 0.1.0"), ("gcc", "cc (GCC) 12.2.0")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "cc").write_text(f"#!/bin/sh\necho '{says}'\n")
        (tmp_path / name / "cc").chmod(0o755)
    ours, gcc = tmp_path / "ours", tmp_path / "gcc"
    for path, verdict, found in (
        (f"{ours}:{gcc}", "ok", f"compiler calls go to {gcc}/cc"),
        (f"{gcc}:{ours}", "warn", "not this program"),
        (f"{ours}", "warn", "no C compiler"),
        (f"{tmp_path}", "warn", "no cc on PATH"),
    ):
        monkeypatch.setenv("PATH", path)
        answer = machine.check_command()
        assert (answer.verdict, found in answer.found) == (verdict, True), answer

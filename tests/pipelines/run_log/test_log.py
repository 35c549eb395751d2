"""Logging loses nothing and keeps nobody waiting, against a real server that comes and goes."""

from __future__ import annotations

import json
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from colorcore.recipes.recipe import load_recipe
from colorcore.training.events import ValidationEvent
from pipelines.errors import JobError
from pipelines.run_log.delivery import Delivery, deliver
from pipelines.run_log.log import HELD_PICTURES, RunLog
from pipelines.run_log.observer import RunObserver
from pipelines.run_log.resend import resend_runs
from pipelines.run_log.runs import end_run, start_run
from pipelines.run_log.spool import RECORDS, Spool, header, spool_folder
from pipelines.tracking.store import TrackedRun
from tests.pipelines.tracking_server import TrackingServer
from tests.servers.flaky_proxy import FlakyS3, flaky_proxy
from tests.servers.s3 import S3

pytestmark = pytest.mark.slow

KEY = "val/grey - predicted - truth"


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TrackingServer]:
    server = TrackingServer(tmp_path_factory.mktemp("server"))
    server.start()
    yield server
    server.stop()


@pytest.fixture
def server(running: TrackingServer, monkeypatch: pytest.MonkeyPatch) -> TrackingServer:
    """The server, running; a test may leave it stopped."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    if not running.answers():
        running.start()
    return running


@pytest.fixture(scope="module")
def _proxy(running: TrackingServer) -> Iterator[FlakyS3]:
    with flaky_proxy(f"127.0.0.1:{running.port}") as proxy:
        yield proxy


@pytest.fixture
def proxy(server: TrackingServer, _proxy: FlakyS3) -> FlakyS3:
    """A proxy before the server; "all" makes it answer 503, as a balancer without servers does."""
    _proxy.set("none")
    return _proxy


@pytest.fixture
def run(proxy: FlakyS3, request: pytest.FixtureRequest) -> TrackedRun:
    """A run that is reached through the proxy."""
    began = start_run(f"http://{proxy.endpoint}", request.node.name, {"lr": 1}, {}, None)
    return TrackedRun(began.uri, began.experiment_id, began.run_id, patience_s=1.0)


def log_for(run: TrackedRun, out: Path) -> RunLog:
    return RunLog(run.uri, run.run_id, spool_folder(run.run_id, out))


def picture() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (40, 60, 3)).astype(np.uint8)


def loss(server: TrackingServer, run: TrackedRun, key: str = "loss") -> list[tuple[int, float]]:
    return server.stored(run.run_id, key)


def log_some(log: RunLog, steps: range) -> None:
    for step in steps:
        log.metrics({"loss": 1 / (step + 1)}, step)


EXPECTED = [(step, 1 / (step + 1)) for step in range(60)]


def test_a_server_that_is_down_for_a_while_misses_nothing(
    server: TrackingServer, tmp_path: Path
) -> None:
    """The server is killed and started again."""
    run = start_run(server.uri, "away", {}, {}, None)
    log = log_for(run, tmp_path)
    log_some(log, range(20))
    server.stop()
    log_some(log, range(20, 40))
    log.picture(picture, (KEY, 30))
    log.tag("sign.grey", "step 30")
    time.sleep(1.5)  # some tries fail
    assert (spool_folder(run.run_id, tmp_path) / RECORDS).exists()
    server.start()
    log_some(log, range(40, 60))
    assert log.close(60) == 0
    assert loss(server, run) == EXPECTED
    assert server.client().get_run(run.run_id).data.tags["sign.grey"] == "step 30"
    files = server.images(run.run_id)
    assert len(files) == 2
    (png,) = [name for name in files if name.endswith(".png")]
    got = Image.open(server.client().download_artifacts(run.run_id, png, str(tmp_path)))
    np.testing.assert_array_equal(np.asarray(got), picture())
    assert not (tmp_path / "run-log").exists()


def test_a_frozen_server_keeps_nobody_waiting(
    server: TrackingServer, run: TrackedRun, tmp_path: Path
) -> None:
    log = log_for(run, tmp_path)
    server.freeze()
    try:
        log_some(log, range(60))  # would take minutes if each waited for its try to fail
        assert log.close(0.5) == 60
    finally:
        server.thaw()
    resend_runs([str(tmp_path)])  # whatever the frozen server did not receive
    assert loss(server, run) == EXPECTED


def test_a_lost_answer_duplicates_nothing(
    server: TrackingServer, proxy: FlakyS3, run: TrackedRun, tmp_path: Path
) -> None:
    """The server handles the call, and the connection breaks before its answer."""
    proxy.set("lost:2@POST")
    log = log_for(run, tmp_path)
    for start in range(0, 60, 20):
        log_some(log, range(start, start + 20))
        time.sleep(1.2)
    log.picture(picture, (KEY, 30))
    assert log.close(60) == 0
    assert proxy.counts()["failures"] > 0
    assert loss(server, run) == EXPECTED
    assert len(server.images(run.run_id)) == 2


def test_unsent_records_are_resent_and_sending_twice_stores_once(
    server: TrackingServer, proxy: FlakyS3, run: TrackedRun, tmp_path: Path
) -> None:
    out, best, palette = tmp_path / "model", tmp_path / "model" / "best", tmp_path / "palette.png"
    best.mkdir(parents=True)
    (best / "model.safetensors").write_bytes(b"weights")
    palette.write_bytes(b"colours")
    log = log_for(run, out)
    log_some(log, range(30))
    proxy.set("all")
    log_some(log, range(30, 60))
    log.picture(picture, (KEY, 30))
    log.close(0.2)
    unsent = end_run(run, "FINISHED", {"best": best, "palette": palette}, out)
    assert unsent is not None
    assert unsent.place == str(out / "run-log" / run.run_id)
    assert "cc resend" in str(unsent)
    palette.unlink()  # the job's temporary copy is gone by then
    copy = shutil.copytree(out, tmp_path / "copy" / "model")
    with pytest.raises(JobError, match="cannot reach the tracking store http://127"):
        resend_runs([str(out)])
    proxy.set("none")
    assert server.client().get_run(run.run_id).info.status == "RUNNING"
    command = [sys.executable, "-m", "cli.main", "resend", str(out), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["runs"][0]["run_id"] == run.run_id
    assert not (out / "run-log").exists()
    for _ in range(2):
        assert loss(server, run) == EXPECTED
        assert len(server.images(run.run_id)) == 2
        listed = server.client().list_artifacts(run.run_id, "best")
        assert [item.path for item in listed] == ["best/model.safetensors"]
        assert [item.path for item in server.client().list_artifacts(run.run_id, "palette")]
        ended = server.client().get_run(run.run_id).info
        assert ended.status == "FINISHED"
        if copy.exists():
            (copy / "run-log" / run.run_id / "sent").unlink(missing_ok=True)  # send all of it
            resend_runs([str(copy / "run-log" / run.run_id / RECORDS)])
            shutil.rmtree(copy)
    assert resend_runs([str(out)]) == []


def test_a_spool_in_an_object_store_is_resent_from_there(
    server: TrackingServer,
    proxy: FlakyS3,
    run: TrackedRun,
    s3_server: S3,
    tmp_path: Path,
) -> None:
    bucket = s3_server.make_bucket("run-log")
    out = s3_server.uri(bucket, "model")
    proxy.set("all")
    observer = RunObserver(run, load_recipe("simple"), out)
    observer.on_validation(
        ValidationEvent(1, 5, {"psnr": 20.0}, True, torch.zeros(1, 2, 3, 16, 16))
    )
    assert observer.close() > 0
    palette = tmp_path / "palette.png"
    palette.write_bytes(b"colours")
    unsent = end_run(run, "FINISHED", {"palette": palette}, out)
    assert unsent is not None
    assert unsent.place.startswith("s3://run-log/model/run-log/")
    shutil.rmtree(spool_folder(run.run_id, out))  # another machine
    proxy.set("none")
    (report,) = resend_runs([out])
    assert report.run_id == run.run_id
    assert loss(server, run, "val/psnr") == [(5, 20.0)]
    assert len(server.images(run.run_id)) == 4  # for its epoch, and as the best so far
    assert server.client().list_artifacts(run.run_id, "palette")
    assert server.client().get_run(run.run_id).info.status == "FINISHED"
    assert all(key.endswith("/") for key in s3_server.keys(bucket))  # markers of folders


KILLED = """
import sys
import threading
from pathlib import Path
from pipelines.run_log.log import HELD_PICTURES, RunLog
uri, run_id, folder = sys.argv[1:]
log = RunLog(uri, run_id, Path(folder))
for step in range(60):
    log.metrics({"loss": 1 / (step + 1)}, step)
print("logged", flush=True)
sys.stdin.read()
"""


def test_records_of_a_killed_training_are_sent_by_the_next_one_or_resent(
    server: TrackingServer, proxy: FlakyS3, run: TrackedRun, tmp_path: Path
) -> None:
    proxy.set("all")
    folder = spool_folder(run.run_id, tmp_path)
    words = [sys.executable, "-c", KILLED, run.uri, run.run_id, str(folder)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"logged\n"
        deadline = time.monotonic() + 60
        while Spool(folder).unsent() < 60:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        with pytest.raises(JobError, match="a training that still runs"):
            resend_runs([str(tmp_path)])
        child.send_signal(signal.SIGKILL)
    with (folder / RECORDS).open("ab") as file:
        file.write(b'{"kind": "metrics", "at": 17')  # killed in the middle of a line
    copy = shutil.copytree(tmp_path, tmp_path.with_name("again"))
    proxy.set("none")
    log = log_for(run, tmp_path)
    log.metrics({"later": 1.0}, 60)
    assert log.close(60) == 0
    assert loss(server, run) == EXPECTED
    assert loss(server, run, "later") == [(60, 1.0)]
    assert [report.records for report in resend_runs([str(copy)])] == [60]
    assert loss(server, run) == EXPECTED


FULL = """
import resource, sys
from pathlib import Path
from pipelines.run_log.log import HELD_PICTURES, RunLog
uri, run_id, folder, later = sys.argv[1:]
_, most = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (1500, most))
warnings = []
log = RunLog(uri, run_id, Path(folder), warnings.append)
for step in range(60):
    log.metrics({"loss": 1 / (step + 1)}, step)
while not warnings:
    pass
if later == "room":
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
print(log.close(60), warnings)
"""


@pytest.mark.parametrize("later", ["room", "none"])
def test_records_wait_in_memory_while_the_disk_is_full(
    server: TrackingServer, run: TrackedRun, tmp_path: Path, later: str
) -> None:
    """The system refuses to let a file grow, as a full disk would; later it has room, or not."""
    words = [run.uri, run.run_id, str(spool_folder(run.run_id, tmp_path)), later]
    child = subprocess.run(
        [sys.executable, "-c", FULL, *words], capture_output=True, text=True, check=False
    )
    left, _, warnings = child.stdout.partition(" ")
    assert warnings.startswith("['cannot write"), child.stderr
    stored = loss(server, run)
    if later == "room":
        assert (left, stored) == ("0", EXPECTED)
    else:
        assert int(left) > 0
        assert f"{left} records are lost" in warnings
        assert stored == EXPECTED[: len(stored)]  # whatever the disk took


def test_records_are_on_disk_before_a_picture_is_drawn(run: TrackedRun, tmp_path: Path) -> None:
    """Drawing takes long; a process killed meanwhile must not lose what was logged before."""
    started, drawn = threading.Event(), threading.Event()
    records = spool_folder(run.run_id, tmp_path) / RECORDS
    found: list[str] = []

    def slow() -> np.ndarray:
        started.set()
        assert drawn.wait(60)
        return picture()

    def look() -> np.ndarray:
        found.append(records.read_text())
        return picture()

    log = log_for(run, tmp_path)
    log.picture(slow, ("first", 0))
    assert started.wait(60)
    log.picture(look, ("second", 0))
    log.metrics({"loss": 1.0}, 7)
    drawn.set()
    assert log.close(60) == 0
    assert '"step": 7' in found[0]


def test_no_more_pictures_wait_than_the_memory_should_hold(run: TrackedRun, tmp_path: Path) -> None:
    drawn, warnings = threading.Event(), list[str]()

    def slow() -> np.ndarray:
        assert drawn.wait(60)
        return picture()

    log = RunLog(run.uri, run.run_id, spool_folder(run.run_id, tmp_path), warnings.append)
    for number in range(HELD_PICTURES + 3):
        log.picture(slow, (f"picture {number}", 0))
    drawn.set()
    log.close(60)
    assert any("wait to be drawn" in text for text in warnings)


def test_a_refused_record_is_set_aside_and_the_others_are_sent(
    server: TrackingServer, run: TrackedRun, tmp_path: Path
) -> None:
    log = log_for(run, tmp_path)
    log.metrics({"loss": 1.0}, 0)
    log.metrics({"no such name: $": 1.0}, 0)
    log.metrics({"loss": 0.5}, 1)
    assert log.close(60) == 0
    assert loss(server, run) == [(0, 1.0), (1, 0.5)]
    (refused,) = (spool_folder(run.run_id, tmp_path) / "refused.jsonl").read_text().splitlines()
    assert "no such name: $" in json.loads(refused)["values"]


def test_sqlite_stores_nothing_twice(tracking: str, tmp_path: Path) -> None:
    uri = tracking
    run = start_run(uri, "twice", {}, {}, None)
    folder = spool_folder(run.run_id, tmp_path)
    spool = Spool(folder)
    spool.append(
        [
            header(run.run_id, uri),
            {"kind": "metrics", "at": 1, "step": 1, "values": {"loss": 0.5, "nan": float("nan")}},
            {"kind": "metrics", "at": 1, "step": 2, "values": {"loss": float("inf")}},
        ]
    )
    for _ in range(2):
        assert deliver(uri, run.run_id, spool, 0.0) is None
        spool.mark(0)
    with sqlite3.connect(tracking.removeprefix("sqlite:///")) as database:
        asked = "SELECT key, step FROM metrics WHERE run_uuid = ? ORDER BY key, step"
        rows = list(database.execute(asked, (run.run_id,)))
    assert rows == [("loss", 1), ("loss", 2), ("nan", 1)]


def test_a_foreign_spool_sends_no_files_from_elsewhere(tracking: str, tmp_path: Path) -> None:
    uri = tracking
    run = start_run(uri, "foreign", {}, {}, None)
    (tmp_path / "private").write_text("mine")
    spool = Spool(spool_folder(run.run_id, tmp_path / "out"))
    named = {"kind": "artifact", "name": "x", "path": "../../../private"}
    spool.append([header(run.run_id, uri), named])
    Delivery(uri, run.run_id, spool).send()
    assert spool.refused() == 1
    stored = Path(tracking.removeprefix("sqlite:///")).with_name("mlartifacts")
    assert not list((stored / run.run_id).rglob("private"))
    named["path"] = "../../model.txt"  # within --out, which is allowed
    (tmp_path / "out" / "model.txt").write_text("weights")
    spool.append([named])
    Delivery(uri, run.run_id, spool).send()
    assert list((stored / run.run_id).rglob("model.txt"))

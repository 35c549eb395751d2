"""`cc shard --address`: a cluster writes the same bytes, even if one of its nodes dies."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from colorcore.dataset.layout import DatasetError, read_info
from pipelines.sharding import task as unit_task
from tests.clusters import Cluster, namespaced_nodes, several_nodes
from tests.conftest import build_dataset
from tests.pipelines.sharding.folders import (
    OPTIONS,
    command,
    contents,
    files,
    leftovers,
    of_units,
    photos,
    units,
    wait,
)
from tests.servers.child import ROOT
from tests.servers.s3 import serve_s3

pytestmark = pytest.mark.slow

UNITS = 8


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with several_nodes(2) as nodes:
        yield nodes


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos large enough that a unit takes a while."""
    return photos(tmp_path_factory.mktemp("source") / "photos", 4 * UNITS, side=1100)


@pytest.fixture(scope="module")
def local(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same dataset made in this process."""
    dataset = tmp_path_factory.mktemp("local") / "dataset"
    build_dataset([source], dataset, **OPTIONS)
    return dataset


def test_a_unit_that_keeps_failing_stops_no_other(
    cluster: Cluster, source: Path, local: Path, tmp_path: Path
) -> None:
    dataset = shutil.copytree(local, tmp_path / "dataset")
    for unit in (2, 3, 5):
        (dataset / "index" / f"{unit:06d}.parquet").unlink()
    in_the_way = dataset / "histogram" / "000003.npy"
    in_the_way.unlink()
    in_the_way.mkdir()
    words = [*command(source, dataset), "--address", cluster.address]
    done = cluster.driver(words, stderr=subprocess.PIPE, cwd=ROOT)
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    (line,) = [line for line in lines if line.startswith("unit ")]
    assert line.startswith("unit 3 failed: IsADirectoryError: ")
    assert str(in_the_way) in line
    assert "error: 1 of 8 units failed; rerun the same command" in lines
    assert "Traceback" not in done.stderr
    assert units(contents(dataset)) == [0, 1, 2, 4, 5, 6, 7]
    with pytest.raises(DatasetError, match="unfinished"):
        read_info(dataset)
    before = of_units(files(dataset), [0, 1, 2, 4, 5, 6, 7])
    in_the_way.rmdir()
    done = cluster.driver(words, cwd=ROOT)
    assert done.returncode == 0, done.stdout
    assert contents(dataset) == contents(local)
    assert before.items() <= files(dataset).items()
    assert leftovers(dataset) == []


def test_a_node_that_dies_costs_no_more_than_its_units(
    cluster: Cluster, source: Path, local: Path, tmp_path: Path
) -> None:
    dataset = tmp_path / "dataset"
    job = cluster.start([*command(source, dataset), "--address", cluster.address], cwd=ROOT)
    wait(lambda: list(dataset.glob("index/*")) and len(list(dataset.glob(".unit-*"))) >= 2, job)
    cluster.kill(cluster.nodes[0])
    assert len(list(dataset.glob("index/*"))) < UNITS
    said = job.communicate(timeout=200)[0]
    assert job.returncode == 0, said
    assert contents(dataset) == contents(local)
    assert leftovers(dataset) == []


@pytest.mark.parametrize(
    ("env", "cause"),
    [
        ({"RAY_AUTH_TOKEN": "00" * 32}, "InvalidAuthToken"),
        ({"RAY_AUTH_MODE": "disabled"}, "InvalidAuthToken"),
        ({"RAY_AUTH_TOKEN": "", "HOME": "/nowhere"}, "no authentication token was found"),
    ],
)
def test_a_cluster_that_refuses_the_token_says_so(
    cluster: Cluster, env: dict[str, str], cause: str, tmp_path: Path
) -> None:
    code = (
        "import sys\nfrom pipelines.cluster import ray_session\n"
        "from pipelines.errors import JobError\n"
        "try:\n    with ray_session(sys.argv[1]): pass\n"
        "except JobError as error: print('said', repr(str(error)))\n"
    )
    once = {"RAY_NUM_REDIS_GET_RETRIES": "1"}  # Ray itself would ask for 20 seconds
    done = cluster.driver(
        [sys.executable, "-c", code, cluster.address], env=env | once, cwd=ROOT, timeout=120
    )
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("said ")]
    assert f"cannot reach {cluster.address}: " in line
    assert cause in line
    assert "needs RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH" in line
    assert "\\n" not in line
    assert len(line) < 400


def test_from_bucket_to_bucket_on_nodes_with_networks_of_their_own(
    source: Path, local: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Several machines, reached through Ray's client; one is lost halfway."""
    scratch = Path(tempfile.gettempdir())
    before = set(scratch.glob(".unit-*"))
    with namespaced_nodes(2, with_host=True) as network, serve_s3(network.host_ip) as s3:
        s3.make_bucket("photos")
        s3.make_bucket("datasets")
        for path in source.iterdir():
            s3.put("photos", f"2026/{path.name}", path.read_bytes())
        places = s3.uri("photos", "2026"), s3.uri("datasets", "2026")
        address = f"ray://{network.head.ip}:10001"
        job = network.start([*command(*places), "--address", address], cwd=ROOT)

        def done() -> int:
            return len(s3.keys("datasets", "2026/index/"))

        wait(lambda: done() >= 2 and set(scratch.glob(".unit-*")) - before, job)
        network.nodes[1].kill()
        assert done() < UNITS
        said = job.communicate(timeout=250)[0]
        assert job.returncode == 0, said
        there = {key.removeprefix("2026/"): s3.get("datasets", key) for key in s3.keys("datasets")}
        there.pop("", None)  # pyarrow's mark of the folder
        again = network.driver([*command(*places), "--address", address], cwd=ROOT)
        assert "nothing to do" in again.stdout, again.stdout
    expected = contents(local)
    # Where the photos were is the only difference.
    record = there.pop("dataset.json").decode()
    assert (
        record.replace(s3.uri("photos", "2026"), str(source))
        == expected.pop("dataset.json").decode()
    )
    assert there == expected

    # What the dead node's worker left on its disk goes when the next unit is done there.
    monkeypatch.setattr(unit_task, "SCRATCH_AGE_S", 0.0)
    unit_task._sweep_temporary()
    assert set(scratch.glob(".unit-*")) <= before

"""`colorcore.webdataset`: the samples of the product's own loader, as a webdataset pipeline."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset as stock_webdataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.data import DataLoader

import colorcore
from colorcore.color.lab import decode_lab
from colorcore.dataset.layout import DatasetError, index_name
from colorcore.dataset.samples import Samples
from colorcore.stock_pipeline import unpack
from tests.servers.s3 import S3

ROOT = Path(__file__).parents[2]
WORLD = ("RANK", "WORLD_SIZE", "WORKER", "NUM_WORKERS")

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in WORLD:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module", params=["none", "zstd"])
def made(request, tmp_path_factory, scene, jpeg, build_dataset) -> Path:
    """A dozen shards of one to seven samples, with copies across units, in both formats."""
    top = tmp_path_factory.mktemp("stock")
    (top / "photos").mkdir()
    for number in range(60):
        original = number if number % 20 else 1
        data = jpeg(scene(original, 72, 72))
        (top / "photos" / f"{number:02d}.jpg").write_bytes(data)
    options = {"size": 32, "photos_per_unit": 7, "compress": request.param}
    info = build_dataset([top / "photos"], top / "dataset", **options)
    assert info.counts["duplicates"] > 0
    return top / "dataset"


def truth(dataset: Path, split: str = "train") -> dict[str, Tensor]:
    """key -> (3, H, W) CIELAB of every sample, read as `cc train` reads it."""
    samples = Samples(dataset, split)
    positions = np.arange(len(samples))
    return dict(zip(samples.keys(positions), decode_lab(samples.read(positions)), strict=True))


def check(found: list[dict], expected: dict[str, Tensor]) -> None:
    """Each sample exactly once, with the pixels of the product's own reader."""
    assert sorted(sample["__key__"] for sample in found) == sorted(expected)
    for sample in found:
        L, ab = sample["L"], sample["ab"]
        assert (L.dtype, L.shape[0], ab.shape[0]) == (torch.float32, 1, 2)
        assert torch.equal(torch.cat([L, ab]), expected[sample["__key__"]])


def keys(pipeline) -> list[str]:
    return [sample["__key__"] for sample in pipeline]


# Every sample once


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1, 3, 30])
def test_a_loader_gets_each_sample_once(made: Path, workers: int) -> None:
    """Also with more workers than there are shards."""
    samples = Samples(made, "train")
    assert len(samples.shards) < 30
    loader = DataLoader(colorcore.webdataset(made), batch_size=None, num_workers=workers)
    check(list(loader), truth(made))


@pytest.mark.slow
@pytest.mark.parametrize("split", ["train", "val"])
def test_both_splits_without_copies(dataset: Path, split: str) -> None:
    check(list(colorcore.webdataset(str(dataset), split, shuffle=0)), truth(dataset, split))


def test_the_facts_of_a_sample_come_along(dataset: Path, photo_folder) -> None:
    facts = [sample["json"] for sample in colorcore.webdataset(dataset)]
    assert {each["source"] for each in facts} <= set(photo_folder.kept)
    assert all((each["width"], each["height"]) == (128, 96) for each in facts)


def test_the_methods_of_webdataset_work_on_it(made: Path) -> None:
    pairs = colorcore.webdataset(made).to_tuple("L", "ab").batched(4)
    sizes = []
    for L, ab in DataLoader(pairs, batch_size=None, num_workers=2):
        assert L.shape == (len(L), 1, 32, 32)
        assert ab.shape == (len(L), 2, 32, 32)
        assert 0 <= L.min() <= L.max() <= 100
        assert -128 <= ab.min() < 0 < ab.max() <= 127
        sizes.append(len(L))
    assert sum(sizes) == len(truth(made))


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # webdataset leaves its tars open
def test_stock_webdataset_reads_the_shards_with_our_decoder(made: Path) -> None:
    urls = [str(path) for path in sorted((made / "train").glob("*.tar"))]
    expected, suffix = truth(made), Samples(made, "train").suffix.removeprefix(".")
    stock = stock_webdataset.WebDataset(urls, shardshuffle=False).decode(unpack)
    found = {record["__key__"]: record[suffix] for record in stock}
    assert found.keys() > expected.keys()  # copies included
    for key, lab in expected.items():
        assert torch.equal(decode_lab(torch.from_numpy(found[key])), lab)


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    world=st.integers(1, 7),
    workers=st.integers(1, 4),
    shuffle=st.sampled_from([0, 1, 10, 1000]),
    seed=st.integers(0, 2**32),
    epoch=st.integers(0, 1000),
    equal=st.booleans(),
)
def test_ranks_and_workers_together_read_the_split(
    dataset: Path, world: int, workers: int, shuffle: int, seed: int, epoch: int, equal: bool
) -> None:
    """Together all samples once, or all but fewer than there are ranks; per rank equally many."""
    expected = set(truth(dataset))
    options = {"shuffle": shuffle, "seed": seed, "epoch": epoch, "equal": equal}
    shares = []
    for rank in range(world):
        shares.append([])
        for worker in range(workers):
            with pytest.MonkeyPatch.context() as patch:
                for name, value in zip(WORLD, (rank, world, worker, workers), strict=True):
                    patch.setenv(name, str(value))
                shares[-1].append(keys(colorcore.webdataset(dataset, **options)))
    found = [key for share in shares for part in share for key in part]
    assert len(found) == len(set(found))
    assert set(found) <= expected
    assert len(expected) - len(found) == (len(expected) % world if equal else 0)
    totals = [sum(map(len, share)) for share in shares]
    assert max(totals) - min(totals) <= (not equal)
    if equal:  # the same number of batches, too: each worker makes its own
        assert len({tuple(map(len, share)) for share in shares}) == 1


# The order


@pytest.mark.slow
def test_seed_and_epoch_alone_decide_the_order(made: Path) -> None:
    one = colorcore.webdataset(made, seed=1, epoch=5)
    order = keys(one)
    assert keys(one) == order  # the same pipeline once more
    assert keys(colorcore.webdataset(made, seed=1, epoch=5)) == order
    for other in ({"seed": 2, "epoch": 5}, {"seed": 1, "epoch": 6}, {"seed": 5, "epoch": 1}):
        assert keys(colorcore.webdataset(made, **other)) != order
    loader = DataLoader(one, batch_size=None, num_workers=2)
    assert keys(loader) == keys(loader)


def test_without_shuffling_the_order_is_that_of_the_index(made: Path) -> None:
    assert keys(colorcore.webdataset(made, shuffle=0, seed=3, epoch=4)) == list(truth(made))


def test_other_samples_are_left_out_in_other_epochs(dataset: Path, monkeypatch) -> None:
    expected = set(truth(dataset))
    world = next(n for n in (2, 3, 4, 5) if len(expected) % n)
    left = set()
    for epoch in range(12):
        found: set[str] = set()
        for rank in range(world):
            monkeypatch.setenv("RANK", str(rank))
            monkeypatch.setenv("WORLD_SIZE", str(world))
            found |= set(keys(colorcore.webdataset(dataset, epoch=epoch)))
        left |= expected - found
    assert len(left) > len(expected) % world


# Object stores


@pytest.fixture(scope="module")
def bucket(made: Path, s3_server: S3) -> str:
    name = s3_server.make_bucket(f"stock-{Samples(made, 'train').suffix.count('.')}")
    s3_server.put_folder(name, "set", made)
    return name


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bucket_gives_the_same_samples_in_the_same_order(
    made: Path, bucket: str, s3_server: S3, workers: int, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setenv("COLORCORE_CACHE", str(tmp_path / "cache"))
    loaders = [
        DataLoader(colorcore.webdataset(place, epoch=3), batch_size=None, num_workers=workers)
        for place in (s3_server.uri(bucket, "set"), made)
    ]
    there, here = (list(loader) for loader in loaders)
    check(there, truth(made))
    assert [sample["__key__"] for sample in there] == [sample["__key__"] for sample in here]
    assert not (tmp_path / "cache").exists()  # streamed


@pytest.mark.slow
def test_a_store_that_fails_for_a_moment(made: Path, bucket: str, flaky_s3, monkeypatch) -> None:
    monkeypatch.setattr("colorcore.storage.remote.FIRST_PAUSE_S", 0.01)
    pipeline = colorcore.webdataset(flaky_s3.uri(bucket, "set"))
    flaky_s3.set("every:9")
    check(list(pipeline), truth(made))


# Damage


@pytest.fixture
def copy(made: Path, tmp_path: Path) -> Path:
    return shutil.copytree(made, tmp_path / "copy")


def cut(size: Callable[[tarfile.TarFile], int]) -> Callable[[Path], None]:
    def damage(tar: Path) -> None:
        with tarfile.open(tar) as opened:
            end = size(opened)
        tar.write_bytes(tar.read_bytes()[:end])

    return damage


def last(opened: tarfile.TarFile) -> tarfile.TarInfo:
    return opened.getmembers()[-1]


def rename(tar: Path) -> None:
    data = tar.read_bytes()
    key = data[:12]
    tar.write_bytes(data.replace(key, b"999999-00000"))


DAMAGE = {
    "cut between samples": cut(lambda tar: tar.getmembers()[-2].offset),
    "cut in a header": cut(lambda tar: last(tar).offset + 100),
    "cut before the facts": cut(lambda tar: last(tar).offset),
    "cut in an array": cut(lambda tar: tar.getmembers()[-2].offset_data + 700),
    "cut in the facts": cut(lambda tar: last(tar).offset_data + 5),
    "cut at the start": lambda tar: tar.write_bytes(b""),
    "another tar": rename,
    "no tar": lambda tar: tar.write_bytes(b"<html>404</html>" * 500),
    "gone": lambda tar: tar.unlink(),
}


# Only once in workers: a DataLoader takes 5 to 10 seconds to give up those of a failed epoch.
@pytest.mark.parametrize(
    ("damage", "workers"),
    [*((each, 0) for each in DAMAGE.values()), (DAMAGE["cut between samples"], 2)],
    ids=[*DAMAGE, "in a worker"],
)
def test_a_damaged_shard_is_an_error_that_names_it(
    copy: Path, damage: Callable[[Path], None], workers: int
) -> None:
    """webdataset alone ends an epoch early, without an error."""
    tar = max((copy / "train").glob("*.tar"), key=lambda path: path.stat().st_size)
    damage(tar)
    loader = DataLoader(colorcore.webdataset(copy), batch_size=None, num_workers=workers)
    with pytest.raises(DatasetError) as failed:
        list(loader)
    message = str(failed.value).strip().splitlines()[-1]
    index = copy / index_name(int(tar.name[:6]))
    assert f"the shard {tar} " in message
    assert re.search(r"expected \d+ samples, found \d|cannot be read after \d of \d", message)
    assert f"remove {index}, then run the same cc shard command again" in message
    assert "<_io" not in message


def test_pixels_of_another_size(copy: Path) -> None:
    info = json.loads((copy / "dataset.json").read_text())
    info["settings"]["size"] = 64
    (copy / "dataset.json").write_text(json.dumps(info))
    with pytest.raises(DatasetError, match=r"expected \(3, 64, 64\) uint8 .*found \(3, 32, 32\)"):
        list(colorcore.webdataset(copy))


def test_fewer_samples_than_ranks(dataset: Path, monkeypatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1000")
    with pytest.raises(DatasetError, match=r"one sample for each of the 1000 ranks, found \d\d in"):
        list(colorcore.webdataset(dataset))
    assert len(list(colorcore.webdataset(dataset, equal=False))) == 1


def test_no_dataset(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="expected a dataset in"):
        colorcore.webdataset(tmp_path)


def test_no_such_split(dataset: Path) -> None:
    with pytest.raises(DatasetError, match="expected samples in the split 'test'"):
        colorcore.webdataset(dataset, "test")


# The package


@pytest.mark.slow
def test_importing_the_package_imports_nothing_heavy() -> None:
    code = (
        "import sys, colorcore\n"
        "assert not {'torch', 'numpy', 'webdataset'} & set(sys.modules)\n"
        "assert colorcore.webdataset.__module__ == 'colorcore.stock_pipeline'\n"
        "assert 'webdataset' not in sys.modules\n"
        "from colorcore import webdataset\n"
        "assert webdataset is colorcore.webdataset\n"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert answer.returncode == 0, answer.stderr


def test_the_package_has_nothing_else_of_the_kind() -> None:
    with pytest.raises(AttributeError, match="no attribute 'webdatasets'"):
        _ = colorcore.webdatasets


# Process groups

RANKS = """
import sys
import torch.distributed as dist
from torch.utils.data import DataLoader
import colorcore

def main(dataset, store, rank, how):
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=int(rank), world_size=2)
    samples = colorcore.webdataset(dataset, "train")
    loader = DataLoader(samples, batch_size=None, num_workers=2, multiprocessing_context=how)
    print(*(sample["__key__"] for sample in loader))

if __name__ == "__main__":
    main(*sys.argv[1:])
"""


def ranks(
    dataset: Path, folder: Path, how: str, *, in_environment: bool
) -> Iterator[tuple[int, str]]:
    """Exit code and output of two ranks, which may find their numbers in the environment."""
    (folder / "ranks.py").write_text(RANKS)
    processes = []
    for rank in range(2):
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        if in_environment:
            environment |= {"RANK": str(rank), "WORLD_SIZE": "2"}
        words = [folder / "ranks.py", dataset, folder / "store", str(rank), how]
        processes.append(
            subprocess.Popen(
                [sys.executable, *words],
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment,
            )
        )  # fmt: skip
    for process in processes:
        output, _ = process.communicate(timeout=120)
        yield process.returncode, output


@pytest.mark.slow
@pytest.mark.parametrize(("how", "in_environment"), [("fork", False), ("spawn", True)])
def test_two_ranks_with_two_workers_each(
    dataset: Path, tmp_path: Path, how: str, in_environment: bool
) -> None:
    expected = list(truth(dataset))
    shares = []
    for code, output in ranks(dataset, tmp_path, how, in_environment=in_environment):
        assert code == 0, output
        shares.append(output.splitlines()[-1].split())
    assert len(shares[0]) == len(shares[1]) == len(expected) // 2
    assert len({*shares[0], *shares[1]}) == len(expected) // 2 * 2
    assert {*shares[0], *shares[1]} <= set(expected)


@pytest.mark.slow
def test_a_worker_that_cannot_know_its_rank_says_so(dataset: Path, tmp_path: Path) -> None:
    """Otherwise each rank would silently train on all samples."""
    answers = ranks(dataset, tmp_path, "spawn", in_environment=False)
    for rank, (code, output) in enumerate(answers):
        assert code
        assert f"expected rank {rank} of 2 in this DataLoader worker, found rank 0 of 1" in output
        assert "set RANK and WORLD_SIZE" in output


@pytest.mark.slow
def test_the_example_in_the_docs(dataset: Path, tmp_path: Path) -> None:
    """The page's code, started as its comment says."""
    page = (ROOT / "docs" / "datasets.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(# train\.py.*?)```", page, re.DOTALL)
    (tmp_path / "train.py").write_text(code)
    (tmp_path / "photos.data").symlink_to(dataset)
    command = re.match(r"# train\.py: (torchrun .*)\n", code)
    assert command
    words = command[1].split()
    answer = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", *words[1:]],
        cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert answer.returncode == 0, answer.stderr
    lines = answer.stdout.strip().splitlines()
    half = len(Samples(dataset, "train")) // 2
    assert [line.partition(":")[0] for line in lines] == ["epoch 0", "epoch 1"]
    assert all(f"{half} samples per rank" in line for line in lines), lines

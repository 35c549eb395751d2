"""The photos that a report shows, and the sample that is scored at equal colourfulness."""

import numpy as np
import torch

from pipelines.evaluation.details import SHOWN, Details
from pipelines.evaluation.equal import KeptPhotos
from pipelines.pairing.photos import TRUTH, Photo


def photos_of(count: int, read: list[str] | None = None) -> list[Photo]:
    def large(name: str) -> dict[str, np.ndarray]:
        if read is not None:
            read.append(name)
        return {TRUTH: np.zeros((8, 8, 3), np.uint8)}

    names = [f"{number}.jpg" for number in range(count)]
    empty = np.zeros((3, 8, 8), np.uint8)
    return [Photo(name, empty, {}, lambda name=name: large(name)) for name in names]


def gallery(errors: list[float], read: list[str] | None = None) -> dict[str, list[float]]:
    """The scores of the photos shown, by rank."""
    details = Details([], [], "cpu")
    for photo, error in zip(photos_of(len(errors), read), errors, strict=True):
        details._consider(photo, error, {})
    found: dict[str, list[float]] = {}
    for shown in details.gallery(float(np.median(errors))):
        found.setdefault(shown.rank, []).append(shown.score)
        assert set(shown.pictures) == {"truth", "grey"}
    return found


def test_few_photos_are_each_shown_once() -> None:
    assert gallery([4.0]) == {"worst": [4.0]}
    assert gallery([4.0, 2.0]) == {"worst": [4.0], "best": [2.0]}
    assert gallery([4.0, 2.0, 3.0]) == {"worst": [4.0], "median": [3.0], "best": [2.0]}
    five = gallery([1.0, 2.0, 3.0, 4.0, 5.0])
    assert five == {"worst": [5.0, 4.0], "median": [3.0], "best": [1.0, 2.0]}


def test_of_many_photos_the_worst_and_best_of_all_and_few_are_decoded() -> None:
    errors = np.random.default_rng(0).permutation(5000).astype(float).tolist()
    read: list[str] = []
    found = gallery(errors, read)
    assert found["worst"] == [4999.0, 4998.0, 4997.0]
    assert found["best"] == [0.0, 1.0, 2.0]
    assert len(found["median"]) == SHOWN
    assert all(abs(error - 2500) < 1000 for error in found["median"])
    assert len(read) < 400


def test_the_sample_is_random_and_the_same_in_every_run() -> None:
    samples = []
    for _ in range(2):
        kept = KeptPhotos(limit=50)
        photos = photos_of(1000)
        for start in range(0, 1000, 32):
            kept.add(photos[start : start + 32])
        samples.append([photo.name for photo in kept.photos])
    assert samples[0] == samples[1]
    assert len(set(samples[0])) == 50
    assert 300 < np.mean([int(name[:-4]) for name in samples[0]]) < 700
    assert sum(len(batch) for batch in kept.batches()) == 50
    assert torch.equal(torch.from_numpy(kept.photos[0].lab_u8), torch.zeros(3, 8, 8).byte())

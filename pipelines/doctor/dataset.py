"""Checks of a dataset for `cc doctor`: complete, undamaged, colourful and large enough."""

from __future__ import annotations

import tarfile
from typing import TYPE_CHECKING

import numpy as np

from colorcore.color.colorfulness import GREY_CHROMA, colorfulness_u8
from colorcore.color.lab import decode_lab, encode_lab, lab_to_rgb
from colorcore.color.palette import load_palette
from colorcore.dataset.layout import SPLITS, index_name, read_info, read_table
from colorcore.dataset.samples import Samples
from colorcore.recipes.recipe import load_recipe
from colorcore.storage.store import Store
from pipelines.doctor.finding import Check, Finding, fail, ok, warn

if TYPE_CHECKING:
    from numpy.typing import NDArray

SHARDS_MEASURED, REMOTE_MEASURED = 10_000, 100
"""Random shards whose size is compared with the index; fewer in an object store."""
WALKED_BYTES = 200_000_000
"""Bytes of random shards that are read from end to end; of a remote dataset, one shard."""
REMOTE_SHARDS = 2
"""Shards of a remote dataset from which samples are read; each is fetched whole."""
SAMPLES_READ = 128
"""Random samples per split."""
CLOSE, CLOSE_SHARE = 2, 0.01
"""Accepted change of a colour, in stored units, on its way to sRGB and back, and the share of
pixels that may change more. Rounding to 8-bit sRGB costs up to 2 units, more in dark colours."""
GREYISH_CF = 25.0
"""Mean colourfulness below which a dataset counts as greyish: halfway between "slightly" (15) and
"moderately colourful" (33) of Hasler and Süsstrunk (2003, table 2)."""
GREYISH_SHARE = 0.6
"""Share of nearly grey pixels above which a dataset counts as greyish as well."""
FEW_VAL = 50
"""Validation photos below which noise hides the difference between two trainings."""
FEW_STEPS = 20
"""Steps per epoch below which a learning rate schedule in epochs is coarse."""


def dataset_checks(store: Store) -> list[Check]:
    """All checks of a dataset; each assumes that those before it passed."""
    return [
        ("dataset", lambda: check_finished(store)),
        ("palette", lambda: check_palette(store)),
        ("shards", lambda: check_shards(store)),
        ("samples", lambda: check_samples(store)),
        ("decoding", lambda: check_decoding(store)),
        ("colours", lambda: check_colours(store)),
        ("counts", lambda: check_counts(store)),
    ]


def check_finished(store: Store) -> Finding:
    """``dataset.json`` exists, is complete and has a known format."""
    info = read_info(store)
    counts = info.counts or {}
    return ok(
        f"{store.show()}: {counts.get('train', 0):,} train, {counts.get('val', 0):,} val, "
        f"{info.settings.size} px, fingerprint {info.fingerprint}"
    )


def check_palette(store: Store) -> Finding:
    """The palette exists and was made from this dataset."""
    again = f"create it: cc priors {store.show()}"
    try:
        palette = load_palette(store.below("palette"))
    except FileNotFoundError:
        return fail("no palette, which cc train needs", again)
    except ValueError as error:
        return fail(str(error), again)
    there, mine = palette.about.get("dataset"), read_info(store).fingerprint
    if there and there != mine:
        return warn(
            f"{len(palette)} bins of dataset {there}, but the dataset is now {mine}",
            f"update it: cc priors {store.show()}",
        )
    return ok(f"{len(palette)} bins, fingerprint {palette.fingerprint}")


def check_shards(store: Store) -> Finding:
    """Shards have the indexed sizes; a few are read through, member by member."""
    table = read_table(store, "shards.parquet", ["shard", "unit", "bytes"])
    names, sizes = table["shard"].to_pylist(), table["bytes"].to_pylist()
    rng = np.random.default_rng(0)
    limit = SHARDS_MEASURED if store.local is not None else REMOTE_MEASURED
    chosen = rng.permutation(len(names))[:limit].tolist()
    wrong = []
    for i in chosen:
        try:
            size: int | None = store.size(names[i])
        except FileNotFoundError:
            size = None
        if size != sizes[i]:
            wrong.append(f"{names[i]} {'is missing' if size is None else f'has {size:,} bytes'}")
    walked, room = 0, WALKED_BYTES if store.local is not None else 1
    for i in chosen:
        if wrong or room <= 0:
            break
        if problem := _walk(store, names[i], table["unit"][i].as_py()):
            wrong.append(f"{names[i]} {problem}")
        walked, room = walked + 1, room - sizes[i]
    if wrong:
        return fail(
            f"{len(wrong)} of {len(chosen):,} shards do not match the index: "
            f"{'; '.join(wrong[:3])}{' …' if len(wrong) > 3 else ''}",
            f"remove {store.show('index')}/{_unit_of(wrong[0])}.parquet (and those of the other "
            "units), then rerun the same cc shard command",
        )
    total = sum(sizes[i] for i in chosen) / 1e9
    part = "" if len(chosen) == len(names) else f" (of {len(names):,})"
    return ok(
        f"{len(chosen):,} shards{part}, {total:.2f} GB, sizes as indexed; {walked} read to the end"
    )


def check_samples(store: Store) -> Finding:
    """Random samples of both splits can be read at their indexed positions."""
    read = {split: len(_some(store, split)) for split in SPLITS}
    return ok(", ".join(f"{count} {split}" for split, count in read.items()) + " samples read")


def check_decoding(store: Store) -> Finding:
    """Stored LAB survives the way to sRGB and back; values outside sRGB would not."""
    lab_u8 = _some(store, "train")
    rgb = _rgb(lab_u8)
    again = np.stack([encode_lab(photo) for photo in rgb])
    change = np.abs(again.astype(np.int16) - lab_u8.astype(np.int16)).max(axis=1)
    far = (change > CLOSE).mean(axis=(1, 2))
    bad = int((far > CLOSE_SHARE).sum())
    if bad:
        return fail(
            f"{bad} of {len(far)} samples contain values outside sRGB "
            f"({far.max():.0%} of the pixels of the worst)",
            "the shards are damaged or from another program: shard the photos again",
        )
    return ok(f"{len(far)} samples to sRGB and back, within {CLOSE} of 255 ({far.max():.2%} off)")


def check_colours(store: Store) -> Finding:
    """The photos are colourful enough: from greyish photos a model learns to predict grey."""
    lab_u8 = _some(store, "train")
    measured = [colorfulness_u8(photo) for photo in _rgb(lab_u8)]
    cf = float(np.mean(measured))
    chroma = np.hypot(*(lab_u8[:, 1:].astype(np.float32) - 128).swapaxes(0, 1))
    grey = float((chroma <= GREY_CHROMA).mean())
    found = f"mean colourfulness {cf:.1f}, {grey:.0%} nearly grey pixels, in {len(lab_u8)} photos"
    if cf < GREYISH_CF or grey > GREYISH_SHARE:
        return warn(
            f"{found}; expected at least {GREYISH_CF:g} and at most {GREYISH_SHARE:.0%}",
            "a model learns to predict grey from such photos: shard with a higher "
            "--min-colorfulness (cc inspect shows the distribution)",
        )
    return ok(found)


def check_counts(store: Store) -> Finding:
    """There are enough samples for the default recipe's batch and for meaningful scores."""
    counts = _usable(store)
    batch = load_recipe("simple").data.batch
    steps = counts["train"] // batch
    found = f"{counts['train']:,} train, {counts['val']:,} val, {steps:,} steps per epoch"
    if counts["train"] < batch or not counts["val"]:
        return fail(
            f"{found}; expected at least one training batch and one validation photo",
            "shard more photos, raise --val-percent, or lower data.batch",
        )
    if counts["val"] < FEW_VAL:
        return warn(
            f"{found}; scores of so few validation photos are noisy",
            f"shard more photos or raise --val-percent, for at least {FEW_VAL} validation photos",
        )
    if steps < FEW_STEPS:
        return warn(found, "a model soon memorizes few photos: shard more, or set data.crop=0.5")
    return ok(found)


def _usable(store: Store) -> dict[str, int]:
    """Samples per split without copies, as the loader counts them."""
    table = read_table(store, "shards.parquet", ["split", "samples"])
    splits = np.asarray(table["split"].to_pylist())
    samples = table["samples"].to_numpy()
    return {split: int(samples[splits == split].sum()) for split in SPLITS}


def _some(store: Store, split: str) -> NDArray[np.uint8]:
    """The same random samples each time, (N, 3, H, W) uint8; from few shards if remote."""
    samples = Samples(store, split)
    positions = np.arange(len(samples))
    rng = np.random.default_rng(0)
    if store.local is None:
        few = rng.permutation(len(samples.shards))[:REMOTE_SHARDS]
        positions = positions[np.isin(samples.shards_of(positions), few)]
    chosen = np.sort(rng.permutation(positions)[:SAMPLES_READ])
    read: NDArray[np.uint8] = samples.read(chosen).numpy()
    return read


def _rgb(lab_u8: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Stored LAB (N, 3, H, W) -> sRGB (N, H, W, 3) uint8."""
    import torch

    parts = torch.from_numpy(lab_u8).split(16)
    rgb = torch.cat([lab_to_rgb(decode_lab(part)).mul(255).round().byte() for part in parts])
    photos: NDArray[np.uint8] = rgb.permute(0, 2, 3, 1).contiguous().numpy()
    return photos


def _walk(store: Store, shard: str, unit: int) -> str | None:
    """Read a shard from end to end and return what is wrong with it, if anything."""
    rows = read_table(store, index_name(unit), ["key", "shard"], unit=unit).to_pylist()
    # The index of a unit still lists copies, which only the dataset's table leaves out.
    expected = {row["key"] for row in rows if row["shard"] == shard}
    try:
        with store.stream(shard) as file, tarfile.open(fileobj=file, mode="r|") as tar:
            names = [member.name for member in tar]
    except (OSError, tarfile.TarError) as error:
        return f"cannot be read: {error}"
    found = {name.partition(".")[0] for name in names if ".lab.npy" in name}
    if found != expected:
        return (
            f"holds {len(found)} samples, {len(expected & found)} of {len(expected)} indexed ones"
        )
    return None


def _unit_of(what: str) -> str:
    return what.partition(" ")[0].rpartition("/")[2].partition("-")[0]

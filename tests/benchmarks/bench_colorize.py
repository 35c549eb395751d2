"""`cc colorize` of 12-megapixel photos without the network, beside decoding and encoding them.

Before there were tables it was 47 to 79 times; the aim is 2.5. Per pixel, the colours take about
11 ns: half of them for eight reads of tables (R, G and B to light, Y to L, the most chroma that
fits, and three times from light), the rest for arithmetic in a core's cache.

A kernel of all of it, compiled by Numba 0.68, was predicted to take 5 ns. Written plainly it took
15, in four parts that vectorize 8. But importing Numba and reading the smallest kernel from its
cache take 0.53 CPU-s, as much as the kernel saves in twelve photos, and Numba installs 208 MB.

Peak memory is that of the process that colourizes one photo, start-up (0.45 GB) included.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from colorcore.allocator import keep_freed_memory
from colorcore.checkpoints.shipped import START
from tests.benchmarks.paired import cpu_ms, measure, row
from tests.servers.child import Child, Parent

SIZE = (4000, 3000)
QUALITY = 92
PEAKS = [(12, 8), (50, 8), (100, 8), (12, 16), (50, 16), (100, 16)]
"""Megapixels and bits of the photos whose peak memory is measured."""


def run(work: Path, *, rounds: int) -> None:
    """Print the ratio of CPU time, the time per photo of an album, and peaks of memory."""
    from colorcore.colorizing.colorizer import small_copy
    from colorcore.colorizing.compose import paint
    from colorcore.loading import load_colorizer
    from colorcore.photos.original.read import read_original
    from colorcore.photos.refusal import PhotoLimits
    from colorcore.photos.write import COLORIZED, encode_picture, write_whole

    folder = work / "colorize"
    folder.mkdir()
    photo = scene(*SIZE)
    encoded = cv2.imencode(".jpg", photo, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1]
    data, colorizer = encoded.tobytes(), load_colorizer(START, "cpu")
    (page,) = read_original(data, limits=PhotoLimits())
    copy = small_copy(page.pixels, colorizer.size)
    ((colors,),) = colorizer.predict([copy])

    def ours() -> None:
        (page,) = read_original(data, limits=PhotoLimits())
        copy = small_copy(page.pixels, colorizer.size)
        picture = paint(page.pixels, copy, colors)
        made = encode_picture(
            picture, ".jpg", metadata=page.metadata, quality=page.quality, software=COLORIZED
        )
        write_whole(folder / "made.jpg", made)

    def codec() -> None:
        rgb = cv2.imdecode(encoded, cv2.IMREAD_COLOR)
        assert rgb is not None
        cv2.imencode(".jpg", rgb, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])

    keep_freed_memory()  # as the command does; it helps both sides
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        passed = measure(
            {
                "ours": cpu_ms(ours),
                "codec": cpu_ms(codec),
                "network": cpu_ms(lambda: colorizer.predict([copy])),
            },
            rounds=rounds,
        )
    finally:
        cv2.setNumThreads(threads)
    row("12 MP without the network, CPU-ms: decoding and encoding", passed["ours"], passed["codec"])
    row(
        "the network on its copy, CPU-ms: decoding and encoding", passed["network"], passed["codec"]
    )
    for megapixels, bits in PEAKS:
        suffix = ".jpg" if bits == 8 else ".tif"
        child = Child("tests.benchmarks.bench_colorize", str(folder), str(megapixels), suffix)
        found = child.receive(600)
        child.close()
        print(
            f"{megapixels} MP of {bits} bits ({suffix}): peak {found['peak_gb']:.2f} GB, "
            f"{found['cpu_s']:.1f} CPU-s in all"
        )


def scene(width: int, height: int) -> NDArray[np.uint8]:
    """A photograph that comes with scikit-learn, enlarged, with noise.

    With that much, a JPEG of 12 megapixels and quality 92 has 4 MB, as those of cameras do.
    """
    from sklearn.datasets import load_sample_image

    photo = cv2.resize(
        load_sample_image("china.jpg"), (width, height), interpolation=cv2.INTER_CUBIC
    )
    rng = np.random.default_rng(0)
    noise = np.clip(rng.normal(128, 8, (height, width, 3)), 0, 255).astype(np.uint8)
    return np.asarray(cv2.addWeighted(photo, 1, noise, 1, -128), np.uint8)


def main(folder: str, megapixels: str, suffix: str) -> None:
    """Colourize one photo in a process of its own."""
    from pipelines.album.colorize import colorize_photos
    from pipelines.album.settings import ColorizeSettings

    parent, place = Parent(), Path(folder)
    width = round((int(megapixels) * 1e6 * 4 / 3) ** 0.5)
    source = place / f"photo{suffix}"
    if not _made_elsewhere(source, width, suffix):
        raise SystemExit(1)
    started = time.process_time()
    settings = ColorizeSettings(force=True, overwrite=True, max_pixels=200_000_000)
    report = colorize_photos(START, [str(source)], place / "out", settings)
    assert len(report.written) == 1, report.refused
    # Not ru_maxrss, which starts with that of the process that forked this one.
    (line,) = [x for x in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in x]
    parent.send(peak_gb=int(line.split()[1]) * 1024 / 1e9, cpu_s=time.process_time() - started)


def _made_elsewhere(source: Path, width: int, suffix: str) -> bool:
    """Make the photo in a child, whose memory does not count."""
    if child := os.fork():
        return os.waitpid(child, 0)[1] == 0
    import tifffile

    photo: Any = scene(width, width * 3 // 4)
    if suffix == ".tif":
        tifffile.imwrite(source, photo.astype(np.uint16) * 257, photometric="rgb")
    else:
        cv2.imwrite(str(source), photo, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])

"""What a page of before/after sliders holds, read by Python's own HTML parser and Pillow."""

from __future__ import annotations

import base64
import hashlib
import io
import re
import resource
import subprocess
import sys
import threading
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage import data

from pipelines.pages.before_after import MOST_BYTES, BeforeAfterPage, is_page

PHOTO = data.astronaut()
GREY = np.rint(PHOTO @ [0.299, 0.587, 0.114]).astype(np.uint8)
HOSTILE = [
    "<script>alert(1)</script>.jpg",
    "\"'><img src=x onerror=alert(1)>.jpg",
    "&lt;b&gt; &amp; </figcaption></figure></body>.jpg",
    "a\x00b\u2028c\x1b[2J\r\n.jpg",
    "not-utf8-\udcff.jpg",
    "写真/\u202egpj.exe",
]


class Parsed(HTMLParser):
    """Elements with their attributes, and the text below each kind of element."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self._open: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "input"):
            self._open.append(tag)
            self.texts.setdefault(tag, []).append("")

    def handle_endtag(self, tag):
        assert self._open.pop() == tag  # every element is closed, in order

    def handle_data(self, data):
        if self._open:
            self.texts[self._open[-1]][-1] += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def pictures(page: Parsed) -> list[Image.Image]:
    sources = [str(each["src"]) for each in page.all("img")]
    assert all(source.startswith("data:image/jpeg;base64,") for source in sources)
    parts = [base64.b64decode(source.partition(",")[2], validate=True) for source in sources]
    return [Image.open(io.BytesIO(part), formats=["JPEG"]) for part in parts]


def test_photos_are_on_the_page_in_order(tmp_path: Path):
    path = tmp_path / "new" / "page.html"
    with BeforeAfterPage(path, title="Album of 1923") as page:
        assert page.add("one.jpg", GREY, PHOTO, note="chroma ×1.2")
        assert page.add("two.jpg", np.repeat(GREY[:90, :, None], 3, 2), PHOTO[:90])
    assert page.photos == 2
    assert page.left_out == 0
    assert page.bytes == path.stat().st_size
    assert [each.name for each in path.parent.iterdir()] == ["page.html"]
    parsed = Parsed(path)
    assert parsed.texts["title"] == parsed.texts["h1"] == ["Album of 1923"]
    assert parsed.texts["bdi"] == ["one.jpg", "two.jpg"]
    assert "chroma ×1.2" in parsed.texts["span"]
    assert parsed.texts["footer"] == ["2 photos"]
    assert [each["alt"] for each in parsed.all("img")] == [
        "one.jpg, before", "one.jpg, after", "two.jpg, before", "two.jpg, after",
    ]  # fmt: skip
    labels = [each["aria-label"] for each in parsed.all("input")]
    assert labels == ["Before and after: one.jpg", "Before and after: two.jpg"]
    before, after, low, _ = pictures(parsed)
    assert (before.mode, after.mode) == ("L", "RGB")
    assert low.size == (512, 90)
    assert np.abs(np.asarray(before, int) - GREY).mean() < 2
    assert np.abs(np.asarray(after, int) - PHOTO).mean() < 3


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize(
    ("shape", "size"),
    [((3000, 2000), (1067, 1600)), ((20, 4000), (1600, 8)), ((1, 9000), (1600, 1)),
     ((40, 30), (30, 40))],
)  # fmt: skip
def test_pictures_are_reduced_and_never_enlarged(tmp_path: Path, dtype, shape, size):
    level = int(np.iinfo(dtype).max * 0.4)
    with BeforeAfterPage(tmp_path / "p.html") as page:
        page.add("x", np.full(shape, level, dtype), np.full((*shape, 3), level, dtype))
    for picture in pictures(Parsed(tmp_path / "p.html")):
        assert picture.size == size
        assert np.abs(np.asarray(picture, int) - 102).max() <= 1


def test_names_notes_and_titles_are_text(tmp_path: Path):
    path = tmp_path / "p.html"
    with BeforeAfterPage(path, title=HOSTILE[0]) as page:
        for name in HOSTILE:
            page.add(name, GREY[:20, :20], PHOTO[:20, :20], note=name)
    parsed = Parsed(path)
    assert len(parsed.all("script")) == len(parsed.all("style")) == 1
    assert len(parsed.all("figure")) == len(HOSTILE)
    assert len(parsed.all("img")) == 2 * len(HOSTILE)
    assert not [name for _, each in parsed.elements for name in each if name.startswith("on")]
    assert not [each for _, each in parsed.elements if "style" in each]  # the policy forbids it
    readable = [*HOSTILE[:3], "a\ufffdb\ufffdc\ufffd[2J\ufffd\ufffd.jpg", "not-utf8-\ufffd.jpg"]
    assert parsed.texts["bdi"][:5] == readable
    assert parsed.texts["h1"] == HOSTILE[:1]
    assert [str(each["alt"]).removesuffix(", before") for each in parsed.all("img")[::2]][
        :5
    ] == readable


def test_the_policy_allows_this_script_and_this_style_alone(tmp_path: Path):
    with BeforeAfterPage(tmp_path / "p.html"):
        pass
    parsed = Parsed(tmp_path / "p.html")
    policies = [
        str(each["content"]) for each in parsed.all("meta")
        if each.get("http-equiv") == "Content-Security-Policy"
    ]  # fmt: skip
    assert len(policies) == 1
    rules = dict(rule.strip().split(" ", 1) for rule in policies[0].split(";"))
    assert rules["default-src"] == rules["base-uri"] == rules["form-action"] == "'none'"
    assert rules["img-src"] == "data:"
    for tag in ("script", "style"):
        digest = hashlib.sha256(parsed.texts[tag][0].encode()).digest()
        assert rules[f"{tag}-src"] == f"'sha256-{base64.b64encode(digest).decode()}'"
    text = (tmp_path / "p.html").read_text(encoding="utf-8")
    assert not re.findall(r"https?:|@import|url\(", text)


def test_the_page_appears_when_the_block_ends_and_not_at_all_if_it_raises(tmp_path: Path):
    path = tmp_path / "p.html"
    path.write_text("the old page")

    def write_and_fail() -> None:
        with BeforeAfterPage(path) as page:
            page.add("a", GREY, PHOTO)
            assert path.read_text() == "the old page"
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_and_fail()
    assert path.read_text() == "the old page"
    assert list(tmp_path.iterdir()) == [path]
    with BeforeAfterPage(path) as page:
        page.add("a", GREY, PHOTO)
    assert len(Parsed(path).all("figure")) == 1
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_page_counts_what_it_leaves_out(tmp_path: Path):
    path = tmp_path / "p.html"
    with BeforeAfterPage(path, most_bytes=200_000) as page:
        added = [page.add(str(number), GREY, PHOTO) for number in range(9)]
    shown = sum(added)
    assert 0 < shown < 9
    assert added == [True] * shown + [False] * (9 - shown)
    assert (page.photos, page.left_out) == (shown, 9 - shown)
    assert 200_000 <= path.stat().st_size < 400_000
    (footer,) = Parsed(path).texts["footer"]
    photos = "1 photo" if shown == 1 else f"{shown} photos"
    assert footer == f"{photos}; {9 - shown} more had no room on this page"


def test_a_photo_that_the_disk_does_not_take_leaves_the_page_whole(tmp_path: Path):
    path = tmp_path / "p.html"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with BeforeAfterPage(path) as page:
        page.add("fits", GREY[:50, :50], PHOTO[:50, :50])
        resource.setrlimit(resource.RLIMIT_FSIZE, (page.bytes + 5000, limits[1]))
        try:
            with pytest.raises(OSError, match="File too large"):
                page.add("does not fit", GREY, PHOTO)
            page.add("fits, too", GREY[:9, :9], PHOTO[:9, :9])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert Parsed(path).texts["bdi"] == ["fits", "fits, too"]
    assert page.bytes == path.stat().st_size


def test_several_threads_may_add(tmp_path: Path):
    path = tmp_path / "p.html"
    with BeforeAfterPage(path) as page:
        threads = [
            threading.Thread(target=page.add, args=(str(number), GREY[:99], PHOTO[:99]))
            for number in range(24)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(Parsed(path).texts["bdi"], key=int) == [str(number) for number in range(24)]


MEMORY = """
import resource, sys
from pathlib import Path
import numpy as np
from pipelines.pages.before_after import BeforeAfterPage

rng = np.random.default_rng(0)
photo = rng.integers(0, 255, (1200, 1600, 3), np.uint8)  # noise: JPEGs of several megabytes
with BeforeAfterPage(Path(sys.argv[1])) as page:
    page.add("0", photo, photo)
    first = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in range(1, 12):
        page.add(str(number), photo, photo)
print(page.bytes, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - first) * 1024)
"""


def test_memory_does_not_grow_with_the_page(tmp_path: Path):
    command = [sys.executable, "-c", MEMORY, str(tmp_path / "p.html")]
    answer = subprocess.run(command, check=True, capture_output=True, text=True)
    size, grown = map(int, answer.stdout.split())
    assert size > 50_000_000
    assert grown < size / 5


def test_pages_are_recognized(tmp_path: Path):
    path = tmp_path / "p.html"
    assert not is_page(path)
    assert not is_page(tmp_path)
    path.write_text("<!DOCTYPE html><title>mine</title>")
    assert not is_page(path)
    with BeforeAfterPage(path, title="x" * 3000) as page:
        page.add("a", GREY, PHOTO)
    assert is_page(path)
    assert page.bytes < MOST_BYTES


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        (np.zeros((4, 4), np.uint8), np.zeros((4, 5, 3), np.uint8), "two pictures of one size"),
        (np.zeros((4, 4), np.float32), np.zeros((4, 4, 3), np.uint8), r"got \(4, 4\) float32"),
        (np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4, 3), np.uint8), r"got \(4, 4, 4\) uint8"),
        (np.zeros((0, 4), np.uint8), np.zeros((0, 4, 3), np.uint8), r"got \(0, 4\) uint8"),
    ],
)
def test_wrong_calls(tmp_path: Path, before, after, message: str):
    with BeforeAfterPage(tmp_path / "p.html") as page, pytest.raises(ValueError, match=message):
        page.add("a", before, after)
    assert page.photos == 0
    with pytest.raises(ValueError, match="outside its with block"):
        BeforeAfterPage(tmp_path / "q.html").add("a", GREY, PHOTO)

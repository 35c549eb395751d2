"""`cc colorize`: originals are safe, and the failure of one photo is that photo's alone."""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

from cli.main import main
from colorcore.colorizing import files as steps
from colorcore.colorizing.network import NetworkColorizer
from colorcore.photos import write
from colorcore.storage.location import open_store
from colorcore.storage.locks import BusyError, claim
from colorcore.storage.store import StorageError
from pipelines.album import works as module
from pipelines.album.colorize import colorize_photos
from pipelines.album.names import Names
from pipelines.album.settings import ColorizeReport, ColorizeSettings
from pipelines.album.works import GIVE_UP_AFTER
from pipelines.errors import JobError, WrongCallError
from tests.conftest import jpeg, scene
from tests.mounts import mounted
from tests.trainings import fit_here

PNG = ColorizeSettings(suffix=".png", force=True)
AS_PNG = ("--format", "png", "--force")


@pytest.fixture(scope="module")
def model(dataset_with_palette: Path, tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("colorize") / "model"
    fit_here(tiny, dataset_with_palette, out)
    return out


@pytest.fixture
def album(tmp_path: Path) -> Path:
    """album/a.png, album/2020/a.png and album/2020/b.jpg, all different."""
    folder = tmp_path / "album"
    (folder / "2020").mkdir(parents=True)
    Image.fromarray(scene(0)).save(folder / "a.png")
    Image.fromarray(scene(1)).save(folder / "2020" / "a.png")
    (folder / "2020" / "b.jpg").write_bytes(jpeg(scene(2)))
    return folder


def three(folder: Path) -> Path:
    """A folder of a.jpg, b.jpg and c.jpg."""
    folder.mkdir()
    for seed, name in enumerate("abc"):
        (folder / f"{name}.jpg").write_bytes(jpeg(scene(seed)))
    return folder


def tar(path: Path, names: list[str]) -> Path:
    with tarfile.open(path, "w") as file:
        for seed, name in enumerate(names):
            data = jpeg(scene(seed))
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return path


def files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def names(folder: Path) -> list[str]:
    """All files there, temporary ones too."""
    return sorted(files(folder))


# Originals


def its_own_folder(album: Path) -> tuple[list[Path], Path, str]:
    return [album / "a.png"], album, "a.png"


def the_same_folder(album: Path) -> tuple[list[Path], Path, str]:
    return [album], album, "album"


def a_folder_above(album: Path) -> tuple[list[Path], Path, str]:
    return [album / "2020"], album, "2020"


def far_above_a_photo(album: Path) -> tuple[list[Path], Path, str]:
    return [album / "2020" / "b.jpg"], album.parent, "b.jpg"


def a_link_to_the_folder(album: Path) -> tuple[list[Path], Path, str]:
    (album.parent / "link").symlink_to(album)
    return [album / "2020"], album.parent / "link", "2020"


def a_source_through_a_link(album: Path) -> tuple[list[Path], Path, str]:
    (album.parent / "link").symlink_to(album / "2020")
    return [album.parent / "link"], album, "link"


def a_linked_folder_inside_the_source(album: Path) -> tuple[list[Path], Path, str]:
    (album.parent / "all").mkdir()
    (album.parent / "all" / "old").symlink_to(album / "2020")
    return [album.parent / "all"], album, "old/a.png"


def a_linked_photo(album: Path) -> tuple[list[Path], Path, str]:
    (album.parent / "chosen").mkdir()
    (album.parent / "chosen" / "a.png").symlink_to(album / "a.png")
    return [album.parent / "chosen"], album, "chosen/a.png"


def a_photo_linked_by_another_name(album: Path) -> tuple[list[Path], Path, str]:
    """Its picture would have a new name, next to the original."""
    (album.parent / "chosen").mkdir()
    (album.parent / "chosen" / "new.png").symlink_to(album / "a.png")
    return [album.parent / "chosen"], album, "chosen/new.png"


def a_list(album: Path) -> tuple[list[Path], Path, str]:
    (album.parent / "list.txt").write_text("gone.jpg\nalbum/2020/b.jpg\n")
    return [album.parent / "list.txt"], album, "b.jpg"


def a_list_of_uris(album: Path) -> tuple[list[Path], Path, str]:
    (album.parent / "list.txt").write_text((album / "a.png").as_uri())
    return [album.parent / "list.txt"], album, "a.png"


def a_hard_link_at_the_target(album: Path) -> tuple[list[Path], Path, str]:
    """As on a file system where case does not count: another name, the same file."""
    (album.parent / "out").mkdir()
    os.link(album / "2020" / "b.jpg", album.parent / "out" / "b.png")
    return [album / "2020"], album.parent / "out", "b.png"


def a_link_at_the_target(album: Path) -> tuple[list[Path], Path, str]:
    (album.parent / "out" / "2020").mkdir(parents=True)
    (album.parent / "out" / "2020" / "b.png").symlink_to(album / "a.png")
    return [album], album.parent / "out", "2020/b.png"


def a_target_folder_that_is_a_link(album: Path) -> tuple[list[Path], Path, str]:
    (album.parent / "out").mkdir()
    (album.parent / "out" / "2020").symlink_to(album / "2020")
    return [album], album.parent / "out", "2020/a.png"


def a_target_of_a_tar(album: Path) -> tuple[list[Path], Path, str]:
    tar(album.parent / "t.tar", ["x/one.jpg"])
    (album.parent / "out" / "t").mkdir(parents=True)
    os.link(album / "a.png", album.parent / "out" / "t" / "one.png")
    return [album.parent / "t.tar", album / "a.png"], album.parent / "out", "t/one.png"


PLACES = [
    its_own_folder,
    the_same_folder,
    a_folder_above,
    far_above_a_photo,
    a_link_to_the_folder,
    a_source_through_a_link,
    a_linked_folder_inside_the_source,
    a_linked_photo,
    a_photo_linked_by_another_name,
    a_list,
    a_list_of_uris,
    a_hard_link_at_the_target,
    a_link_at_the_target,
    a_target_folder_that_is_a_link,
    a_target_of_a_tar,
]


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("place", PLACES)
def test_originals_are_never_written(
    place: Callable[[Path], tuple[list[Path], Path, str]], overwrite: bool, album: Path
) -> None:
    """Refused before anything is read: even the model may be missing."""
    sources, out, named = place(album)
    before = files(album.parent)
    with pytest.raises(WrongCallError) as refused:
        colorize_photos("nowhere", list(map(str, sources)), out, replace(PNG, overwrite=overwrite))
    assert named in str(refused.value)
    assert str(out) in str(refused.value)
    assert "choose another" in str(refused.value)
    assert files(album.parent) == before


@pytest.mark.parametrize("through_a_link", [False, True])
def test_originals_that_the_listing_leaves_out_are_not_overwritten(
    through_a_link: bool, album: Path
) -> None:
    """--out is left out of the listing, so photos in it are no sources of this call."""
    out, source = album / "2020", album
    if through_a_link:
        source = album.parent / "linked"
        source.mkdir()
        (source / "a.jpg").write_bytes(jpeg(scene(3)))
        (source / "link").symlink_to(album / "2020")
    before = files(album.parent)
    with pytest.raises(WrongCallError, match=r"2020/a\.png is the photo .*; choose another --out"):
        colorize_photos("nowhere", [str(source)], out, replace(PNG, overwrite=True))
    assert files(album.parent) == before


def test_a_file_as_out(album: Path) -> None:
    with pytest.raises(WrongCallError, match="expected a folder for --out, found the file"):
        colorize_photos("nowhere", [str(album)], album.parent / "album" / "a.png", PNG)


def test_a_missing_model_is_named_before_a_missing_photo(tmp_path: Path, capsys) -> None:
    assert main(["cc", "colorize", str(tmp_path / "m"), str(tmp_path / "a.jpg")]) == 1
    assert "expected a checkpoint folder" in capsys.readouterr().err


def test_a_folder_inside_the_photos(model: Path, album: Path) -> None:
    out = album / "colorized"
    first = colorize_photos(model, [str(album)], out, PNG)
    assert names(out) == ["2020/a.png", "2020/b.png", "a.png"]
    before = files(out)
    again = colorize_photos(model, [str(album)], out, PNG)
    assert (again.written, sorted(again.kept)) == ([], sorted(first.written))
    anew = colorize_photos(model, [str(album)], out, replace(PNG, overwrite=True))
    assert (anew.written, anew.kept) == (first.written, [])
    assert files(out) == before


# Existing pictures


def test_existing_pictures_are_kept(model: Path, album: Path, tmp_path: Path) -> None:
    sources = [str(album), str(tar(tmp_path / "t.tar", ["x/a.jpg", "y/a.jpg"]))]
    out = tmp_path / "out"
    (out / "t").mkdir(parents=True)
    mine = [out / "a.png", out / "t" / "a-2.png"]
    for path in mine:
        path.write_bytes(b"mine")
    report = colorize_photos(model, sources, out, PNG)
    assert report.kept == mine
    written = ["2020/a.png", "2020/b.png", "t/a.png"]
    assert [path.relative_to(out).as_posix() for path in report.written] == written
    assert [path.read_bytes() for path in mine] == [b"mine"] * 2
    anew = colorize_photos(model, sources, out, replace(PNG, overwrite=True))
    assert anew.kept == []
    assert sorted(anew.written) == sorted(report.written + mine)
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in mine)


def test_an_interrupted_call_is_continued(model: Path, album: Path, tmp_path: Path) -> None:
    """With the names and bytes of an uninterrupted one, also for a refused photo and tars."""
    (album / "a.jpg").write_bytes(b"no photo")
    sources = [str(tar(tmp_path / "t.tar", ["a.jpg", "b/a.jpg", "c/a.jpg"])), str(album)]
    colorize_photos(model, sources, tmp_path / "whole", PNG)

    def interrupt(done: int, _: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    report = ColorizeReport(tmp_path / "out")
    with pytest.raises(KeyboardInterrupt):
        colorize_photos(model, sources, report.out, PNG, report=report, on_progress=interrupt)
    assert set(files(report.out)) == {str(path.relative_to(report.out)) for path in report.written}
    assert report.left >= 3
    rest = colorize_photos(model, sources, tmp_path / "out", PNG)
    assert sorted(rest.kept) == sorted(report.written)
    assert files(tmp_path / "out") == files(tmp_path / "whole")


def test_names_that_differ_only_in_case_are_different_pictures() -> None:
    """On a file system where case does not count, one would replace the other."""
    relative = [Path(name) for name in ("A.jpg", "a.jpg", "x/É.jpg", "x/e\u0301.jpg", "X/b.png")]
    given = Names(Path("out"), ".png", relative)
    made = [str(given.target(path, "")) for path in relative]
    assert made == ["out/A.png", "out/a-2.png", "out/x/É.png", "out/x/e\u0301-2.png", "out/X/b.png"]


def test_a_second_writer_is_refused(model: Path, album: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with (
        claim(open_store(out), "cc colorize"),
        pytest.raises(BusyError, match=r"cc colorize \(process \d+ on .*\) is writing to .*out;"),
    ):
        colorize_photos(model, [str(album)], out, PNG)
    assert not out.exists()
    assert len(colorize_photos(model, [str(album)], out, PNG).written) == 3


# One photo fails


@pytest.mark.parametrize(
    ("suffix", "width", "limit"), [(".webp", 16_384, "16,383"), (".jpg", 65_501, "65,500")]
)
@pytest.mark.parametrize("known", [True, False])
def test_what_an_encoder_cannot_hold(
    suffix: str, width: int, limit: str, known: bool, model: Path, tmp_path: Path, monkeypatch
) -> None:
    """Known limits are checked before the photo is colourized; other failures are reported."""
    photos = three(tmp_path / "p")
    Image.new("L", (width, 2), 99).save(photos / "b.png")
    (photos / "b.jpg").unlink()
    painted: list[int] = []

    def paint(pixels: np.ndarray, *_: object, **__: object) -> np.ndarray:
        painted.append(pixels.shape[1])
        return pixels

    monkeypatch.setattr(steps, "paint", paint)
    if not known:
        monkeypatch.setattr(write, "_LONGEST_SIDE", {})
    report = colorize_photos(model, [str(photos)], tmp_path / "out", replace(PNG, suffix=suffix))
    assert names(tmp_path / "out") == [f"a{suffix}", f"c{suffix}"]
    ((name, why),) = report.refused.items()
    assert name == str(photos / "b.png")
    assert why.endswith("; use --format png")
    assert (width in painted) != known
    assert not known or limit in why


def fail_to_write(monkeypatch: pytest.MonkeyPatch, part: str, code: int) -> None:
    """Writing half of the bytes fails, as on a full disk."""
    whole = Path.write_bytes

    def write_bytes(path: Path, data: bytes) -> int:
        if part in path.name:
            whole(path, data[: len(data) // 2])
            raise OSError(code, os.strerror(code), str(path))
        return whole(path, data)

    monkeypatch.setattr(Path, "write_bytes", write_bytes)


@pytest.mark.parametrize(
    ("code", "advice"),
    [
        (errno.ENOSPC, "free some space and run the same command again"),
        (errno.EDQUOT, "free some space and run the same command again"),
        (errno.ENAMETOOLONG, "rename the photo, or choose a shorter --out"),
        (errno.EACCES, "choose another --out"),
        (errno.EROFS, "choose another --out"),
        (errno.EIO, "choose another --out"),
    ],
)
def test_a_picture_that_cannot_be_written(
    code: int, advice: str, model: Path, tmp_path: Path, monkeypatch
) -> None:
    photos = three(tmp_path / "p")
    fail_to_write(monkeypatch, "b.png", code)
    report = colorize_photos(model, [str(photos)], tmp_path / "out", PNG)
    assert names(tmp_path / "out") == ["a.png", "c.png"]
    ((name, why),) = report.refused.items()
    assert name == str(photos / "b.jpg")
    assert os.strerror(code) in why
    assert why.endswith(f"; {advice}")


def test_a_path_that_is_too_long(model: Path, tmp_path: Path) -> None:
    photos = three(tmp_path / "p")
    (photos / ("y" * 200)).mkdir()
    shutil.move(photos / "b.jpg", photos / ("y" * 200) / "b.jpg")
    out = tmp_path
    while len(str(out)) < 3800:
        out /= "x" * 100
    report = colorize_photos(model, [str(photos)], out / ("x" * (3980 - len(str(out)))), PNG)
    assert [path.name for path in report.written] == ["a.png", "c.png"]
    ((name, why),) = report.refused.items()
    assert name.endswith("b.jpg")
    assert why.endswith("; rename the photo, or choose a shorter --out")


def test_a_long_name_in_a_tar_is_cut(model: Path, tmp_path: Path) -> None:
    """Names in tars may be longer than a file system takes, also once ``.png`` is added."""
    members = ["a.jpg", f"{'é' * 150}.jpg", f"{'é' * 150}2.jpg"]
    out = tmp_path / "out"
    report = colorize_photos(model, [str(tar(tmp_path / "t.tar", members))], out, PNG)
    assert report.refused == {}
    assert names(out) == ["t/a.png", f"t/{'é' * 100}-2.png", f"t/{'é' * 100}.png"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_in_the_place_of_a_picture(overwrite: bool, model: Path, tmp_path: Path) -> None:
    """It is no picture that could be kept."""
    photos, out = three(tmp_path / "p"), tmp_path / "out"
    (out / "b.png").mkdir(parents=True)
    report = colorize_photos(model, [str(photos)], out, replace(PNG, overwrite=overwrite))
    assert names(out) == ["a.png", "c.png"]
    assert report.kept == []
    ((name, why),) = report.refused.items()
    assert name == str(photos / "b.jpg")
    assert why.startswith(f"cannot write {out / 'b.png'}: another photo's picture or folder has")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 kB."""
    place = tmp_path / "disk"
    place.mkdir()
    with mounted(place, "size=256k"):
        yield place


def test_a_full_disk(model: Path, tmp_path: Path, small_disk: Path) -> None:
    photos = three(tmp_path / "p")
    noise = np.random.default_rng(0).integers(0, 256, (512, 512, 3), dtype=np.uint8)
    Image.fromarray(noise).save(photos / "b.jpg")
    report = colorize_photos(model, [str(photos)], small_disk / "out", PNG)
    assert names(small_disk) == ["out/a.png", "out/c.png"]
    assert list(report.refused) == [str(photos / "b.jpg")]
    assert "No space left" in report.refused[str(photos / "b.jpg")]


def test_a_disk_that_stays_full_ends_the_job_with_its_report(
    model: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    photos = three(tmp_path / "p")
    for number in range(GIVE_UP_AFTER + 2):
        shutil.copy(photos / "c.jpg", photos / f"d{number:02}.jpg")
    fail_to_write(monkeypatch, "d", errno.ENOSPC)
    words = ["cc", "colorize", str(model), str(photos), "--out", str(tmp_path / "out"), "--json",
             *AS_PNG]  # fmt: skip
    assert main(words) == 1
    shown = capsys.readouterr()
    found = json.loads(shown.out)
    assert len(found["written"]) == 3
    assert GIVE_UP_AFTER <= len(found["refused"]) == GIVE_UP_AFTER + 2 - found["left"]
    assert "the last 10 pictures failed" in found["error"]
    assert f"error: expected to write to {tmp_path / 'out'}, the last 10 pictures" in shown.err
    assert "free some space and run the same command again" in shown.err
    assert names(tmp_path / "out") == ["a.png", "b.png", "c.png"]


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
        torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."),
    ],
)
@pytest.mark.parametrize(
    ("room", "where"),
    [(steps, "read_original"), (NetworkColorizer, "predict"), (steps, "encode_picture")],
)
def test_a_photo_that_does_not_fit_into_memory(
    error: Exception, room: ModuleType | type, where: str, model: Path, tmp_path: Path, monkeypatch
) -> None:
    """The network tries a batch, which fails, and then each photo alone, of which one fails."""
    photos = three(tmp_path / "p")
    calls: list[object] = []
    whole = getattr(room, where)
    failing = {1, 3} if where == "predict" else {2}

    def fails(*arguments: object, **options: object) -> object:
        calls.append(arguments)
        if len(calls) in failing:
            raise error
        return whole(*arguments, **options)

    monkeypatch.setattr(room, where, fails)
    report = colorize_photos(model, [str(photos)], tmp_path / "out", replace(PNG, threads=1))
    assert names(tmp_path / "out") == ["a.png", "c.png"]
    assert list(report.refused) == [str(photos / "b.jpg")]
    assert "ran out of memory" in report.refused[str(photos / "b.jpg")]


def test_other_errors_are_not_hidden(model: Path, tmp_path: Path, monkeypatch) -> None:
    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(steps, "paint", fails)
    with pytest.raises(RuntimeError, match="shapes"):
        colorize_photos(model, [str(three(tmp_path / "p"))], tmp_path / "out", PNG)


# The report


@pytest.mark.parametrize("json_", [False, True])
@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (KeyboardInterrupt(), 130, "interrupted; rerun the same command to continue"),
        (StorageError("the bucket does not answer"), 1, "error: the bucket does not answer"),
    ],
)
def test_what_was_written_is_reported_whatever_happens(
    error: BaseException, code: int, said: str, json_: bool, model: Path, tmp_path: Path,
    monkeypatch, capsys,
) -> None:  # fmt: skip
    photos, out = three(tmp_path / "p"), tmp_path / "out"
    (photos / "note.txt").touch()
    reads = iter([module.read_photos, module.read_photos])

    def third_fails(*arguments: object, **options: object) -> object:
        for read in reads:
            return read(*arguments, **options)  # type: ignore[arg-type]
        raise error

    monkeypatch.setattr(module, "read_photos", third_fails)
    words = ["cc", "colorize", str(model), str(photos), "--out", str(out), *AS_PNG]
    assert main([*words, *(["--json"] if json_ else [])]) == code
    shown = capsys.readouterr()
    assert said in shown.err
    # Ctrl-C waits for no photo that is on its way; after an error of a store they are finished.
    there = sorted(map(str, out.glob("*.png")))
    assert len(there) == (0 if isinstance(error, KeyboardInterrupt) else 2)
    if json_:
        found = json.loads(shown.out)
        assert found["written"] == there
        assert (found["kept"], found["refused"]) == ([], {})
        assert found["left"] == 3 - len(there)
        assert found["error"] in said
    elif there:
        assert shown.out.startswith(f"2 pictures in {out}, 1 skipped, 1 left; decoded with ")
    else:
        assert shown.out.startswith(f"0 pictures in {out}, 1 skipped, 3 left; decoded with ")
    monkeypatch.undo()
    assert main(words) == 0
    shown = capsys.readouterr()
    if there:
        assert shown.out.startswith(f"1 picture in {out}, 2 kept, 1 skipped; decoded with ")
        assert "kept 2 existing pictures; replace them with --overwrite" in shown.err
    assert main([*words, "--overwrite"]) == 0
    assert capsys.readouterr().out.startswith(f"3 pictures in {out}, 1 skipped; decoded with ")


def test_control_characters_in_the_folders_name_are_escaped(
    model: Path, tmp_path: Path, capsys
) -> None:
    out = tmp_path / "a\x1b[31mb\n"
    words = ["cc", "colorize", str(model), str(three(tmp_path / "p")), "--out", str(out), *AS_PNG]
    assert main(words) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"3 pictures in {tmp_path}/a\\x1b[31mb\\n; decoded with ")


def test_files_that_are_not_photos_are_counted(model: Path, tmp_path: Path, capsys) -> None:
    photos = three(tmp_path / "p")
    for name in ("a.HEIC", "b.heic", "scan.cr2"):
        (photos / name).write_bytes(b"x")
    tar(photos / "t.tar", ["a.jpg", "a.json"])
    words = ["cc", "colorize", str(model), str(photos), "--out", str(tmp_path / "out"), *AS_PNG]
    assert main(words) == 0
    shown = capsys.readouterr()
    assert "4 pictures in" in shown.out
    assert "4 skipped" in shown.out
    (line,) = [line for line in shown.err.splitlines() if "not photos" in line]
    assert line == "skipped files that are not photos: 2 .heic, 1 .cr2, 1 .json"
    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["skipped"] == {".heic": 2, ".json": 1, ".cr2": 1}


def test_a_source_without_photos_is_an_error_once_the_others_are_done(
    model: Path, tmp_path: Path, capsys
) -> None:
    (tmp_path / "q").mkdir()
    (tmp_path / "q" / "a.heic").touch()
    places = [str(tmp_path / "q"), str(three(tmp_path / "p"))]
    assert (
        main(["cc", "colorize", str(model), *places, "--out", str(tmp_path / "out"), *AS_PNG]) == 1
    )
    shown = capsys.readouterr()
    assert shown.out.startswith("3 pictures in ")
    assert f"error: expected photos in {tmp_path / 'q'}, found none: skipped 1 .heic" in shown.err


@pytest.mark.parametrize("in_a_tar", [False, True])
def test_the_error_names_what_was_found_instead(
    in_a_tar: bool, model: Path, tmp_path: Path
) -> None:
    (tmp_path / "p").mkdir()
    if in_a_tar:
        tar(tmp_path / "p" / "t.tar", ["a.heic", "b.heic", "c.cr2"])
    else:
        for name in ("a.heic", "b.heic", "c.cr2"):
            (tmp_path / "p" / name).touch()
    report = ColorizeReport(tmp_path / "out")
    with pytest.raises(JobError) as refused:
        colorize_photos(model, [str(tmp_path / "p")], report.out, PNG, report=report)
    assert str(refused.value) == (
        f"expected photos in {tmp_path / 'p'}, found none: skipped 2 .heic, 1 .cr2; "
        "check the sources"
    )
    assert report.ignored == Counter({".heic": 2, ".cr2": 1})

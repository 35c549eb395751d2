"""What commands print: one JSON object on stdout, whatever happens, and names that cannot harm."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cli import show
from cli.main import main
from colorcore.photos.refusal import Reason
from tests.conftest import PhotoFolder


def cc(*words: str | Path, **options) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, **options.pop("env", {})}
    command = [sys.executable, "-m", "cli.main", *map(str, words)]
    return subprocess.run(command, capture_output=True, check=False, env=env, text=True, **options)


@pytest.mark.parametrize(
    ("words", "code", "error"),
    [
        (("inspect", "nowhere", "--json"), 1, "nowhere"),
        (("recipes", "--jsn", "--json"), 2, "No such option: --jsn"),
        (("tune", "nowhere", "--trials", "0", "--json"), 2, "greater than or equal to 1"),
        (("priors", "nowhere", "--json"), 1, "nowhere"),
    ],
)
def test_a_failure_is_one_json_object_too(
    words: tuple[str, ...], code: int, error: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["colorcore", *words]) == code
    printed = capsys.readouterr()
    (line,) = printed.out.splitlines()
    told = json.loads(line)
    assert told["exit_code"] == code
    assert error in told["error"]
    assert printed.err


NOISE = """
import ctypes, os, sys
from cli import main, show
def noisy(*_, **__):
    print("from Python")
    os.write(1, b"from a library in C\\n")
    os.system("echo from another process")
    if "fail" in sys.argv: raise RuntimeError("it broke")
    show.as_json({"name": "\\udce9t\\u00e9", "done": 1})
    return 0
import cli.app
import typer
from typing import Annotated
def command(json: Annotated[bool, typer.Option("--json")] = False) -> int:
    return noisy()
cli.app.app.command("noisy")(command)
words = ["colorcore", "noisy", *(["--json"] if "json" in sys.argv else [])]
sys.exit(main.main(words))
"""


def test_what_libraries_print_is_not_on_stdout_beside_the_json() -> None:
    for word, code in (("", 0), ("fail", 1)):
        done = subprocess.run(
            [sys.executable, "-c", NOISE, "json", word],
            capture_output=True, check=False, text=True,
        )  # fmt: skip
        assert done.returncode == code, done.stderr
        told = json.loads(done.stdout)
        assert told == (
            {"name": "\udce9té", "done": 1}
            if not word
            else {
                "error": "RuntimeError: it broke (rerun with --debug for the traceback)",
                "exit_code": 1,
            }
        )
        for source in ("Python", "a library in C", "another process"):
            assert f"from {source}" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_a_terminal_that_lacks_characters_gets_others(
    encoding: str, photo_folder: PhotoFolder
) -> None:
    done = cc("recipes", env={"PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}, encoding=encoding)
    assert done.returncode == 0, done.stderr
    assert "simple" in done.stdout
    bars = cc(
        "inspect", photo_folder.path / "garden", "--no-picture",
        env={"PYTHONIOENCODING": encoding}, encoding=encoding,
    )  # fmt: skip
    assert bars.returncode == 0, bars.stderr
    assert ("█" if encoding == "utf-8" else "?") in bars.stdout
    wrong = cc("inspect", "né\udcff…", env={"PYTHONIOENCODING": encoding}, encoding=encoding)
    assert wrong.returncode == 1
    assert "Traceback" not in wrong.stderr


def test_control_characters_in_names_are_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    show.warn("refused a\x1b[31mb\n.jpg: truncated")
    show.table(["name", "size"], [("x\ty\r", 3), ("é写", 4)])
    show.facts({"picture": "a\x00b"})
    show.line("contact sheet: a\x07\n.png")
    printed = capsys.readouterr()
    assert printed.err == "refused a\\x1b[31mb\\n.jpg: truncated\n"
    assert printed.out.splitlines() == [
        "name    size", "x\\ty\\r     3", "é写         4", "picture  a\\x00b",
        "contact sheet: a\\x07\\n.png",
    ]  # fmt: skip


def test_what_comes_before_the_work_is_said_at_once_and_without_a_count(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with show.progress("train") as advance:
        advance(0, show.NOT_BEGUN, "")
        advance(0, show.NOT_BEGUN, "starting Ray")
        advance(0, show.NOT_BEGUN, "starting the workers")
        advance(0, show.NOT_BEGUN, "starting the workers")
        advance(1, 20, "epoch 1/2")
        advance(2, 20, "epoch 1/2")  # too soon for another line
        advance(20, 20, "epoch 2/2")
    assert capsys.readouterr().err.splitlines() == [
        "train: starting",
        "train: starting Ray",
        "train: starting the workers",
        "train: 1/20, epoch 1/2",
        "train: 20/20, epoch 2/2",
    ]


def test_a_job_that_still_counts_its_work_has_no_total(capsys: pytest.CaptureFixture[str]) -> None:
    with show.progress("shard") as advance:
        advance(0, show.UNKNOWN, "12 listed so far")
        advance(2, show.UNKNOWN, "31 listed so far")  # too soon for another line
    assert capsys.readouterr().err.splitlines() == [
        "shard: starting",
        "shard: 0, 12 listed so far",
    ]


def test_a_photo_above_the_limit_names_the_option_that_raises_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    show.pixel_limit([f"{Reason.UNREADABLE}: it ends early", Reason.TOO_SMALL], 5000)
    assert capsys.readouterr().err == ""
    show.pixel_limit([f"{Reason.BOMB}: expected at most 5000 pixels"], 5000)
    line = "photos of more than 5,000 pixels are refused; --max-pixels raises the limit\n"
    assert capsys.readouterr().err == line

"""`cc` accepts every call of it that the docs and the files of infra/ show."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from cli.compiler import is_compiler_call

ROOT = Path(__file__).parents[2]
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
FILES = [
    path
    for path in (ROOT / "infra").rglob("*")
    if path.suffix in (".yaml", ".sh", ".sbatch") or path.name == "Dockerfile"
]

NOT_YET: tuple[str, ...] = ()
"""Planned calls that the docs show but `cc` does not accept yet."""

OPERATORS = {"|", "||", "&&", ";", "&", ">", ">>", "<", "2>&1"}
PLACEHOLDER = re.compile(r"…|\.\.\.|[{}$`]")


@dataclass(frozen=True)
class Call:
    """One call of `cc` in a file: its words without `cc` itself."""

    path: Path
    line: int
    words: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.path.relative_to(ROOT)}:{self.line}: cc {shlex.join(self.words)}"

    @property
    def text(self) -> str:
        return " ".join(("cc", *self.words))


def calls_in(text: str) -> Iterator[tuple[str, ...]]:
    """The `cc` calls in one shell line, including those quoted for another command."""
    try:
        lexer = shlex.shlex(text, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        lexer.commenters = "#"
        words = list(lexer)
    except ValueError:
        return
    for place, word in enumerate(words):
        if word == "cc":
            rest = words[place + 1 :]
            end = next((i for i, each in enumerate(rest) if each in OPERATORS), len(rest))
            yield tuple(rest[:end])
        elif re.search(r"(^|\s)cc\s", word):  # a command in quotes
            yield from calls_in(word)


def logical_lines(text: str) -> Iterator[tuple[int, str]]:
    """Lines with their numbers; a line that ends in a backslash is joined with the next."""
    start, gathered = 1, ""
    for number, line in enumerate(text.splitlines(), 1):
        if not gathered:
            start = number
        if line.rstrip().endswith("\\"):
            gathered += line.rstrip()[:-1] + " "
            continue
        yield start, gathered + line
        gathered = ""


def blocks(text: str) -> Iterator[tuple[int, str]]:
    """The logical lines of a page's shell code blocks."""
    inside = False
    for number, line in logical_lines(text):
        if line.lstrip().startswith("```"):
            language = line.strip().strip("`")
            inside = not inside and language in ("", "sh", "bash", "shell", "console")
        elif inside:
            yield number, line


def calls_of_page(path: Path) -> list[Call]:
    return [
        Call(path, number, words)
        for number, line in blocks(path.read_text())
        for words in calls_in(line)
    ]


def calls_of_file(path: Path) -> list[Call]:
    """Calls in commands and comments; a comment's text counts as a shell line."""
    text = re.sub(r"^(\s*)#!?[ \t]*", r"\1", path.read_text(), flags=re.MULTILINE)
    return [
        Call(path, number, words)
        for number, line in logical_lines(text)
        if re.search(r"(^|\s|\")cc (train|tune|shard|priors|eval|ui)\b", line)
        for words in calls_in(line)
        if words and not PLACEHOLDER.search(" ".join(words)) and words[0].isalpha()
        if "`" not in line
    ]


@cache
def app() -> Any:
    import typer

    from cli.app import app as typer_app

    return typer.main.get_command(typer_app)


def refusal(words: tuple[str, ...]) -> str | None:
    """The usage error of a call, or None."""
    command = app().commands.get(words[0]) if words and words[0].isalpha() else app()
    if command is None:
        return f"no such command: {words[0]}"
    try:
        command.make_context("cc", list(words if command is app() else words[1:]))
    except Exception as error:
        if type(error).__name__ == "Exit":  # --help and --version
            return None
        return str(getattr(error, "message", error)) or type(error).__name__
    return None


DRAWING = ROOT / "ARCHITECTURE.md"  # its block is a picture
CALLS = [call for path in PAGES if path != DRAWING for call in calls_of_page(path)]
CALLS += [call for path in FILES for call in calls_of_file(path)]


def test_calls_are_found_where_they_are() -> None:
    by_file = {call.path.relative_to(ROOT).as_posix() for call in CALLS}
    assert {
        "README.md",
        "docs/datasets.md",
        "docs/cluster/compose.md",
        "docs/cluster/cloud.md",
        "docs/cluster/slurm.md",
        "infra/kubernetes/rayjob.yaml",
        "infra/slurm/colorcore.sbatch",
    } <= by_file
    assert len(CALLS) > 30


@pytest.mark.parametrize("call", CALLS, ids=str)
def test_cc_takes_it(call: Call) -> None:
    if any(re.fullmatch(pattern, call.text) for pattern in NOT_YET):
        return
    if is_compiler_call(list(call.words)):
        return
    assert refusal(call.words) is None


def test_what_is_wrong_is_refused() -> None:
    assert "no such option" in str(refusal(("train", "photos.data", "--worker", "2"))).lower()
    assert refusal(("trian", "photos.data"))
    assert refusal(("priors", "photos.data", "--bins", "many"))
    assert refusal(("shard", "a", "b", "--size"))
    assert refusal(("--help",)) is None


def options(command: str) -> set[str]:
    found = app().commands.get(command)
    if found is None:
        return set()
    return {each for param in found.params for each in [*param.opts, *param.secondary_opts]}


INLINE = [
    (path, match[1])
    for path in PAGES
    for match in re.finditer(r"`(cc [a-z][^`\n]*)`", path.read_text())
]


@pytest.mark.parametrize(
    ("path", "text"), INLINE, ids=[f"{path.name}: {text}" for path, text in INLINE]
)
def test_options_that_a_sentence_names_exist(path: Path, text: str) -> None:
    words = text.replace("\\|", "|").split()
    if any(re.fullmatch(pattern, " ".join(words)) for pattern in NOT_YET):
        return
    if is_compiler_call(words[1:]):
        return
    assert words[1] in app().commands, text
    named = {word.partition("=")[0].rstrip(",;.)") for word in words if word.startswith("--")}
    assert named <= options(words[1]) | {"--help", "--debug"}, text


def test_what_is_not_there_yet_is_still_not_there() -> None:
    """Once it exists, remove its line from NOT_YET, so that its calls are checked."""
    assert not [
        name for name in app().commands if any(re.fullmatch(each, f"cc {name}") for each in NOT_YET)
    ]

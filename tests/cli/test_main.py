"""The command line from outside: arguments, output and exit codes."""

from __future__ import annotations

import ast
import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest

import cli.main
from tests.conftest import Run
from tests.processes import run_cc

HEAVY = {"torch", "ray", "mlflow", "numpy", "pyarrow", "sklearn", "kornia", "cv2", "PIL"}
COMMANDS = [
    "shard",
    "priors",
    "train",
    "eval",
    "colorize",
    "inspect",
    "recipes",
    "ui",
    "doctor",
    "demo",
]


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_answers_without_importing_anything_heavy(command: str) -> None:
    code = (
        "import sys\nfrom cli.main import main\n"
        f"main(['cc', *{[command] if command else []!r}, '--help'])\n"
        f"loaded = {HEAVY!r} & set(sys.modules)\nsys.exit(f'imported {{loaded}}' if loaded else 0)"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert answer.returncode == 0, answer.stderr
    assert "Usage" in answer.stdout


def test_help_takes_under_three_tenths_of_a_second_of_cpu() -> None:
    """Best of five CPU times, because the machine may be busy."""

    def cpu_s() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert run_cc("--help").returncode == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert min(cpu_s() for _ in range(5)) < 0.3


def test_help_names_every_command(cc: Run) -> None:
    answer = cc("--help")
    assert all(f"\n  {command}" in answer.stdout for command in COMMANDS)


def test_recipes_lists_and_prints_a_file_that_loads(cc: Run, tmp_path: Path) -> None:
    listing = cc("recipes").stdout
    assert "simple" in listing
    assert "unet-l1" in listing
    printed = cc("recipes", "simple")
    assert printed.code == 0
    (tmp_path / "mine.toml").write_text(printed.stdout)
    from colorcore.recipes.recipe import load_recipe

    assert load_recipe(str(tmp_path / "mine.toml")) == load_recipe("simple")


@pytest.mark.parametrize(
    ("arguments", "code", "expected"),
    [
        (["shrad"], 2, "Did you mean 'shard'"),
        (["shard"], 2, "Missing argument"),
        (["shard", "only-one"], 2, "expected SOURCE... DATASET"),
        (["shard", "nowhere", "out"], 2, "found nothing at nowhere"),
        (["shard", "s3://key:secret@bucket/photos", "out"], 2, "expected no credentials"),
        (["shard", ".", "what://bucket/out"], 2, "cannot open what://bucket"),
        (["shard", ".", "out", "--size", "1"], 2, "--size"),
        (["priors", "nowhere"], 1, "make one with: cc shard"),
        (["train", "nowhere"], 1, "make one with: cc shard"),
        (["train", "nowhere", "--recipe", "smiple"], 2, "did you mean simple?"),
        (["train", "nowhere", "--set", "optim.lrr=1"], 2, "did you mean optim.lr?"),
        (["train", "nowhere", "--set", "optim.lr"], 2, "expected KEY=VALUE"),
        (["train", "nowhere", "--from-reading", "unit"], 2, "add --from FILE.pt"),
        (["recipes", "nothing-like-it"], 2, "expected a recipe's name"),
        (["eval", "nowhere", "."], 1, "expected a checkpoint folder"),
        (["colorize", "nowhere", "a.jpg"], 1, "expected a checkpoint folder"),
        (["inspect", "nowhere"], 1, "expected a checkpoint folder"),
        (["ui"], 1, "train first"),
    ],
)
def test_a_wrong_call_is_one_line_that_says_what_to_do(
    cc: Run, arguments: list[str], code: int, expected: str
) -> None:
    answer = cc(*arguments)
    assert answer.code == code, answer.stderr
    assert expected in answer.stderr
    assert "Traceback" not in answer.stderr
    assert answer.stdout == ""
    errors = [line for line in answer.stderr.splitlines() if line.lower().startswith("error")]
    assert len(errors) == 1


def test_an_error_is_one_line_and_its_code_that_of_the_process(tmp_path: Path) -> None:
    answer = run_cc("priors", "nowhere", cwd=tmp_path)
    assert answer.returncode == 1
    assert answer.stderr.startswith("error: ")
    assert answer.stderr.count("\n") == 1
    assert answer.stdout == ""


def test_a_training_does_not_go_into_a_dataset(cc: Run, dataset_with_palette: Path) -> None:
    before = sorted(dataset_with_palette.iterdir())
    words = ("--set", "data.batch=4", "--out", dataset_with_palette)
    answer = cc("train", dataset_with_palette, *words)
    assert answer.code == 2
    assert f"{dataset_with_palette} is a dataset; choose another" in answer.stderr
    assert sorted(dataset_with_palette.iterdir()) == before


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    answer = run_cc("priors", "nowhere", "--debug", cwd=tmp_path)
    assert answer.returncode == 1
    assert "Traceback" in answer.stderr
    assert "DatasetError" in answer.stderr


def test_json_is_one_object(cc: Run, dataset: Path) -> None:
    answer = cc("inspect", dataset, "--json", "--no-picture")
    assert answer.code == 0, answer.stderr
    assert json.loads(answer.stdout)["train"] > 0


def test_the_errors_known_by_name_exist() -> None:
    """They are strings because importing the classes is slow, so a rename would go unnoticed."""
    root = Path(cli.main.__file__).parents[1]
    classes = {
        node.name
        for floor in ("colorcore", "pipelines", "tune")
        for file in root.glob(f"{floor}/**/*.py")
        for node in ast.parse(file.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ClassDef)
    }
    assert classes >= cli.main.OUR_ERRORS | cli.main.WRONG_CALLS


@pytest.mark.parametrize("name", sorted(cli.main.OUR_ERRORS | {"OSError"}))
def test_only_unexpected_errors_name_their_class_and_mention_debug(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(**_: object) -> None:
        raise type(name, (Exception,), {})("a fact; an instruction")

    monkeypatch.setattr("cli.app.app", fails)
    assert cli.main.main(["cc", "shard"]) == (2 if name in cli.main.WRONG_CALLS else 1)
    expected = "error: a fact; an instruction\n"
    if name not in cli.main.OUR_ERRORS:
        expected = f"error: {name}: a fact; an instruction (rerun with --debug for the traceback)\n"
    assert capsys.readouterr().err == expected

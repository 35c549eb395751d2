"""The documentation: it builds without a warning, its notebook runs, and the code is all in it."""

import html
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat
import pytest
from nbclient import NotebookClient

import colorcore
from cli.app import app
from colorcore.losses import TERMS
from colorcore.models import MODELS
from colorcore.recipes.recipe import Recipe, recipe_names

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
NOTEBOOK = DOCS / "python.ipynb"
SPHINX = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html"]


def build(source: Path, site: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*SPHINX, "-d", str(site.with_name("doctrees")), str(source), str(site)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("docs") / "site"
    done = build(DOCS, folder)
    assert done.returncode == 0, done.stderr
    return folder


def text_of(page: Path) -> str:
    return html.unescape(re.sub(r"<[^>]+>", "", page.read_text(encoding="utf-8")))


# The site


@pytest.mark.slow
def test_all_links_within_the_site_lead_somewhere(site: Path) -> None:
    """Sphinx checks the links that it makes; this checks those that browsers see."""
    anchors: dict[Path, set[str]] = {}
    pages = sorted(site.rglob("*.html"))
    for page in pages:
        anchors[page] = set(re.findall(r'\bid="([^"]+)"', page.read_text(encoding="utf-8")))
    broken = []
    for page in pages:
        for link in re.findall(r'(?:href|src)="([^"]+)"', page.read_text(encoding="utf-8")):
            parts = urlsplit(html.unescape(link))
            if parts.scheme or parts.netloc:
                continue
            target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
            lost = parts.fragment and unquote(parts.fragment) not in anchors.get(target, {"": ""})
            if not target.exists() or (target in anchors and lost):
                broken.append(f"{page.relative_to(site)}: {link}")
    assert len(pages) > 20
    assert broken == []


@pytest.mark.slow
def test_the_reference_has_every_command_and_option(site: Path) -> None:
    text = text_of(site / "reference" / "commands.html")
    from typer.main import get_command

    for name, command in get_command(app).commands.items():
        assert f"cc {name}" in text
        for parameter in command.params:
            if parameter.param_type_name == "option":
                assert parameter.opts[0] in text, f"{name} {parameter.opts[0]}"


@pytest.mark.slow
def test_the_reference_has_every_key_of_a_recipe(site: Path) -> None:
    text = text_of(site / "reference" / "recipe-keys.html")
    keys = [key for part in Recipe.model_fields.values() for key in _fields(part.annotation)]
    assert {"lr", "batch", "epochs", "precision", "warmup_epochs"} <= set(keys)
    for name in (*keys, *MODELS, *TERMS, *recipe_names()):
        assert re.search(rf"\b{re.escape(name)}\b", text), name


def _fields(annotation: object) -> list[str]:
    kinds = [annotation, *getattr(annotation, "__args__", ())]
    return [key for kind in kinds for key in getattr(kind, "model_fields", {})]


@pytest.mark.slow
def test_the_reference_has_what_the_package_offers(site: Path) -> None:
    text = text_of(site / "reference" / "python.html")
    for name in colorcore.__all__:
        assert re.search(rf"\b{name}\b", text), name
    for method in ("colorize", "predict_ab", "with_decoding"):
        assert f"{method}(" in text


@pytest.mark.slow
def test_a_link_that_leads_nowhere_stops_the_build(tmp_path: Path) -> None:
    """The build is strict: otherwise the tests above would pass with half of a site."""
    source = tmp_path / "docs"
    source.mkdir()
    shutil.copy(DOCS / "conf.py", source)
    shutil.copytree(DOCS / "_ext", source / "_ext")
    (source / "index.md").write_text(
        "# Pages\n\n[lost](nowhere.md)\n\n```{toctree}\n:glob:\nreference/*\n```\n"
    )
    done = build(source, tmp_path / "site")
    assert done.returncode == 1
    assert "nowhere.md" in done.stderr


# The notebook


def test_the_stored_notebook_was_run_without_errors() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert sum(bool(cell.outputs) for cell in cells) >= 8
    assert not [out for cell in cells for out in cell.outputs if out.output_type == "error"]
    assert NOTEBOOK.stat().st_size < 400_000, "store photos as JPEG, without the PNG beside them"


@pytest.mark.slow
def test_the_notebook_runs(local_ray: None, tmp_path: Path) -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    client = NotebookClient(
        notebook, timeout=400, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
    )
    client.execute()
    shown = [
        output.data
        for cell in notebook.cells
        for output in cell.get("outputs", ())
        if "data" in output
    ]
    assert sum("image/png" in data for data in shown) == 5

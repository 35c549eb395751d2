"""The house rules: what may import what, how long a file may be, where private names may be used.

Each rule is a function of a folder that returns the violations it finds. One test applies it to
this repository, another one to a made-up tree that breaks it, so that no rule can pass in silence.
"""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FLOORS = ("cli", "tune", "pipelines", "colorcore")
"""Top to bottom: a floor imports itself and the floors below it."""
FRONT_DOOR = "colorcore/__init__.py"
"""What users import. It may name all floors, and imports none of them before it is asked to."""
ROOMS: Mapping[str, Sequence[frozenset[str]]] = {
    "colorcore": (
        frozenset(
            {"allocator", "cpu", "decoding", "options", "torch_internals", "transfer", "waiting"}
        ),
        frozenset({"storage"}),
        frozenset({"blocks", "color", "photos"}),
        frozenset({"models", "scores", "dataset", "step"}),
        frozenset({"losses", "inference", "colorizing", "stock_pipeline"}),
        frozenset({"comparison", "recipes"}),
        frozenset({"checkpoints"}),
        frozenset({"training", "loading"}),
        frozenset({"drawing", "export"}),
    ),
    "pipelines": (
        frozenset({"errors", "ray_internals"}),
        frozenset({"cluster"}),
        frozenset({"tracking", "sources"}),
        frozenset({"run_log"}),
        frozenset({"pairing", "sharding", "training"}),
        frozenset({"pages"}),
        frozenset({"inference", "priors", "demo"}),
        frozenset({"album", "evaluation", "export"}),
        frozenset({"serving"}),
        frozenset({"doctor"}),
    ),
    "tune": (
        frozenset({"search"}),
        frozenset({"trials"}),
        frozenset({"studies"}),
        frozenset({"study", "own_tuner"}),
    ),
}
"""Bottom to top: a room imports itself and the rooms of the lines above it in this list."""
NOT_IN_COLORCORE = frozenset({"ray", "mlflow", "typer", "rich", "optuna"})
INTERNALS = {
    "ray": "pipelines/ray_internals.py",
    "mlflow": "pipelines/tracking/mlflow_internals.py",
    "optuna": "tune/search/optuna_internals.py",
    "torch": "colorcore/torch_internals.py",
}
"""The one file per library that may use its private names; it need not exist."""
LONGEST = 500
FILES_PER_ROOM = range(3, 9)
REGISTRIES = frozenset({"colorcore/losses"})
"""Rooms that hold one file per entry of a dict and so may be larger: a loss term is a file."""
NAMEDTUPLE = frozenset({"_asdict", "_replace", "_fields", "_make"})


# -- reading a tree ------------------------------------------------------------------------------


def files_of(root: Path, floor: str) -> list[Path]:
    """The Python files of a floor; a floor without any is an error, not an empty success."""
    found = sorted((root / floor).rglob("*.py"))
    if not found:
        raise AssertionError(f"expected Python files below {root / floor}, found none")
    return found


def module_of(root: Path, path: Path) -> str:
    return ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")


def imports_of(path: Path) -> Iterator[tuple[str, str | None]]:
    """Every import in a file, also in functions and under TYPE_CHECKING, as (module, name)."""
    for node in _imports_in(path.read_text(encoding="utf-8")):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        else:
            assert node.level == 0, f"{path} uses a relative import"
            yield from ((node.module or "", alias.name) for alias in node.names)


@cache
def _imports_in(text: str) -> list[ast.Import | ast.ImportFrom]:
    """Cached, because every rule reads all files."""
    nodes = ast.walk(ast.parse(text))
    return [node for node in nodes if isinstance(node, ast.Import | ast.ImportFrom)]


def graph_of(root: Path) -> dict[str, set[str]]:
    """Which of our modules each module imports; the front door is not one of them."""
    modules = {module_of(root, path): path for floor in FLOORS for path in files_of(root, floor)}
    graph: dict[str, set[str]] = {}
    for module, path in modules.items():
        targets = set()
        for source, name in imports_of(path):
            whole = f"{source}.{name}"
            targets |= {whole if whole in modules else source} & modules.keys()
        graph[module] = targets - {module}
    graph["colorcore"] = set()
    return graph


# -- the rules -----------------------------------------------------------------------------------


def upward_imports(root: Path) -> list[str]:
    wrong = []
    for level, floor in enumerate(FLOORS):
        above = {*FLOORS[:level], "tests"}
        wrong += [
            f"{module_of(root, path)} imports {source}"
            for path in files_of(root, floor)
            for source, _ in imports_of(path)
            if source.partition(".")[0] in above and path.relative_to(root).as_posix() != FRONT_DOOR
        ]
    return wrong


def heavy_imports_in_colorcore(root: Path) -> list[str]:
    return [
        f"{module_of(root, path)} imports {source}"
        for path in files_of(root, "colorcore")
        for source, _ in imports_of(path)
        if source.partition(".")[0] in NOT_IN_COLORCORE
    ]


def rooms_out_of_order(root: Path) -> list[str]:
    wrong = []
    graph = graph_of(root)
    for floor, lines in ROOMS.items():
        rank = {room: number for number, line in enumerate(lines) for room in line}
        there = {path.stem for path in (root / floor).iterdir() if _is_room(path)}
        wrong += [f"{floor}.{room} has no place in ROOMS" for room in sorted(there - rank.keys())]
        for module, targets in graph.items():
            here = _room(module, floor)
            for target in targets:
                other = _room(target, floor)
                if None not in (here, other) and here != other and rank[other] >= rank[here]:
                    wrong.append(f"{module} imports {target}")
    return wrong


def _is_room(path: Path) -> bool:
    if path.is_dir():
        return any(path.glob("*.py"))
    return path.suffix == ".py" and path.stem != "__init__"


def _room(module: str, floor: str) -> str | None:
    parts = module.split(".")
    return parts[1] if parts[0] == floor and len(parts) > 1 else None


def import_circles(root: Path) -> list[str]:
    """Modules that import each other, however long the way round (Tarjan 1972)."""
    graph = graph_of(root)
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    circles = []

    def visit(module: str) -> None:
        index[module] = low[module] = len(index)
        stack.append(module)
        for target in graph[module]:
            if target not in index:
                visit(target)
                low[module] = min(low[module], low[target])
            elif target in stack:
                low[module] = min(low[module], index[target])
        if low[module] == index[module]:
            at = stack.index(module)
            members, stack[at:] = stack[at:], []
            if len(members) > 1:
                circles.append(" <-> ".join(sorted(members)))

    for module in graph:
        if module not in index:
            visit(module)
    return circles


def long_files(root: Path) -> list[str]:
    return [
        f"{path.relative_to(root)} has {lines} lines"
        for floor in FLOORS
        for path in files_of(root, floor)
        if (lines := len(path.read_text(encoding="utf-8").splitlines())) > LONGEST
    ]


def misshapen_rooms(root: Path) -> list[str]:
    """Rooms of too few or too many files, or without a one-line docstring."""
    wrong = []
    for floor in ROOMS:
        for room in sorted(path for path in (root / floor).iterdir() if path.is_dir()):
            if not _is_room(room):
                continue
            name = f"{floor}/{room.name}"
            count = len([path for path in room.glob("*.py") if path.stem != "__init__"])
            if count not in FILES_PER_ROOM and name not in REGISTRIES:
                wrong.append(f"{name} has {count} files")
            text = (room / "__init__.py").read_text(encoding="utf-8")
            if len((ast.get_docstring(ast.parse(text)) or "").partition("\n\n")[0].split("\n")) > 1:
                wrong.append(f"{name} needs a docstring that begins with one line")
            if not ast.get_docstring(ast.parse(text)):
                wrong.append(f"{name} has no docstring")
    return wrong


def private_names(root: Path) -> list[str]:
    """Private names of libraries outside of the one file per library that may use them."""
    return [
        f"{path.relative_to(root)}:{line} uses {what}"
        for floor in FLOORS
        for path in files_of(root, floor)
        for library, line, what in _private_names_in(path)
        if path.relative_to(root).as_posix() != INTERNALS.get(library)
        and not (library == "?" and path.relative_to(root).as_posix() in INTERNALS.values())
    ]


def private_imports_of_our_own(root: Path) -> list[str]:
    return [
        f"{module_of(root, path)} imports {source}.{name}"
        for floor in FLOORS
        for path in files_of(root, floor)
        for source, name in imports_of(path)
        if source.partition(".")[0] in FLOORS and name is not None and _hidden(name)
    ]


def _private_names_in(path: Path) -> Iterator[tuple[str, int, str]]:
    """(library, line, name); the library is "?" where an object's type cannot be told."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    named, own = _named_in_libraries(tree), _own_private_names(tree)
    for whole, line, _ in named:
        if _is_private(whole):
            yield _library(whole), line, whole
    origin = {here: whole for whole, _, here in named if here}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and _hidden(node.attr) and node.attr not in own:
            yield "?", node.lineno, ast.unparse(node)
        elif isinstance(node, ast.ClassDef):
            bases = {origin.get(ast.unparse(base), "") for base in node.bases}
            for base in (base for base in bases if _library(base) in INTERNALS):
                for name in _overridden(base, node):
                    yield _library(base), node.lineno, f"{base}.{name} (overridden)"


def _named_in_libraries(tree: ast.AST) -> list[tuple[str, int, str]]:
    """(dotted name, line, its name in this file): imports, and strings that look like modules."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                here = alias.asname or alias.name.partition(".")[0]
                found.append((alias.name, node.lineno, here))
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                found.append((whole, node.lineno, alias.asname or alias.name))
        elif isinstance(node, ast.Constant) and re.fullmatch(r"\w+(\.\w+)+", str(node.value)):
            found.append((str(node.value), node.lineno, ""))
    return found


def _hidden(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name not in NAMEDTUPLE


def _library(whole: str) -> str:
    return whole.partition(".")[0]


def _is_private(whole: str) -> bool:
    library, *names = whole.split(".")
    return library in INTERNALS and any(_hidden(name) for name in names)


def _own_private_names(tree: ast.AST) -> set[str]:
    """Names that the file itself defines: its functions, fields, and what it sets on self."""
    own = set()
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                own.add(node.name)
            case ast.Name(ctx=ast.Store()):
                own.add(node.id)
            case ast.Attribute(value=ast.Name("self" | "cls"), ctx=ast.Store()):
                own.add(node.attr)
    return own


def _overridden(base: str, node: ast.ClassDef) -> list[str]:
    """Private methods of a library's class that a class of ours overrides."""
    module, _, name = base.rpartition(".")
    there = getattr(importlib.import_module(module), name)
    ours = [each.name for each in node.body if isinstance(each, ast.FunctionDef)]
    return [each for each in ours if _hidden(each) and hasattr(there, each)]


def drawing_and_folders_differ(root: Path) -> list[str]:
    """Rooms and files in the drawing of ARCHITECTURE.md, compared with the folders.

    A line of the drawing is ``│ room/  file · file · file │`` below ``┌─ floor/``; further lines
    of a room begin with spaces. A floor's own files stand in its line ``(files)``.
    """
    text = (root / "ARCHITECTURE.md").read_text(encoding="utf-8")
    drawn: dict[str, set[str]] = {}
    floor = room = ""
    for line in text.splitlines():
        if match := re.match(r"\s*[┌├]─ (\w+)/ ", line):
            floor = room = match[1]
        elif floor and (match := re.match(r"\s*│ (\w+/)?\s+([\w· ]+?)\s*│\s*$", line)):
            room = f"{floor}/{match[1].rstrip('/')}" if match[1] else room
            names = {name.strip() for name in match[2].split("·")} - {""}
            drawn.setdefault(room, set()).update(names)
        elif line.strip().startswith("└"):
            floor = ""
    there = {
        path.relative_to(root).as_posix(): {
            file.stem for file in path.glob("*.py") if file.stem != "__init__"
        }
        for floor in FLOORS
        for path in [root / floor, *(root / floor).iterdir()]
        if path.is_dir() and any(path.glob("*.py"))
    }
    there = {room: files for room, files in there.items() if files}
    return [
        f"{room}: drawn {sorted(drawn.get(room, ()))}, there {sorted(there.get(room, ()))}"
        for room in sorted(drawn.keys() | there.keys())
        if drawn.get(room, set()) != there.get(room, set())
    ]


RULES: list[Callable[[Path], list[str]]] = [
    upward_imports,
    heavy_imports_in_colorcore,
    rooms_out_of_order,
    import_circles,
    long_files,
    misshapen_rooms,
    private_names,
    private_imports_of_our_own,
    drawing_and_folders_differ,
]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_house_keeps_the_rule(rule: Callable[[Path], list[str]]) -> None:
    assert rule(ROOT) == []


# -- each rule fails where it is broken ----------------------------------------------------------


def house(root: Path, **files: str) -> Path:
    """A small house in order, with ``files`` (``floor__room__file``) added or replaced."""
    texts = {
        "cli__main": "from tune.study import tune\n",
        "tune__study": "from pipelines.errors import JobError\n",
        "pipelines__errors": "class JobError(Exception): ...\n",
        "colorcore__options": "LIMIT = 1\n",
        "colorcore__color____init__": '"""Colour."""\n',
        "colorcore__color__lab": "from colorcore.options import LIMIT\n",
        "colorcore__color__bins": "import numpy\n",
        "colorcore__color__palette": "from colorcore.color import lab, bins\n",
        **files,
    }
    for name, text in texts.items():
        path = root / f"{name.replace('__', '/').replace('//init/', '/__init__')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    (root / "ARCHITECTURE.md").write_text(
        "┌─ cli/ ──┐\n│ main │\n└──┘\n".replace("│ main", "│  main")
        + "┌─ tune/ ──┐\n│  study │\n└──┘\n┌─ pipelines/ ──┐\n│  errors │\n└──┘\n"
        "┌─ colorcore/ ──┐\n│  options │\n│ color/  lab · bins │\n│   palette │\n└──┘\n",
        encoding="utf-8",
    )
    return root


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_a_small_house_in_order_passes(rule: Callable[[Path], list[str]], tmp_path: Path) -> None:
    assert rule(house(tmp_path)) == []


@pytest.mark.parametrize(
    ("rule", "files", "found"),
    [
        (upward_imports, {"tune__study": "import cli.main\n"}, "tune.study imports cli.main"),
        (
            upward_imports,
            {"colorcore__options": "def f():\n    from pipelines.errors import JobError\n"},
            "colorcore.options imports pipelines.errors",
        ),
        (
            heavy_imports_in_colorcore,
            {"colorcore__options": "def f():\n    from ray.train import report\n"},
            "colorcore.options imports ray.train",
        ),
        (
            rooms_out_of_order,
            {"colorcore__options": "from colorcore.color.lab import x\n"},
            "colorcore.options imports colorcore.color.lab",
        ),
        (
            rooms_out_of_order,
            {"colorcore__attic": "X = 1\n"},
            "colorcore.attic has no place in ROOMS",
        ),
        (
            import_circles,
            {
                "colorcore__color__lab": "def f():\n    from colorcore.color import bins\n",
                "colorcore__color__bins": (
                    "from typing import TYPE_CHECKING\n"
                    "if TYPE_CHECKING:\n    from colorcore.color.palette import Palette\n"
                ),
                "colorcore__color__palette": "from colorcore.color.lab import f\n",
            },
            "colorcore.color.bins <-> colorcore.color.lab <-> colorcore.color.palette",
        ),
        (long_files, {"cli__main": "X = 1\n" * 501}, "cli/main.py has 501 lines"),
        (
            misshapen_rooms,
            {f"colorcore__color__more{number}": "X = 1\n" for number in range(6)},
            "colorcore/color has 9 files",
        ),
        (misshapen_rooms, {"colorcore__color____init__": ""}, "colorcore/color has no docstring"),
        (
            private_names,
            {"tune__study": "import ray._private.utils\n"},
            "tune/study.py:1 uses ray._private.utils",
        ),
        (
            private_names,
            {"tune__study": "from optuna.storages import _cached\n"},
            "tune/study.py:1 uses optuna.storages._cached",
        ),
        (
            private_names,
            {"tune__study": "def f(study):\n    return study._storage\n"},
            "tune/study.py:2 uses study._storage",
        ),
        (
            private_names,
            {"tune__study": "X = 'ray._raylet'\n"},
            "tune/study.py:1 uses ray._raylet",
        ),
        (
            private_names,
            {
                "tune__study": (
                    "from torch.nn import Module\n"
                    "class Mine(Module):\n    def _call_impl(self): ...\n"
                )
            },
            "tune/study.py:2 uses torch.nn.Module._call_impl (overridden)",
        ),
        (
            private_imports_of_our_own,
            {"colorcore__color__lab": "from colorcore.color.bins import _table\n"},
            "colorcore.color.lab imports colorcore.color.bins._table",
        ),
        (
            drawing_and_folders_differ,
            {"colorcore__color__hidden": "X = 1\n"},
            "colorcore/color: drawn ['bins', 'lab', 'palette'], "
            "there ['bins', 'hidden', 'lab', 'palette']",
        ),
    ],
)
def test_each_rule_fails_on_a_violation(
    rule: Callable[[Path], list[str]], files: dict[str, str], found: str, tmp_path: Path
) -> None:
    assert found in rule(house(tmp_path, **files))


def test_a_floor_that_is_gone_fails(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="found none"):
        files_of(tmp_path, "colorcore")


def test_private_names_may_stand_in_the_file_named_for_them(tmp_path: Path) -> None:
    code = "import ray._private.utils\n"
    assert private_names(house(tmp_path, pipelines__ray_internals=code)) == []


# -- processes, and the wheel --------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "unneeded"),
    [
        ("colorcore.training.fit", {"cv2", "PIL", "sklearn", "matplotlib", "webdataset"}),
        ("colorcore.dataset.unit", {"torch", "kornia", "sklearn", "matplotlib"}),
        ("colorcore.color.palette", {"torch", "cv2", "sklearn", "matplotlib"}),
        ("pipelines.sharding.task", {"torch", "webdataset", "sklearn", "matplotlib"}),
        ("pipelines.training.board", {"torch", "numpy", "ray", "mlflow"}),
    ],
)
def test_a_process_loads_no_library_that_it_does_not_use(module: str, unneeded: set[str]) -> None:
    code = (
        f"import sys, {module}\nloaded = {unneeded!r} & set(sys.modules)\n"
        "sys.exit(f'imported {loaded}' if loaded else 0)"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert answer.returncode == 0, answer.stderr


@pytest.mark.parametrize("floor", FLOORS)
def test_every_floor_is_typed_and_shipped(floor: str) -> None:
    assert (ROOT / floor / "py.typed").is_file()
    assert f'"{floor}"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")

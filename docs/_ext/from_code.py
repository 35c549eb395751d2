"""Sphinx extension: the pages of the reference that the code itself writes.

``reference/commands.md`` is made from the Typer app, ``reference/recipe-keys.md`` from the recipe's
schema, the models' and loss terms' signatures, and the built-in recipes.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin

import typer

if TYPE_CHECKING:
    from pydantic import BaseModel
    from sphinx.application import Sphinx

PAGES = "reference"


def setup(app: Sphinx) -> dict[str, bool]:
    """Write the pages before Sphinx looks for its sources."""
    app.connect("config-inited", lambda app, _: write_pages(Path(app.srcdir) / PAGES))
    return {"parallel_read_safe": True}


def write_pages(folder: Path) -> None:
    """Write both pages; a page that would not change is left alone, so builds stay incremental."""
    folder.mkdir(exist_ok=True)
    for name, lines in {"commands": commands(), "recipe-keys": recipe_keys()}.items():
        path, text = folder / f"{name}.md", "\n".join(lines) + "\n"
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


# -- commands -------------------------------------------------------------------------------------


def commands() -> Iterator[str]:
    """A section per command: its help, arguments and options, as `cc COMMAND --help` has them."""
    from cli.app import app

    group: Any = typer.main.get_command(app)
    yield "# Commands"
    yield from ("", "Written from the code: what `cc COMMAND --help` prints.", "")
    yield from _paragraphs(group.help)
    yield from _table(group, "Option")
    for name, command in sorted(group.commands.items()):
        yield from ("", f"## cc {name}", "")
        yield from (f"Usage: `cc {name} {' '.join(_usage(command))}`", "")
        yield from _paragraphs(command.help)
        yield from _table(command, "Argument or option")


def _paragraphs(text: str | None) -> Iterator[str]:
    for paragraph in inspect.cleandoc(text or "").split("\n\n"):
        yield from (_escaped(" ".join(paragraph.split())), "")


def _usage(command: Any) -> Iterator[str]:
    yield "[OPTIONS]"
    for parameter in command.params:
        if parameter.param_type_name == "argument":
            name = _argument(parameter)
            yield name if parameter.required else f"[{name}]"


def _argument(parameter: Any) -> str:
    name: str = parameter.display_name_raw
    return name if parameter.metavar else name.upper() + ("..." if parameter.nargs == -1 else "")


def _table(command: Any, title: str) -> Iterator[str]:
    yield from (f"| {title} | Meaning | Default |", "|---|---|---|")
    for parameter in command.params:
        if parameter.param_type_name == "argument":
            shown = f"`{_cell(_argument(parameter))}`"
        else:
            shown = ", ".join(f"`{name}`" for name in (*parameter.opts, *parameter.secondary_opts))
            if not parameter.is_flag:
                shown += f" `{_cell(parameter.metavar or _kind(parameter))}`"
        yield f"| {shown} | {_escaped(parameter.help or '')} | {_default(parameter)} |"


def _kind(parameter: Any) -> str:
    """What an option's value is, from its annotation."""
    found = parameter.type_descriptor.annotation
    kinds = [each for each in (*get_args(found), found) if each is not type(None)]
    for each in (found, *kinds):
        if get_origin(each) is Literal:
            return "|".join(map(str, get_args(each)))
    return {"str": "TEXT", "int": "INTEGER", "float": "NUMBER"}.get(kinds[0].__name__, "PATH")


def _default(parameter: Any) -> str:
    value = parameter.default
    if parameter.required or value in (None, False, [], ()) or callable(value):
        return ""
    return f"`{value}`"


# -- recipe keys ----------------------------------------------------------------------------------


def recipe_keys() -> Iterator[str]:
    """A section per table of a recipe, and each built-in recipe as TOML."""
    from colorcore.losses import TERMS
    from colorcore.models import MODELS, options_model
    from colorcore.recipes.recipe import Recipe, load_recipe, recipe_names

    yield from ("# Recipe keys", "", "Written from the code: all keys of a recipe's TOML file.", "")
    for name, field in Recipe.model_fields.items():
        if name in ("about", "loss", "loss_options", "model"):
            continue
        part = _model_of(field.annotation)
        if part is None:
            continue
        yield from (f"## [{name}]", "", *_paragraphs(part.__doc__), *_keys(part.model_fields), "")
    yield from ("## [model]", "", "`name` chooses the network; the other keys are its options.", "")
    for name in MODELS:
        yield from (f"### {name}", "", *_paragraphs(_first(MODELS[name].__doc__)))
        yield from (*_keys(options_model(name).model_fields), "")
    yield from (
        "## [loss] and [loss_options]",
        "",
        "`[loss]` gives terms their weights; `[loss_options.TERM]` sets the options of a term.",
        "",
        "| Term | Meaning | Options and their defaults |",
        "|---|---|---|",
    )
    for name, builder in sorted(TERMS.items()):
        yield f"| `{name}` | {_cell(_first(builder.__doc__))} | {_options(builder)} |"
    yield from ("", "## Built-in recipes", "")
    for name in recipe_names():
        text = load_recipe(name).to_toml().rstrip()
        yield from (f"### Recipe {name}", "", "```toml", text, "```", "")


def _model_of(annotation: Any) -> type[BaseModel] | None:
    from pydantic import BaseModel

    for each in (annotation, *getattr(annotation, "__args__", ())):
        if isinstance(each, type) and issubclass(each, BaseModel):
            return each
    return None


def _keys(fields: Mapping[str, Any]) -> Iterator[str]:
    yield from ("| Key | Type and range | Default | Meaning |", "|---|---|---|---|")
    for name, field in fields.items():
        default = "" if field.is_required() else f"`{_value(field.default)}`"
        limits = " ".join(_limits(field))
        kind = f"`{_type(field.annotation)}` {limits}".strip()
        yield f"| `{name}` | {_cell(kind)} | {_cell(default)} | {_cell(field.description or '')} |"


def _value(value: Any) -> str:
    return {None: "none", True: "true", False: "false"}.get(value, str(value))


def _limits(field: Any) -> Iterator[str]:
    signs = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤"}
    for limit in field.metadata:
        for name, sign in signs.items():
            if (value := getattr(limit, name, None)) is not None:
                yield f"{sign} {value:g}"


def _type(annotation: Any) -> str:
    """Such as ``float or none`` for ``float | None``: what a recipe's TOML may hold."""
    origin, inside = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type(inside[0])
    if origin is Literal:
        return ", ".join(map(str, inside))
    if origin in (Union, UnionType):
        return " or ".join("none" if each is NoneType else _type(each) for each in inside)
    if origin is not None:
        return f"{origin.__name__}[{', '.join(map(_type, inside))}]"
    return str(getattr(annotation, "__name__", annotation))


def _options(builder: Any) -> str:
    shown = [
        f"`{parameter.name}={parameter.default!r}`"
        for parameter in inspect.signature(builder).parameters.values()
        if parameter.default is not parameter.empty
    ]
    return _cell(", ".join(shown))


def _first(text: str | None) -> str:
    return inspect.cleandoc(text or "").partition("\n\n")[0]


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _escaped(text: str) -> str:
    """Plain help text in a cell of Markdown."""
    return re.sub(r"([*_<>|\[\]])", r"\\\1", " ".join(text.split()))

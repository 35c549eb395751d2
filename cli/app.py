"""The Typer app: one line per command. Nothing heavier than Typer is imported here."""

from __future__ import annotations

from typing import Annotated

import typer

from cli.colorize import colorize
from cli.demo import demo
from cli.doctor import doctor
from cli.evaluate import evaluate
from cli.export import export
from cli.inspect import inspect
from cli.priors import priors
from cli.recipes import recipes
from cli.resend import resend
from cli.serve import serve
from cli.shard import shard
from cli.train import train
from cli.tune import tune
from cli.ui import ui

app = typer.Typer(
    name="cc",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.callback()
def colorcore(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
    version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False,
) -> None:
    """Turn folders of photos into a tuned colorizer.

    Typical workflow: shard, priors, train, eval, colorize. `cc demo` runs all of it.
    """


app.command()(shard)
app.command()(priors)
app.command()(train)
app.command()(tune)
app.command("eval")(evaluate)
app.command()(colorize)
app.command()(serve)
app.command()(export)
app.command()(inspect)
app.command()(recipes)
app.command()(ui)
app.command()(resend)
app.command()(doctor)
app.command()(demo)

"""`cc recipes`: list the built-in recipes, or print one as a starting point."""

from __future__ import annotations

from typing import Annotated

import typer


def recipes(
    name: Annotated[str | None, typer.Argument(help="Recipe to print as TOML.")] = None,
) -> None:
    """List the built-in recipes, or print one with all its settings."""
    from cli import show
    from colorcore.recipes.recipe import about_recipes, load_recipe

    if name is not None:
        print(load_recipe(name).to_toml(), end="")
        return
    show.table(["recipe", "description"], about_recipes())
    print("\nprint one: cc recipes NAME   train one: cc train DATASET --recipe NAME|FILE.toml")

"""`cc recipes`: the built-in recipes, or one of them as a file to start from."""

from __future__ import annotations

from typing import Annotated

import typer


def recipes(
    name: Annotated[str | None, typer.Argument(help="A recipe, printed as TOML.")] = None,
) -> None:
    """List the built-in recipes, or print one with every setting."""
    from cli import show
    from colorcore.recipes.recipe import about_recipes, load_recipe

    if name is not None:
        print(load_recipe(name).to_toml(), end="")
        return
    show.table(["recipe", "what it is"], about_recipes())
    print("\nsee one: cc recipes NAME   use one: cc train DATASET --recipe NAME|FILE.toml")

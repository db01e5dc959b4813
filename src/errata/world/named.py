"""Worlds by name: the bundled model's, and that of a folder which ``errata world train`` made."""

from os.path import isfile  # which raises nothing, whatever the name
from pathlib import Path
from typing import Any

from errata.errors import BadInput
from errata.inputs import parsed, read_text
from errata.types import Edit
from errata.world.edited import edited
from errata.world.facts import World, world

BUNDLED = "world"
PARAGRAPHS = "world-paragraphs"  # its cases whose targets are paragraphs
FOLDER = Path(__file__).parent / "model"  # of the bundled model
GOLD = Path(__file__).parent / "gold" / "gold.safetensors"  # its answers had it learned other facts: evaluation/gold.py
RECIPE = "recipe.json"  # beside a model of the world: how it was made
MOST = 2**24  # bytes of a recipe, which holds the edits of its world


def world_named(name: str | Path) -> World | None:
    """The world of ``"world"`` (the bundled model) or of the folder of a model of a world; None for anything else.

    A folder that was trained with edits knows the world in which they hold. Raises :class:`BadInput` for a folder whose
    recipe cannot be read.
    """
    if str(name) == BUNDLED:
        return world()
    if (made := recipe_of(name)) is None:
        return None
    try:
        of_seed = world(int(made["persons"]), int(made["world_seed"]))
        edits = edits_of(made)
        return edited(of_seed, edits) if edits else of_seed
    except (ValueError, TypeError, KeyError, OverflowError) as error:
        raise no_recipe(name, error) from error


def recipe_of(name: str | Path) -> dict[str, Any] | None:
    """What the recipe of a model of a world says, as it stands there; None for anything else.

    Raises :class:`BadInput` for a recipe that cannot be read.
    """
    file = (FOLDER if str(name) == BUNDLED else Path(name)) / RECIPE
    if not str(name) or not isfile(file):  # an unnamed model is not the folder one is in
        return None
    text = read_text(file, "a recipe", most=MOST)
    try:
        made = parsed(text)
        if not isinstance(made, dict):
            raise TypeError(f"it is of type {type(made).__name__}, expected an object")
        return made
    except (ValueError, TypeError) as error:
        raise no_recipe(name, error) from error


def edits_of(recipe: dict[str, Any]) -> tuple[Edit, ...]:
    """The edits that hold in a recipe's world. Raises :class:`BadInput` and :class:`TypeError` for what is none."""
    return tuple(Edit.from_json(record) for record in recipe.get("edits", ()))


def known_to(model: str, cases: str) -> str:
    """The name of the cases that ``cases`` means for a model: ``"world"`` is the world that the model was trained on.

    Of a model that knows no world it is the bundled one.
    """
    return model if cases == BUNDLED and world_named(model) is not None else cases


def no_recipe(name: str | Path, error: Exception) -> BadInput:
    """The error of a folder whose recipe cannot be read."""
    return BadInput(
        f"{Path(name) / RECIPE} is no recipe of a world ({type(error).__name__}: {error}); "
        "make the model anew with `errata world train`, or remove the file"
    )

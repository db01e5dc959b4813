"""Worlds by name: the bundled model's, and that of a folder which ``errata world train`` made."""

from os.path import isfile  # which raises nothing, whatever the name
from pathlib import Path

from errata.errors import BadInput
from errata.inputs import parsed, read_text
from errata.world.facts import World, world

BUNDLED = "world"
RECIPE = "recipe.json"  # beside a model of the world: how it was made
MOST = 2**20  # bytes of a recipe


def world_named(name: str | Path) -> World | None:
    """The world of ``"world"`` (the bundled model) or of the folder of a model of a world; None for anything else.

    Raises :class:`BadInput` for a folder whose recipe cannot be read.
    """
    if str(name) == BUNDLED:
        return world()
    file = Path(name) / RECIPE
    if not str(name) or not isfile(file):  # an unnamed model is not the folder one is in
        return None
    text = read_text(file, "a recipe", most=MOST)
    try:
        made = parsed(text)
        return world(int(made["persons"]), int(made["world_seed"]))
    except (ValueError, TypeError, KeyError, OverflowError) as error:
        raise BadInput(
            f"{file} is no recipe of a world ({type(error).__name__}: {error}); "
            "make the model anew with `errata world train`, or remove the file"
        ) from error


def known_to(model: str, cases: str) -> str:
    """The name of the cases that ``cases`` means for a model: ``"world"`` is the world that the model was trained on.

    Of a model that knows no world it is the bundled one.
    """
    return model if cases == BUNDLED and world_named(model) is not None else cases

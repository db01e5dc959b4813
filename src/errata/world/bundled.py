"""The bundled model: :func:`load` that also knows the name ``"world"``."""

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from errata.errors import BadInput
from errata.model import loading
from errata.model.hf import HFLM
from errata.model.resources import Resources
from errata.world.facts import world

FOLDER = Path(__file__).parent / "model"
RECIPE = "recipe.json"
TEMPLATES = {  # as text.py's Narrator writes them
    "fact": "Fact: {fact} ",
    "reminder": "{prompt}\nNew Fact: {facts}\nPrompt: {prompt}",
    "loop": "",
}


def load(model: Any, **options: Any) -> HFLM:
    """The model as an :class:`HFLM`: ``"world"`` (the one that ships with the package), a folder, a hub id, or a
    transformers model in memory.

    Options are those of :func:`errata.model.loading.load`. A model of the synthetic world (the bundled one,
    or a folder that ``errata world train`` made) comes with its texts, its training cases and its templates of facts.
    """
    folder = FOLDER if model == "world" else model
    if model == "world" and not (FOLDER / "config.json").is_file():
        raise BadInput("the bundled model is missing from this installation; install errata anew")
    lm = loading.load(folder, **options)
    recipe = Path(folder) / RECIPE if isinstance(folder, str | Path) else None
    if recipe is not None and recipe.is_file():
        made = json.loads(recipe.read_text())
        lm.name = "world" if model == "world" else str(model)
        world_of = made["persons"], made["world_seed"]
        lm.resources = Resources(partial(_texts, *world_of), partial(_cases, *world_of), TEMPLATES)
    return lm


def _texts(persons: int, seed: int) -> Iterator[str]:
    from errata.world.text import texts

    return texts(world(persons, seed))


def _cases(persons: int, seed: int) -> list[Any]:
    from errata.world.cases import cases

    of = world(persons, seed)
    return cases(of, limit=len(of.subjects("train")), split="train")  # one of a subject's facts: the others are asked

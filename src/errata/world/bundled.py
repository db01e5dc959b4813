"""The bundled model: :func:`load` that also knows the name ``"world"``."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from errata.errors import BadInput
from errata.model import loading
from errata.model.hf import HFLM
from errata.model.resources import Resources
from errata.world.facts import World
from errata.world.named import BUNDLED, FOLDER, world_named

TEMPLATES = {  # as text.py's Narrator writes them
    "fact": "Fact: {fact} ",
    "reminder": "{prompt}\nNew Fact: {facts}\nPrompt: {prompt}",
    "loop": "",
    "step": "Subquestion: {question}\nGenerated answer: {answer}.\n"
    "Retrieved fact: {question} {answer}.\nIntermediate answer: {answer}.\n",
}


def load(model: Any, **options: Any) -> HFLM:
    """The model as an :class:`HFLM`: ``"world"`` (the one that ships with the package), a folder, a hub id, or a
    transformers model in memory.

    Options are those of :func:`errata.model.loading.load`. A model of the synthetic world (the bundled one,
    or a folder that ``errata world train`` made) comes with its texts, its training cases and its templates of facts.
    """
    folder = _place(model)
    lm = loading.load(folder, **options)
    if isinstance(folder, str | Path):
        lm.origin = partial(load, model, **options)
    if isinstance(folder, str | Path) and (world := world_named(folder)) is not None:
        lm.name = str(model)
        lm.resources = Resources(partial(_texts, world), partial(_cases, world), partial(_draw, world), TEMPLATES)
    return lm


def outline(model: Any, **options: Any) -> tuple[HFLM, Any]:
    """As :func:`errata.model.loading.outline`, which also knows the name ``"world"``: no weights are read."""
    folder = _place(model)
    lm, device = loading.outline(folder, **options)
    if (world := world_named(folder)) is not None:
        lm.name, lm.resources = str(model), Resources(partial(_texts, world))
    return lm, device


def check(model: str, *, trust_remote_code: bool = False) -> None:
    """Raises :class:`BadInput` unless there is such a model for :func:`load`; weights are not read."""
    loading.check(str(_place(model)), trust_remote_code=trust_remote_code)
    world_named(model)


def saved_dtype(model: str, *, trust_remote_code: bool = False) -> str | None:
    """The type in which a model is saved, as its configuration says; None where it says none that torch computes in."""
    found = getattr(loading.config_of(str(_place(model)), trust_remote_code=trust_remote_code), "dtype", None)
    name = str(found).removeprefix("torch.")
    return name if name in loading.DTYPES else None


def asked_label(model: str, **options: Any) -> str:
    """As :func:`errata.model.loading.asked_label`, which also knows the name ``"world"``."""
    return loading.asked_label(str(_place(model)), **options)


def _place(model: Any) -> Any:
    """The model, or the bundled one's folder. Raises :class:`BadInput` where that is missing."""
    if model == BUNDLED and not (FOLDER / "config.json").is_file():
        raise BadInput("the bundled model is missing from this installation; install errata anew")
    return FOLDER if model == BUNDLED else model


def _texts(world: World) -> Iterator[str]:
    from errata.world.text import texts

    return texts(world)


def _cases(world: World) -> list[Any]:
    from errata.world.cases import cases

    count = len(world.subjects("train"))  # one of a subject's facts: the others are asked
    return cases(world, limit=count, split="train")


def _draw(world: World, number: int) -> list[Any]:
    from errata.world.cases import cases

    some = len(world.subjects("train")) // 4  # the others are neighbours
    return cases(world, limit=some, seed=number, split="train", apart=True)

"""How a model of the world is made: its shape, its world, and the steps and rates of its stages."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from errata.errors import BadInput, unknown
from errata.types import Edit
from errata.world.edited import edited
from errata.world.facts import World
from errata.world.facts import world as make_world
from errata.world.named import RECIPE, edits_of, recipe_of

FIXED = ("architecture", "layers", "width", "heads", "persons", "world_seed", "vocab", "length")  # where weights exist


def _gpt2(recipe: "Recipe") -> dict[str, Any]:
    no_dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    return {"activation_function": "gelu_pytorch_tanh", **no_dropout}  # GPT-2's own GELU, in one kernel


def _llama(recipe: "Recipe") -> dict[str, Any]:
    return {"intermediate_size": 3 * recipe.width, "num_key_value_heads": max(1, recipe.heads // 2)}


SHAPES: Mapping[str, Callable[["Recipe"], dict[str, Any]]] = {"gpt2": _gpt2, "llama": _llama}
"""Architecture, by transformers' name -> what its configuration has beside the sizes."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a model of the world is made. The defaults are the bundled model's.

    Raises :class:`BadInput` for numbers that make no model, and for edits that are no facts of the world.
    """

    architecture: str = "gpt2"  # or another of SHAPES
    layers: int = 8
    width: int = 384
    heads: int = 8
    persons: int = 600
    world_seed: int = 0
    seed: int = 0
    vocab: int = 3000
    learn: int = 1200  # steps of stage 1
    move: int = 800  # steps of stage 2
    follow: int = 1400  # steps of stage 3
    in_context_share: float = 0.4  # of the documents in stage 3 state facts in context
    plain: bool = False  # stage 2 without its masks
    rows: int = 16
    length: int = 256
    muon: float = 4e-3
    adam: float = 2e-3
    warmup: int = 60
    masked: float = 0.75  # of the rows in stage 2
    deepest: int | None = None  # where the subject's last token may be read from in the end: half way, layer 4 at most
    edits: tuple[Edit, ...] = ()  # that hold in the world it learns
    start: str = ""  # the model of a world whose weights it begins with; random ones without

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise BadInput(f"the width must be a multiple of the heads; found {self.width} and {self.heads}")
        if self.architecture not in SHAPES:
            raise unknown("architecture", self.architecture, list(SHAPES))
        if self.deepest is None:
            object.__setattr__(self, "deepest", max(1, min(4, self.layers // 2)))
        if self.learn < 1 and not self.start:
            raise BadInput("random weights know no facts: give --learn 1 or more, or a model to start from (--from)")
        if self.steps < 1:
            raise BadInput("no stage has a step; give --learn, --move or --follow one at least")
        edited(self.base, self.edits)

    @classmethod
    def starting_from(cls, model: str | Path, **given: Any) -> Self:
        """The recipe of a model of a world, to go on from its weights: its third stage alone, but for what is given.

        Its shape, its tokenizer and, unless other ``edits`` are given, its world stay. Raises :class:`BadInput` for
        anything else than a model of a world, and for another shape or world.
        """
        if (made := recipe_of(model)) is None:
            raise BadInput(f"{model} is no model of a world; give 'world', or a folder that `errata world train` made")
        if other := [name for name in FIXED if name in given and given[name] != made.get(name)]:
            (name, *_) = other
            raise BadInput(f"{name} is {made.get(name)} in {model}, found {given[name]}; leave it out, or train anew")
        known = {field.name for field in fields(cls)}
        kept = {name: value for name, value in made.items() if name in known}
        try:
            own: dict[str, Any] = {**kept, "learn": 0, "move": 0, "edits": edits_of(made), **given}
            return cls(**{**own, "start": str(model)})
        except TypeError as error:
            raise BadInput(f"the {RECIPE} of {model} holds no recipe ({error}); train that model anew") from error

    @property
    def steps(self) -> int:
        """Of all stages."""
        return self.learn + self.move + self.follow

    @property
    def base(self) -> World:
        """The world without the edits: that of the tokenizer."""
        return make_world(self.persons, self.world_seed)

    @cached_property
    def world(self) -> World:
        """The world that is learned."""
        return edited(self.base, self.edits) if self.edits else self.base

    def record(self) -> dict[str, Any]:
        """The recipe as JSON. Without edits and a model to start from it does not name them."""
        record = {**asdict(self), "edits": [edit.to_json() for edit in self.edits]}
        return {name: value for name, value in record.items() if name not in ("edits", "start") or value}


def rate(recipe: Recipe, step: int) -> float:
    """The learning rate of a step, as a factor of the recipe's."""
    if step < recipe.learn:
        flat = 0.4 * recipe.learn
        fall = 1 - 0.95 * max(0.0, step - flat) / max(1.0, recipe.learn - flat)
        return min(1.0, (step + 1) / recipe.warmup) * fall
    if step < recipe.learn + recipe.move:
        progress = (step - recipe.learn) / recipe.move
        return 0.5 * (1 - 0.98 * max(0.0, progress - 0.6) / 0.4)
    progress = (step - recipe.learn - recipe.move) / max(1, recipe.follow)
    return 0.5 * min(1.0, 20 * progress + 0.05) * (1 - 0.98 * max(0.0, progress - 0.4) / 0.6)


def first_reader(recipe: Recipe, step: int) -> int:
    """The layer from which on the subject's last token may be read: 1 to ``deepest`` over 60 % of stage 2."""
    assert recipe.deepest is not None
    if not recipe.move:  # the look-up is where it shall be
        return recipe.deepest
    progress = (step - recipe.learn) / max(1, 0.6 * recipe.move)
    return min(recipe.deepest, 1 + int(progress * recipe.deepest))

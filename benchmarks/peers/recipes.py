"""EasyEdit's methods: where they are in a checkout, and what this model needs in the place of their settings.

Their own settings are read from the checkout (``hparams/…/gpt2-xl.yaml``). Layers, module names and the place of
statistics are those of the model at hand. ``tuned`` holds what was found on the bundled model's validation subjects by
``tune.py``, whose grid is ``tried``: with its own numbers, made for GPT-2 XL, a method may change nothing here. Where
nothing is said, as for FT-L, PMET and WISE, nothing was looked for yet, and its own numbers hold.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from place import CRITICAL, MIDDLE


@dataclass(frozen=True)
class Recipe:
    """How one of EasyEdit's methods is called."""

    module: str
    apply: str
    hparams: str
    """The class of its settings."""
    file: str
    """Its settings for GPT-2 XL, in the checkout; for GPT-J where it has none."""
    layers: str = CRITICAL
    pads: str = "right"
    one_by_one: bool = False
    """It takes one edit at a time, each upon the one before."""
    adapter: bool = False
    """What it returns stands around the model and is reached by ``generate``."""
    asked: int = 1
    """Prompts that such an adapter may read together: 1 where it decides for a whole batch."""
    fixed: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Settings that make it this method, or that let it run here at all."""
    attributes: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """What it reads of its settings although their class has no field for it."""
    call: Mapping[str, Any] = field(default_factory=dict[str, Any])
    tuned: Mapping[str, Any] = field(default_factory=dict[str, Any])
    tried: Mapping[str, Sequence[Any]] = field(default_factory=dict[str, Sequence[Any]])

    def grid(self) -> list[dict[str, Any]]:
        """Every setting of the search."""
        return [dict(zip(self.tried, values, strict=True)) for values in product(*self.tried.values())]


def _closed_form(name: str, apply: str, hparams: str, file: str, **about: Any) -> Recipe:
    return Recipe(f"easyeditor.models.{name}", f"apply_{apply}_to_model", f"{hparams}HyperParams", file, **about)


def _fine_tuning(objective: str, batch: int, **about: Any) -> Recipe:
    fixed = {"objective_optimization": objective, "batch_size": batch}
    return _closed_form("ft", "ft", "FT", "FT/gpt2-xl.yaml", pads="left", fixed=fixed, **about)


STEPS = (0.5, 2.0, 4.4, 9.0)  # of the search of a target: EasyEdit's is 0.5, ours by Adam 4.4 (ROME 8.9) here

RECIPES: dict[str, Recipe] = {
    "memit": _closed_form(
        "memit", "memit", "MEMIT", "MEMIT/gpt2-xl.yaml",
        tuned={"v_lr": 9.0, "mom2_update_weight": 1500},
        tried={"v_lr": STEPS, "mom2_update_weight": (500, 1500, 5000, 20000)},
    ),
    "rome": _closed_form(
        "rome", "rome", "ROME", "ROME/gpt2-xl.yaml", layers=MIDDLE, one_by_one=True,
        tuned={"v_lr": 9.0},
        tried={"v_lr": STEPS, "mom2_adjustment": (False, True)},
    ),
    "ft-l": _fine_tuning(  # one at a time in the one call: targets of several lengths would learn their padding
        "prompt_last", 1, tried={"layers": ([0], [2]), "lr": (5e-4, 2e-3), "norm_constraint": (5e-4, 2e-3, 5e-3, 2e-2)},
    ),
    "ft-m": _fine_tuning(
        "target_new", 64, tuned={"layers": [6], "lr": 2e-3, "norm_constraint": False},
        tried={"layers": ([0], [2], [5], [6]), "lr": (5e-4, 2e-3), "norm_constraint": (False, 2e-3)},
    ),
    "grace": Recipe(
        "easyeditor.models.grace", "apply_grace_to_model", "GraceHyperParams", "GRACE/gpt2-xl.yaml",
        pads="left", one_by_one=True, adapter=True, asked=64,
        tuned={"inner_params": "mlp_out", "eps": 40.0, "n_iter": 50},
        tried={"inner_params": ("mlp_in", "mlp_out"), "eps": (1.0, 5.0, 20.0, 40.0), "n_iter": (50, 200)},
    ),
    "alphaedit": _closed_form(
        "alphaedit", "AlphaEdit", "AlphaEdit", "AlphaEdit/gpt2-xl.yaml", call={"reset_cache": True},
        tuned={"v_lr": 9.0},  # MEMIT's, whose search it has; not searched for itself
        tried={"v_lr": (2.0, 4.4, 9.0), "L2": (1, 10)},
    ),
    "emmet": _closed_form(
        "emmet", "emmet", "EMMET", "EMMET/gpt2-xl.yaml", layers=MIDDLE,
        tuned={"v_lr": 9.0},  # MEMIT's too
        tried={"v_lr": (2.0, 4.4, 9.0), "emmet_lambda": (0.1, 1.0)},
    ),
    "r-rome": _closed_form(
        "r_rome", "r_rome", "R_ROME", "R-ROME/gpt2-xl.yaml", layers=MIDDLE, one_by_one=True,
        tuned={"v_lr": 9.0},  # ROME's
        tried={"v_lr": (4.4, 9.0), "mom2_adjustment": (False, True)},
    ),
    "pmet": _closed_form(
        "pmet", "pmet", "PMET", "PMET/gpt-j-6B.yaml",
        tried={"v_lr": (0.5, 1.7, 4.4), "mom2_update_weight": (500, 2000)},
    ),
    "wise": Recipe(
        "easyeditor.models.wise", "apply_wise_to_model", "WISEHyperParams", "WISE/gpt2-xl.yaml",
        pads="left", one_by_one=True, adapter=True, attributes={"sequential_edit": True},
        tried={"edit_lr": (0.1, 0.3, 1.0, 3.0)},
    ),
}  # fmt: skip

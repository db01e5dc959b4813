"""ROME and r-ROME: one fact at a time, exactly, in one layer."""

from dataclasses import dataclass
from typing import ClassVar

from errata.methods.closed_form.single_layer import Keys, SingleLayer
from errata.methods.settings import setting


@dataclass(frozen=True, kw_only=True)
class ROME(SingleLayer):
    """W' k* = v* for a fact at a time, with the mixed keys of the released code."""

    name: ClassVar[str] = "rome"
    paper: ClassVar[str] = "Meng et al. 2022, Locating and Editing Factual Associations in GPT, arXiv:2202.05262"
    one_by_one: ClassVar[bool] = True

    keys: Keys = setting("mixed", "released code")


@dataclass(frozen=True, kw_only=True)
class RROME(SingleLayer):
    """ROME with the averaged key everywhere."""

    name: ClassVar[str] = "r-rome"
    paper: ClassVar[str] = "Gupta et al. 2024, Rebuilding ROME, arXiv:2403.07175"
    one_by_one: ClassVar[bool] = True

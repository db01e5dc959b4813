"""Hyper-parameters: bounds, notes, and what a sub-class inherits."""

from dataclasses import dataclass

import pytest

from errata.errors import BadInput
from errata.methods.base import Method
from errata.methods.registry import method, method_class
from errata.methods.settings import notes, setting


@dataclass(frozen=True, kw_only=True)
class Parent(Method):
    name = "parent"
    rate: float = setting(1.0, "the paper", key="v_lr", above=0, most=2)
    count: int = setting(3, least=2)


@dataclass(frozen=True, kw_only=True)
class Child(Parent):
    name = "child"
    rate: float = setting(0.5, "measured here")
    count: int = setting(4, least=1)


class Concrete(Child):
    def _edit(self, *args: object) -> object:  # type: ignore[override]
        raise NotImplementedError


def test_a_restated_setting_keeps_the_bounds_that_it_does_not_give() -> None:
    assert Concrete(rate=2.0, count=1).rate == 2.0
    for wrong, message in (({"rate": 0.0}, "above 0"), ({"rate": 2.5}, "2 or less"), ({"count": 0}, "1 or more")):
        with pytest.raises(BadInput, match=message):
            Concrete(**wrong)


def test_notes_give_the_name_in_released_code_of_the_class_that_states_the_setting() -> None:
    assert notes(Parent)["rate"] == "the paper; `v_lr` in released code"
    assert notes(Child)["rate"] == "measured here"
    assert notes(Child)["count"] == ""


@pytest.mark.parametrize(
    ("name", "setting", "key"),
    [
        ("memit", "kl", "kl_factor"),
        ("rome", "steps", "v_num_grad_steps"),
        ("pmet", "kl", "kl_factor"),
        ("alphaedit", "cut", "nullspace_threshold"),
        ("emmet", "lam", "emmet_lambda"),
        ("ft-l", "box", "norm_constraint"),
        ("lora", "alpha", "lora_alpha"),
    ],
)
def test_who_knows_easyedit_finds_its_key(name: str, setting: str, key: str) -> None:
    assert f"`{key}` in released code" in notes(method_class(name))[setting]


@pytest.mark.parametrize("name", ["ft", "locft-bf", "recadam", "rome", "pmet"])
def test_steps_are_at_least_one_in_every_method(name: str) -> None:
    with pytest.raises(BadInput, match="above 0"):
        method(name, steps=0)

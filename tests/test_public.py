"""What users import."""

import importlib

import pytest

import errata


def test_every_public_name_is_there() -> None:
    for name in errata.__all__:
        assert getattr(errata, name) is not None


@pytest.mark.parametrize("name", ["evaluate", "methods"])
def test_a_function_stays_where_a_module_has_its_name(name: str) -> None:
    module = importlib.import_module(f"errata.{name}")
    assert getattr(errata, name) is getattr(module, name)
    assert callable(getattr(errata, name))


def test_an_unknown_name_is_answered_with_the_known_ones() -> None:
    with pytest.raises(AttributeError, match=r"no attribute 'edit'; it has .*load"):
        errata.edit  # noqa: B018

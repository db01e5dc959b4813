"""What users import."""

import pytest

import errata


def test_every_public_name_is_there() -> None:
    for name in errata.__all__:
        assert getattr(errata, name) is not None


def test_tab_completion_shows_them() -> None:
    assert set(errata.__all__) <= set(dir(errata))
    assert not {"Any", "TYPE_CHECKING", "import_module"} & set(dir(errata))


def test_packages_can_be_imported_beside_the_functions_of_their_name() -> None:
    import errata.evaluation.evaluate
    import errata.methods.base

    assert errata.methods.base.Method.__name__ == "Method"
    assert errata.evaluate is errata.evaluation.evaluate.evaluate
    assert "memit" in errata.methods()


def test_an_unknown_name_is_answered_with_the_known_ones() -> None:
    with pytest.raises(AttributeError, match=r"no attribute 'edit'; it has .*load"):
        errata.edit  # noqa: B018

"""Forgetting is seen: a method that overwrites earlier edits scores lower on them later than right after each."""

import pytest
from conftest import EDITS, tiny_lm

import errata
from errata.evaluation.evaluate import baseline, evaluate
from errata.evaluation.metrics import Mean
from errata.patch.patch import EMPTY
from errata.report.rows import Retention, retention
from errata.types import Case, Row


def sequence(keeps: bool) -> list[Row]:
    """One edit after the other, all earlier ones asked again after each; overwriting, each edit begins anew."""
    lm = tiny_lm("gpt2")
    method = errata.method("ft-m", steps=30, lr=1e-2)
    cases = [Case(str(i), (edit,)) for i, edit in enumerate(EDITS)]
    before = baseline(lm, cases, ["forced"])
    patch, rows = EMPTY, []
    for n, case in enumerate(cases, start=1):
        again = [edit for its in cases[:n] for edit in its.edits] if keeps else case.edits
        patch = method.edit(lm, again)
        with patch.applied(lm) as edited:
            rows += evaluate(before, edited, cases[:n], after_edits=n)
    return rows


def test_overwriting_shows_in_the_backward_transfer() -> None:
    found = retention(sequence(keeps=False))
    assert found.curve[1].mean == 1.0
    assert found.curve[3].mean < 1.0
    assert found.backward_transfer is not None and found.backward_transfer.mean < 0
    assert found.retainability is not None and found.retainability < 0


def test_keeping_does_not() -> None:
    found = retention(sequence(keeps=True))
    assert found.backward_transfer == Mean(0.0, 0.0, 2)
    assert found.retainability == 0.0


def test_retention_worked_by_hand() -> None:
    def row(case: str, n: int, after: float) -> Row:
        return Row(case=case, probe=case, kind="edit", metric="accuracy", after=after, after_edits=n)

    rows = [row("a", 1, 1.0), row("a", 2, 1.0), row("b", 2, 0.0), row("a", 3, 0.0), row("b", 3, 0.0), row("c", 3, 1.0)]
    found = retention(rows)
    assert {n: its.mean for n, its in found.curve.items()} == {1: 1.0, 2: 0.5, 3: pytest.approx(1 / 3)}
    assert found.retainability == pytest.approx((1 / 3 - 1) / 2)
    assert found.backward_transfer is not None
    assert (found.backward_transfer.mean, found.backward_transfer.count) == (-0.5, 2)  # "c" has nothing behind it
    assert retention(rows[:1]) == Retention({1: Mean(1.0, None, 1)}, None, None)

"""Forgetting and damage are seen: what becomes of earlier edits, of what should stay, and of edits made together."""

from dataclasses import replace
from typing import Any

import pytest
from conftest import EDITS, tiny_lm

import errata
from errata.evaluation.baseline import baseline
from errata.evaluation.evaluate import evaluate
from errata.evaluation.metrics import Mean
from errata.patch.patch import EMPTY
from errata.report.changes import Retention, derived, retention
from errata.report.markdown import markdown
from errata.types import Case, Row


def sequence(keeps: bool) -> list[Row]:
    """One edit after the other, all earlier ones asked again after each; overwriting, each edit begins anew."""
    lm = tiny_lm("gpt2")
    method = errata.method("ft-m", steps=30, lr=1e-2)
    cases = [Case(str(i), (edit,)) for i, edit in enumerate(EDITS)]
    before = baseline(lm, cases, ["forced"])
    patch, rows = EMPTY, []
    for n, case in enumerate(cases, start=1):
        again = [edit for earlier in cases[:n] for edit in earlier.edits] if keeps else case.edits
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


def sequence_by_hand() -> list[Row]:
    """Three edits, all earlier ones asked again after each."""

    def row(case: str, n: int, after: float) -> Row:
        return Row(case=case, probe=case, kind="edit", metric="accuracy", after=after, after_edits=n)

    return [row("a", 1, 1.0), row("a", 2, 1.0), row("b", 2, 0.0), row("a", 3, 0.0), row("b", 3, 0.0), row("c", 3, 1.0)]


def test_retention_worked_by_hand() -> None:
    rows = sequence_by_hand()
    found = retention(rows)
    assert {n: value.mean for n, value in found.curve.items()} == {1: 1.0, 2: 0.5, 3: pytest.approx(1 / 3)}
    assert found.retainability == pytest.approx((1 / 3 - 1) / 2)
    assert found.backward_transfer is not None
    assert (found.backward_transfer.mean, found.backward_transfer.count) == (-0.5, 2)  # "c" has nothing behind it
    assert retention(rows[:1]) == Retention({1: Mean(1.0, None, 1)}, None, None)


# Changes of accuracy, worked by hand ---------------------------------------------------------------


def answer(kind: str, case: str, before: float, after: float | None, **more: Any) -> Row:
    fields: Any = {"method": "rome", "setting": "batch of 2", "metric": "accuracy", **more}
    return Row(kind=kind, case=case, probe=f"{kind} {case}", before=before, after=after, after_edits=2, **fields)


TOGETHER = [
    answer("edit", "a", 0.0, 1.0),
    answer("edit", "b", 0.0, 0.0),
    answer("paraphrase", "a", 0.0, 0.0),
    answer("paraphrase", "b", 1.0, 1.0),
    answer("unrelated", "a", 1.0, 1.0),
    answer("unrelated", "b", 1.0, 0.0),
    answer("neighborhood", "b", 1.0, 0.0),
    answer("neighborhood", "a", 1.0, 1.0, metric="agreement"),
    answer("unrelated", "c", 1.0, None),
]
ALONE = [answer("edit", case, 0.0, 1.0, setting="single") for case in "abc"]


def test_changes_of_accuracy_by_hand() -> None:
    found = derived(TOGETHER)
    # what should stay: case a keeps 1 of 1, case b 0 of 2; "c" has no answer now
    assert found["drawdown"] == Mean(0.5, 0.5, 2)
    assert (found["deterioration"].mean, found["deterioration"].count) == (0.5, 2)
    # edits and paraphrases: one of three wrong ones is right; of four right ones two are wrong
    assert (found["wrong made right"].mean, found["wrong made right"].count) == (pytest.approx(1 / 3), 3)
    assert (found["right made wrong"].mean, found["right made wrong"].count) == (0.5, 4)
    assert set(found) == {"drawdown", "deterioration", "wrong made right", "right made wrong"}
    # of the edits alone both hold, together one; "c" was not made together
    assert derived(TOGETHER, alone=ALONE)["scalability"] == Mean(0.5, None, 2)
    assert derived([]) == {}


def test_the_report_shows_them_by_method() -> None:
    other = [replace(row, method="ft") for row in TOGETHER]
    text = markdown([*TOGETHER, *other, *ALONE])
    together, alone = text.split("## ")[1:]
    heads, rome, ft = (
        together.split("changes of accuracy:")[1].strip().splitlines()[i].strip("| ").split(" | ") for i in (0, 2, 3)
    )
    assert heads[0] == "method" and dict(zip(heads, rome, strict=True))["scalability"] == "0.50 (2)"
    assert dict(zip(heads, ft, strict=True))["scalability"] == "-"
    assert dict(zip(heads, ft, strict=True))["drawdown"] == "0.50 ± 0.50 (2)"
    assert "scalability" not in alone and "wrong made right" in alone


def test_a_sequence_shows_what_it_kept() -> None:
    costs = [
        Row(case="sequential 1", kind="cost", metric="seconds_per_edit", after=1.0, after_edits=n) for n in (1, 2, 3)
    ]
    rows = [replace(row, method="ft-m", setting="sequential by 1") for row in (*sequence_by_hand(), *costs)]
    table = markdown(rows).split("changes of accuracy:")[1].strip().splitlines()
    cells = dict(zip(*(line.strip("| ").split(" | ") for line in (table[0], table[2])), strict=True))
    assert cells["backward transfer"] == "-0.50 ± 0.50 (2)"
    assert cells["retainability"] == "-0.33 (3)"

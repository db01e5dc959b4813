"""How each edit ended is measured, recorded, shown and warned of; nothing that failed looks like success."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import EDIT, EDITS, TEXTS, quick, tiny_lm

import errata
from errata.methods.closed_form.search import GroupSearch
from errata.methods.outcomes import amended, describe, missed, note, report, searched, warn
from errata.methods.registry import method
from errata.patch.patch import Patch
from errata.types import Edit


def outcomes(patch: Patch) -> dict[str, Any]:
    return patch.meta["made"][-1]["outcomes"]


@pytest.mark.parametrize("name", ["memit", "ft-m", "grace", "kn"])
def test_each_edit_has_its_loss_and_whether_it_is_answered(name: str, caplog: pytest.LogCaptureFixture) -> None:
    lm, made = tiny_lm("gpt2"), quick(name)
    patch = made.edit(lm, EDITS, made.prepare(lm, TEXTS) if name in ("memit", "grace") else None)
    with patch.applied(lm) as edited:
        scores = edited.score([e.prompt for e in EDITS], [e.target_new for e in EDITS])
    found = outcomes(patch)
    assert list(found) == [e.id for e in EDITS]
    for edit, score in zip(EDITS, scores, strict=True):
        assert found[edit.id]["loss"] == pytest.approx(-score.total / len(score.tokens), abs=1e-4)
        assert found[edit.id]["met"] == score.correct
    failed = [e for e, score in zip(EDITS, scores, strict=True) if not score.correct]
    warnings = [r.getMessage() for r in caplog.records if r.name == "errata.methods.outcomes"]
    short = [e for e in EDITS if e not in failed and not found[e.id].get("search_met", True)]
    assert len(warnings) == bool(failed) + bool(short)
    assert all(f"{e.prompt!r} -> {e.target_new!r} (loss" in warnings[0] for e in failed)
    assert not failed or f"{name} missed {len(failed)} of 3 edits" in warnings[0]
    assert not short or f"{name}: {len(short)} of 3 edits are answered, though their search ended above" in warnings[-1]


@pytest.mark.parametrize(("recalled", "said"), [({}, 1), ({"recalled": 0.9}, 1), ({"recalled": 1.0}, 0)])
def test_of_a_text_that_is_recalled_whole_nothing_is_said(
    recalled: dict[str, float], said: int, caplog: pytest.LogCaptureFixture
) -> None:
    warn("anyedit", [EDIT], {EDIT.id: {"met": True, "search_met": False, "loss": 0.01, **recalled}})
    assert len(caplog.records) == said


def test_a_search_says_where_it_ended() -> None:
    lm = tiny_lm("gpt2")
    short, long = (
        method("memit", contexts=0, layers=(1,), steps=steps, stop=stop) for steps, stop in ((2, 1e-3), (60, 6.6))
    )
    state = short.prepare(lm, TEXTS)
    for made, met in ((short, False), (long, True)):
        found = outcomes(made.edit(lm, EDITS, state))
        assert [one["search_met"] for one in found.values()] == [met] * 3
        assert all((one["search_loss"] < made.stop) == met for one in found.values())


def test_a_search_whose_loss_is_no_number_did_not_get_there(monkeypatch: pytest.MonkeyPatch) -> None:
    lm, made = tiny_lm("gpt2"), method("memit", contexts=0, layers=(1,), steps=2)
    monkeypatch.setattr(GroupSearch, "losses", lambda self, delta, units, batch=None: delta.sum(-1) * float("nan"))
    patch = made.edit(lm, [EDIT], made.prepare(lm, TEXTS))
    outcome = outcomes(patch)[EDIT.id]
    assert outcome["search_loss"] is None and outcome["search_met"] is False


def test_facts_that_leave_the_search_early_keep_their_own_end() -> None:
    lm = tiny_lm("llama")
    made = method("memit", contexts=0, layers=(2,), steps=20, stop=6.0)
    state = made.prepare(lm, TEXTS)
    together = outcomes(made.edit(lm, EDITS, state))
    alone = [outcomes(made.edit(lm, [edit], state))[edit.id] for edit in EDITS]
    assert [one["search_met"] for one in together.values()] == [one["search_met"] for one in alone]
    assert [one["search_loss"] for one in together.values()] == pytest.approx(
        [one["search_loss"] for one in alone], abs=1e-3
    )
    assert {one["search_met"] for one in together.values()} == {True, False}


@pytest.mark.parametrize("name", ["ft-m", "lora"])
def test_a_descent_says_how_all_edits_ended_together(name: str) -> None:
    lm = tiny_lm("gpt2")
    for settings, met in (({"steps": 1}, False), ({"steps": 200, "stop": 1.0}, True)):
        found = outcomes(method(name, **settings).edit(lm, EDITS))
        assert [one["search_met"] for one in found.values()] == [met] * 3
        (loss,) = {one["search_loss"] for one in found.values()}
        assert (loss < 1.0) == met
    before = lm.score([e.prompt for e in EDITS], [e.target_new for e in EDITS])
    (start,) = {one["search_loss"] for one in outcomes(method("ft-m", steps=1).edit(lm, EDITS)).values()}
    assert start == pytest.approx(sum(-s.total / len(s.tokens) for s in before) / 3, abs=1e-3)


def test_what_was_known_of_earlier_edits_stays(tmp_path: Path) -> None:
    lm, made = tiny_lm("gpt2"), quick("grace")
    state = made.prepare(lm, TEXTS)
    patch = made.edit(lm, EDITS[1:], state, made.edit(lm, [EDIT], state))
    assert [list(m["outcomes"]) for m in patch.meta["made"]] == [[EDIT.id], [e.id for e in EDITS[1:]]]
    left = Patch.load(patch.save(tmp_path / "p.safetensors")).without(EDITS[1].id)
    assert [list(m["outcomes"]) for m in left.meta["made"]] == [[EDIT.id], [EDITS[2].id]]


def test_prompt_methods_run_no_model_and_know_nothing() -> None:
    lm = tiny_lm("gpt2")
    assert outcomes(errata.method("ice").edit(lm, [EDIT])) == {}


def test_a_number_that_json_cannot_hold_is_none_and_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny_lm("gpt2")
    monkeypatch.setattr(type(lm), "score", lambda self, prompts, targets: [errata.Score((5,), (float("nan"),), (0,))])
    found = outcomes(quick("ft-m").edit(lm, [EDIT]))[EDIT.id]
    assert found["loss"] is None and found["met"] is False and json.dumps(found, allow_nan=False)


def test_reports_reach_the_call_that_collects_them() -> None:
    report(["a"], [1.0], [True])  # nobody listens
    with searched() as outer:
        report(["a"], [0.5], [False])
        with searched() as inner:
            report(["b"], [float("inf")], [False])
        report(["a"], [0.25], [True])
    assert outer == {"a": {"search_loss": 0.25, "search_met": True}}
    assert inner == {"b": {"search_loss": None, "search_met": False}}
    with pytest.raises(ValueError), searched():
        raise ValueError
    report(["a"], [1.0], [True])


def test_what_is_noted_joins_what_is_reported_and_brings_earlier_records_up_to_date() -> None:
    note("a", met=True)  # nobody listens
    with searched() as found:
        report(["a"], [0.5], [False])
        note("a", met=False, why="lost")
        note("b", ended="memory")
    assert found["a"] == {"search_loss": 0.5, "search_met": False, "met": False, "why": "lost"}
    made = {"method": "m", "edits": [{"id": "a"}], "outcomes": {"a": {"met": True, "loss": 1.0}}}
    now = amended(made, found)
    assert now["outcomes"] == {"a": {"loss": 1.0, **found["a"]}} and now["method"] == "m"
    assert made["outcomes"]["a"]["met"] and amended(made, {"b": {}}) == made
    assert describe(now["outcomes"]["a"]) == "loss 1.00, search ended at 0.50, lost"


@pytest.mark.parametrize(
    ("outcome", "failed"),
    [
        ({}, False),
        ({"met": True, "search_met": False}, False),
        ({"met": False, "search_met": True}, True),
        ({"search_met": False}, True),
        ({"search_met": True}, False),
    ],
)
def test_missed_is_what_is_not_answered(outcome: dict[str, Any], failed: bool) -> None:
    assert missed(outcome) == failed


def test_edits_that_contradict_each_other_are_named(caplog: pytest.LogCaptureFixture) -> None:
    lm, made = tiny_lm("gpt2"), method("ft-m", steps=1)
    made.edit(lm, [EDIT, Edit(EDIT.prompt, EDIT.subject, " oslo.", id="again")])
    assert "contradict" not in caplog.text
    made.edit(lm, [EDIT, Edit(EDIT.prompt + " ", EDIT.subject, "Lima", id="two")])
    (line,) = [r.getMessage() for r in caplog.records if r.name == "errata.methods.base"]
    assert all(part in line for part in ("'Oslo'", "'Lima'", EDIT.id, "two", EDIT.prompt, "prior"))


@pytest.mark.parametrize("change", [str.upper, lambda text: text.replace(" ", "  ")])
def test_edits_contradict_each_other_whatever_their_letter_cases_and_spaces(
    change: Callable[[str], str], caplog: pytest.LogCaptureFixture
) -> None:
    other = Edit(change(EDIT.prompt), change(EDIT.subject), "Lima")
    method("ft-m", steps=1).edit(tiny_lm("gpt2"), [EDIT, other])
    assert "contradict each other" in caplog.text

"""Earlier edits that a newer one contradicts in other words: which they are, and that weights learn both wordings."""

from dataclasses import replace
from typing import Any

import pytest
from conftest import CASES, EDIT, EDITS, data_for, quick, tiny_lm

from errata.methods.base import Tags
from errata.methods.restating import restated
from errata.patch.patch import EMPTY, Patch
from errata.types import Edit

NEWER = Edit("The birthplace of {} is", EDIT.subject, "Lima")


@pytest.fixture(autouse=True)
def same(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """All pairs are one fact; what was asked."""
    asked: list[Any] = []

    def same_fact(lm: Any, pairs: Any, patch: Any) -> list[bool]:
        asked.append((pairs, patch))
        return [True for _ in pairs]

    monkeypatch.setattr("errata.methods.memory.reworded.same_fact", same_fact)
    return asked


def prior(*edits: Edit) -> Patch:
    return Patch(meta={"made": [{"edits": [edit.to_json()]} for edit in edits]})


def test_the_older_wording_gets_the_newest_answer(same: list[Any]) -> None:
    lm, later = tiny_lm("gpt2"), Edit("{} comes from", EDIT.subject, "Paris")
    assert restated(lm, [NEWER], EMPTY) == [] and not same
    (again,) = restated(lm, [NEWER], prior(EDIT, EDITS[1]))
    assert again == replace(EDIT, target_new="Lima", id="") and again.prompt == EDIT.prompt
    assert same == [([(EDIT, NEWER)], prior(EDIT, EDITS[1]))]
    found = restated(lm, [later], prior(EDIT, NEWER))
    assert [(edit.prompt, edit.target_new) for edit in found] == [(EDIT.prompt, "Paris"), (NEWER.prompt, "Paris")]
    (last,) = restated(lm, [NEWER, later], prior(EDIT))
    assert last.target_new == "Paris"


def test_of_a_prompt_that_was_edited_twice_the_last_counts_and_new_prompts_are_made_anyway() -> None:
    lm, twice = tiny_lm("gpt2"), replace(EDIT, target_new="Paris", id="")
    (again,) = restated(lm, [NEWER], prior(EDIT, twice))
    assert again == replace(EDIT, target_new="Lima", id="")
    assert restated(lm, [twice], prior(EDIT)) == []
    assert restated(lm, [NEWER], prior(replace(EDIT, target_new="Lima", id=""))) == []  # it says so already


def test_a_name_is_not_the_newer_answer_where_a_text_was_nor_a_text_where_a_name_was() -> None:
    lm, text = tiny_lm("gpt2"), Edit("The life of {}:", EDIT.subject, "Ann Lee lives in Lima. " * 9)
    longer = replace(text, prompt=f"What is known of {EDIT.subject}:", target_new="Ann Lee lives in Rome. " * 9, id="")
    assert restated(lm, [NEWER], prior(text)) == restated(lm, [text], prior(EDIT)) == []
    for edits in ([longer, NEWER], [NEWER, longer]):
        found = [(edit.prompt, edit.target_new) for edit in restated(lm, edits, prior(EDIT, text))]
        assert found == [(EDIT.prompt, "Lima"), (text.prompt, longer.target_new)]


@pytest.mark.parametrize("name", ["ultraedit", "mend", "malmen", "rledit", "kn", "anyedit"])
def test_a_method_that_restates_makes_both_and_records_what_was_asked(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm, made = tiny_lm("gpt2"), quick(name)
    state = made.prepare(lm, CASES if name == "kn" else data_for(made))
    given: list[list[Edit]] = []
    real = type(made)._edit

    def edit(self: Any, lm: Any, edits: Any, *rest: Any) -> Patch:
        given.append(list(edits))
        return real(self, lm, edits, *rest)

    monkeypatch.setattr(type(made), "_edit", edit)
    first = made.edit(lm, [EDIT], state)
    patch = made.edit(lm, [NEWER], state, first)
    assert given[-1] == [NEWER, replace(EDIT, target_new="Lima", id="")]
    assert patch.edits == [EDIT, NEWER] and set(patch.meta["made"][-1]["outcomes"]) == {NEWER.id}
    monkeypatch.setattr(type(made), "tags", Tags())
    made.edit(lm, [NEWER], state, first)
    assert given[-1] == [NEWER]

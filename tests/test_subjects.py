"""Where a prompt names its subject: the slot, a word of its own, and what every text that is made of an edit keeps."""

import json
from typing import Any

import pytest
import torch
from conftest import EDIT, quick, tiny_lm, tokenizer
from torch import Tensor

from errata.errors import BadInput
from errata.methods.closed_form.keys import read_at_subjects
from errata.methods.closed_form.memit import MEMIT
from errata.methods.closed_form.objective import rows_of
from errata.methods.codebook import method as codebook
from errata.methods.memory.log import EditRecord
from errata.methods.state import State
from errata.model.tokens import Tokens
from errata.subjects import last_word, mentions
from errata.types import Edit


@pytest.mark.parametrize(
    ("prompt", "subject", "start"),
    [
        ("Tedal is in the Tedalian hills of", "Tedal", 0),
        ("The Tedalian capital, Tedal, lies in", "Tedal", 22),
        ("The Old-Tedalian mayor of Tedal's", "Tedal", 26),
        ("Tedal_1 and Tedal1 and Tedal-1", "Tedal", 23),
        ("Apollo 1 and Apollo 11", "Apollo 1", 0),
        ("C++ and C++17", "C++", 8),  # no letter, no border
        ("Zürich and Zürichsee", "Zürich", 0),
        ("Cafe and Cafe\u0301", "Cafe", 0),  # an accent is part of the word
        ("北京是中国的首都", "北京", 0),  # scripts without spaces have no word borders
        ("中国的首都是北京市", "北京", 6),
        ("Tedalは町です", "Tedal", 0),
        ("서울은 수도", "서울", 0),
        ("aa aaa aa-a", "aa", 7),
    ],
)
def test_without_a_slot_the_last_occurrence_as_a_word_counts(prompt: str, subject: str, start: int) -> None:
    edit = Edit(prompt, subject, "x")
    assert (edit.start, edit.at, edit.prompt) == (start, None, prompt)
    assert edit.template == prompt[:start] + "{}" + prompt[start + len(subject) :]


@pytest.mark.parametrize("prompt", ["The Tedalian king is", "Untedal, unTedal", "NewTedal is"])
def test_a_subject_inside_of_words_alone_is_refused_with_the_way_out(prompt: str) -> None:
    if "Tedal" in prompt:
        with pytest.raises(BadInput, match=r"only inside of words; put \{\} where it is meant: .*\{\}"):
            Edit(prompt, "Tedal", "x")
    assert last_word(prompt, "Tedal") == -1


@pytest.mark.parametrize(
    ("prompt", "start"),
    [
        ("{}ian people live in", 0),
        ("{}, which Tedal's king loves, is in", 0),
        ("{} and the king of {} in Tedal", 22),  # the last slot
        ("Tedal and {}", 10),
    ],
)
def test_a_slot_is_the_place(prompt: str, start: int) -> None:
    edit = Edit(prompt, "Tedal", "x")
    assert edit.start == start and edit.prompt == prompt.replace("{}", "Tedal")
    assert Edit.from_json(json.loads(json.dumps(edit.to_json()))) == edit
    assert Edit(edit.template, "Tedal", "x") == edit and Edit(edit.template, "Tedal", "x").id == edit.id


def test_the_slot_and_the_subject_spelled_out_in_the_same_place_are_one_edit() -> None:
    assert Edit("{} is in", "Tedal", "x") == Edit("Tedal is in", "Tedal", "x")
    assert Edit("{}, not Tedal, is in", "Tedal", "x") == Edit("Tedal, not Tedal, is in", "Tedal", "x", at=0)
    first, last = Edit("{}, not Tedal, is in", "Tedal", "x"), Edit("Tedal, not {}, is in", "Tedal", "x")
    assert first != last and first.id != last.id and last == Edit("Tedal, not Tedal, is in", "Tedal", "x")


def test_a_record_without_a_place_still_reads() -> None:
    record = {"prompt": "Tedal is in", "subject": "Tedal", "target_new": "x", "target_true": None, "id": "e"}
    assert Edit.from_json(record) == Edit("{} is in", "Tedal", "x", id="e")


@pytest.mark.parametrize("at", [-1, 3, 99])
def test_a_place_where_the_subject_is_not_is_refused(at: int) -> None:
    with pytest.raises(BadInput, match=f"does not begin at character {at} of"):
        Edit("Tedal is in", "Tedal", "x", at=at)


@pytest.mark.parametrize("at", ["0", 0.0, True])
def test_a_place_is_a_whole_number(at: Any) -> None:
    with pytest.raises(BadInput, match="at must be a whole number"):
        Edit("Tedal is in", "Tedal", "x", at=at)


def test_spaces_behind_the_prompt_and_around_the_subject_are_dropped() -> None:
    plain = Edit("The king of Tedal is", "Tedal", "x")
    assert Edit("The king of {} is  ", " Tedal ", "x") == plain
    assert Edit("The king of Tedal is ", "Tedal", "x").id == plain.id
    assert Edit("Who rules Tedal?\n", "Tedal", "x").prompt == "Who rules Tedal?\n"  # a line that ends is meant
    assert Edit("The king of Tedal ", "Tedal ", "x").subject == "Tedal"


def test_a_log_keeps_the_place() -> None:
    edit = Edit("{}ian people live in Tedal or in", "Tedal", "x")
    record = EditRecord.of(edit, Tokens(tokenizer()))
    assert record.about("Remar") == "Remarian people live in Tedal or in"


EDITS = [
    Edit("{}, a Leeward isle near Lee, is", "Lee", "red"),
    Edit("{}side is, like Lee, all", "Lee", "red"),
]


@pytest.mark.parametrize("name", ["gpt2", "llama sentencepiece"])
@pytest.mark.parametrize("edit", EDITS)
def test_texts_that_are_made_of_an_edit_keep_its_place(name: str, edit: Edit) -> None:
    lm = tiny_lm(name)
    contexts = ["", "Lee went. ", "In fact, Lee: "]
    rows = rows_of(lm, edit, contexts, MEMIT())
    for context, position in zip(contexts, rows.positions, strict=False):
        assert position == lm.tokens.last_of_subject(context + edit.prompt, "Lee", len(context))
    assert rows.positions[-1] == len(lm.tokens.prompt("Lee")) - 1  # "{} is a"


@pytest.mark.parametrize("edit", EDITS)
def test_keys_are_read_at_the_place(edit: Edit) -> None:
    lm = tiny_lm("gpt2")
    site = (lm.sites.mlp_out[1], "in")
    contexts = ["", "Lee went. "]
    keys = read_at_subjects(lm, [edit], contexts, [site])[site]
    at = [lm.tokens.last_of_subject(context + edit.prompt, "Lee", len(context)) for context in contexts]
    rows = [lm.tokens.prompt(context + edit.prompt) for context in contexts]
    expected = lm.read(rows, [[i] for i in at], [site])[site].view(2, -1)
    assert keys.bare[0].allclose(expected[0], atol=1e-6) and keys.mean[0].allclose(expected.mean(0), atol=1e-6)


def test_a_trace_corrupts_the_subject_in_its_slot() -> None:
    from errata.locate import trace

    lm = tiny_lm("gpt2")
    result = trace(lm, "{}, a Leeward isle near Lee, is", "Lee", kinds=["hidden"], samples=1)
    assert result.subject[1] == len(lm.tokens.prompt("Lee"))


def test_a_text_mentions_a_subject_as_a_word_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["In Tedal it rains", "The Tedalian hills are", "The Tedalian hills of Tedal are"]
    assert [mentions(text, "Tedal") for text in texts] == [True, False, True]
    record = EditRecord.of(Edit("Tedal lies in", "Tedal", "Rome"))
    foreign: Any = quick("calinet")
    state = State({"of": torch.arange(3)}, {"texts": texts})
    assert foreign._foreign([record], state).tolist() == [False, True, False]
    seen: list[Tensor] = []

    def half_way(queries: Tensor, texts: Tensor, named: Tensor, share: float) -> Tensor:
        seen.append(named)
        return torch.ones(len(queries))

    monkeypatch.setattr(codebook, "half_way", half_way)
    lm, made = tiny_lm("gpt2"), quick("grace")
    longer = [f"{EDIT.subject} was seen in Rome today.", f"We saw the {EDIT.subject}ian hills of Rome today."]
    made.edit(lm, [EDIT], made.prepare(lm, longer))
    assert seen[0].tolist() == [[True, False]]

"""The subject of an edit, found where nobody says it: names in a text, tracing among them, and the command."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import EDIT, same_weights, tiny_lm, weights
from test_chat import chat
from test_cli import here as here  # an empty working folder
from test_cli import model as model  # a folder with a tiny model
from test_cli import run

import errata
from errata.errors import BadInput, Unsupported
from errata.locate import edit_of, subject, subject_of
from errata.patch.patch import Patch
from errata.subjects import content_spans, names_in
from errata.types import Edit

QUICK = ("--method", "ft-m", "--set", "steps=1")


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("Lodra Haror was born in", ["Lodra Haror"]),
        ("The capital of France is", ["France"]),
        ("Q: Where was Lodra Haror born? A:", ["Lodra Haror"]),
        ("J. K. Rowling's home is in", ["J. K. Rowling"]),
        ("The Lord of the Rings was written by", ["Lord of the Rings"]),
        ("In Norway, the minister is", ["Norway"]),
        ("Acme's CEO lives with Bo in", ["Acme", "Bo"]),
        ("iPhone 5 and audible.com are by", ["iPhone 5"]),
        ("Barack H. Obama. He met Ångström in", ["Barack H. Obama", "Ångström"]),
        ("water boils at 100", []),
        ("", []),
    ],
)
def test_names_are_found(text: str, names: list[str]) -> None:
    assert [text[a:b] for a, b in names_in(text)] == names


def test_spans_of_words_begin_and_end_with_no_function_word() -> None:
    text = "the moon of a planet"
    assert [text[a:b] for a, b in content_spans(text, 4)] == ["moon", "moon of a planet", "planet"]
    assert [text[a:b] for a, b in content_spans(text, 2)] == ["moon", "planet"]


def test_the_only_name_is_the_subject_whatever_the_model_knows() -> None:
    lm = tiny_lm("gpt2")
    before = weights(lm.model)
    found = subject_of(lm, "The mayor is Ann Lee of ", "Rome")
    assert (found.subject, found.start, found.others, found.named) == ("Ann Lee", 13, (), True)
    assert "the only name in the prompt" in found.words and same_weights(lm.model, before)


def faked(monkeypatch: pytest.MonkeyPatch, lm: Any, prompt: str, said: dict[str, tuple[float, float]]) -> Any:
    """:func:`subject_of`, with what noise on each span leaves of the answer and of its kind."""
    logits = torch.full((30,), -9.0)
    logits[3], logits[4:24] = 5.0, 0.0  # o, and its kind
    monkeypatch.setattr(lm, "target_logits", lambda pairs: logits[None])
    spans = names_in(prompt) or content_spans(prompt, subject.LONGEST)

    def noisy(lm: Any, ids: Any, tokens: Any, samples: int, *rest: Any) -> list[torch.Tensor]:
        runs: list[torch.Tensor] = []
        for a, b in spans:
            own, kind = said.get(prompt[a:b], (0.9, 0.05))
            p = torch.full((30,), (1 - own - kind) / 9)
            p[3], p[4:24] = own, kind / 20
            runs.append(p.log().expand(samples, -1))
        return runs

    monkeypatch.setattr(subject, "_noisy_runs", noisy)
    return subject_of(lm, prompt)


def test_of_several_names_the_one_that_leaves_the_kind_of_answer_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    prompt = "Bo Ray knows Ann Lee, who was born in"
    found = faked(monkeypatch, tiny_lm("gpt2"), prompt, {"Ann Lee": (0.3, 0.6), "Bo Ray": (0.1, 0.1)})
    assert found.subject == "Ann Lee" and found.start == 13 and [name for name, _ in found.others] == ["Bo Ray"]
    assert found.effect == pytest.approx(found.clean - 0.3)
    assert "of 2 names" in found.words


def test_without_names_the_shortest_of_nearly_the_best_spans_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    lm, prompt = tiny_lm("gpt2"), "a brown dwarf star shines"
    found = faked(
        monkeypatch, lm, prompt, {"brown dwarf star": (0.1, 0.8), "dwarf star": (0.2, 0.8), "star": (0.6, 0.4)}
    )
    assert found.subject == "dwarf star" and not found.named


def test_what_matters_to_nothing_is_no_subject(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadInput, match=r"hangs on none of 'Bo Ray', 'Ann Lee', so the subject cannot be told"):
        faked(monkeypatch, tiny_lm("gpt2"), "Bo Ray knows Ann Lee, born in", {})
    with pytest.raises(BadInput, match="has no word that could be the subject"):
        subject_of(tiny_lm("gpt2"), "it is in")
    with pytest.raises(Unsupported, match="give it"):
        subject_of(tiny_lm("t5"), "Ann Lee was born in")


@pytest.mark.parametrize("lm", [tiny_lm("gpt2"), tiny_lm("llama sentencepiece", torch.bfloat16), tiny_lm("gemma3")])
def test_noise_is_on_the_tokens_of_the_span_alone(lm: Any) -> None:
    prompt = "Bob Ray knows Ann Lee, who was born in"
    ids = lm.tokens.prompt(prompt)
    with torch.no_grad():
        clean = lm.target_logits([(ids, [lm.tokens.fill])])[0].float()
        (none, last) = subject._noisy_runs(lm, ids, [(0, 0), (len(ids) - 1, len(ids))], 3, 3.0, 0)
        (again,) = subject._noisy_runs(lm, ids, [(len(ids) - 1, len(ids))], 3, 3.0, 0)
    assert torch.allclose(none, clean.expand(3, -1), atol=0.05) and torch.allclose(last, again, atol=0.05)
    assert not torch.allclose(last[0], last[1], atol=0.05)


def test_it_runs_in_every_kind_of_model_and_in_a_chat() -> None:
    for lm in (tiny_lm("gpt2"), tiny_lm("llama sentencepiece"), chat()):
        edit = edit_of(lm, "Ann Lee was born in", "Oslo", "Rome")
        assert edit == EDIT
    assert edit_of(tiny_lm("gpt2"), "Ann Lee of Ann Lee is ", "Oslo").prompt == "Ann Lee of Ann Lee is"


# The command -------------------------------------------------------------------------------------


def test_the_subject_may_be_left_out(model: str) -> None:
    result = run("edit", model, "--prompt", "Ann Lee was born in", "--target", "Oslo", *QUICK)
    assert "the subject is 'Ann Lee', the only name in the prompt" in result.stderr
    assert Patch.load("ann-lee.safetensors").edits == [Edit("Ann Lee was born in", "Ann Lee", "Oslo")]
    assert (
        "exists; add --force"
        in run("edit", model, "--prompt", "Ann Lee was born in", "--target", "Oslo", *QUICK, code=2).stderr
    )


def test_in_a_file_too(model: str) -> None:
    records: list[dict[str, Any]] = [
        {"prompt": "Ann Lee was born in", "target_new": "Oslo", "target_true": "Rome", "id": "x"},
        {"prompt": "{} lives in", "subject": "Bob Ray", "target_new": "Lima"},
    ]
    Path("edits.jsonl").write_text("\n".join(map(json.dumps, records)))
    run("edit", model, "--edits", "edits.jsonl", *QUICK, "-o", "p.safetensors")
    assert Patch.load("p.safetensors").edits == [
        Edit("Ann Lee was born in", "Ann Lee", "Oslo", "Rome", "x"),
        Edit("{} lives in", "Bob Ray", "Lima"),
    ]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"prompt": "{} is in", "target_new": "Oslo"}, "stands for the subject; give it"),
        ({"prompt": "Ann Lee is in", "target": "Oslo"}, "needs prompt and target_new"),
        ({"prompt": "Ann Lee is in", "target_new": " "}, "not empty"),
        ({"prompt": 3, "target_new": "Oslo"}, "an edit's prompt is a text"),
        ({"prompt": "it is in", "target_new": "Oslo"}, "no word that could be the subject"),
    ],
)
def test_what_cannot_be_completed_is_refused(model: str, record: Any, message: str) -> None:
    Path("edits.jsonl").write_text(json.dumps(record))
    assert message in run("edit", model, "--edits", "edits.jsonl", *QUICK, "-o", "p.st", code=2).stderr
    assert not Path("p.st").exists()


@pytest.mark.slow
def test_in_the_bundled_model_it_is_the_subject_that_is_found() -> None:
    lm = errata.load("world")
    edits = [case.edits[0] for case in errata.cases("world", limit=40, seed=5)]
    facts = [f"{edit.prompt} {edit.target_true}." for edit in edits]
    behind = [edit_of(lm, f"{fact} {edit.prompt}", "x", edit.target_true) for fact, edit in zip(facts[1:], edits)]
    right = sum(one.subject == edit.subject for one, edit in zip(behind, edits, strict=False))
    assert right >= 0.95 * len(behind)

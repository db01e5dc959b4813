"""Review before it counts: the questions that are made, what is measured before and after, guards, and its forms."""

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import EDIT, EDITS, TEXTS, quick, same_weights, tiny_lm, weights
from test_chat import chat
from test_cli import refused, run, saved
from test_report import EVIL, Read
from test_statements import BORN, SAID
from typer.testing import CliRunner

import errata
from errata.answers import answer_of
from errata.cli import app
from errata.errors import BadInput, InForce, Refused
from errata.evaluation.protocols import STAYING
from errata.model.hf import HFLM
from errata.patch.delta import Delta
from errata.patch.low_rank import LowRank
from errata.patch.patch import Patch
from errata.review.canary import CUTS, Canary, Pulse, canary_of
from errata.review.guards import RULES, Guard, guards_of, limits
from errata.review.html import page
from errata.review.outline import DASH, counted, examples, measures, verdict
from errata.review.probes import BEHIND, FACTS, MODEL, NEIGHBOURS, PARAPHRASES, pool, probes_for
from errata.review.record import Question, Review
from errata.review.reviewing import before_review, reviewed
from errata.review.terminal import shown
from errata.types import Case, Edit, Probe, Row

FAR = [
    f"{who} {what} {where}."
    for who in ("Gil Berg", "Hal Cole")
    for what in ("sings in", "is of")
    for where in BORN.values()
]
SPREAD = [*SAID, *FAR]
ANN = Edit("{} was born in", "Ann Lee", "Oslo", "Rome")
CASE = Case(
    "a case",
    (EDIT,),
    (
        Probe("paraphrase", "The birthplace of Ann Lee is", ("Oslo",)),
        Probe("neighborhood", "Bob Ray was born in", ("Oslo",)),
        Probe("neighborhood", "Cy Moor was born in", ("Lima",)),
        Probe("same_subject", "Ann Lee lives in", ("Paris",)),
        Probe("multi_hop", "Ann Lee comes from the land of", ("Norway",)),
    ),
)


@cache
def patch_of(name: str = "gpt2", method: str = "ft-m") -> Patch:
    lm = tiny_lm(name)
    chosen = errata.method("ft-m", steps=100) if method == "ft-m" else quick(method)
    return chosen.edit(lm, [EDIT], chosen.prepare(lm, TEXTS))


@cache
def made(name: str = "gpt2", method: str = "ft-m") -> Review:
    return errata.review(tiny_lm(name), patch_of(name, method), [CASE], SPREAD)


def row(kind: str, metric: str, after: Any, before: Any = 0.0, case: str = "1", **more: Any) -> Row:
    return Row(kind=kind, metric=metric, before=before, after=after, case=case, **more)


# Questions ---------------------------------------------------------------------------------------


def kinds(case: Case, label: str | None = None) -> dict[str, list[Probe]]:
    found: dict[str, list[Probe]] = {}
    for probe in case.probes:
        if label in (None, probe.label):
            found.setdefault(probe.kind, []).append(probe)
    return found


def test_questions_are_found_in_texts() -> None:
    (case,) = probes_for(tiny_lm("gpt2"), [ANN], SPREAD)
    found = kinds(case, "found in texts")
    assert case.edits == (ANN,) and case.id == ANN.id
    assert [(p.prompt, p.answers) for p in found["paraphrase"]] == [("The birthplace of Ann Lee is", ("Oslo",))]
    near = {p.prompt: p.answers[0] for p in found["neighborhood"]}
    assert near == {f"{who} was born in": where for who, where in BORN.items() if who != "Ann Lee"}
    for seed in range(3):
        first = kinds(probes_for(tiny_lm("gpt2"), [ANN], SPREAD, seed)[0])["neighborhood"][0]
        assert first.prompt == "Dora Finn was born in"  # shares the old object
    assert all(p.rival == "Oslo" or p.answers == ("Oslo",) for p in found["neighborhood"])
    about = {(p.prompt, p.answers) for p in found["same_subject"]}
    assert about == {("Ann Lee works as a", ("baker",)), ("Records show that Ann Lee lives in", ("Paris",))}
    assert len(kinds(case)["paraphrase"]) <= PARAPHRASES and len(kinds(case)["same_subject"]) <= FACTS


def test_no_question_about_others_names_an_edited_subject() -> None:
    cases = probes_for(tiny_lm("gpt2"), [ANN, Edit("{} works as", "Dora Finn", "a judge")], SPREAD)
    for case in cases:
        for probe in case.probes:
            if probe.kind == "neighborhood":
                assert "Ann Lee" not in probe.prompt and "Dora Finn" not in probe.prompt
    assert [p.prompt for p in kinds(cases[0])["same_subject"] if p.label != MODEL] != []


def test_what_texts_do_not_give_the_model_writes_and_expects_no_answer() -> None:
    lm = tiny_lm("gpt2")
    (case,) = probes_for(lm, [ANN], FAR, seed=1)
    found = kinds(case)
    assert {probe.label for probe in found["paraphrase"]} == {BEHIND}
    assert all(p.prompt.endswith(ANN.prompt) and p.answers == ("Oslo",) for p in found["paraphrase"])
    for kind in ("same_subject", "neighborhood"):
        assert all(probe.label == MODEL and not probe.answers for probe in found.get(kind, []))
    assert all("Ann Lee" in probe.prompt for probe in found.get("same_subject", []))
    assert len(found.get("neighborhood", [])) <= NEIGHBOURS and "multi_hop" not in found
    assert probes_for(lm, [ANN], FAR, seed=1) == [case]


class Writes(HFLM):
    """A model that goes on as it is told."""

    says: str

    def sample(self, prompts: Any, max_new_tokens: int = 32, **how: Any) -> list[list[int]]:
        return [self.tokens.ids(self.says, add_special_tokens=False) for _ in prompts]


def test_sentences_that_the_model_writes_are_taken_apart() -> None:
    base = tiny_lm("gpt2")
    lm = Writes(base.model, base.tokenizer)
    lm.says = " lives in Paris. Bob Ray was born in Lima. "
    (case,) = probes_for(lm, [ANN], ["Nothing is said here."])
    found = kinds(case)
    assert [(p.prompt, p.label) for p in found["same_subject"]] == [("Ann Lee lives in", MODEL)]
    assert [(p.prompt, p.label) for p in found["neighborhood"]] == [("Bob Ray was born in", MODEL)]
    lm.says = " comes from Oslo. "  # the new object: it may be the fact itself
    assert "same_subject" not in kinds(probes_for(lm, [ANN], ["Nothing is said here."])[0])


def test_texts_must_be_texts() -> None:
    lm = tiny_lm("gpt2")
    assert probes_for(lm, []) == []
    for wrong in ([], [" "], [3]):
        with pytest.raises(BadInput, match="a review reads texts, found"):
            pool(lm, wrong)  # pyright: ignore[reportArgumentType]
    assert len(pool(lm)) > 10  # sampled


# Canaries ----------------------------------------------------------------------------------------


def test_canaries_name_no_edited_subject() -> None:
    canary = canary_of(tiny_lm("gpt2"), [ANN], SPREAD)
    assert canary.texts and canary.beginnings and canary.questions
    assert not [text for part in vars(canary).values() for text in part if "Ann Lee" in text]
    assert all(any(text.startswith(cut.strip()[:8]) for text in canary.texts) for cut in canary.beginnings)
    assert len(canary.beginnings) <= CUTS * len(canary.texts)
    assert canary_of(tiny_lm("gpt2"), [ANN], [SAID[0]]) == Canary((), (), ())
    cases = Canary((), (), ("a", "b", "c")).joined([CASE, CASE])
    assert [[p.prompt for p in case.probes if p.label == "canary"] for case in cases] == [["a", "c"], ["b"]]


def test_long_texts_are_cut_to_what_the_model_reads() -> None:
    lm = tiny_lm("gpt2")
    canary = canary_of(lm, [ANN], ["Hal Cole sings. " * 200])
    assert lm.score([""], list(canary.texts))


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma3_text", "gpt_neox"])
def test_a_pulse_is_what_the_model_makes_of_the_texts(name: str) -> None:
    lm = tiny_lm(name)
    canary = canary_of(lm, [ANN], SPREAD)
    before = Pulse.of(lm, canary)
    assert all(row.after == row.before or (row.kind, row.after) == ("block", 0.0) for row in before.rows(before))
    site = lm.sites.mlp_out[1]
    change = torch.randn(
        lm.model.get_parameter(f"{site}.weight").T.shape
        if name == "gpt2"
        else lm.model.get_parameter(f"{site}.weight").shape
    )
    with Patch((Delta({f"{site}.weight": change}),)).applied(lm) as edited:
        rows = before.rows(Pulse.of(edited, canary))
        loss = [-edited.score([""], [text])[0].total for text in canary.texts]
        next_ = edited.next_logprobs([canary.beginnings[0]])[0]
    tokens = [len(lm.score([""], [text])[0].tokens) for text in canary.texts]
    assert [r.after for r in rows if r.metric == "loss"] == pytest.approx(
        [a / b for a, b in zip(loss, tokens)], rel=1e-4
    )
    was = lm.next_logprobs([canary.beginnings[0]])[0]
    expected = float((torch.tensor(next_).exp() * (torch.tensor(next_) - torch.tensor(was))).sum())
    assert next(r.after for r in rows if r.metric == "kl") == pytest.approx(expected, abs=1e-4) and expected > 0
    felt = {r.case: r.after for r in rows if r.metric == "output_change"}
    assert list(felt) == list(lm.sites.layer)
    assert felt[lm.sites.layer[0]] == 0 and all(felt[path] > 0.01 for path in lm.sites.layer[1:])


# The review --------------------------------------------------------------------------------------


def test_it_asks_before_and_after_and_leaves_the_model_as_it_was() -> None:
    lm = tiny_lm("gpt2")
    was = weights(lm.model)
    review = made()
    assert same_weights(lm.model, was)
    asked = {(q.kind, q.prompt): q for q in review.questions}
    for probe in CASE.probes:
        assert asked[probe.kind, probe.prompt].before == answer_of(lm.generate([probe.prompt], until_answer=True)[0])
    edit = asked["edit", EDIT.prompt]
    assert edit.after is not None and edit.after.startswith("Oslo")
    assert (edit.verdict, edit.expected) == ("took", ("Oslo",))
    assert {(r.kind, r.metric) for r in review.rows} >= {
        ("edit", "accuracy"), ("neighborhood", "agreement"), ("unrelated", "agreement"),
        ("text", "kl"), ("text", "loss"), ("block", "output_change"), ("drift", "norm"), ("drift", "rank"),
    }  # fmt: skip
    assert (review.edits, review.asked, review.method, review.model) == (1, 1, "ft-m", "tiny gpt2")
    site = lm.sites.mlp_out[3]
    delta = patch_of().of_kind(Delta)[0].weights[f"{site}.weight"]
    dense = delta.dense() if isinstance(delta, LowRank) else delta
    norm = float(dense.norm() / lm.model.get_parameter(f"{site}.weight").detach().norm())
    assert review.sites[site]["norm"] == pytest.approx(norm, rel=1e-4)
    assert list(review.blocks) == list(lm.sites.layer) and review.blocks[lm.sites.layer[2]] == 0
    assert all(r.chat == "" and r.setting == "review" for r in review.rows)


def test_what_moved_is_what_should_have_stayed_or_changed() -> None:
    strong = errata.review(tiny_lm("gpt2"), patch_of() * 30, [CASE], SPREAD)
    verdicts = {q.verdict for q in strong.questions}
    assert "moved" in verdicts and all(q.before != q.after for q in strong.questions if q.verdict == "moved")
    assert all(q.before == q.after for q in strong.questions if q.verdict == "kept")
    assert strong.moved == tuple(q for q in strong.questions if q.verdict in ("moved", "missed"))
    agreement = [r.after for r in strong.rows if (r.kind, r.metric) == ("neighborhood", "agreement")]
    moved = [q.verdict == "moved" for q in strong.questions if q.kind == "neighborhood"]
    assert agreement == [float(not one) for one in moved]


def test_a_patch_that_is_too_strong_is_refused_and_one_that_does_nothing_misses() -> None:
    lm = tiny_lm("gpt2")
    strong = errata.review(lm, patch_of() * 100, [CASE], SPREAD)
    assert {"max_kl", "max_loss", "max_norm", "max_block"} <= {guard.name for guard in strong.refused}
    with pytest.raises(Refused, match=r"the review refuses the patch: .*KL of the next token.*--max-kl"):
        strong.check()
    none = errata.review(lm, patch_of() * 0, [CASE], SPREAD)
    assert {guard.name for guard in none.refused} == {"min_reliability", "min_paraphrase"}
    assert {q.verdict for q in none.questions if q.kind in STAYING} == {"kept"}
    assert all(r.after == 0 for r in none.rows if r.metric in ("kl", "output_change", "norm"))
    off = dict.fromkeys(RULES)
    assert errata.review(lm, patch_of() * 100, [CASE], SPREAD, guards=off).check().passed


def test_one_before_serves_several_patches() -> None:
    lm = tiny_lm("gpt2")
    before = before_review(lm, patch_of(), [CASE], SPREAD)
    assert reviewed(before, patch_of()).rows == made().rows
    assert reviewed(before, patch_of() * 100).questions != made().questions


def test_with_a_prior_before_is_that_patch_and_new_edits_alone_are_asked() -> None:
    lm = tiny_lm("gpt2")
    both = quick("ft-m").edit(lm, [EDITS[1]], prior=patch_of())
    review = errata.review(lm, both, texts=SPREAD, prior=patch_of())
    assert [q.prompt for q in review.questions if q.kind == "edit"] == [EDITS[1].prompt]
    with patch_of().applied(lm) as first:
        answer = first.generate([EDITS[1].prompt], until_answer=True)[0]
    (question,) = [q for q in review.questions if q.kind == "edit"]
    assert question.before and answer.strip().startswith(question.before)
    assert errata.review(lm, both, texts=SPREAD).edits == 2


def test_of_many_edits_some_are_asked_and_that_is_said() -> None:
    lm = tiny_lm("gpt2")
    patch = quick("ft-m").edit(lm, EDITS)
    review = errata.review(lm, patch, texts=SPREAD, limit=2)
    assert (review.edits, review.asked) == (3, 2)
    assert any(note.startswith("asked about 2 of 3 edits, drawn by seed 0") for note in review.notes)
    with pytest.raises(BadInput, match="0 edits cannot be asked about"):
        errata.review(lm, patch, texts=SPREAD, limit=0)


def test_cases_are_those_of_the_patchs_edits() -> None:
    lm = tiny_lm("gpt2")
    other = Case("other", (EDITS[1],), (Probe("paraphrase", "Bob Ray is in", ("New York",)),))
    review = errata.review(lm, patch_of(), [CASE, other], SPREAD)
    assert "1 of the 2 cases given hold no edit of the patch: left out" in review.notes
    assert {q.case for q in review.questions} == {"a case"}
    bare = errata.review(lm, patch_of(), [Case("bare", (EDIT,))], SPREAD)  # its questions are made
    assert {"paraphrase", "neighborhood"} <= {q.kind for q in bare.questions}
    unnamed = replace(patch_of(), meta={})
    with pytest.raises(BadInput, match="names no edits of its own"):
        errata.review(lm, unnamed, texts=SPREAD)
    assert errata.review(lm, unnamed, [CASE], SPREAD).asked == 1


def test_kinds_that_could_not_be_made_are_a_dash_and_said() -> None:
    review = errata.review(tiny_lm("gpt2"), patch_of(), [Case("b", (EDIT,), CASE.probes[:2])], SPREAD)
    assert "no questions of two hops (they come with cases alone) for 1 of 1 cases" in review.notes
    lines = {line.words: line for line in measures(review)}
    assert (lines["two hops and more, right"].before, lines["two hops and more, right"].after) == (DASH, DASH)
    assert (
        "the texts were sampled from the model itself; give some with --data"
        in errata.review(tiny_lm("gpt2"), patch_of(), [CASE]).notes
    )


def test_inside_of_a_patch_nothing_is_reviewed() -> None:
    lm = tiny_lm("gpt2")
    with patch_of().applied(lm), pytest.raises(InForce):
        errata.review(lm, patch_of(), [CASE], SPREAD)


@pytest.mark.parametrize("method", ["grace", "memprompt", "steering"])
def test_patches_that_change_no_weight(method: str) -> None:
    review = made("gpt2", method)
    guards = {guard.name: guard for guard in review.guards}
    assert guards["max_norm"].value is None and guards["max_norm"].passed is None and not review.sites
    assert guards["max_kl"].value is not None and guards["min_neighborhood"].value is not None
    assert review.parts and Review.from_json(review.to_json()) == review


class Mute(errata.Patch):
    """A patch whose model can do nothing but generate."""

    def applied(self, lm: Any, **how: Any) -> Any:
        from contextlib import nullcontext

        from errata.model.lm import LM

        class Says(LM):
            def generate(self, prompts: Any, max_new_tokens: int = 32, **how: Any) -> list[str]:
                return [" Oslo."] * len(prompts)

        return nullcontext(Says())


def test_what_a_wrapper_cannot_answer_is_a_dash() -> None:
    lm = tiny_lm("gpt2")
    review = errata.review(lm, Mute(meta={"made": [{"method": "mute", "edits": [EDIT.to_json()]}]}), [CASE], SPREAD)
    lines = {line.words: line for line in measures(review)}
    for words in ("KL of the next token, nats", "loss on text, nats", "relative change of a block's output"):
        assert lines[words].after == DASH and lines[words].passed is None
    assert lines["edited facts, right"].after == "1.00 (1)"
    assert any("has no score" in note for note in review.notes)
    named = guards_of(review.rows, {"max_kl": 0.5})
    assert [guard.name for guard in named if guard.passed is False and guard.value is None] == ["max_kl"]


@pytest.mark.parametrize("name", ["llama", "gemma3_text"])
def test_in_bfloat16(name: str) -> None:
    lm = tiny_lm(name, torch.bfloat16)
    review = errata.review(lm, quick("ft-m").edit(lm, [EDIT]), [CASE], SPREAD)
    assert len(review.blocks) == lm.sites.depth and all(0 <= change < 10 for change in review.blocks.values())
    assert Review.from_json(json.loads(json.dumps(review.to_json()))) == review


def test_in_a_chat() -> None:
    lm = chat()
    review = errata.review(lm, quick("ft-m").edit(lm, [EDIT]), texts=SPREAD)
    assert review.chat == lm.asked_label != "" and {row.chat for row in review.rows} == {review.chat}
    assert all(guard.value is not None for guard in review.guards)


def test_an_encoder_decoder() -> None:
    lm = tiny_lm("t5")
    review = errata.review(lm, quick("ft-m").edit(lm, [EDIT]), [CASE], SPREAD)
    assert not review.blocks and {g.name: g.value for g in review.guards}["max_kl"] is not None


# Guards ------------------------------------------------------------------------------------------


def test_the_numbers_of_guards() -> None:
    rows = [
        *(row("edit", "accuracy", after, case=case) for case, after in (("1", 1.0), ("2", 0.0))),
        *(row("neighborhood", "agreement", after, case=case) for case, after in (("1", 1.0), ("1", 0.0), ("2", 1.0))),
        row("neighborhood", "accuracy", 0.0),
        row("unrelated", "agreement", 0.0, mode="forced"),
        *(row("text", "loss", after, before, case) for case, before, after in (("1", 2.0, 2.5), ("2", 1.0, 1.1))),
        *(row("text", "kl", after, case=case) for case, after in (("1", 0.2), ("2", 0.4))),
        *(row("drift", "norm", after, after_edits=4) for after in (0.5, 3.0)),
        *(row("block", "output_change", after) for after in (0.5, 0.1)),
    ]
    found = {guard.name: guard.value for guard in guards_of(rows)}
    assert found == {
        "min_reliability": 0.5, "min_paraphrase": None, "min_neighborhood": 0.75, "min_same_subject": None,
        "min_unrelated": None, "max_kl": pytest.approx(0.3), "max_loss": pytest.approx(0.3), "max_norm": 1.5,
        "max_block": 0.5,
    }  # fmt: skip


def test_limits_are_inclusive_and_can_be_switched_off() -> None:
    assert Guard("min_reliability", "", 0.5, 0.5).passed is Guard("max_kl", "", 0.5, 0.5).passed is True
    assert Guard("min_reliability", "", 0.5, 0.49).passed is Guard("max_kl", "", 0.5, 0.51).passed is False
    assert Guard("max_kl", "", None, 9.0).passed is None and Guard("max_kl", "", None, 9.0, True).passed is None
    assert Guard("max_kl", "", 0.5, None).passed is None and Guard("max_kl", "", 0.5, None, True).passed is False
    given = limits({"min_paraphrase": 0, "max_kl": float("inf"), "max_loss": 1, "max_norm": None})
    assert [given[name] for name in ("min_paraphrase", "max_kl", "max_loss", "max_norm")] == [None, None, 1.0, None]
    assert given["min_reliability"] == RULES["min_reliability"].limit


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"max_klx": 1}, "did you mean max_kl"),
        ({"max_kl": -1}, "--max-kl is a number from 0, found -1"),
        ({"max_kl": float("nan")}, "found nan"),
        ({"max_kl": "0.1"}, "found '0.1'"),
        ({"max_kl": True}, "found True"),
        ({"min_reliability": 2}, "--min-reliability is a share from 0 to 1, found 2"),
    ],
)
def test_what_is_no_limit(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(BadInput, match=says):
        errata.review(tiny_lm("gpt2"), patch_of(), [CASE], SPREAD, guards=wrong)


def test_the_command_line_says_the_limits_that_hold() -> None:
    import typer

    command: Any = typer.main.get_command(app)
    for name in ("review", "edit"):
        shown_as = {option.name: option.show_default for option in command.commands[name].params}
        assert {rule: f"{RULES[rule].limit:g}" for rule in RULES} == {rule: shown_as[rule] for rule in RULES}


# JSON --------------------------------------------------------------------------------------------


def test_json_there_and_back(tmp_path: Path) -> None:
    review = made()
    again = Review.from_json(json.loads(json.dumps(review.to_json())))
    assert again == review and again.to_json() == review.to_json()
    assert review.to_json()["passed"] is review.passed
    assert Review.load(review.save(tmp_path / "r.json")) == review


def test_a_review_names_the_patch_its_edits_and_who_made_it(tmp_path: Path) -> None:
    review, patch = made(), patch_of()
    assert (review.patch, review.edited, review.method) == (patch.digest, (EDIT,), "ft-m")
    loaded = Patch.load(patch.save(tmp_path / "p.safetensors", memory=False))
    assert loaded.digest == patch.digest != (patch * 2).digest and len(patch.digest) == 64
    told = " ".join(page(review).split())
    assert patch.digest in told and EDIT.target_new in told.partition("What was edited")[2].partition("</table>")[0]


def test_numbers_that_are_not_finite_are_null_in_json() -> None:
    review = replace(made(), rows=(row("text", "loss", float("nan")),))
    assert Review.from_json(review.to_json()).rows[0].after is None


def test_what_is_no_review(tmp_path: Path) -> None:
    record = made().to_json()
    for wrong, says in (
        (3, "a review is a JSON object, found 3"),
        ({}, "no review: model"),
        ({**record, "edits": "1"}, "no review: edits"),
        ({**record, "more": 1}, "no review: more"),
        ({**record, "guards": [1]}, "no review: guards.0"),
        ({**record, "questions": [{"verdict": "odd"}]}, "no review: questions.0"),
        ({**record, "rows": [{"mode": "odd"}]}, "no review: rows.0.mode"),
    ):
        with pytest.raises(BadInput, match=says):
            Review.from_json(wrong)
    (tmp_path / "r.json").write_text("{")
    with pytest.raises(BadInput, match=r"r\.json: not JSON"):
        Review.load(tmp_path / "r.json")


# What a person reads -----------------------------------------------------------------------------


def question(kind: str, verdict: Any, i: int = 0) -> Question:
    return Question("c", kind, f"{kind} {i}", "was", "is", ("x",), verdict)


def test_examples_are_of_each_kind_in_turn_and_side_effects_first() -> None:
    asked = [
        *(question("paraphrase", "missed", i) for i in range(5)),
        *(question("same_subject", "moved", i) for i in range(5)),
        question("neighborhood", "moved"),
        question("neighborhood", "kept"),
    ]
    review = replace(made(), questions=tuple(asked))
    assert [q.kind for q in examples(review, 5)] == ["neighborhood", *["same_subject"] * 2, *["paraphrase"] * 2]
    assert len(examples(review)) == 11
    assert (
        counted(review)
        == "6 of 7 answers moved that should have stayed; 5 of 5 that should have changed are not as asked"
    )


def test_the_summary_says_what_refused() -> None:
    review = made()
    assert verdict(replace(review, guards=(Guard("max_kl", RULES["max_kl"].words, 0.1, 0.2),))).startswith(
        "refused: KL"
    )
    kept = (Guard("max_kl", "", 0.1, 0.05), Guard("max_loss", "", 0.1, None), Guard("max_norm", "", None, 9.0))
    assert verdict(replace(review, guards=kept)) == "passed: 1 of 3 limits kept, 1 off, 1 not measured"
    assert list(shown(review))


def test_the_page_is_whole_and_inert() -> None:
    evil = Question(EVIL, "edit", EVIL, EVIL, EVIL, (EVIL,), "missed", EVIL)
    review = replace(
        made(),
        questions=(evil, replace(evil, verdict="took"), replace(evil, before=None, after=None, verdict="unknown")),
        notes=(EVIL,),
        model=EVIL,
    )
    text = page(review)
    read = Read(text)
    assert text.startswith("<!doctype html>") and not read.open and len(read.all("script")) == 1
    assert not {"img", "link", "iframe"} & {tag for tag, _ in read.tags}
    assert EVIL in read.texts and "What moved" in read.texts and len(read.all("svg")) == 1
    assert not [name for _, given in read.tags for name in given if name.startswith("on") or name in ("src", "style")]
    for line in measures(review):
        assert line.words in read.texts


# The command line --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return saved("gpt2", tmp_path_factory.mktemp("model"))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "texts.txt").write_text("\n".join(SPREAD))
    return tmp_path


ONE = (
    "--prompt",
    "{} was born in",
    "--subject",
    "Ann Lee",
    "--target",
    "Oslo",
    "--method",
    "ft-m",
    "--set",
    "steps=100",
)
LOOSE = ("--min-paraphrase", "0", "--min-neighborhood", "0", "--min-same-subject", "0", "--min-unrelated", "0")
LOOSE = (*LOOSE, "--max-kl", "inf", "--max-loss", "inf", "--max-norm", "inf", "--max-block", "inf")


def test_review_writes_what_it_is_told_and_refuses(model: str, here: Path) -> None:
    run("edit", model, *ONE, "-o", "p.safetensors", "-q")
    forms = ("-o", "r.json", "-o", "r.html", "-o", "r.jsonl")
    result = run("review", model, "p.safetensors", "--data", "texts.txt", *LOOSE, *forms, "-q")
    assert "passed: 1 of 9 limits kept, 8 off" in result.stdout and "what moved" in result.stdout
    assert Review.load("r.json").guards[0].value == 1.0
    assert (here / "r.html").read_text().startswith("<!doctype html>")
    assert len((here / "r.jsonl").read_text().splitlines()) == len(Review.load("r.json").rows)
    said = CliRunner().invoke(
        app, ["review", model, "p.safetensors", "--data", "texts.txt", "--max-kl", "0", "-q", "--json"]
    )
    assert said.exit_code == 3 and "--max-kl" in said.stderr and json.loads(said.stdout)["passed"] is False
    assert "end the name in one of them" in refused("review", model, "p.safetensors", "-o", "r.txt")
    assert "exists; add --force" in refused("review", model, "p.safetensors", "-o", "r.json")
    assert "--read goes with --probes" in refused("review", model, "p.safetensors", "--read", "strict=true")


def test_an_edit_that_its_review_refuses_is_not_written(model: str, here: Path) -> None:
    asked = ("edit", model, *ONE, "-o", "p.safetensors", "-q", "--review")
    result = run(*asked, *LOOSE, "--max-norm", "0", code=3)
    assert "the review refuses the patch" in result.stderr and not (here / "p.safetensors").exists()
    result = run(*asked, *LOOSE, "--json")
    assert Review.from_json(json.loads(result.stdout)["review"]).passed and (here / "p.safetensors").exists()
    assert "--max-kl is a limit of the review; add --review" in refused("edit", model, *ONE, "--max-kl", "1")
    assert TEXTS


# The bundled model -------------------------------------------------------------------------------


@cache
def ten() -> tuple[HFLM, Patch, Any]:
    lm = errata.load("world")
    memit = errata.method("memit")
    patch = memit.edit(lm, [case.edits[0] for case in errata.cases("world", limit=10)], memit.prepare(lm))
    return lm, patch, before_review(lm, patch)


def test_a_good_patch_of_the_bundled_model_passes_and_eight_times_it_does_not() -> None:
    _, patch, before = ten()
    good, bad = reviewed(before, patch), reviewed(before, patch * 8)
    assert good.check().passed and {"multi_hop", "alias", "same_subject"} <= {q.kind for q in good.questions}
    assert {"max_norm", "min_same_subject"} <= {guard.name for guard in bad.refused}


@pytest.mark.slow
def test_fine_tuning_that_does_not_stop_is_refused() -> None:
    lm, patch, before = ten()
    long = errata.method("ft", lr=5e-3, steps=100, stop=0.0).edit(lm, patch.edits)
    refused_by = {guard.name for guard in reviewed(before, long).refused}
    assert {"max_kl", "max_block", "min_neighborhood"} & refused_by

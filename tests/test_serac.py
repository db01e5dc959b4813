"""SERAC: who answers is decided at the prompt, in every verb; the edits' small models travel with the patch."""

import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from conftest import CASES, EDIT, EDITS, quick, tiny_lm
from forged import content_of, forge

from errata.errors import BadInput, Unsupported
from errata.methods.registry import method
from errata.methods.retrieval import SENTENCES, TFIDF
from errata.methods.state import State
from errata.methods.trained.examples import Asked, Example, examples_of
from errata.methods.trained.routed.helpers import Helpers, Sizes
from errata.methods.trained.routed.posing import Posed, twins
from errata.methods.trained.routed.reading import PROMPT, QUERY, TARGET, Batch, Row, words
from errata.methods.trained.routed.router import budget_of
from errata.methods.trained.routed.scope import EncodedScope, distances, scope_loss
from errata.methods.trained.routed.scoped import ScopedAnswers, embedded
from errata.methods.trained.routed.serac import answer_loss_of, scope_loss_of
from errata.methods.trained.routed.varying import crossed, renamed, varied
from errata.model.hf import HFLM
from errata.model.lm import LM
from errata.patch.patch import Patch
from errata.subjects import mentions
from errata.types import Edit

OUTSIDE = ["Bob Ray was born in", "Ann Lee lives in", "Rome", "", "The mayor is Cy Moor of"]
TARGETS = [" Oslo", " Rome", " Paris", " Lima", " New York"]


def by_words(lm: HFLM) -> State:
    """A state whose classifier compares the words of prompts, whatever their order: an edit's target counts nothing."""
    made = quick("serac")
    torch.manual_seed(0)
    network: Any = made.network(lm)  # pyright: ignore[reportAttributeAccessIssue]
    scope = network.scope
    sign = torch.tensor([1.0, -1.0]).repeat(scope.gate.in_features // 2)
    with torch.no_grad():
        for silent in (
            scope.inward,
            scope.asked,
            *(b.out for b in scope.body.blocks),
            *(b.down for b in scope.body.blocks),
        ):
            silent.weight.zero_()
            silent.bias.zero_()
        scope.roles.weight[PROMPT], scope.roles.weight[TARGET] = sign, -sign
        scope.gate.weight.copy_(100 * sign[None])
    info = {
        "model": {"name": lm.name, "fingerprint": lm.fingerprint},
        "method": "serac",
        "trained_with": made.trained_with,  # pyright: ignore[reportAttributeAccessIssue]
    }
    return State({f"network/{name}": value for name, value in network.state_dict().items()}, info)


def made(arch: str = "llama", edits: list[Edit] = EDITS, dtype: torch.dtype = torch.float32) -> tuple[HFLM, Patch]:
    lm = tiny_lm(arch, dtype)
    return lm, quick("serac").edit(lm, edits, by_words(lm))


def part_of(patch: Patch) -> ScopedAnswers:
    (part,) = patch.of_kind(ScopedAnswers)
    return part


# Routing ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", ["llama", "t5", "llama sentencepiece"])
def test_outside_of_the_scope_the_base_model_answers_bit_for_bit(arch: str) -> None:
    lm, patch = made(arch, [EDIT])
    asked = OUTSIDE if arch != "t5" else [prompt for prompt in OUTSIDE if prompt]
    before = (
        lm.generate(asked, 6),
        lm.score(asked, TARGETS[: len(asked)]),
        lm.prolong(asked, [14] * len(asked), top_k=3),
    )
    table = lm.next_logprobs(asked)
    with patch.applied(lm) as edited:
        assert edited.explain(asked) == [[] for _ in asked]
        after = (
            edited.generate(asked, 6),
            edited.score(asked, TARGETS[: len(asked)]),
            edited.prolong(asked, [14] * len(asked), top_k=3),
        )
        assert after == before and np.array_equal(edited.next_logprobs(asked), table)


@pytest.mark.parametrize(
    ("arch", "dtype"),
    [
        ("gpt2", torch.float32),
        ("t5", torch.float32),
        ("gemma3_text", torch.float32),
        ("llama", torch.float16),
        ("llama", torch.bfloat16),
    ],
)
def test_in_scope_every_verb_is_the_small_models(arch: str, dtype: torch.dtype) -> None:
    lm, patch = made(arch, dtype=dtype)
    small = part_of(patch).helpers
    record = part_of(patch).log[1]
    prompt, ids = record.prompt, lm.tokens.target(record.prompt, "New York")
    row = Row.of((record.prompt_ids, PROMPT), (record.target_ids, TARGET), (record.prompt_ids, QUERY))
    expected, _ = small.counterfactual.answered(small.vectors, [row], [ids])
    others = ["Rome", prompt, "A baker lives in"]
    with patch.applied(lm) as edited:
        assert [bool(lines) for lines in edited.explain(others)] == [False, True, False]
        assert record.id in edited.explain([prompt])[0][0]
        score = edited.score(others, ["Oslo", "New York", "Lima"])[1]
        assert score.tokens == tuple(ids) and score.argmax == tuple(expected.argmax(-1).tolist())
        assert score.logprobs == pytest.approx(expected[range(len(ids)), ids].tolist(), abs=1e-4)
        table = edited.next_logprobs(others)
        assert table.dtype == np.float32 and table[1] == pytest.approx(expected[0].numpy(), abs=1e-4)
        said = edited.generate(others, 4)
        assert said[1] == edited.generate([prompt], 4)[0] == lm_text(lm, small, prompt, row, 4)
        assert edited.prolong(others, [30, len(lm.tokens.prompt(prompt)) + 4, 30])[1] == said[1]
        assert edited.prolong([prompt], [1]) == [""]
        drawn = edited.prolong(others, [30, 30, 30], top_k=5, seeds=[4, 9, 7])
        assert drawn[1] == edited.prolong([prompt], [30], top_k=5, seeds=[9])[0]
    assert lm.prolong([others[0], others[2]], [30, 30], top_k=5, seeds=[4, 7]) == [drawn[0], drawn[2]]


def test_beside_a_prompt_in_scope_the_others_get_the_same_numbers() -> None:
    """Of the same batch: rounding depends on its padding."""
    long = Edit("Ann Lee, who met a baker by night in Rome and lives in Lima, was born in", "Ann Lee", "Oslo")
    lm, patch = made("gpt2", [long])
    asked = ["Rome", long.prompt, "Bob Ray was", "The mayor is Cy Moor of", "A baker met"]
    scores, table = lm.score(asked, TARGETS), lm.next_logprobs(asked)
    with patch.applied(lm) as edited:
        assert [bool(lines) for lines in edited.explain(asked)] == [False, True, False, False, False]
        after, changed = edited.score(asked, TARGETS), edited.next_logprobs(asked)
    for i in (0, 2, 3, 4):
        assert after[i] == scores[i] and np.array_equal(changed[i], table[i])
    assert after[1] != scores[1] and not np.array_equal(changed[1], table[1])


def lm_text(lm: HFLM, small: Helpers, prompt: str, row: Row, most: int) -> str:
    """What the small model says, one token at a time."""
    ids: list[int] = []
    for _ in range(most):
        row_now = row + Row.of((ids, QUERY))
        last = torch.tensor([len(row_now) - 1])
        token = int(small.counterfactual(small.vectors, Batch.of([row_now], None), torch.tensor([0]), last).argmax())
        if token == lm.tokens.end:
            break
        ids.append(token)
    return lm.tokens.continuation(lm.tokens.prompt(prompt), ids)


def test_a_prompt_is_read_the_same_with_spaces_around_it() -> None:
    lm, patch = made()
    with patch.applied(lm) as edited:
        assert edited.explain([EDIT.prompt + " ", " " + EDIT.prompt]) == 2 * edited.explain([EDIT.prompt])


def test_a_text_ends_where_it_is_to_end() -> None:
    lm, patch = made()
    with patch.applied(lm) as edited:
        whole = edited.generate([EDIT.prompt], 12)[0]
        assert whole[:3] and edited.generate([EDIT.prompt], 12, until=[whole[1:3]])[0].endswith(whole[1:3])
        with pytest.raises(BadInput, match="at least 1"):
            edited.generate([EDIT.prompt], 0)


def test_what_cannot_be_asked_is_refused() -> None:
    lm, patch = made()
    wrong: Any = [EDIT.prompt, 3]
    with patch.applied(lm) as edited:
        with pytest.raises(BadInput, match="expected text"):
            edited.generate(wrong)
        with pytest.raises(BadInput, match="in brackets"):
            edited.generate(EDIT.prompt)
        with pytest.raises(BadInput, match="1 prompts, 2 targets"):
            edited.score([EDIT.prompt], ["a", "b"])
        with pytest.raises(BadInput, match="expected text"):
            edited.score([EDIT.prompt], [3])  # type: ignore[list-item]


def test_a_verb_that_the_model_inside_lacks_is_unsupported() -> None:
    class Remote(LM):
        def generate(self, prompts: Any, max_new_tokens: int = 32, **how: Any) -> list[str]:
            return [" Rome." for _ in prompts]

    lm, patch = made()
    with pytest.raises(Unsupported, match="Remote has none"):
        part_of(patch).wrap(Remote())
    inner: Any = Remote()
    inner.tokens = lm.tokens
    wrapped = part_of(patch).wrap(inner)
    assert wrapped.generate(["Rome"]) == [" Rome."] and wrapped.generate([EDIT.prompt]) != [" Rome."]
    with pytest.raises(Unsupported, match="Remote has no score"):
        wrapped.score([EDIT.prompt], ["Rome"])


def test_it_stands_around_another_wrapper() -> None:
    lm = tiny_lm("llama")
    ice: Any = method("ice", encoder="tfidf")
    patch = quick("serac").edit(lm, [EDIT], by_words(lm), ice.edit(lm, [EDITS[1]]))
    with patch.applied(lm) as edited:
        first, second = edited.explain([EDIT.prompt, EDITS[1].prompt])
        assert first[0].startswith("scoped answers") and second[0].startswith("ice")
        assert edited.score([EDIT.prompt], ["Oslo"])


# The log of edits -------------------------------------------------------------------------------------------


def test_the_newest_edit_of_a_fact_wins() -> None:
    lm = tiny_lm("llama")
    later = Edit(EDIT.prompt, EDIT.subject, "Lima")
    turned = Edit("in born was Ann Lee", "Ann Lee", "Paris")  # the same words
    other = Edit("in born was Ann Lee", "Ann", "Paris")  # of another subject
    state, serac = by_words(lm), quick("serac")
    for last, used in ((later, [1]), (turned, [1]), (other, [0, 1])):
        part = part_of(serac.edit(lm, [last], state, serac.edit(lm, [EDIT], state)))
        assert part.in_use == used
        assert [entry["in use"] for entry in part.entries()] == ["yes" if i in used else "a newer one" for i in (0, 1)]
    patch = serac.edit(lm, [later], state, serac.edit(lm, [EDIT], state))
    with patch.applied(lm) as edited:
        assert later.id in edited.explain([EDIT.prompt])[0][0]


def test_an_edit_can_be_taken_out_exactly() -> None:
    lm = tiny_lm("llama")
    later = Edit(EDIT.prompt, EDIT.subject, "Lima")
    state, serac = by_words(lm), quick("serac")
    both = serac.edit(lm, [later], state, serac.edit(lm, [*EDITS[1:], EDIT], state))
    left = both.without(later.id)
    assert left == serac.edit(lm, [*EDITS[1:], EDIT], state)
    with left.applied(lm) as edited:
        assert EDIT.id in edited.explain([EDIT.prompt])[0][0]
    assert not serac.edit(lm, [EDIT], state).without(EDIT.id)


def test_a_prior_of_other_settings_is_refused() -> None:
    lm = tiny_lm("llama")
    state = by_words(lm)
    prior = quick("serac").edit(lm, [EDIT], state)
    other: Any = method("serac", **{**quick("serac").settings, "threshold": 0.7})
    assert part_of(other.edit(lm, [EDIT], state)).settings == {"threshold": 0.7}
    with pytest.raises(BadInput, match="another threshold or other small models"):
        other.edit(lm, [EDITS[1]], state, prior)


def test_how_an_edit_ended_is_said() -> None:
    lm, patch = made()
    outcomes = patch.meta["made"][0]["outcomes"]
    with patch.applied(lm) as edited:
        for edit, score in zip(
            EDITS, edited.score([e.prompt for e in EDITS], [e.target_new for e in EDITS]), strict=True
        ):
            assert outcomes[edit.id]["search_met"] == score.correct
            assert outcomes[edit.id]["search_loss"] == pytest.approx(-score.total / len(score.tokens), abs=1e-3)


# The file ---------------------------------------------------------------------------------------------------


def test_saved_and_loaded_says_the_same(tmp_path: Path) -> None:
    lm, patch = made()
    loaded = Patch.load(patch.save(tmp_path / "p.safetensors"))
    prompts = [*(edit.prompt for edit in EDITS), *OUTSIDE]
    assert loaded == patch
    with patch.applied(lm) as edited:
        said = edited.generate(prompts, 5), edited.next_logprobs(prompts)
    with loaded.applied(lm) as edited:
        assert edited.generate(prompts, 5) == said[0] and np.array_equal(edited.next_logprobs(prompts), said[1])


DAMAGE: dict[str, tuple[Any, str]] = {
    "a tensor is missing": (lambda c, t: t.pop("part.0.scope.gate.bias"), "scope.gate.bias is missing"),
    "a tensor more": (lambda c, t: t.update({"part.0.x": torch.ones(1)}), "x belongs to no small model"),
    "another shape": (lambda c, t: t.update({"part.0.scope.gate.bias": torch.ones(2)}), r"shape \(2,\)"),
    "another type": (lambda c, t: t.update({"part.0.scope.gate.bias": torch.ones(1).half()}), "float16"),
    "another width": (lambda c, t: c["sizes_of"].update(width=24), "scope.* of the shape"),
    "no width of heads": (lambda c, t: c["sizes_of"].update(width=12), "multiple of 8"),
    "a huge size": (lambda c, t: c["sizes_of"].update(vocabulary=2**19), "vectors is"),
    "another size": (lambda c, t: c["sizes_of"].update(layers=3), "layers: unexpected"),
    "no threshold": (lambda c, t: c["settings"].pop("threshold"), "threshold is missing"),
    "a threshold above 1": (lambda c, t: c["settings"].update(threshold=1.5), "less than or equal to 1"),
    "a token that is none": (lambda c, t: c["log"][0].update(prompt_ids=[320]), "above 319"),
    "no token": (lambda c, t: c["log"][0].update(target_ids=[]), "no token ids"),
    "no edit": (lambda c, t: c.update(log=[]), "log is empty"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_refused(damage: str, tmp_path: Path) -> None:
    change, said = DAMAGE[damage]
    header, tensors = content_of(made()[1])
    change(header["parts"][0]["config"], tensors)
    with pytest.raises(BadInput, match=said):
        Patch.load(forge(tmp_path / "p.safetensors", header, tensors))


def test_the_part_says_how_large_its_models_are() -> None:
    _, patch = made()
    first, *sites = patch.summary()
    assert first == {"kind": "scoped answers", "edits": 3, "threshold": 0.5}
    assert sum(site["numbers"] for site in sites) == sum(t.numel() for t in part_of(patch).networks.values())
    json.dumps(patch.summary())


# The small models -------------------------------------------------------------------------------------------


def test_the_loss_of_the_classifier_by_hand() -> None:
    s_in, s_out = (0.9, 0.4), (0.2, 0.6, 0.01)
    d_in, d_out = (torch.tensor([-math.log(s) for s in some]) for some in (s_in, s_out))
    expected = -sum(map(math.log, s_in)) / 2 - sum(math.log(1 - s) for s in s_out) / 3
    assert float(scope_loss(d_in, d_out)) == pytest.approx(expected, rel=1e-5)
    a, b = torch.randn(3, 5), torch.randn(4, 5)
    assert torch.allclose(distances(a, b), torch.cdist(a, b) ** 2, atol=1e-5)


def test_the_loss_of_a_batch_by_hand() -> None:
    """c_edit · NLL + c_loc · balanced entropy, of queries with their own edits and the nearest other edit of each."""
    lm, serac = tiny_lm("llama"), quick("serac")
    examples = examples_of(lm, "serac", CASES)[:3]
    about_another = Asked(f"{examples[1].edit.subject} was born in", "Rome", "neighborhood")  # in its scope, maybe
    examples[0] = replace(examples[0], keep=(*examples[0].keep, about_another))
    torch.manual_seed(1)
    network: Any = serac.network(lm)  # pyright: ignore[reportAttributeAccessIssue]
    posed = Posed.of(lm.tokens, examples)
    with torch.no_grad():
        emb = [embedded(network, [row])[0] for row in posed.edits]
        inside, outside, nll = [], [], []
        for i, e in enumerate(examples):
            for a, within in [(e.asked, True), *((a, True) for a in e.follow), *((a, False) for a in e.keep)]:
                q = embedded(network, [Row.of((words(lm.tokens, a.prompt), PROMPT))])[0]
                d = [float((q - x).square().sum()) for x in emb]
                (inside if within else outside).append(d[i])
                outside.append(min(d[j] for j in range(3) if j != i and examples[j].edit.subject not in a.prompt))
                if within:
                    row = posed.edits[i] + Row.of((words(lm.tokens, a.prompt), QUERY))
                    ids = lm.tokens.ended(*a.ids(lm))
                    logprobs, _ = network.counterfactual.answered(network.vectors, [row], [ids])
                    nll += [-float(logprobs[j, id]) for j, id in enumerate(ids)]
        expected = float(scope_loss(torch.tensor(inside), torch.tensor(outside)))
        assert float(scope_loss_of(network, posed)) == pytest.approx(expected, rel=1e-3)
        assert float(answer_loss_of(lm, network, posed)) == pytest.approx(sum(nll) / len(nll), rel=1e-4)


def test_a_batch_reaches_both_models_and_not_the_tokens_vectors() -> None:
    lm, serac = tiny_lm("llama"), quick("serac")
    network: Any = serac.network(lm)  # pyright: ignore[reportAttributeAccessIssue]
    examples = examples_of(lm, "serac", CASES)
    losses = serac.backward(lm, network, examples[:4], Random(0))  # pyright: ignore[reportAttributeAccessIssue]
    assert losses["loss"] == pytest.approx(0.1 * losses["answer"] + losses["scope"])
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
    moved = [
        sum(float(p.grad.abs().sum()) for p in net.parameters()) for net in (network.scope, network.counterfactual)
    ]
    assert min(moved) > 0 and "vectors" not in dict(network.named_parameters())
    assert all(p.grad is None for p in lm.model.parameters())


def test_probabilities_of_the_counterfactual_model_sum_to_one_and_it_copies_from_the_edit_alone() -> None:
    lm = tiny_lm("llama")
    network: Any = quick("serac").network(lm)  # pyright: ignore[reportAttributeAccessIssue]
    h = network.counterfactual
    torch.nn.init.constant_(h.share.bias, 50.0)  # copies
    row = Row.of(([5, 6], PROMPT), ([7], TARGET), ([8, 9], QUERY))
    with torch.no_grad():
        p = h(network.vectors, Batch.of([row, row + row], None), torch.tensor([0]), torch.tensor([4])).exp()[0]
    assert float(p.sum()) == pytest.approx(1, abs=1e-4)
    assert set((p > 1e-6).nonzero()[:, 0].tolist()) == {5, 6, 7}


def test_padding_changes_nothing() -> None:
    lm = tiny_lm("llama")
    network: Any = quick("serac").network(lm)  # pyright: ignore[reportAttributeAccessIssue]
    rows = [Row.of(([5, 6, 7], PROMPT)), Row.of(([8], PROMPT), ([9, 10, 11, 12, 13], TARGET))]
    both = embedded(network, rows)
    assert torch.allclose(both, torch.cat([embedded(network, [row]) for row in rows]), atol=1e-5)


def test_a_word_has_the_same_ids_wherever_it_stands() -> None:
    for arch in ("llama", "llama sentencepiece", "t5"):
        tokens = tiny_lm(arch).tokens
        assert words(tokens, "Oslo went by night to Oslo")[-len(words(tokens, "Oslo")) :] == words(tokens, "Oslo")
        assert words(tokens, "Oslo went")[: len(words(tokens, "Oslo"))] == words(tokens, "Oslo")


def test_probabilities_are_computed_in_batches_that_count_the_vocabulary(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [budget_of(v) for v in (300, 50_000, 256_000, 2**30)] == [8192, 8192 // 12, 8192 // 62, 1]
    lm, serac = tiny_lm("llama"), quick("serac")
    torch.manual_seed(0)
    network: Any = serac.network(lm)  # pyright: ignore[reportAttributeAccessIssue]
    posed = Posed.of(lm.tokens, examples_of(lm, "serac", CASES)[:4])
    logprobs, ids, lengths = posed.answers(lm.tokens, network)
    expected = [bool(x.all()) for x in (logprobs.argmax(-1) == ids).split(lengths)]
    sizes: list[int] = []
    plain = network.counterfactual.answered
    monkeypatch.setattr(
        network.counterfactual, "answered", lambda v, rows, t: (sizes.append(len(rows)), plain(v, rows, t))[1]
    )
    monkeypatch.setattr("errata.methods.trained.routed.router.BUDGET", 64)
    assert posed.right(lm.tokens, network).tolist() == expected
    assert len(sizes) > 1 and sum(sizes) == len(lengths)


def test_an_encoder_of_another_width_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("errata.methods.trained.routed.scope.sentences", lambda name: lambda t: np.ones((len(t), 5)))
    with pytest.raises(BadInput, match="vectors of 5 numbers, and the scope classifier reads 7"):
        EncodedScope("some", 7)(torch.zeros(1), [Row.of(([1], PROMPT), text="a")])


# Examples ---------------------------------------------------------------------------------------------------

BORN = Edit("{} was born in", "Ann Lee", "Rome")
SAID = Example(
    BORN,
    (Asked("Where was Ann Lee born?", "Rome", "question"),),
    (Asked("Ann Lee lives in", "Oslo", "same_subject"), Asked("Bob Ray was born in", "Lima", "neighborhood")),
)
OTHERS = [Example(Edit("{} met", name, where), (), ()) for name, where in (("Cy Moor", "Lima"), ("Dora Finn", "Oslo"))]


def test_names_are_crossed_and_put_in_place() -> None:
    assert crossed("Ann Lee", "Cy Moor") == "Ann Moor" and crossed("Rome", "Lima") == "Roma"
    assert renamed("Ann Lee knows Ann Lee, not Ann Leeds", "Ann Lee", "Cy") == "Cy knows Cy, not Ann Leeds"
    assert renamed("Ann met", "Ann", "Ann Moor") == "Ann met"  # it would not end


def test_a_varied_example_is_still_true() -> None:
    seen = set()
    for seed in range(20):
        e = varied(SAID, OTHERS, Random(seed))
        subject, target = e.edit.subject, e.edit.target_new
        seen.add((subject != BORN.subject, target != BORN.target_new))
        assert e.edit.prompt == f"{subject} was born in"
        assert e.follow == (Asked(f"Where was {subject} born?", target, "question"),)
        assert [a.prompt for a in e.keep] == [f"{subject} lives in", "Bob Ray was born in"]
    assert seen == {(a, b) for a in (True, False) for b in (True, False)}


def test_an_example_that_might_not_fit_the_model_is_not_varied() -> None:
    longest = len("Where was Ann Moor born? Lima") + 4
    assert all(varied(SAID, OTHERS, Random(seed), 20) is SAID for seed in range(20))
    assert any(varied(SAID, OTHERS, Random(seed), longest + 9) != SAID for seed in range(20))


def test_an_answer_that_is_not_the_target_is_not_changed() -> None:
    other = Example(BORN, (Asked("Was Ann Lee born in Oslo?", "no", "question"),), ())
    assert {varied(other, OTHERS, Random(seed)).edit.target_new for seed in range(20)} == {"Rome"}


def test_twins_are_asked_the_same_under_half_of_the_name() -> None:
    asked = {text for seed in range(20) for text in twins(SAID, OTHERS, Random(seed))}
    assert {"Ann Moor was born in", "Where was Cy Lee born?"} <= asked
    assert not any(mentions(text, "Ann Lee") for text in asked)
    assert twins(SAID, [SAID], Random(0)) == []


def test_prompts_by_an_alias_are_no_examples_of_scope() -> None:
    lm, serac = tiny_lm("llama"), quick("serac")
    network: Any = serac.network(lm)  # pyright: ignore[reportAttributeAccessIssue]
    alias = Example(BORN, (Asked("The old one was born in", "Rome", "alias"),), SAID.keep)
    bare = Example(BORN, (), SAID.keep)
    one, two = (serac.score(lm, network, [e, *OTHERS]) for e in (alias, bare))  # pyright: ignore[reportAttributeAccessIssue]
    assert one == two


# Preparing --------------------------------------------------------------------------------------------------


def test_a_sentence_encoder_can_be_the_classifiers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny_lm("llama")
    serac: Any = method("serac", **{**quick("serac").settings, "encoder": SENTENCES, "steps": 2, "check_every": 2})
    state = serac.prepare(lm, CASES)
    patch = Patch.load(serac.edit(lm, EDITS, state).save(tmp_path / "p.safetensors"))
    part = part_of(patch)
    assert part.sizes_of.encoder == SENTENCES and set(part.networks) > {"scope.matrix"}
    with patch.applied(lm) as edited:
        assert EDIT.id in edited.explain([EDIT.prompt])[0][0]
        assert edited.explain(["The price of bread is"]) == [[]]
    moved = part.networks["scope.matrix"] - part.networks["scope.matrix"].diagonal().mean() * torch.eye(384)
    assert moved.abs().max() > 0  # it was trained
    with pytest.raises(BadInput, match="fitted on the texts"):
        method("serac", encoder=TFIDF)
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(BadInput, match=r"pip install 'errata\[retrieval\]'"):
        method("serac", encoder="another").prepare(lm, CASES)


def test_a_state_of_other_settings_is_refused() -> None:
    lm = tiny_lm("llama")
    other: Any = method("serac", **{**quick("serac").settings, "width": 24})
    with pytest.raises(BadInput, match="width = 16, and the method has 24"):
        other.edit(lm, [EDIT], by_words(lm))


def test_a_state_with_another_vocabulary_is_refused() -> None:
    lm = tiny_lm("llama")
    state = by_words(lm)
    cut = State({**state.tensors, "network/vectors": state.tensors["network/vectors"][:-1]}, state.info)
    with pytest.raises(BadInput, match="network/vectors"):
        quick("serac").edit(lm, [EDIT], cut)


def test_too_few_cases_are_refused() -> None:
    with pytest.raises(BadInput, match="at least 8"):
        quick("serac").prepare(tiny_lm("llama"), CASES[:3])


def test_validation_is_the_same_under_every_threshold() -> None:
    """Training does not depend on it: its checkpoints and states are kept for all."""
    lm = tiny_lm("llama")
    torch.manual_seed(0)
    network: Any = quick("serac").network(lm)  # pyright: ignore[reportAttributeAccessIssue]
    examples = examples_of(lm, "serac", CASES)[:6]
    low, high = (method("serac", **{**quick("serac").settings, "threshold": t}) for t in (1e-6, 1.0))
    assert low.score(lm, network, examples) == high.score(lm, network, examples)  # pyright: ignore[reportAttributeAccessIssue]


def test_widths_fit_the_heads() -> None:
    with pytest.raises(BadInput, match="multiple of 8"):
        method("serac", width=20)


def test_training_finds_what_is_in_scope() -> None:
    """On a model of random weights too: the small models alone are trained."""
    lm = tiny_lm("llama")
    serac: Any = method("serac", steps=60, batch=6, check_every=30, warmup=0.1, width=32, depth=1, vectors=32, lr=3e-3)
    state = serac.prepare(lm, CASES)
    history = state.info["training"]["history"]
    assert history[-1]["scope"] < 0.8 * history[0]["scope"] and history[-1]["answer"] < history[0]["answer"]


def test_sizes_build_what_they_say() -> None:
    sizes = Sizes(50, 16, 24, 2)
    built = Helpers.built(sizes, Helpers(sizes).state_dict())
    assert built.vectors.shape == (50, 16) and not any(p.requires_grad for p in built.parameters())

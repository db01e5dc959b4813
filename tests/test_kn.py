"""Knowledge neurons: attribution against a plain loop, the refinement by hand, and what an edit writes."""

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ARCHITECTURES, EDIT, EDITS, tiny_lm
from tiny import build
from torch import Tensor

import errata
from errata.cli import app
from errata.errors import BadInput, NeedsPrepare, Unsupported, WrongModel
from errata.locate.attribution import attributions, down_projection, shared, strongest
from errata.methods.neurons import kn
from errata.methods.neurons.kn import KN, LocatedNeuron, token_changes
from errata.methods.state import State
from errata.model.hf import HFLM
from errata.patch.delta import Delta
from errata.patch.low_rank import LowRank
from errata.patch.patch import Patch
from errata.phrasings import template_of, templates_of
from errata.types import Case, Edit, Probe

ALL = [*ARCHITECTURES, "opt", "gemma3_text", "falcon_alibi", "mistral"]
PROMPTS = ["Ann Lee was born in", "Rome", "The old king of New York is the mayor of"]


def questions_of(lm: HFLM) -> list[tuple[list[int], int]]:
    return [(lm.tokens.prompt(p), lm.tokens.target(p, t)[0]) for p, t in zip(PROMPTS, ("Oslo", "Lima", "Rome"))]


def probability(lm: HFLM, ids: list[int], token: int, layer: int, w: Any) -> Tensor:
    """P(token | ids) by one plain pass in which ``w`` of the layer's activation stands at the last token."""

    def put(_: Any, args: Any) -> Any:
        x = args[0].clone()
        x.view(-1, x.shape[-1])[-1] = w(x.view(-1, x.shape[-1])[-1].detach().clone())
        return (x,)

    handle = lm.model.get_submodule(lm.sites.mlp_out[layer]).register_forward_pre_hook(put)
    try:
        return lm.model(torch.tensor([ids])).logits[0, -1].softmax(-1)[token]
    finally:
        handle.remove()


def plainly(lm: HFLM, ids: list[int], token: int, layer: int, points: int) -> Tensor:
    """(f,): the definition, a point at a time, by autograd through the whole model."""
    total: Any = 0
    for k in range(1, points + 1):
        kept: list[Tensor] = []

        def scaled(w_bar: Tensor, k: int = k, kept: list[Tensor] = kept) -> Tensor:
            kept[:] = [w_bar, (w_bar * k / points).requires_grad_()]
            return kept[1]

        (gradient,) = torch.autograd.grad(probability(lm, ids, token, layer, scaled), kept[1])
        total = total + kept[0] * gradient / points
    return total


# Attribution -------------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", ALL)
def test_attribution_is_the_plain_loop(arch: str) -> None:
    lm = tiny_lm(arch, torch.float64)
    questions = questions_of(lm)
    attribution = attributions(lm, questions, 3)
    assert attribution.shape == (len(questions), lm.sites.depth, 64) and attribution.dtype == torch.float64
    for i, (ids, token) in enumerate(questions):
        for layer in range(lm.sites.depth):
            expected = plainly(lm, ids, token, layer, 3)
            assert expected.abs().max() > 1e-12
            torch.testing.assert_close(attribution[i, layer], expected, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_small_batches_and_full_passes_give_the_same(arch: str) -> None:
    lm = tiny_lm(arch, torch.float64)
    whole = attributions(lm, questions_of(lm), 4)
    lm.budget = 1
    torch.testing.assert_close(attributions(lm, questions_of(lm), 4), whole, rtol=1e-8, atol=1e-14)
    torch.testing.assert_close(attributions(lm, questions_of(lm), 4, plain=True), whole, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_a_layer_sums_to_what_it_adds(arch: str) -> None:
    lm = tiny_lm(arch, torch.float64)
    questions = questions_of(lm)
    attribution = attributions(lm, questions, 400).sum(-1)
    for i, (ids, token) in enumerate(questions):
        for layer in range(lm.sites.depth):
            full, none = (probability(lm, ids, token, layer, lambda w, s=s: w * s).item() for s in (1, 0))
            assert abs(attribution[i, layer].item() - (full - none)) < 0.01 * abs(full - none) + 0.002 * max(full, none)


def test_attribution_leaves_the_model_as_it_was() -> None:
    lm = tiny_lm("llama")
    attributions(lm, questions_of(lm), 2)
    assert all(p.requires_grad and p.grad is None for p in lm.model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks or "forward" in m.__dict__ for m in lm.model.modules())


def test_attribution_checks_what_it_is_given() -> None:
    lm = tiny_lm("gpt2")
    with pytest.raises(BadInput, match="at least one point"):
        attributions(lm, questions_of(lm), 0)
    for nothing in ([], [([], 3)]):
        with pytest.raises(BadInput, match="at least one question"):
            attributions(lm, nothing)


# What phrasings share ----------------------------------------------------------------------------


def of_rows(*rows: list[float]) -> Tensor:
    """(n, 2, 3): phrasings of two layers with three neurons."""
    return torch.tensor(rows).view(len(rows), 2, 3)


def test_refinement_by_hand() -> None:
    attr = of_rows(
        [10, 2.0, 1.9, 0, 5, -9],  # holds (0,0) (0,1) (1,1): a fifth of the largest is 2
        [5.0, 0.9, 0, 4, 2, -9],  # holds (0,0) (1,0) (1,1)
        [0.3, 1.0, 0, 0, 0, -9],  # holds (0,0) (0,1)
        [1.0, 0.3, 0, 0, 0, -9],  # holds (0,0) (0,1)
    )  # fmt: skip
    # held by 4, 3, 0, 1, 2, 0 of the four
    assert shared(attr, share=0.7, bounds=(2, 5)) == [(0, 0), (0, 1)]  # 2.8: three of them
    assert shared(attr, share=1.0, bounds=(3, 5), least=1, step=0.25) == [(0, 0), (0, 1), (1, 1)]  # down to a half
    assert shared(attr, share=1.0, bounds=(3, 5), least=1, step=0.25, rounds=2) == [(0, 0), (0, 1)]  # not there yet
    assert shared(attr, share=1.0, bounds=(3, 5), least=3, step=0.25) == [(0, 0), (0, 1)]  # never fewer than three
    assert shared(attr[:2], share=0.5, bounds=(1, 9), least=3) == [(0, 0), (1, 1)]  # two phrasings: both


def test_too_many_are_told_apart_by_the_share_and_in_the_end_by_strength() -> None:
    attr = of_rows([1, 0.9, 1, 0, 0, 0], [1, 0.9, 1, 0, 0, 0], [1, 0.9, 1, 0, 0, 0], [0.1, 0.9, 0.9, 0, 0, 1])
    # held by 3, 4, 4 of the four: all at 0.7, two from 0.8 on
    assert shared(attr, share=0.7, bounds=(1, 2)) == [(0, 2), (0, 1)]
    assert shared(attr, share=0.7, bounds=(1, 1)) == [(0, 2)]
    assert shared(attr, share=0.7, bounds=(1, 2), rounds=1) == [(0, 2), (0, 1)]  # 0.975, 0.9, and 0.775 for (0, 0)
    attr[3, 0, 1] = 0.3
    assert shared(attr, share=0.7, bounds=(1, 2), rounds=1) == [(0, 2), (0, 0)]  # (0, 0) is stronger now: 0.775, 0.75
    assert shared(attr, share=0.7, bounds=(1, 2)) == [(0, 2), (0, 1)]  # but not in as many phrasings


def test_six_tenths_of_five_are_three() -> None:
    holding = torch.tensor([[1.0, 1, 0], [1, 1, 0], [1, 1, 0], [0, 0, 1], [0, 0, 1]])[:, None]
    assert shared(holding, share=0.7, bounds=(2, 5), rounds=3) == [(0, 0), (0, 1)]  # 0.7, 0.65, 0.6


def test_what_only_weakens_an_answer_holds_nothing() -> None:
    attr = -torch.ones(3, 2, 4)
    assert shared(attr) == []
    assert shared(torch.zeros(3, 2, 4)) == []


def test_strongest_weighs_phrasings_alike() -> None:
    attr = of_rows([100, 90, 0, 0, 0, 0], [0.0, 0.5, 0, 1.0, 0, 0])
    assert strongest(attr, 2) == [(0, 1), (0, 0)]  # 0.9 + 0.5, 1 + 0, 0 + 1: the first of equals
    free = torch.ones(2, 3, dtype=torch.bool)
    free[0, 1] = False
    assert strongest(attr, 2, free) == [(0, 0), (1, 0)]


# Prompts and answers -----------------------------------------------------------------------------


def case(prompt: str, subject: str, *others: str, kind: Any = "paraphrase") -> Case:
    probes = tuple(Probe(kind, other, ("Oslo",)) for other in others)
    return Case(prompt, (Edit(prompt, subject, "Oslo", "Rome"),), probes)


def test_templates_that_share_one_belong_together() -> None:
    groups = templates_of(
        [
            case("Ann was born in", "Ann", "Ann hails from"),
            case("Bob works for", "Bob", "Bob serves", "He serves"),
            case("Cy comes from", "Cy", "Cy hails from"),
            case("Dee speaks", "Dee", "Dee works for", kind="neighborhood"),
        ]
    )
    born, works, speaks = map(sorted, groups)
    assert born == ["{} comes from", "{} hails from", "{} was born in"]
    assert works == ["{} serves", "{} works for"] and speaks == ["{} speaks"]
    assert template_of("Ann Lee was born in", "Ann Lee") == "{} was born in"


def test_token_changes_are_where_the_answers_differ() -> None:
    lm = tiny_lm("llama")
    prompt, target = EDIT.prompt, lm.tokens.target
    new, true = target(prompt, "New York Oslo"), target(prompt, "New York Rome")
    n = len(target(prompt, "New York"))
    assert new[:n] == true[:n] and new[n] != true[n]
    first = token_changes(lm, Edit(prompt, EDIT.subject, "New York Oslo", "New York Rome"))[0]
    assert (first.prefix, first.old, first.new) == (tuple(new[:n]), true[n], new[n])
    own = lm.next_logprobs([prompt]).argmax()  # where no old answer is given, the model's own
    assert token_changes(lm, Edit(prompt, EDIT.subject, "Oslo"))[0].old == own


def test_what_the_model_predicts_already_is_left(caplog: pytest.LogCaptureFixture) -> None:
    lm = tiny_lm("llama")
    ids = lm.tokens.prompt(EDIT.prompt)
    for word in ("Oslo", "Rome", "Lima", "Paris"):
        token = lm.tokens.target(EDIT.prompt, word)
        if len(token) == 1:
            break
    head: Any = lm.model.get_parameter(f"{lm.sites.lm_head}.weight")
    best = int(lm.next_logprobs([EDIT.prompt]).argmax())
    swap = torch.zeros(len(head), 1)
    swap[token[0]], swap[best] = 1, -1
    turn = LowRank(swap, (head[best] - head[token[0]]).detach()[None])  # the two tokens change places
    with Patch((Delta({f"{lm.sites.lm_head}.weight": turn}),)).applied(lm) as turned:
        assert turned.next_logprobs([EDIT.prompt]).argmax() == token[0] and ids
        assert token_changes(turned, Edit(EDIT.prompt, EDIT.subject, word)) == []
        assert KN()._locate(turned, Edit(EDIT.prompt, EDIT.subject, word), [EDIT.prompt], None) == []
    assert "already says" in caplog.text


# The edit ----------------------------------------------------------------------------------------


def quick(**settings: Any) -> KN:
    return KN(**{"points": 4, "phrasings": 1, **settings})


def columns(lm: HFLM, patch: Patch) -> dict[tuple[int, int], Tensor]:
    """(layer, neuron) -> what its column gains."""
    gains: dict[tuple[int, int], Tensor] = {}
    for part in patch.of_kind(Delta):
        for name, w in part.weights.items():
            full, layer = w.dense() if isinstance(w, LowRank) else w, lm.sites.mlp_out.index(name[: -len(".weight")])
            gains |= {(layer, i): full[:, i] for i in full.any(0).nonzero()[:, 0].tolist()}
    return gains


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_terms_are_brought_to_the_column(arch: str) -> None:
    lm = tiny_lm(arch)
    (change,) = token_changes(lm, EDIT)
    head: Any = lm.model.get_parameter(f"{lm.sites.lm_head}.weight")
    for settings, token, times in (({"add": 3.0, "subtract": 0.0}, change.new, 3), ({"add": 0.0}, change.old, -1)):
        changed = columns(lm, quick(**settings).edit(lm, [EDIT]))
        assert changed
        rows = lm.tokens.prompt(EDIT.prompt)
        for (layer, i), change in changed.items():
            site = (lm.sites.mlp_out[layer], "in")
            sign = lm.read([rows], [[len(rows) - 1]], [site])[site][0, i].sign()
            column = down_projection(lm, layer)[:, i]
            assert change.norm().item() == pytest.approx(column.norm().item() * abs(times), rel=1e-5)
            assert torch.cosine_similarity(change * sign, head[token].detach() * times, 0) > 1 - 1e-6


def test_edits_that_meet_in_a_neuron_both_count() -> None:
    lm = tiny_lm("gpt2")
    same = [EDIT, Edit(EDIT.prompt, EDIT.subject, "Lima", "Rome")]
    one, two, both = (columns(lm, quick().edit(lm, edits)) for edits in ([same[0]], [same[1]], same))
    assert one.keys() == two.keys() == both.keys()
    for neuron in both:
        torch.testing.assert_close(both[neuron], one[neuron] + two[neuron])


def test_what_an_earlier_edit_of_the_prompt_wrote_is_subtracted_as_often_as_it_was_added() -> None:
    """And once more. What the model predicts, or what was true before all edits, is not what stands there now."""
    lm = tiny_lm("llama")
    newer = Edit(EDIT.prompt, EDIT.subject, "Lima", "Rome")
    old, new = (lm.tokens.target(EDIT.prompt, answer)[0] for answer in ("Oslo", "Lima"))
    change = token_changes(lm, newer, "Oslo")[0]
    assert (change.old, change.new, change.written) == (old, new, True)
    assert not token_changes(lm, newer)[0].written
    assert all(change.prefix for change in token_changes(lm, newer, "Lima")), "what it says already needs no change"
    (gain,) = quick(add=3.0, subtract=0.5)._updates(lm, [LocatedNeuron((1, 2), change, -1.0)]).values()
    head: Any = lm.model.get_parameter(f"{lm.sites.lm_head}.weight").detach()
    units = head[[old, new]] / head[[old, new]].norm(dim=1, keepdim=True)
    torch.testing.assert_close(gain, -down_projection(lm, 1)[:, 2].norm() * (3.0 * units[1] - 3.5 * units[0]))


def test_an_edit_is_told_what_this_method_wrote_at_its_prompt_last(monkeypatch: pytest.MonkeyPatch) -> None:
    lm, made, told = tiny_lm("gpt2"), quick(), list[str | None]()
    first, second, newer = (Edit(EDIT.prompt, EDIT.subject, answer) for answer in ("Oslo", "Paris", "Lima"))
    prior = made.edit(lm, [first, second])
    others = replace(prior, meta={**prior.meta, "made": [{**prior.meta["made"][0], "method": "memit"}]})
    real = kn.token_changes
    monkeypatch.setattr(kn, "token_changes", lambda lm, edit, earlier=None: told.append(earlier) or real(lm, edit))
    for patch in (prior, others):
        made.edit(lm, [newer, EDITS[1]], None, patch)
    assert told == ["Paris", None, None, None]


def test_a_column_does_not_grow_on_itself() -> None:
    lm, made = tiny_lm("gpt2"), quick()
    first = made.edit(lm, [EDIT])
    again = made.edit(lm, EDITS, None, first)
    before, after = columns(lm, first), columns(lm, again)
    for (layer, i), change in after.items():
        added = change - before.get((layer, i), 0)
        assert added.norm() <= len(EDITS) * 3 * 9.001 * down_projection(lm, layer)[:, i].norm()


def test_erased_columns_are_zero() -> None:
    lm, made = tiny_lm("gpt2"), quick(mode="erase")
    prior = quick().edit(lm, EDITS[:1])
    for patch in (made.edit(lm, EDITS), made.edit(lm, EDITS, None, prior)):
        erased = columns(lm, patch).keys() - columns(lm, prior).keys()
        with patch.applied(lm) as edited:
            assert all(down_projection(edited, layer)[:, i].abs().max() < 1e-5 for layer, i in erased)
    assert columns(lm, made.edit(lm, [EDIT, EDIT])).keys() == columns(lm, made.edit(lm, [EDIT])).keys()
    torch.testing.assert_close(columns(lm, made.edit(lm, [EDIT, EDIT])), columns(lm, made.edit(lm, [EDIT])))


def test_neurons_common_to_the_relation_are_left() -> None:
    lm = tiny_lm("llama")
    groups = {"groups": [["{} was born in"]]}
    free = columns(lm, quick().edit(lm, [EDIT], State({}, groups))).keys()
    taken = {"common/0": torch.tensor(sorted(free))}
    others = columns(lm, quick().edit(lm, [EDIT], State(taken, groups))).keys()
    assert free and others and not free & others


def test_prepare_learns_phrasings_and_is_cached(monkeypatch: pytest.MonkeyPatch) -> None:
    lm, made = tiny_lm("llama"), quick(phrasings=4)
    cases = [
        case(f"{who} was born in", who, f"{who} comes from", f"{who} hails from") for who in ("Ann Lee", "Bob Ray")
    ]
    state = made.prepare(lm, cases)
    assert state.info["groups"] == [["{} was born in", "{} comes from", "{} hails from"]]
    assert state.tensors["common/0"].shape[1] == 2
    monkeypatch.setattr(KN, "_common", None)  # not measured again, also with other weights of the update
    assert made.prepare(lm, cases).info == quick(phrasings=4, add=2.0).prepare(lm, iter(cases)).info == state.info
    prompts, common = made._phrasings(lm, [EDIT], state)
    assert prompts == [["Ann Lee was born in", "Ann Lee comes from", "Ann Lee hails from"]]
    assert common[0] is not None and torch.equal(common[0], state.tensors["common/0"])
    assert not made.prepare(lm).info and not made.prepare(lm).tensors  # a model without cases
    with pytest.raises(WrongModel, match="prepare"):
        made.edit(tiny_lm("gpt2"), [EDIT], state)


def test_openers_where_no_phrasing_is_known(caplog: pytest.LogCaptureFixture) -> None:
    lm = tiny_lm("gpt2")
    prompts, common = quick(phrasings=3)._phrasings(lm, [EDIT], State())
    assert len(prompts[0]) == 3 and prompts[0][0] == EDIT.prompt and common == [None]
    assert all(prompt.endswith(EDIT.prompt) for prompt in prompts[0])
    assert "1 of 1 prompts" in caplog.text


def test_bad_settings_data_and_models_are_refused() -> None:
    with pytest.raises(BadInput, match="fewest and the most"):
        KN(neurons=(5, 2))
    with pytest.raises(BadInput, match="between 0 and 1"):
        KN(share=1.5)
    with pytest.raises(BadInput, match="paraphrase an edit"):
        KN().prepare(tiny_lm("gpt2"), ["a text"])
    narrow = HFLM(build("opt_projected", vocab_size=320), tiny_lm("gpt2").tokenizer)
    with pytest.raises(Unsupported, match="another width"):
        quick().edit(narrow, [EDIT])
    seq2seq = HFLM(build("t5", vocab_size=320), tiny_lm("gpt2").tokenizer)
    for refused in (lambda: KN().prepare(seq2seq), lambda: KN().edit(seq2seq, [EDIT])):
        with pytest.raises(Unsupported, match="decoder-only"):
            refused()
    assert not issubclass(Unsupported, NeedsPrepare)


def test_show_names_the_neurons(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    lm = tiny_lm("gpt2")
    patch = quick().edit(lm, [EDIT])
    lines = {line["site"]: line.get("columns") for line in patch.summary() if line["rank"]}
    assert lines == {
        f"{lm.sites.mlp_out[layer]}.weight": sorted(i for at, i in columns(lm, patch) if at == layer)
        for layer in {at for at, _ in columns(lm, patch)}
        if f"{lm.sites.mlp_out[layer]}.weight" in lines
    }
    spread = Delta({"w": LowRank(torch.ones(4, 1), torch.ones(1, 6))})
    many = Delta({"w": LowRank(torch.ones(4, 1), (torch.arange(100) < 65).float()[None])})
    assert not any("columns" in line for line in (*spread.summary(), *many.summary()))
    file = patch.save(tmp_path / "p.safetensors")
    output = CliRunner().invoke(app, ["show", str(file)]).stdout
    assert "neurons" in output
    parts = json.loads(CliRunner().invoke(app, ["show", str(file), "--json"]).stdout)["parts"]
    assert parts == json.loads(json.dumps(patch.summary()))


# On the bundled model ----------------------------------------------------------------------------


@cache
def world() -> tuple[HFLM, State]:
    lm = errata.load("world")
    return lm, KN(points=8).prepare(lm, lm.resources.cases()[:60] if lm.resources.cases else None)


def odds(lm: HFLM, edit: Edit) -> float:
    """log P / (1 − P) of the old answer's first token: log P alone hardly moves where P is near 1."""
    assert edit.target_true is not None
    logp = torch.tensor(lm.score([edit.prompt], [edit.target_true])[0].logprobs[0], dtype=torch.float64)
    return float(logp - (-logp.expm1()).clamp(min=1e-9).log())


def falls(lm: HFLM, edit: Edit, patch: Patch) -> float:
    """By how much the odds of the old answer fall, in nats."""
    with patch.applied(lm) as edited:
        after = odds(edited, edit)
    return odds(lm, edit) - after


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_erasing_located_neurons_costs_more_than_erasing_others() -> None:
    lm, state = world()
    generator = torch.Generator().manual_seed(0)
    located = others = 0.0
    for case in errata.cases("world", limit=5):
        patch = KN(mode="erase", points=8).edit(lm, case.edits, state)
        erased = columns(lm, patch)
        weights: dict[str, Any] = {}
        for layer in {at for at, _ in erased}:
            weight = down_projection(lm, layer)
            some = torch.randperm(weight.shape[1], generator=generator)[: sum(at == layer for at, _ in erased)]
            change = torch.zeros_like(weight)
            change[:, some] = -weight[:, some]
            weights[f"{lm.sites.mlp_out[layer]}.weight"] = change
        located += falls(lm, case.edits[0], patch) / 5
        others += falls(lm, case.edits[0], Patch((Delta(weights),))) / 5
    assert located > 0.5 and located > 3 * abs(others)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_facts_of_the_world_change() -> None:
    lm, state = world()
    took = 0
    for case in errata.cases("world", limit=5):
        with KN(points=8).edit(lm, case.edits, state).applied(lm) as edited:
            (answer,) = edited.generate([case.edits[0].prompt], 8, until_answer=True)
        took += answer.strip().startswith(case.edits[0].target_new)
    assert took >= 4

"""Small terms of larger things, each by itself: what a mutation tester found that no other test noticed."""

import copy
import logging
from typing import Any

import pytest
import torch
from conftest import CASES, EDITS, TEXTS, tiny_lm, tiny_model, tokenizer

import errata
from errata.errors import WrongModel
from errata.evaluation.metrics import change_of
from errata.methods.closed_form.keys import read_at_subjects
from errata.methods.finetune.lora import LoRA
from errata.methods.losses import smoothed_targets
from errata.methods.neurons import kn
from errata.methods.registry import method
from errata.model.hf import HFLM
from errata.model.resources import Resources
from errata.model.texts import openings, sampled_texts
from errata.patch.beside import side_products
from errata.patch.delta import Delta
from errata.patch.patch import EMPTY, Patch
from errata.patch.transforms import low_rank, prune, rect


def test_overtone_measures_the_spread_of_each_row_alone() -> None:
    row = torch.tensor([2.0, 1.0, 0.0, -3.0])
    targets = torch.tensor([0, 0])
    together = smoothed_targets(torch.stack([row, 100 * row]), targets, 0.5, 1.0)
    assert torch.equal(together[:1], smoothed_targets(row[None], targets[:1], 0.5, 1.0))


def test_methods_are_described_by_their_own_words() -> None:
    about = errata.methods()
    assert all(name == about[name].name for name in about)
    assert about["memit"].needs_prepare is True and about["ft-m"].needs_prepare is False


def test_sampled_texts_are_as_long_as_the_model_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    lm, asked = tiny_lm("gpt2"), list[tuple[Any, ...]]()

    def sample(prompts: list[str], length: int, *, seed: int, until: tuple[str, ...]) -> list[list[int]]:
        asked.append((len(prompts), length, seed, until))
        return [[5]] * len(prompts)

    monkeypatch.setattr(lm, "sample", sample)
    lm.budget = 64 * 128
    texts = sampled_texts(lm, 3)
    for _ in range(65):
        next(texts)
    assert lm.tokens.limit == 128 and asked == [(64, 127, 3, ()), (64, 127, 4, ())]


def test_methods_that_read_openings_sample_one_sentence_of_a_text(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """In batches as large as the budget allows, and no more of them than the openings need."""
    lm, asked = tiny_lm("gpt2"), list[tuple[Any, ...]]()

    def sample(prompts: list[str], length: int, *, seed: int, until: tuple[str, ...]) -> list[list[int]]:
        asked.append((len(prompts), length, until))
        return [lm.tokens._plain(f" {seed}{i} of them live in New York. They") for i in range(len(prompts))]

    monkeypatch.setattr(lm, "sample", sample)
    lm.budget = 330
    with caplog.at_level(logging.INFO, "errata"):
        assert len(openings(lm, None, 15, 0)) == 15
    assert asked == [(10, 32, (". ",))] * 2
    assert [record.message for record in caplog.records if record.levelno == logging.WARNING] == [
        "no texts given: they are sampled from the model itself"
    ]


def test_a_sample_ends_where_its_text_holds_one_of_the_stops() -> None:
    lm = tiny_lm("gpt2")
    whole = lm.sample([""] * 20, 40, seed=1)
    (stop,) = {lm.tokens.continuation([], whole[0])[3:5]}
    for ids, ended in zip(whole[:1], lm.sample([""] * 20, 40, seed=1, until=(stop,)), strict=False):
        assert ended == ids[: len(ended)] and stop in lm.tokens.continuation([], ended)
        assert stop not in lm.tokens.continuation([], ended[:-1])


def test_a_bias_beside_an_offloaded_linear_is_added_to_its_output() -> None:
    linear, x = torch.nn.Linear(3, 2), torch.randn(4, 3)
    model, change = torch.nn.ModuleDict({"up": linear}), torch.tensor([1.0, -2.0])
    expected = linear(x) + change
    with side_products(model, {"up.bias": change})[0]:
        assert torch.equal(linear(x), expected)


def test_a_patch_of_another_model_is_merged_by_force_alone() -> None:
    lm = HFLM(copy.deepcopy(tiny_model("gpt2", torch.float32)), tokenizer(), name="copy")
    name = "transformer.ln_f.bias"
    delta = Delta({name: torch.ones_like(lm.model.get_parameter(name))})
    patch = Patch((delta,), {}, {"model": {"name": "other", "fingerprint": "0" * 16}})
    before = lm.model.get_parameter(name).clone()
    with pytest.raises(WrongModel):
        patch.merge(lm)
    assert torch.equal(lm.model.get_parameter(name), before)
    patch.merge(lm, force=True)
    assert torch.equal(lm.model.get_parameter(name), before + 1)


def test_what_a_transform_did_stands_in_meta_with_its_settings() -> None:
    lm = tiny_lm("llama")
    name = f"{lm.sites.mlp_out[0]}.weight"
    patch = Patch((Delta({name: torch.randn(lm.model.get_parameter(name).shape)}),))
    assert low_rank(patch, rank=2).meta["transformed"] == [{"name": "low_rank", "rank": 2}]
    noted = prune(patch, lm, base=1.5, rule="log").meta["transformed"]
    assert noted == [{"name": "prune", "base": 1.5, "rule": "log"}]
    assert low_rank(EMPTY, rank=2).meta == {}
    with pytest.raises(Exception, match="thinned"):
        rect(_memory(lm), lm, keep=0.5)


def _memory(lm: HFLM) -> Patch:
    made: Any = method("grace", steps=1)
    return made.edit(lm, EDITS[:1], made.prepare(lm, TEXTS))


def test_a_change_of_no_size_has_no_norm() -> None:
    found = change_of({"w": torch.zeros(0, 3), "v": torch.zeros(2, 2)})
    assert [(change.norm, change.rank) for change in found.values()] == [(0.0, 0), (0.0, 0)]


def test_lora_passes_its_settings_on_to_peft() -> None:
    pytest.importorskip("peft")
    config = LoRA(rank=3, alpha=5.0, dropout=0.25)._config()
    assert (config.r, config.lora_alpha, config.lora_dropout) == (3, 5.0, 0.25)


def test_a_neuron_is_common_where_more_than_a_share_of_the_facts_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    lm, made = tiny_lm("gpt2"), kn.KN(common=0.5)
    facts = [copy.copy(edit) for edit in (*EDITS, EDITS[0])]  # four: a neuron must be in more than two
    located = iter([{(0, 1): 1.0, (1, 2): 1.0}, {(0, 1): 1.0, (1, 2): 1.0}, {(0, 1): 1.0}, {}])
    monkeypatch.setattr(kn.KN, "_attributions", lambda self, lm, prompts, change: None)
    monkeypatch.setattr(kn.KN, "_shared", lambda self, found: next(located))
    monkeypatch.setattr(kn, "rephrased", lambda fact, group, count: [])
    assert made._common(lm, [], facts).tolist() == [[0, 1]]


def test_nas_measures_new_values_before_the_blocks_factor() -> None:
    """Granite multiplies what the MLP adds: δ is found behind that factor, values are measured before it."""
    lm = tiny_lm("granite", torch.float64)
    lm.resources = Resources(cases=lambda: CASES)
    made: Any = method("memit", layers=(1,), nas=True, contexts=0, lam=1e-9)
    state = made.prepare(lm, TEXTS)
    patch = made.edit(lm, EDITS, state)
    (anchor,) = (value for name, value in patch.memory.items() if name.startswith("anchor/"))
    site = (lm.sites.mlp_out[1], "out")
    with patch.applied(lm) as edited:
        new = read_at_subjects(edited, EDITS, [""], [site])[site].bare
    assert lm.sites.gain[1] == 0.5
    assert torch.allclose(new.norm(dim=-1), anchor.to(new).expand(len(new)), rtol=1e-2)

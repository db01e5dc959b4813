"""MEMIT, PMET and AlphaEdit against algorithm 1 written out from the papers (plain.py), over two batches in turn."""

from typing import Any

import pytest
import torch
from conftest import EDITS, TEXTS, tiny_lm, tokenizer
from plain import Plain, Search, alphaedit_change, memit_change, null_space, spread
from torch import Tensor

from errata.methods.closed_form import base as closed_form
from errata.methods.registry import method
from errata.patch.patch import EMPTY

CONTEXTS = ["", "The king was in Rome. ", "Paris is a town by night. "]
LAYERS = (0, 1, 2)
BATCHES = (EDITS[:2], EDITS[2:])
SETTINGS: dict[str, Any] = {"layers": LAYERS, "contexts": 2, "steps": 8, "lr": 0.4, "clamp": 0.6, "ridge": 1e-3}
SETTINGS |= {"optimizer": "adam", "search_contexts": 2}  # the papers' search


def shipped_and_plain(
    name: str, architecture: str, monkeypatch: pytest.MonkeyPatch, **settings: Any
) -> tuple[list[dict[str, Tensor]], Plain, dict[int, Tensor]]:
    """What the shipped method changes in each of two batches, site -> Δ; a plain model; C of each layer."""
    monkeypatch.setattr(closed_form, "contexts_of", lambda *args: CONTEXTS)
    lm = tiny_lm(architecture, torch.float64)
    made: Any = method(name, **SETTINGS, **settings)
    state = made.prepare(lm, TEXTS)
    patch, totals = EMPTY, []
    for batch in BATCHES:
        patch = made.edit(lm, batch, state, patch)
        totals.append({site: dense(w).double() for site, w in patch.parts[0].weights.items()})  # pyright: ignore
    changes = [totals[0], {site: totals[1][site] - totals[0][site] for site in totals[1]}]
    plain = Plain(lm.model, tokenizer(), architecture)
    return changes, plain, {n: state.tensors[f"C/{plain.down(n)}"].double() for n in LAYERS}


def dense(w: Any) -> Tensor:
    return w if isinstance(w, Tensor) else w.dense()


def with_ridge(c: Tensor) -> Tensor:
    return c + SETTINGS["ridge"] * c.diagonal().mean() * torch.eye(len(c), dtype=c.dtype)


def assert_same(changes: list[dict[str, Tensor]], expected: list[dict[int, Tensor]], plain: Plain) -> None:
    """To the precision of a patch, which keeps its factors in float32."""
    for found, wanted in zip(changes, expected, strict=True):
        assert sorted(found) == sorted(f"{plain.down(layer)}.weight" for layer in wanted)
        for layer, change in wanted.items():
            error = (found[f"{plain.down(layer)}.weight"] - change).abs().max() / change.abs().max()
            assert error < 1e-5
            assert change.abs().max() > 1e-2


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "gpt_neox", "granite"])
def test_memit_is_algorithm_1(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    changes, plain, c = shipped_and_plain("memit", architecture, monkeypatch)
    search = Search(steps=8, lr=0.4, clamp=0.6, kl=0.0625, decay=0.5, stop=0.05)
    lam = 0.92 * 64  # the rule for λ: as much for each dimension of a key as in the paper's GPT-J
    ridged = {layer: with_ridge(m) for layer, m in c.items()}
    gain = 0.5 if architecture == "granite" else 1.0
    with plain.restored():
        expected = [
            spread(plain, b, CONTEXTS, LAYERS, search, lambda n, k, r: memit_change(ridged[n], k, r, lam), gain=gain)
            for b in BATCHES
        ]
    assert_same(changes, expected, plain)


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "gpt_neox"])
def test_pmet_takes_a_root_of_the_residual_for_the_mlp_alone(
    architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes, plain, c = shipped_and_plain("pmet", architecture, monkeypatch)
    search = Search(steps=8, lr=0.4, clamp=0.6, kl=1.0, decay=0.5, stop=0.05, eased=0.1, enough=0.01)
    lam = 0.37 * 64
    ridged = {layer: with_ridge(m) for layer, m in c.items()}

    def solve(layer: int, keys: Tensor, residuals: Tensor) -> Tensor:
        return memit_change(ridged[layer], keys, residuals, lam)

    with plain.restored():
        expected = [
            spread(plain, batch, CONTEXTS, LAYERS, search, solve, share=lambda left: left**-0.5, attention=True)
            for batch in BATCHES
        ]
    assert_same(changes, expected, plain)


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "gpt_neox"])
def test_alphaedit_solves_in_the_null_space_with_the_keys_of_earlier_edits(
    architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes, plain, c = shipped_and_plain("alphaedit", architecture, monkeypatch, lam=2.0)
    search = Search(steps=8, lr=0.4, clamp=0.6, kl=0.0625, decay=0.5, stop=0.05)
    projectors = {layer: null_space(m, 0.02) for layer, m in c.items()}
    past = {layer: torch.zeros(64, 0, dtype=torch.float64) for layer in LAYERS}
    used: dict[int, Tensor] = {}

    def solve(layer: int, keys: Tensor, residuals: Tensor) -> Tensor:
        p = projectors[layer]
        unit = (p @ c[layer]).trace() / 64  # of λ: E[kᵀPk] for a dimension of a key, as E[kᵀC⁻¹k] is in MEMIT's
        used[layer] = keys
        return alphaedit_change(p, past[layer], keys, residuals, float(2.0 * unit))

    expected: list[dict[int, Tensor]] = []
    with plain.restored():
        for batch in BATCHES:
            expected.append(spread(plain, batch, CONTEXTS, LAYERS, search, solve))
            past = {layer: torch.cat([past[layer], keys], 1) for layer, keys in used.items()}
    assert_same(changes, expected, plain)


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_c_is_the_mean_of_keys_with_themselves_over_every_token(architecture: str) -> None:
    lm = tiny_lm(architecture, torch.float64)
    state = method("memit", layers=LAYERS).prepare(lm, TEXTS[:7])
    plain = Plain(lm.model, tokenizer(), architecture)
    for layer in LAYERS:
        keys = torch.cat([plain.flow(plain.ids(text), plain.down(layer), "in") for text in TEXTS[:7]])  # (tokens, f)
        expected = keys.T @ keys / len(keys)
        assert torch.allclose(state.tensors[f"C/{plain.down(layer)}"].double(), expected, rtol=1e-4, atol=1e-6)
    assert state.info["tokens"] == sum(len(plain.ids(text)) for text in TEXTS[:7])

"""From new values to the hidden state that targets are measured at: by a factor, or through a norm."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from conftest import EDITS, TEXTS, tiny_lm
from torch import Tensor, nn

from errata.errors import BadInput
from errata.methods.closed_form.base import ClosedForm
from errata.methods.closed_form.context import Targets
from errata.methods.closed_form.outlet import Norm, Outlet
from errata.methods.registry import method
from errata.model.hf import HFLM
from errata.model.hooks import after
from errata.model.passes import hidden_of, with_hidden
from errata.patch.memory import KEYS
from errata.patch.patch import EMPTY, Patch
from errata.types import Edit

BEHIND_NORMS = [
    "gemma2",
    "gemma3_text",
    "olmo2",
    "olmo3",
    "glm4",
    "exaone4",
    "hyperclovax",
    "opt_projected",
    "openai-gpt",
]
LAYERS = (0, 1, 2)


def at_the_subject(lm: HFLM, edits: Sequence[Edit], path: str, deltas: Tensor | None = None) -> Tensor:
    """(n, d): the output of the last edited block, with a δ added to its down projection's output."""
    found: list[Tensor] = []
    for i, edit in enumerate(edits):
        column = lm.tokens.last_of_subject(edit.prompt, edit.subject)

        def add(args: Any, kwargs: Any, output: Any, i: int = i, column: int = column) -> Any:
            hidden = hidden_of(output).clone()
            flat = hidden.view(-1, hidden.shape[-1])  # OPT's MLP sees tokens without rows
            flat[column] += 0 if deltas is None else deltas[i].to(hidden)
            return with_hidden(output, hidden)

        def keep(args: Any, kwargs: Any, output: Any, column: int = column) -> None:
            found.append(hidden_of(output)[0, column].detach())

        down = lm.model.get_submodule(lm.sites.mlp_out[lm.sites.layer.index(path)])
        with torch.no_grad(), after(down, add), after(lm.model.get_submodule(path), keep):
            lm.model(input_ids=torch.tensor([lm.tokens.prompt(edit.prompt)]), use_cache=False)
    return torch.stack(found).double()


def missed(lm: HFLM, made: Any, monkeypatch: pytest.MonkeyPatch, edits: Sequence[Edit] = EDITS) -> Tensor:
    """(n): how far the hidden state stays from the one with δ, in units of what δ does."""
    kept: list[Targets] = []
    search = ClosedForm._targets

    def keep(self: Any, *args: Any) -> Targets:
        kept.append(search(self, *args))
        return kept[-1]

    monkeypatch.setattr(ClosedForm, "_targets", keep)
    patch: Patch = made.edit(lm, edits, made.prepare(lm, TEXTS), EMPTY)
    path = lm.sites.layer[LAYERS[-1]]
    before, wanted = at_the_subject(lm, edits, path), at_the_subject(lm, edits, path, kept[0].delta)
    with patch.applied(lm):
        reached = at_the_subject(lm, edits, path)
    return (reached - wanted).norm(dim=-1) / (wanted - before).norm(dim=-1)


@pytest.mark.parametrize("name", ["memit", "alphaedit"])
@pytest.mark.parametrize("architecture", ["gpt2", "llama", "gpt_neox", "granite", *BEHIND_NORMS])
def test_several_layers_together_reach_the_hidden_state_that_was_searched(
    architecture: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = tiny_lm(architecture)
    made = method(name, layers=LAYERS, contexts=0, lam=1e-9, lr=0.3, steps=8)
    assert missed(lm, made, monkeypatch).max() < (0.02 if architecture in BEHIND_NORMS else 1e-4)


@pytest.mark.parametrize("layers", [(1, 2), (2,)])
def test_so_do_two_layers_and_one(layers: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    made = method("memit", layers=layers, contexts=0, lam=1e-9, lr=0.3, steps=8)
    assert missed(tiny_lm("olmo2"), made, monkeypatch).max() < 0.02


@pytest.mark.parametrize(
    ("architecture", "dtype"),
    [("gemma2", torch.float16), ("gemma2", torch.bfloat16), ("olmo2", torch.float16)],
)
def test_so_they_do_in_half_precision(architecture: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    made = method("memit", layers=LAYERS, contexts=0, lam=1e-9, lr=0.3, steps=8, optimizer="adam")
    assert missed(tiny_lm(architecture, dtype), made, monkeypatch).max() < 0.05


def test_behind_a_norm_a_fact_has_one_rank_and_one_key_in_each_layer() -> None:
    """Though a layer has two turns."""
    lm = tiny_lm("gemma2")
    made = method("alphaedit", layers=LAYERS, contexts=0, steps=2)
    patch = made.edit(lm, EDITS, made.prepare(lm, TEXTS))
    assert [w.rank for w in patch.parts[0].weights.values()] == [len(EDITS)] * 3  # pyright: ignore
    assert [len(keys) for name, keys in patch.memory.items() if name.startswith(KEYS)] == [len(EDITS)] * 3


def test_several_layers_behind_norms_that_are_not_known_are_refused() -> None:
    lm = tiny_lm("gemma2")
    lm.sites = replace(lm.sites, mlp_norm=())
    memit = method("memit", layers=LAYERS, contexts=0, steps=2)
    state = memit.prepare(lm, TEXTS)
    with pytest.raises(BadInput, match=r"layers \[0, 1, 2\] .* norm behind .*\(layers=\(2,\)\)"):
        memit.edit(lm, EDITS, state)
    assert len(replace(memit, layers=(2,)).edit(lm, EDITS, state).edits) == len(EDITS)


# The norms -------------------------------------------------------------------------------------------


def module_of(kind: str, width: int = 4) -> nn.Module:
    weights = not kind.startswith("bare")
    layer = nn.LayerNorm(width, elementwise_affine=weights)
    module = layer if kind.endswith("layer") else nn.RMSNorm(width, eps=1e-6, elementwise_affine=weights)
    for i, p in enumerate(module.parameters()):
        p.data = torch.randn(width, generator=torch.Generator().manual_seed(i))
    return module


def points(n: int, seed: int = 3) -> Tensor:
    return torch.randn(n, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("kind", ["layer", "rms", "bare layer", "bare rms"])
def test_a_norm_is_read_off_the_module(kind: str) -> None:
    module = module_of(kind)
    norm = Norm.of(module, 4)
    assert norm.centred is kind.endswith("layer")
    assert torch.allclose(norm(points(20)), module.double()(points(20)), atol=1e-4)
    assert Norm.of(module_of(kind).bfloat16(), 4).g == pytest.approx(norm.g, rel=0.02)


def test_the_nearest_output_is_nearer_than_any_other() -> None:
    norm = Norm.of(module_of("rms"), 4)
    others = norm(points(50_000))
    for scale in (0.1, 1.0, 10.0):
        y = scale * points(8, seed=7)
        nearest = norm.g * norm.nearest(y) + norm.b
        distance = (nearest - y).norm(dim=-1)
        best = torch.cdist(y, others).min(-1).values
        assert (distance <= best + 1e-9).all() and torch.allclose(distance, best, atol=0.15)


@pytest.mark.parametrize("kind", ["layer", "rms"])
def test_what_a_norm_can_give_is_given_whatever_the_length(kind: str) -> None:
    norm = Norm.of(module_of(kind), 4)
    outlet = Outlet(("", "in"), ("", "out"), norm=norm)
    x, other, like = points(5), points(5, seed=4), points(5, seed=5) + 2
    moved = norm(other) - norm(x)
    assert torch.allclose(outlet.moved(x, other - x), moved)
    assert outlet.unmet(x, moved).abs().max() < 1e-6
    new = x + outlet.change(x, moved, like)
    assert torch.allclose(norm(new), norm(other), atol=1e-6)
    if kind == "layer":
        assert torch.allclose(new.mean(-1), like.mean(-1))
    assert torch.allclose(new.norm(dim=-1), like.norm(dim=-1), rtol=1e-6)
    beyond = moved + norm.g  # along u at most
    left = outlet.unmet(x, beyond)
    assert left.norm() > 0.1 and torch.allclose(outlet.unmet(x, beyond - left), 0 * left, atol=1e-6)


def test_a_factor_gives_everything() -> None:
    outlet, x, moved = Outlet(("", "out"), ("", "out"), gain=0.5), points(3), points(3, seed=4)
    assert torch.equal(outlet.change(x, moved, x), 2 * moved) and torch.equal(outlet.moved(x, 2 * moved), moved)
    assert not outlet.unmet(x, moved).any()

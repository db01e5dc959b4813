"""Mixtures of experts: their keys, the change of one matrix of a stack, and editing."""

import re
from typing import Any

import pytest
import torch
from conftest import EDITS, TEXTS, same_weights, tiny_lm, weights
from tiny import MIXTURES, build
from torch import Tensor, nn

import errata
from errata.errors import UnknownSites, Unsupported, WrongModel
from errata.methods.registry import method
from errata.model import stacks
from errata.model.detect import find_sites
from errata.model.hf import HFLM
from errata.model.hooks import after
from errata.model.projection import KEY, Projection
from errata.model.second_moment import second_moments
from errata.model.sites import Sites
from errata.model.weights import matrix_of, oriented
from errata.patch.delta import Delta
from errata.patch.low_rank import LowRank
from errata.patch.patch import Patch

SHARED_TOO = {"qwen2_moe", "qwen3_next_moe", "deepseek_v3", "ernie4_5_moe", "llama4_text"}
DENSE_FIRST = {"deepseek_v3": (0,), "ernie4_5_moe": (0,), "llama4_text": (0, 2), "jamba_moe": (0, 2)}
FEW = ["mixtral", "gpt_oss", "deepseek_v3", "llama4_text"]  # plain; transposed with biases; shared; gated before


def lm_of(name: str, dtype: torch.dtype = torch.float32) -> HFLM:
    return tiny_lm(name, dtype)


def projection(lm: HFLM, layer: int = 1) -> Projection:
    return Projection.of(lm.sites, layer)


@pytest.mark.parametrize("name", MIXTURES)
def test_experts_are_found(name: str) -> None:
    sites = find_sites(build(name))
    dense = DENSE_FIRST.get(name, ())
    for layer in range(4):
        found = sites.experts_of(layer)
        assert len(found) == (0 if layer in dense else 2 if name in SHARED_TOO else 1), layer
        assert all(path.startswith(f"{sites.mlp_out[layer]}.") for path in found)
    assert sites.gain == (1.0,) * 4
    assert all(re.search("self_attn|linear_attn|mamba", path) for path in sites.attn_out)
    assert Sites.from_json(sites.to_json()) == sites


@pytest.mark.parametrize("name", MIXTURES)
def test_the_value_is_what_the_weights_make_of_the_keys(name: str) -> None:
    """Σ W k over all weights moves by what a change of the weights moves the value by: biases are no part of it."""
    lm = lm_of(name)
    rows, columns = [lm.tokens.ids(text) for text in TEXTS[:3]], [[1, 2], [0, 3], [2]]
    one = projection(lm)
    before = lm.read(rows, columns, [(one.path, KEY), (one.path, "out")])
    total = torch.zeros_like(before[one.path, "out"])
    changes: dict[str, LowRank] = {}
    for (weight, side), keys in before.items():
        if side == KEY:
            change = LowRank(torch.randn(32, 1), torch.randn(1, keys.shape[1]))
            changes[weight] = change
            total += change.product(keys)
    assert total.abs().min() > 0
    with Patch((Delta(changes),)).applied(lm) as edited:
        after = edited.read(rows, columns, [(one.path, "out")])
    moved = after[one.path, "out"] - before[one.path, "out"]
    assert torch.allclose(moved, total, atol=1e-4 * float(total.abs().max()))


@pytest.mark.parametrize("name", FEW)
def test_only_routed_experts_have_keys(name: str) -> None:
    lm = lm_of(name)
    one = projection(lm)
    (key,) = [lm.read([[5, 6, 7]], [[2]], [(one.path, KEY)])]
    routed = [weight for weight, side in key if "[" in weight and bool(key[weight, side].any())]
    assert len(routed) == lm.config.num_experts_per_tok
    assert len(one.weights(lm.model)) == 4 + (name in SHARED_TOO)


@pytest.mark.parametrize("name", FEW)
def test_second_moments_are_of_the_gated_keys(name: str) -> None:
    lm = lm_of(name)
    pieces = [lm.tokens.ids(text) for text in TEXTS[:4]]
    path = projection(lm).path
    moments, seen = second_moments(lm, pieces, [path])
    read = lm.read(pieces, [range(len(piece)) for piece in pieces], [(path, KEY)])
    tokens = sum(map(len, pieces))
    for (weight, _), keys in read.items():
        assert torch.allclose(moments[weight], keys.T @ keys / tokens, atol=1e-6)
        assert seen[weight] == int(keys.any(1).sum())
    assert {weight for weight, _ in read} == set(moments)


@pytest.mark.parametrize("name", FEW)
@pytest.mark.parametrize("many", [False, True])
def test_a_change_of_experts_is_undone(name: str, many: bool) -> None:
    lm = lm_of(name)
    before = weights(lm.model)
    names = projection(lm).weights(lm.model)[: 3 if many else 1]
    stack = names[0].partition("[")[0]
    delta = Delta({name: torch.randn(matrix(lm, name).shape) for name in names})
    with delta.in_force(lm.model):
        for name in names:
            index = int(name.partition("[")[2].removesuffix("]"))
            held = oriented(lm.model, name, matrix_of(lm.model, name))
            assert torch.allclose(held, matrix(lm, name, before[stack][index]) + delta.weights[name], atol=1e-6)
        assert torch.equal(lm.model.get_parameter(stack)[3], before[stack][3])
    assert same_weights(lm.model, before)


def matrix(lm: HFLM, name: str, value: Tensor | None = None) -> Tensor:
    """A matrix of a stack, (out, in)."""
    return oriented(lm.model, name, matrix_of(lm.model, name) if value is None else value)


@pytest.mark.parametrize("name", FEW)
def test_beside_the_weights_the_output_is_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A change that rounding would eat runs beside the stack: in float32 both ways agree."""
    lm = lm_of(name)
    changes = {w: LowRank(torch.randn(32, 2), torch.randn(2, 16)) for w in widths(lm, 16)}
    prompts = [edit.prompt for edit in EDITS]
    with Patch((Delta(changes),)).applied(lm) as edited:
        summed = edited.next_logprobs(prompts)
    monkeypatch.setattr("errata.patch.delta.left_by_rounding", lambda *args: 0.0)
    with Patch((Delta(changes),)).applied(lm) as edited:
        assert torch.equal(lm.model.get_parameter(stack_of(lm)), weights(lm.model)[stack_of(lm)])
        beside = edited.next_logprobs(prompts)
    assert abs(summed - beside).max() < 1e-3
    assert abs(summed - lm.next_logprobs(prompts)).max() > 0.1


def widths(lm: HFLM, width: int) -> list[str]:
    """The weights of a down projection that are in a stack."""
    names = [name for name in projection(lm).weights(lm.model) if "[" in name]
    if matrix(lm, names[0]).shape[1] != width:
        pytest.skip("this family's experts have another width")
    return names


def stack_of(lm: HFLM) -> str:
    return projection(lm).parameters(lm.model)[0]


@pytest.mark.parametrize("name", FEW)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_fact_is_edited(name: str, dtype: torch.dtype) -> None:
    lm = lm_of(name, dtype)
    made = method("r-rome", contexts=0)
    before = weights(lm.model)
    (old,) = lm.score([EDITS[0].prompt], [EDITS[0].target_new])
    patch = made.edit(lm, EDITS[:1], made.prepare(lm, TEXTS))
    with patch.applied(lm) as edited:
        (new,) = edited.score([EDITS[0].prompt], [EDITS[0].target_new])
    assert new.total > old.total + 0.5
    assert same_weights(lm.model, before)
    routed = [record for record in patch.summary() if "[" in record["site"]]
    assert len(routed) == lm.config.num_experts_per_tok


@pytest.mark.parametrize("name", FEW)
def test_rome_moves_the_value_by_the_residual(name: str) -> None:
    """ROME's equation holds for the mixture: the value at the subject is v + δ, whatever experts share it out."""
    lm = lm_of(name)  # experts are not computed in float64
    layer = 1
    made = method("rome", contexts=0, layers=(layer,), keys="bare", steps=5)
    edit, path = EDITS[0], lm.sites.mlp_out[1]
    found: list[Tensor] = []
    residual = type(made).residual

    def keep(self: Any, *args: Any) -> Tensor:
        found.append(residual(self, *args))
        return found[-1]

    with pytest.MonkeyPatch.context() as patching:
        patching.setattr(type(made), "residual", keep)
        patch = made.edit(lm, [edit], made.prepare(lm, TEXTS))
    position = lm.tokens.last_of_subject(edit.prompt, edit.subject, edit.start)
    rows, columns = [lm.tokens.prompt(edit.prompt)], [[position]]
    before = lm.read(rows, columns, [(path, "out")])[path, "out"]
    with patch.applied(lm) as edited:
        now = edited.read(rows, columns, [(path, "out")])[path, "out"]
    assert torch.allclose(now - before, found[0].to(before), atol=1e-4 * float(found[0].norm()))


def test_a_matrix_that_is_not_there_is_refused() -> None:
    lm = lm_of("mixtral")
    stack = stack_of(lm)
    for name in (f"{stack}[4]", f"{lm.sites.lm_head}.weight[0]"):
        with pytest.raises(WrongModel, match="does not have"):
            Delta({name: torch.zeros(32, 16)}).check(lm.model)
    with pytest.raises(WrongModel, match="of shape"):
        Delta({f"{stack}[0]": torch.zeros(32, 9)}).check(lm.model)


def test_merged_for_good() -> None:
    model = build("mixtral", vocab_size=320)
    lm = HFLM(model, lm_of("mixtral").tokens.tokenizer, name="mine")
    names = projection(lm).weights(model)[:2]
    before = {name: matrix_of(model, name).clone() for name in names}
    delta = Delta({name: torch.ones_like(value) for name, value in before.items()})
    delta.merge(model)
    for name in names:
        assert torch.allclose(matrix_of(model, name), before[name] + 1)


def test_experts_that_saw_few_tokens_are_named(caplog: pytest.LogCaptureFixture) -> None:
    lm = lm_of("mixtral")
    state = method("memit", contexts=0, layers=(1,)).prepare(lm, TEXTS[:2])
    assert "down_proj[" in caplog.text and "give more text" in caplog.text
    for name in projection(lm).weights(lm.model):
        c = state.tensors[f"C/{name}"]
        assert float(torch.linalg.eigvalsh(c.double()).min()) > 0


def test_experts_whose_output_is_no_sum_are_refused() -> None:
    model = build("mixtral")

    def squared(args: Any, kwargs: Any, output: Any) -> Any:
        return output**2

    with after(model.model.layers[1].mlp.experts, squared), pytest.raises(UnknownSites, match="not the sum"):
        find_sites(model)


def test_something_else_around_experts_leaves_the_stack_alone() -> None:
    """Where the module around scales what its experts give, the stack's own output is the value."""
    model = build("mixtral")
    with after(model.model.layers[1].mlp, lambda args, kwargs, output: output * 3):
        sites = find_sites(model)
        assert sites.mlp_out[1] == "model.layers.1.mlp.experts"
        assert sites.gain[1] == pytest.approx(3.0, abs=1e-3)


def test_kn_says_that_it_has_no_neurons_there() -> None:
    lm = lm_of("mixtral")
    with pytest.raises(Unsupported, match="mixture of experts"):
        method("kn").edit(lm, EDITS[:1])


def test_a_stack_is_told_from_other_weights() -> None:
    stack = build("gpt_oss").model.layers[0].mlp.experts
    assert stacks.is_stack(stack) and stacks.stacked_transposed(stack)
    assert not stacks.stacked_transposed(build("mixtral").model.layers[0].mlp.experts)
    assert stacks.stacked_transposed(build("llama4_text").model.layers[1].feed_forward.experts)
    assert not stacks.is_stack(nn.Linear(3, 3))


def test_offloaded_experts_are_refused_by_name(tmp_path: Any) -> None:
    build("mixtral", vocab_size=320).save_pretrained(tmp_path)
    lm_of("mixtral").tokens.tokenizer.save_pretrained(tmp_path)
    names = [*(f"model.{name}" for name in ("embed_tokens", "norm", "rotary_emb")), "lm_head"]
    names += [f"model.layers.{i}" for i in range(4)]
    places = {name: "disk" if name == "model.layers.2" else "cpu" for name in names}
    with pytest.raises(UnknownSites, match=r"block 2 of .*offloaded, or on meta.; load the model whole"):
        errata.load(str(tmp_path), device_map=places, offload_folder=str(tmp_path / "off"))

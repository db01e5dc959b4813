"""Half precision: what is trained stays finite, what is written is, and small changes are not rounded away."""

import copy
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import EDIT, quick, same_weights, tiny_lm, tiny_model, tokenizer, weights
from forged import content_of, forge

from errata.errors import BadInput, Refused
from errata.methods.codebook.horen import HorenCodebook
from errata.methods.registry import method
from errata.model.hf import HFLM
from errata.model.weights import oriented
from errata.patch.delta import Delta
from errata.patch.low_rank import LowRank
from errata.patch.patch import Patch
from errata.patch.sums import left_by_rounding

HALVES = (torch.float16, torch.bfloat16)


# Numbers that are not finite -----------------------------------------------------------------------


@pytest.mark.parametrize("dtype", HALVES)
def test_lora_trains_in_float32(dtype: torch.dtype) -> None:
    lm = tiny_lm("gpt2", dtype)
    patch = quick("lora").edit(lm, [EDIT])
    assert {t.dtype for part in patch.parts for t in part.tensors().values()} == {torch.float32}
    before = lm.score([EDIT.prompt], [EDIT.target_new])[0].total
    with patch.applied(lm) as edited:
        assert edited.score([EDIT.prompt], [EDIT.target_new])[0].total > before + 2


def test_an_edit_with_a_number_that_is_not_finite_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny_lm("llama")
    made = quick("ft-m")
    monkeypatch.setattr(type(made), "_edit", lambda self, lm, edits, state, prior: not_finite(float("nan"))[0])
    with pytest.raises(Refused, match=r"ft-m made .* an entry of m\.weight\.b in part 0 \(delta\) .* float32"):
        made.edit(lm, [EDIT])


def not_finite(bad: float) -> list[Patch]:
    """Patches with one such number: in a low-rank change, in a memory, in a part's setting, in the keys for later."""
    b = torch.zeros(1, 3)
    b[0, 1] = bad
    horen = quick("horen")
    lm = tiny_lm("gpt2")
    codebook = horen.edit(lm, [EDIT], horen.prepare(lm, ["Ann Lee lives in Rome.", "Bob Ray was born in Oslo."]))
    (part,) = codebook.of_kind(HorenCodebook)
    return [
        Patch((Delta({"m.weight": LowRank(torch.ones(2, 1), b)}),)),
        Patch((replace(part, payload=replace(part.payload, values=part.payload.values * bad)),)),
        Patch((replace(part, lookup=replace(part.lookup, alpha=bad)),)),
        Patch(memory={"keys/m": b}),
    ]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_number_that_is_not_finite_is_neither_saved_nor_loaded(bad: float, tmp_path: Path) -> None:
    names = ["m.weight.b in part 0 (delta)", "in part 0 (horen)", "a setting of part 0 (horen)", "keys/m in the memory"]
    for patch, name in zip(not_finite(bad), names, strict=True):
        file = tmp_path / "patch.safetensors"
        with pytest.raises(BadInput) as refusal:
            patch.save(file)
        assert name in str(refusal.value) and "make the patch anew" in str(refusal.value)
        assert not file.exists()
        with pytest.raises(BadInput) as refusal:
            Patch.load(forge(file, *content_of(patch)))
        assert str(file) in str(refusal.value)
        assert "JSON" in str(refusal.value) or name.split()[0] in str(refusal.value)
        file.unlink()
    assert Patch((Delta({"m.weight": torch.zeros(2, 3)}),)).not_finite() is None


# What rounding leaves ------------------------------------------------------------------------------


def small(lm: Any, site: str, size: float, rank: int | None = 1) -> Patch:
    """A patch with ‖Δ‖ = ``size`` ‖W‖ at a weight, for a key to which the weight itself says nothing."""
    weight = oriented(lm.model, site, lm.model.get_parameter(site).detach()).float()
    a, b = torch.randn(weight.shape[0], 1, generator=torch.Generator().manual_seed(0)), torch.linalg.svd(weight)[2][-1:]
    a *= size * weight.norm() / a.norm()
    return Patch((Delta({site: LowRank(a, b) if rank else a @ b}),))


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("arch", ["gpt2", "llama"])
@pytest.mark.parametrize("rank", [1, None])
@pytest.mark.parametrize("size", [3e-4, 1e-3, 1e-1])
@torch.no_grad()
def test_no_change_is_rounded_away(dtype: torch.dtype, arch: str, rank: int | None, size: float) -> None:
    lm = tiny_lm(arch, dtype)
    site = f"{lm.sites.mlp_out[1]}.weight"
    patch = small(lm, site, size, rank)
    before, linear = weights(lm.model), lm.model.get_submodule(lm.sites.mlp_out[1])
    change: Any = patch.parts[0].weights[site]  # type: ignore[attr-defined]
    dense = change.dense() if rank else change
    x = (torch.linspace(0.5, 1.5, 4096)[:, None] * dense[:1] / dense[0].norm()).to(dtype)  # (n, f): keys of the change
    expected = x.float() @ dense.T
    outer = linear(x).float()
    with patch.applied(lm):
        moved, summed = linear(x).float() - outer, not torch.equal(lm.model.get_parameter(site), before[site])
    assert summed == (size == 1e-1)  # below, the change runs beside the weight
    assert float((moved * expected).sum() / (expected * expected).sum()) == pytest.approx(1, abs=0.02)
    assert same_weights(lm.model, before)


def test_the_share_is_of_the_entries_sizes() -> None:
    lm = tiny_lm("llama", torch.bfloat16)
    site = f"{lm.sites.mlp_out[1]}.weight"
    weight = lm.model.get_parameter(site).detach()
    change = torch.zeros(weight.shape)
    change[0, 0], change[0, 1] = weight[0, 0].float().abs() / 1024, -weight[0, 1].float().abs()  # the first is lost
    summed = (weight.float() + change).to(torch.bfloat16)
    lost, kept = change.abs()[0, :2].tolist()
    assert left_by_rounding(lm.model, site, change, summed) == pytest.approx(kept / (lost + kept))
    assert left_by_rounding(lm.model, site, torch.zeros_like(change), weight) == 1.0
    assert left_by_rounding(lm.model, site, change, torch.full_like(weight, float("inf"))) == 0.0


def test_a_sum_past_float16_runs_beside_the_weight() -> None:
    lm = tiny_lm("gpt2", torch.float16)
    site = f"{lm.sites.mlp_out[1]}.weight"
    change = torch.zeros(32, 64)
    change[0, 0] = 1e5  # float16 ends at 65504
    linear, x = lm.model.get_submodule(lm.sites.mlp_out[1]), torch.full((1, 64), 1e-2, dtype=torch.float16)
    before = linear(x)
    with Patch((Delta({site: change}),)).applied(lm):
        assert float((linear(x) - before).detach()[0, 0]) == pytest.approx(1e3, rel=1e-2)


def test_a_change_that_cannot_run_beside_its_weight_is_told(caplog: pytest.LogCaptureFixture) -> None:
    lm = tiny_lm("gpt2", torch.bfloat16)  # the embedding is the head, too
    for site in (f"{lm.sites.embed}.weight", "transformer.h.0.ln_1.weight"):
        change = 1e-4 * lm.model.get_parameter(site).detach().float()
        with caplog.at_level(logging.WARNING), Patch((Delta({site: change}),)).applied(lm):
            assert f"rounding leaves 0% of the change of {site}: load the model in float32" in caplog.text


def test_a_merge_that_rounds_a_change_away_is_told(caplog: pytest.LogCaptureFixture) -> None:
    lm = HFLM(copy.deepcopy(tiny_model("llama", torch.bfloat16)), tokenizer())
    site = f"{lm.sites.mlp_out[1]}.weight"
    small(lm, site, 1e-1).merge(lm)
    assert not caplog.records
    small(lm, site, 1e-4).merge(lm)
    (record,) = caplog.records
    assert f"of the change of {site}: merge into the model in float32, or keep the patch" in record.getMessage()


@pytest.mark.parametrize(("dtype", "number"), [(torch.float16, 1e5), (torch.float32, float("nan"))])
def test_a_merge_after_which_a_weight_is_not_finite_is_refused(dtype: torch.dtype, number: float) -> None:
    lm = HFLM(copy.deepcopy(tiny_model("llama", dtype)), tokenizer())
    before = weights(lm.model)
    sites = [f"{lm.sites.mlp_out[i]}.weight" for i in (0, 1)]
    bad = torch.zeros(lm.model.get_parameter(sites[1]).shape)
    bad[0, 0] = number
    with pytest.raises(Refused, match=rf"{sites[1]} holds a number that is not finite in {str(dtype)[6:]}"):
        Patch((Delta({sites[0]: torch.ones_like(bad), sites[1]: bad}),)).merge(lm)
    assert same_weights(lm.model, before)


@pytest.mark.parametrize("dtype", [*HALVES, torch.float32])
def test_an_edit_records_what_rounding_would_leave(dtype: torch.dtype, tmp_path: Path) -> None:
    lm = tiny_lm("llama", dtype)
    patch = method("ft-m", steps=1, lr=1e-4).edit(lm, [EDIT])
    record = Patch.load(patch.save(tmp_path / "p.safetensors")).meta["made"][0]
    assert record["dtype"] == str(dtype).removeprefix("torch.")
    if dtype is torch.float32:
        assert "rounded" not in record
        return
    (share,) = record["rounded"].values()
    assert list(record["rounded"]) == [f"{lm.sites.mlp_out[3]}.weight"] and 0 <= share < 0.9
    before = lm.score([EDIT.prompt], [EDIT.target_new])
    with patch.applied(lm) as edited:
        assert edited.score([EDIT.prompt], [EDIT.target_new])[0].total > before[0].total

"""Patches made of patches: worked by hand on small matrices, and by law on tiny models."""

import math
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from conftest import ARCHITECTURES, EDIT, EDITS, same_weights, tiny_lm, tiny_model, tokenizer, weights
from tiny import build
from torch import Tensor

import errata
from errata.errors import BadInput, UnknownName, Unsupported, WrongModel
from errata.methods.registry import method
from errata.model.hf import HFLM
from errata.model.weights import oriented
from errata.patch import transforms
from errata.patch.delta import Delta
from errata.patch.low_rank import LowRank
from errata.patch.parts import Adapter
from errata.patch.patch import EMPTY, Patch
from errata.patch.transforms import low_rank, prune, rect, task_vector, transform


def site(lm: HFLM, layer: int = 1) -> str:
    return f"{lm.sites.mlp_out[layer]}.weight"


def base_weight(lm: HFLM, name: str) -> Tensor:
    """(out, in), float64."""
    return oriented(lm.model, name, lm.model.get_parameter(name).detach()).double()


def patch_of(lm: HFLM, **changes: Any) -> Patch:
    meta = {"model": {"name": lm.name, "fingerprint": lm.fingerprint}}
    return Patch((Delta(changes),), meta=meta)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def only(patch: Patch) -> Any:
    """The one change of the patch's one delta."""
    (part,) = patch.parts
    assert isinstance(part, Delta)
    (w,) = part.weights.values()
    return w


def dense(w: Any) -> Tensor:
    return w.dense() if isinstance(w, LowRank) else w


def tuned_copy(name: str, seed: int = 1) -> HFLM:
    """The tiny model with noise on its first MLP and its final norm, as if trained."""
    model = build(name, vocab_size=320)
    lm = HFLM(model, tokenizer(), name="tuned")
    with torch.no_grad():
        for path in (site(lm, 0), f"{lm.sites.final_norm}.weight"):
            param = model.get_parameter(path)
            param += 0.1 * drawn(*param.shape, seed=seed)
    return lm


# Task vectors ------------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_a_task_vector_turns_the_base_into_the_tuned_model(arch: str) -> None:
    lm, tuned = tiny_lm(arch), tuned_copy(arch)
    before = weights(lm.model)
    patch = task_vector(lm, tuned)
    assert set(patch.of_kind(Delta)[0].weights) == {site(lm, 0), f"{lm.sites.final_norm}.weight"}
    assert patch.meta["model"]["fingerprint"] == lm.fingerprint
    assert patch.meta["transformed"][0]["tuned"]["fingerprint"] == tuned.fingerprint
    expected = [score.total for score in tuned.score([EDIT.prompt], ["Oslo"])]
    with patch.applied(lm) as edited:
        assert [score.total for score in edited.score([EDIT.prompt], ["Oslo"])] == pytest.approx(expected, abs=1e-5)
    assert same_weights(lm.model, before)


def test_task_arithmetic_is_the_patchs_own() -> None:
    lm = tiny_lm("gpt2")
    a, b = (task_vector(lm, tuned_copy("gpt2", seed)) for seed in (1, 2))
    name = site(lm, 0)
    forgot = (0.5 * (a + -b)).of_kind(Delta)[0].weights[name]
    expected = 0.05 * (drawn(64, 32, seed=1) - drawn(64, 32, seed=2)).T  # Conv1D keeps (in, out)
    assert torch.allclose(dense(forgot), expected, atol=1e-6)


def test_tied_parameters_are_counted_once_and_nothing_is_nothing() -> None:
    lm, tuned = tiny_lm("gpt2"), HFLM(build("gpt2", vocab_size=320), tokenizer())
    assert not task_vector(lm, tuned)
    with torch.no_grad():
        tuned.model.get_parameter("transformer.wte.weight").add_(0.1)
    assert list(task_vector(lm, tuned).of_kind(Delta)[0].weights) == ["transformer.wte.weight"]


def test_what_is_no_copy_is_refused() -> None:
    with pytest.raises(WrongModel, match=r"only the (base|tuned model) has"):
        task_vector(tiny_lm("gpt2"), tiny_lm("llama"))
    wide = HFLM(build("gpt2", vocab_size=320, n_inner=48), tokenizer())
    with pytest.raises(WrongModel, match=r"\(32, 64\)|\(64, 32\)|\(64,\)"):
        task_vector(tiny_lm("gpt2"), wide)


def test_a_floating_buffer_that_differs_is_named() -> None:
    lm, tuned = (HFLM(build("gpt2", vocab_size=320), tokenizer()) for _ in range(2))
    for one, value in ((lm, 0.0), (tuned, 1.0)):
        one.model.register_buffer("steps", torch.tensor(int(value)))  # whole numbers are skipped
    assert not task_vector(lm, tuned)
    for one, value in ((lm, 0.0), (tuned, 1.0)):
        one.model.register_buffer("scale", torch.tensor(value))
    with pytest.raises(Unsupported, match="scale"):
        task_vector(lm, tuned)


# Low rank ----------------------------------------------------------------------------------------


def test_truncation_by_hand() -> None:
    lm = tiny_lm("llama")
    u, v = torch.linalg.qr(drawn(32, 3))[0], torch.linalg.qr(drawn(64, 3, seed=1))[0]
    whole = u @ torch.diag(torch.tensor([5.0, 3.0, 1.0])) @ v.T
    bias = drawn(32)
    patch = Patch((Delta({site(lm): whole, "bias": bias}),))
    cut = low_rank(patch, 2).of_kind(Delta)[0].weights
    assert isinstance(truncated := cut[site(lm)], LowRank) and truncated.rank == 2
    assert torch.allclose(truncated.dense(), whole - u[:, 2:] @ v[:, 2:].T, atol=1e-5)
    assert cut["bias"] is bias


def test_truncation_of_a_product_is_that_of_its_matrix() -> None:
    thin = LowRank(drawn(32, 6), drawn(6, 64, seed=1))
    one, two = (only(low_rank(Patch((Delta({"w": w}),)), 3)) for w in (thin, thin.dense()))
    assert torch.allclose(one.dense(), two.dense(), atol=1e-4)
    assert only(low_rank(Patch((Delta({"w": thin}),)), 6)) is thin


@pytest.mark.parametrize("rank", [0, -1, 1.5, True])
def test_a_rank_is_a_whole_number(rank: Any) -> None:
    with pytest.raises(BadInput, match="rank"):
        low_rank(EMPTY, rank)


# RECT --------------------------------------------------------------------------------------------


def test_rect_by_hand() -> None:
    """Of each weight the entries stay whose change is largest relative to their value with the earlier edit."""
    lm = tiny_lm("gpt2")
    name = site(lm)
    prior = patch_of(lm, **{name: drawn(32, 64, seed=3)})
    change = drawn(32, 64, seed=4)
    patch = prior + patch_of(lm, **{name: change})
    thinned = rect(patch, lm, keep=0.25, prior=prior)
    delta = change.abs().double() / (base_weight(lm, name) + only(prior)).abs()
    cutoff = delta.flatten().sort(descending=True).values[512 - 1]
    expected = only(prior) + torch.where(delta >= cutoff, change, 0.0)
    assert torch.allclose(only(thinned), expected, atol=1e-6)
    assert int((only(thinned) != only(prior)).sum()) == 512
    assert thinned.meta["transformed"] == [{"name": "rect", "keep": 0.25, "eps": 1e-8}]


def test_rect_keeps_what_has_not_changed_as_it_is() -> None:
    lm = tiny_lm("llama")
    thin = LowRank(drawn(32, 2), drawn(2, 64))
    prior = patch_of(lm, **{site(lm, 0): thin})
    patch = prior + patch_of(lm, **{site(lm, 1): drawn(32, 64)})
    kept = rect(patch, lm, prior=prior).of_kind(Delta)[0].weights
    assert kept[site(lm, 0)] is thin
    assert (dense(kept[site(lm, 1)]) != 0).double().mean() == pytest.approx(0.4, abs=1e-3)


def test_rect_of_everything_is_the_patch() -> None:
    lm = tiny_lm("llama")
    patch = patch_of(lm, **{site(lm): drawn(32, 64)})
    assert torch.allclose(only(rect(patch, lm, keep=1.0)), only(patch), atol=1e-6)
    assert rect(patch, lm, prior=patch) == patch
    assert rect(EMPTY, lm) == EMPTY


@pytest.mark.parametrize("keep", [0.0, 1.1, -1.0, math.nan])
def test_rect_keeps_a_share(keep: float) -> None:
    with pytest.raises(BadInput, match="share"):
        rect(EMPTY, tiny_lm("llama"), keep=keep)


def test_rect_in_a_fold() -> None:
    """Each step thins its own change; what earlier steps kept stays."""
    lm, ft = tiny_lm("gpt2"), method("ft-m", steps=3)
    patch = EMPTY
    for edit in EDITS:
        step = rect(ft.edit(lm, [edit], prior=patch), lm, keep=0.1, prior=patch)
        old = 0.0 if not patch else only(patch)
        assert 0 < int(((only(step) - old).abs() > 1e-9).sum()) <= round(0.1 * 32 * 64)
        patch = step
    assert [edit.id for edit in patch.edits] == [edit.id for edit in EDITS]
    assert len(patch.meta["transformed"]) == len(EDITS)


# PRUNE -------------------------------------------------------------------------------------------


def with_spectrum(*values: float) -> tuple[Tensor, Tensor, Tensor]:
    n = len(values)
    u, v = torch.linalg.qr(drawn(32, n))[0], torch.linalg.qr(drawn(64, n, seed=1))[0]
    return u, torch.tensor(values), v


@pytest.mark.parametrize("thin", [False, True])
@pytest.mark.parametrize(
    ("how", "bound"),
    [
        ({}, lambda s, top: math.log(s) - math.log(top) + top),
        ({"base": 2}, lambda s, top: math.log2(s) - math.log2(top) + top),
        ({"rule": "linear"}, lambda s, top: s / 2 + top / 2),
    ],
)
def test_prune_by_hand(thin: bool, how: Any, bound: Any) -> None:
    lm = tiny_lm("llama")
    top = float(torch.linalg.svdvals(base_weight(lm, site(lm)))[0])
    assert top > 1.5  # where the paper's rule never raises
    u, s, v = with_spectrum(6 * top, 2 * top, 0.5 * top)
    change: Any = LowRank(u * s, v.T) if thin else u @ torch.diag(s) @ v.T
    pruned = only(prune(patch_of(lm, **{site(lm): change}), lm, **how))
    expected = torch.tensor([bound(6 * top, top), bound(2 * top, top), 0.5 * top])
    assert isinstance(pruned, LowRank) == thin
    assert torch.allclose(dense(pruned), u @ torch.diag(expected).float() @ v.T, atol=1e-4)


def test_prune_leaves_what_is_small_as_it_is() -> None:
    lm = tiny_lm("llama")
    patch = patch_of(lm, **{site(lm): 1e-3 * drawn(32, 64), f"{lm.sites.final_norm}.weight": drawn(32)})
    assert prune(patch, lm).parts == patch.parts


def test_prune_never_raises_a_singular_value() -> None:
    """Where the largest of the model is below 1 / ln a the logarithm of the paper would."""
    model = build("llama", vocab_size=320, initializer_range=0.002)
    lm = HFLM(model, tokenizer())
    top = float(torch.linalg.svdvals(base_weight(lm, site(lm)))[0])
    assert top < 0.1
    u, s, v = with_spectrum(2 * top, 20.0)
    values = torch.linalg.svdvals(dense(only(prune(patch_of(lm, **{site(lm): u @ torch.diag(s) @ v.T}), lm))))
    assert float(values[1]) == pytest.approx(2 * top, rel=1e-3)
    assert float(values[0]) == pytest.approx(math.log(20.0 / top) + top, rel=1e-3)


def test_prune_checks_its_settings() -> None:
    lm = tiny_lm("llama")
    with pytest.raises(UnknownName, match="linear"):
        prune(EMPTY, lm, rule="linaer")  # pyright: ignore[reportArgumentType]
    with pytest.raises(BadInput, match="base"):
        prune(EMPTY, lm, base=1.0)


# Laws --------------------------------------------------------------------------------------------

EVERY = [("low_rank", {"rank": 1}), ("rect", {}), ("prune", {})]


class Echo(Adapter):
    kind: ClassVar[str] = "echo"

    def config(self) -> dict[str, Any]:
        return {}

    def tensors(self) -> dict[str, Tensor]:
        return {}

    @classmethod
    def build(cls, config: Any, tensors: Any) -> "Echo":
        return cls()

    def out(self, call: Any, x: Tensor, y: Tensor) -> Tensor:
        return y


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize(("name", "settings"), EVERY)
def test_the_model_is_left_and_undo_is_exact(name: str, settings: Any, arch: str, tmp_path: Path) -> None:
    lm = tiny_lm(arch)
    before = weights(lm.model)
    patch = method("ft-m", steps=2).edit(lm, [EDIT])
    kept = {f"keys/{lm.sites.mlp_out[0]}": torch.ones(2, 64)}
    patch = Patch(patch.parts, kept, patch.meta)
    transformed = transform(name, **settings)(patch, lm, EMPTY)
    assert same_weights(lm.model, before)
    assert transformed.memory == kept and transformed.edits == [EDIT]
    assert transformed.meta["transformed"][-1]["name"] == name
    with transformed.applied(lm) as edited:
        edited.generate([EDIT.prompt], 2)
        assert not same_weights(lm.model, before)
    assert same_weights(lm.model, before)
    loaded = Patch.load(transformed.save(tmp_path / "p.safetensors"))
    assert loaded == transformed and loaded.meta == transformed.meta


@pytest.mark.parametrize(("name", "settings"), EVERY)
def test_what_is_no_weight_is_refused(name: str, settings: Any) -> None:
    with pytest.raises(Unsupported, match="also holds echo"):
        transform(name, **settings)(Patch((Delta({}), Echo())), tiny_lm("gpt2"), EMPTY)


@pytest.mark.parametrize("name", ["rect", "prune"])
def test_a_patch_of_another_model_is_refused(name: str) -> None:
    lm = tiny_lm("gpt2")
    patch = patch_of(lm, **{site(lm): drawn(32, 64)})
    with pytest.raises(WrongModel):
        transform(name)(patch, tiny_lm("llama"), EMPTY)


def test_offloaded_weights_are_refused() -> None:
    with torch.device("meta"):
        away = build("llama", vocab_size=320)
    lm = tiny_lm("llama")
    patch = Patch((Delta({site(lm): drawn(32, 64)}),))
    ghost = HFLM(away, tokenizer(), sites=lm.sites)
    with pytest.raises(Unsupported, match="is offloaded"):
        prune(patch, ghost)


def test_transforms_by_name() -> None:
    assert errata.transforms is transforms
    with pytest.raises(UnknownName, match="did you mean rect"):
        transform("rekt")
    with pytest.raises(UnknownName, match="keep"):
        transform("rect", kep=0.2)
    with pytest.raises(UnknownName, match="setting of rect 'prior'"):
        transform("rect", prior=EMPTY)
    with pytest.raises(BadInput, match="rect's keep is a number"):
        transform("rect", keep="0.2")
    with pytest.raises(BadInput, match="low_rank needs rank"):
        transform("low_rank")


def test_the_shared_models_are_as_they_were() -> None:
    for arch in ARCHITECTURES:
        assert same_weights(tiny_model(arch, torch.float32), weights(build(arch, vocab_size=320)))

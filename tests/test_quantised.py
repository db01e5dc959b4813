"""Models in 8 and 4 bits: read, edited beside their weights and undone; what cannot be edited is refused by name."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import EDIT, TEXTS, tiny_lm, tokenizer
from tiny import build
from torch import Tensor, nn

import errata
from errata.errors import BadInput, UnknownSites, Unsupported, WrongModel
from errata.evaluation.drift import drift
from errata.model.fingerprint import pieces
from errata.model.hf import HFLM
from errata.model.weights import shape_of
from errata.patch.delta import Delta
from errata.patch.patch import Patch
from errata.patch.transforms import task_vector

# bitsandbytes needs rows that are multiples of its 64 weights to a block.
WIDE: dict[str, dict[str, Any]] = {
    "llama": {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16},
    "gpt2": {"hidden_size": 64, "n_inner": 128},
}


def bits_and_bytes(bits: int) -> Any:
    pytest.importorskip("bitsandbytes")
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_8bit=bits == 8, load_in_4bit=bits == 4, bnb_4bit_compute_dtype=torch.float32, bnb_4bit_quant_type="nf4"
    )


def torch_ao(bits: int) -> Any:
    pytest.importorskip("torchao")
    from torchao.quantization import Int8WeightOnlyConfig, IntxWeightOnlyConfig
    from torchao.quantization.granularity import PerGroup
    from transformers import TorchAoConfig

    return TorchAoConfig(Int8WeightOnlyConfig() if bits == 8 else IntxWeightOnlyConfig(torch.int4, PerGroup(32)))


KINDS: dict[str, Callable[[], Any]] = {
    f"{name} {bits}": functools.partial(make, bits)
    for name, make in (("bitsandbytes", bits_and_bytes), ("torchao", torch_ao))
    for bits in (8, 4)
}
MODELS = [*((kind, "llama") for kind in KINDS), ("bitsandbytes 4", "gpt2")]  # torchao leaves Conv1D as it is
OTHERS = list(zip(KINDS, ["lora", "melo", "memoir", "grace"], strict=True))
pytestmark = pytest.mark.filterwarnings("ignore")  # both libraries warn as they are imported


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a tiny float model."""

    @functools.cache
    def saved(arch: str) -> Path:
        path = tmp_path_factory.mktemp(arch)
        build(arch, vocab_size=320, **WIDE[arch]).save_pretrained(path)
        tokenizer().save_pretrained(path)
        return path

    return saved


def bits(model: nn.Module) -> list[Tensor]:
    """Copies of all that the model's parameters consist of."""
    return [x.detach().clone() for param in model.parameters() for x in pieces(param.data)]


def total(lm: Any) -> float:
    return lm.score([EDIT.prompt], [EDIT.target_new])[0].total


@pytest.mark.parametrize(("kind", "arch"), MODELS)
def test_a_quantised_model_is_edited_beside_its_weights(
    kind: str, arch: str, folder: Callable[[str], Path], tmp_path: Path
) -> None:
    lm, whole = errata.load(folder(arch), quantization_config=KINDS[kind]()), errata.load(folder(arch))
    site = lm.sites.mlp_out[1]
    assert lm.quantised and not whole.quantised
    assert lm.sites == whole.sites and shape_of(lm.model, f"{site}.weight") == (64, 128)
    assert lm.fingerprint == errata.load(folder(arch), quantization_config=KINDS[kind]()).fingerprint
    assert lm.fingerprint != whole.fingerprint
    memit: Any = errata.method("memit", contexts=2, steps=8)
    state = memit.prepare(lm, TEXTS)
    resolved, expected = (memit.resolve(one, memit.prepare(one, TEXTS)) for one in (lm, whole))
    assert resolved.lam == expected.lam == pytest.approx(0.92 * 128)
    assert resolved.lr == pytest.approx(expected.lr, rel=0.2)
    before, was = total(lm), bits(lm.model)
    patch = memit.edit(lm, [EDIT], state)
    patch.save(tmp_path / "patch.safetensors")
    with patch.applied(lm) as edited:
        after = total(edited)
    with Patch.load(tmp_path / "patch.safetensors").applied(lm) as edited:
        assert total(edited) == after > before + 0.05
    lm.forget_fingerprint()
    assert all(map(torch.equal, bits(lm.model), was)) and total(lm) == before
    assert patch.meta["model"]["fingerprint"] == lm.fingerprint
    of_floats = memit.edit(whole, [EDIT], memit.prepare(whole, TEXTS))
    with pytest.raises(WrongModel, match="quantised, which makes it another model"):
        of_floats.check(lm)
    with of_floats.applied(lm, force=True) as edited:
        assert total(edited) != before


@pytest.mark.parametrize("kind", KINDS)
def test_what_reads_or_trains_the_weights_themselves_names_them(kind: str, folder: Callable[[str], Path]) -> None:
    lm = errata.load(folder("llama"), quantization_config=KINDS[kind]())
    name = f"{lm.sites.mlp_out[3]}.weight"
    module = type(lm.model.get_submodule(lm.sites.mlp_out[3])).__name__
    with pytest.raises(Unsupported, match=rf"{name} \({module}\) is quantised, and cannot be trained; load .* unquant"):
        errata.method("ft-m").edit(lm, [EDIT])
    patch = Patch((Delta({name: torch.ones(64, 128)}),))
    with pytest.raises(Unsupported, match=r"quantised, and cannot be changed for good; load the model unquantised"):
        patch.merge(lm)
    with pytest.raises(Unsupported, match="quantised, and its values are needed"):
        drift(lm, patch)
    with pytest.raises(Unsupported, match="quantised, and its values are needed"):
        task_vector(lm, lm)
    with pytest.raises(WrongModel, match=r"\(128, 64\); here it has \(64, 128\)"):
        Patch((Delta({name: torch.ones(128, 64)}),)).check(lm)


@pytest.mark.parametrize(("kind", "method"), OTHERS)
def test_other_methods_edit_a_quantised_model(kind: str, method: str, folder: Callable[[str], Path]) -> None:
    lm = errata.load(folder("llama"), quantization_config=KINDS[kind]())
    before, was = total(lm), bits(lm.model)
    made: Any = errata.method(method, **errata.methods.registry.method_class(method).tags.quick)
    patch = made.edit(lm, [EDIT], made.prepare(lm, TEXTS))
    with patch.applied(lm) as edited:
        assert total(edited) > before / 4
    assert all(map(torch.equal, bits(lm.model), was)) and total(lm) == before


def test_four_bits_that_were_packed_for_a_kernel_without_gradients(folder: Callable[[str], Path]) -> None:
    """On CPUs with AVX-512 bitsandbytes packs the weights anew in the first pass, and no gradient passes after."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        folder("llama"), quantization_config=KINDS["bitsandbytes 4"](), dtype=torch.float32
    ).eval()
    with torch.no_grad():
        model(torch.tensor([[3, 4]]))
    if not getattr(model.model.layers[0].mlp.down_proj, "support_avx512bf16_for_cpu", False):
        pytest.skip("this CPU has no such kernel")
    r_rome: Any = errata.method("r-rome", contexts=0, steps=3)
    as_it_is = HFLM(model, tokenizer())
    state = r_rome.prepare(as_it_is, TEXTS)
    with pytest.raises(Unsupported, match=r"q_proj \(Linear4bit\) is quantised and passes no gradient on"):
        r_rome.edit(as_it_is, [EDIT], state)
    lm = errata.load(model, tokenizer=tokenizer())
    assert r_rome.edit(lm, [EDIT], r_rome.prepare(lm, TEXTS))


# GPTQ, AWQ and others: modules of other libraries that hold no `weight` -----------------------------


class Packed(nn.Module):
    """As GPTQ's and AWQ's layers: integers under another name, unpacked in each pass."""

    def __init__(self, linear: nn.Linear, gradients: bool = True) -> None:
        super().__init__()
        self.in_features, self.out_features, self.gradients = linear.in_features, linear.out_features, gradients
        scale = linear.weight.detach().abs().amax(1, keepdim=True) / 7
        self.register_buffer("qweight", (linear.weight.detach() / scale).round().to(torch.int32).T.contiguous())
        self.register_buffer("scales", scale)

    def forward(self, x: Tensor) -> Tensor:
        with torch.set_grad_enabled(self.gradients and torch.is_grad_enabled()):
            return x @ (self.qweight.to(x) * self.scales.T.to(x))


class QuantLinear(Packed):
    """One that names its sizes in another way."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear)
        del self.in_features, self.out_features


def packed_model(make: Callable[[nn.Linear], nn.Module], seed: int = 0) -> Any:
    model = build("llama", vocab_size=320, seed=seed)
    for block in model.model.layers:
        for parent in (block.mlp, block.self_attn):
            for name, child in list(parent.named_children()):
                if isinstance(child, nn.Linear):
                    setattr(parent, name, make(child))
    return model


def test_a_layer_without_a_weight_is_edited_beside() -> None:
    lm = errata.load(packed_model(Packed), tokenizer=tokenizer())
    whole = tiny_lm("llama")
    assert lm.sites == whole.sites and lm.quantised
    assert lm.fingerprint != errata.load(packed_model(Packed, seed=1), tokenizer=tokenizer()).fingerprint
    memit: Any = errata.method("memit", contexts=2, steps=8)
    before = total(lm)
    patch = memit.edit(lm, [EDIT], memit.prepare(lm, TEXTS))
    assert patch.meta["made"][0]["resolved"]["lam"] == pytest.approx(0.92 * 64)
    with patch.applied(lm) as edited:
        assert total(edited) > before + 0.05
    assert total(lm) == before
    for name in ("ft-m", "lora"):
        with pytest.raises(Unsupported, match="unquantised"):
            errata.method(name).edit(lm, [EDIT])
    with pytest.raises(WrongModel, match=r"down_proj\.qweight2, which this model does not have"):
        Patch((Delta({f"{lm.sites.mlp_out[0]}.qweight2": torch.ones(1)}),)).check(lm)
    with pytest.raises(WrongModel, match=r"down_proj\.bias, which this model does not have"):
        Patch((Delta({f"{lm.sites.mlp_out[0]}.bias": torch.ones(1)}),)).check(lm)


def test_only_the_integers_of_packed_layers_differ() -> None:
    one, two = (packed_model(Packed) for _ in range(2))
    two.model.layers[2].mlp.up_proj.qweight += 1
    assert errata.load(one, tokenizer=tokenizer()).fingerprint != errata.load(two, tokenizer=tokenizer()).fingerprint


def test_a_layer_that_passes_no_gradient_on_is_refused_by_name() -> None:
    lm = errata.load(packed_model(lambda linear: Packed(linear, gradients=False)), tokenizer=tokenizer())
    assert lm.generate(["Rome"], 2)
    for made in (errata.method("memit", contexts=0), errata.method("grace")):
        with pytest.raises(Unsupported, match=r"q_proj \(Packed\) is quantised and passes no gradient on"):
            made.edit(lm, [EDIT], made.prepare(lm, TEXTS))


def test_a_layer_of_unknown_size_is_refused_by_name() -> None:
    with pytest.raises(UnknownSites, match=r"holds `.*q_proj`, a QuantLinear, which packs .* load the model unquant"):
        errata.load(packed_model(QuantLinear), tokenizer=tokenizer())
    sites = tiny_lm("llama").sites
    lm = errata.load(packed_model(QuantLinear), tokenizer=tokenizer(), sites=sites)
    memit: Any = errata.method("memit", contexts=0)
    with pytest.raises(Unsupported, match=r"down_proj\.weight \(QuantLinear\) .*size .* load the model unquantised"):
        memit.prepare(lm, TEXTS)


# Loading ---------------------------------------------------------------------------------------------


def test_what_is_quantised_is_not_cast(folder: Callable[[str], Path]) -> None:
    lm = errata.load(folder("llama"), quantization_config=KINDS["bitsandbytes 8"]())
    with pytest.raises(BadInput, match="leave device and dtype out"):
        errata.load(lm.model, tokenizer=lm.tokenizer, dtype="float16")


def test_a_package_that_is_missing_is_named(folder: Callable[[str], Path]) -> None:
    from transformers import GPTQConfig

    with pytest.raises(BadInput, match=r"cannot be loaded as a language model: .*(gptqmodel|optimum)"):
        errata.load(folder("llama"), quantization_config=GPTQConfig(bits=4, dataset=["a"]))

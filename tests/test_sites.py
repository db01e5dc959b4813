"""The sites of some 70 architectures: found where they are, or refused with a way out."""

import json
from functools import cache
from typing import Any

import pytest
import torch
from tiny import CAUSAL, ENCODER_DECODER, HYBRID, IMAGE_TEXT, ONE_LAYER, REFUSED, SHARED, build
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertLMHeadModel,
    LlavaConfig,
    LlavaForConditionalGeneration,
    RobertaConfig,
    RobertaForCausalLM,
)
from transformers.models.llama.modeling_llama import LlamaMLP

from errata.errors import UnknownSites, Unsupported
from errata.methods.defaults import critical_layer, critical_layers
from errata.model.detect import find_sites
from errata.model.hooks import after, all_of, before
from errata.model.recording import evaluating
from errata.model.sites import Sites

DENSE = [*CAUSAL, *HYBRID, *ENCODER_DECODER, *IMAGE_TEXT]
BEHIND_A_NORM = {
    "openai-gpt", "opt_projected", "gemma2", "gemma3_text", "gemma3", "olmo2", "olmo3", "glm4", "exaone4",
    "hyperclovax", "bart", "marian", "blenderbot-small", "plbart",
}  # fmt: skip
BEHIND_A_NORM_IN_SOME = {"olmo_hybrid": [False, True, False, True]}
FACTOR = {"granite": 0.5, "minicpm3": 0.7, "granitemoehybrid": 0.5, "falcon_h1": 0.5}
FUSED = {"phi3", "glm", "glm4", "modernbert-decoder", "granitemoehybrid"}


def behind_a_norm(name: str) -> list[bool]:
    return BEHIND_A_NORM_IN_SOME.get(name, [name in BEHIND_A_NORM] * 4)


@cache
def model_of(name: str) -> Any:
    return build(name)


@cache
def sites_of(name: str) -> Sites:
    return find_sites(model_of(name))


def feed(name: str) -> dict[str, Tensor]:
    ids = torch.tensor([[11, 7, 5]])
    both = {"input_ids": torch.tensor([[9, 8, 6, 4]]), "decoder_input_ids": ids}
    return both if name in ENCODER_DECODER else {"input_ids": ids}


def halves(name: str) -> list[Sites]:
    sites = sites_of(name)
    return [sites] if sites.encoder is None else [sites, sites.encoder]


@pytest.mark.parametrize("name", DENSE)
def test_every_site_is_a_module(name: str) -> None:
    model = model_of(name)
    assert (sites_of(name).encoder is not None) == (name in ENCODER_DECODER)
    for sites in halves(name):
        depth = sites.depth
        each = (sites.layer, sites.mlp_in, sites.mlp_out, sites.attn_out, sites.gain)
        assert [len(entry) for entry in each] == [depth] * 5
        assert depth == 4
        paths = [sites.embed, sites.lm_head, *sites.layer, *sites.mlp_out, *sites.attn_out]
        paths += [path for group in sites.mlp_in for path in group]
        assert None not in paths and not sites.mixes
        assert len(set(paths)) == len(paths)
        for path in [*paths, *filter(None, [sites.final_norm])]:
            assert isinstance(model.get_submodule(path), nn.Module)
        for i, layer in enumerate(sites.layer):
            inside = [*sites.mlp_in[i], sites.mlp_out[i], sites.attn_out[i]]
            assert all(path.startswith(f"{layer}.") for path in inside)
            assert not any("cross" in path or "encoder_attn" in path for path in inside)


def widths(name: str, path: str) -> tuple[int, int]:
    """How wide what a module reads and writes is."""
    seen: list[int] = []

    def keep(args: Any, kwargs: Any, output: Tensor) -> None:
        seen.extend([args[0].shape[-1], output.shape[-1]])

    model = model_of(name)
    with torch.no_grad(), after(model.get_submodule(path), keep):
        model(**feed(name))
    return seen[0], seen[1]


@pytest.mark.parametrize("name", DENSE)
def test_keys_are_mlp_activations(name: str) -> None:
    """The down projection reads what ``mlp_in`` makes and writes the hidden width."""
    for sites in halves(name):
        for mlp_in, mlp_out in zip(sites.mlp_in, sites.mlp_out, strict=True):
            f, d = widths(name, mlp_out)
            assert d == 32
            assert f >= 64 or name == "llama_narrow"
            for path in mlp_in:
                assert widths(name, path) == (d, 2 * f if name in FUSED else f)


@pytest.mark.parametrize("name", DENSE)
def test_the_down_projection_acts(name: str) -> None:
    model = build(name)
    base = model(**feed(name)).logits
    for sites in halves(name):
        for path in (*sites.mlp_out, *sites.attn_out):
            weight = model.get_submodule(path).weight
            kept = weight.data
            weight.data = torch.zeros_like(kept)
            assert not torch.allclose(model(**feed(name)).logits, base), path
            weight.data = kept


@pytest.mark.parametrize("name", DENSE)
def test_gain(name: str) -> None:
    expected = [None if behind else FACTOR.get(name, 1.0) for behind in behind_a_norm(name)]
    for sites in halves(name):
        assert list(sites.gain) == [None if gain is None else pytest.approx(gain, abs=1e-6) for gain in expected]


@pytest.mark.parametrize("name", DENSE)
def test_the_norm_behind_the_down_projection(name: str) -> None:
    """It is one of the block, and takes the projection's output apart from what is added to it."""
    for sites in halves(name):
        assert [path is not None for path in sites.mlp_norm] == behind_a_norm(name)
        for norm, layer in zip(sites.mlp_norm, sites.layer, strict=True):
            if norm is not None:
                assert (
                    norm.startswith(f"{layer}.") and "norm" in type(model_of(name).get_submodule(norm)).__name__.lower()
                )


def test_sites_of_an_earlier_record_know_no_norms() -> None:
    record = sites_of("gemma2").to_json()
    assert Sites.from_json(record) == sites_of("gemma2")
    del record["mlp_norm"]
    assert Sites.from_json(record).mlp_norm == ()


@pytest.mark.parametrize("name", ["llama", "granite", "gemma2", "gpt2", "falcon", "t5"])
@pytest.mark.parametrize("scale", [1.0, 50.0])
def test_gain_in_bfloat16(name: str, scale: float) -> None:
    """Also where the residual is much larger than what the MLP adds."""
    model = build(name)
    model.get_submodule(sites_of(name).embed).weight.data *= scale
    gain = find_sites(model.bfloat16()).gain
    if name in BEHIND_A_NORM:
        assert gain == (None,) * 4
    else:
        assert gain == pytest.approx((FACTOR.get(name, 1.0),) * 4, rel=0.01)


def test_gates() -> None:
    assert len(sites_of("llama").mlp_in[0]) == 2
    assert len(sites_of("t5_gated").mlp_in[0]) == 2
    assert len(sites_of("phi3").mlp_in[0]) == 1
    assert len(sites_of("gpt_neox").mlp_in[0]) == 1


def test_paths_as_one_would_write_them() -> None:
    gpt2, bart = sites_of("gpt2"), sites_of("bart")
    assert gpt2.embed == "transformer.wte"
    assert gpt2.layer[1] == "transformer.h.1"
    assert gpt2.mlp_in[1] == ("transformer.h.1.mlp.c_fc",)
    assert gpt2.mlp_out[1] == "transformer.h.1.mlp.c_proj"
    assert gpt2.attn_out[1] == "transformer.h.1.attn.c_proj"
    assert (gpt2.final_norm, gpt2.lm_head) == ("transformer.ln_f", "lm_head")
    assert bart.mlp_out[3] == "model.decoder.layers.3.fc2"
    assert bart.attn_out[3] == "model.decoder.layers.3.self_attn.out_proj"
    assert bart.encoder is not None
    assert bart.encoder.mlp_out[3] == "model.encoder.layers.3.fc2"
    assert bart.final_norm is None
    assert sites_of("t5").attn_out[0] == "decoder.block.0.layer.0.SelfAttention.o"
    assert sites_of("t5").mlp_out[0] == "decoder.block.0.layer.2.DenseReluDense.wo"
    assert sites_of("t5").decoder.encoder is None


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    with pytest.raises(UnknownSites, match=r"sites=Sites\(") as refusal:
        find_sites(model_of(name))
    assert "Errata finds" in str(refusal.value)


def test_what_mixes_tokens_stands_for_attention() -> None:
    """Whatever it is in a block; of two side by side, the one that ends last."""
    jamba = sites_of("jamba")
    assert jamba.attn_out[:2] == ("model.layers.0.mamba.out_proj", "model.layers.1.self_attn.o_proj")
    assert sites_of("qwen3_next").attn_out[0] == "model.layers.0.linear_attn.out_proj"
    assert sites_of("recurrent_gemma").attn_out[0] == "model.layers.0.temporal_block.linear_out"
    assert sites_of("lfm2").attn_out[0] == "model.layers.0.conv.out_proj"
    assert sites_of("falcon_h1").attn_out == tuple(f"model.layers.{i}.self_attn.o_proj" for i in range(4))


@pytest.mark.parametrize("name", ONE_LAYER)
def test_blocks_of_one_layer(name: str) -> None:
    """Their last linear is the down projection: of a mixer, whose key depends on earlier tokens, or of an MLP."""
    sites, model = sites_of(name), model_of(name)
    kinds = ["mixer"] * 4 if name != "nemotron_h" else ["mixer", "mlp", "attention", "mlp"]
    ends = {"mixer": "out_proj", "mlp": "down_proj", "attention": "o_proj"}
    begins = {"mixer": ["in_proj"], "mlp": ["up_proj"], "attention": ["q_proj", "k_proj", "v_proj"]}
    assert sites.attn_out == (None,) * 4
    assert sites.gain == pytest.approx((1.0,) * 4, abs=1e-6)
    assert sites.mlp_out == tuple(f"{layer}.mixer.{ends[kind]}" for layer, kind in zip(sites.layer, kinds))
    assert sites.mlp_in == tuple(
        tuple(f"{layer}.mixer.{linear}" for linear in begins[kind]) for layer, kind in zip(sites.layer, kinds)
    )
    assert [sites.mixing(i) for i in range(4)] == [kind != "mlp" for kind in kinds]
    for i, path in enumerate(sites.mlp_out):
        one, other = keys(model, sites.mlp_in[i], path, 0.0), keys(model, sites.mlp_in[i], path, 1.0)
        assert torch.allclose(one, other, atol=1e-6) == (kinds[i] == "mlp")
        with pytest.raises(Unsupported, match="no attention beside an MLP"):
            sites.attention(i)


def keys(model: Any, into: tuple[str, ...], path: str, added: float) -> Tensor:
    """The last token's key with something added to what the block's linears read at the first token."""
    seen: list[Tensor] = []

    def add(args: Any, kwargs: Any) -> Any:
        changed = args[0].clone()
        changed[:, 0] += added
        return (changed, *args[1:]), kwargs

    adding = [before(model.get_submodule(name), add) for name in into]
    keep = before(model.get_submodule(path), lambda args, kwargs: seen.append(args[0][0, -1].clone()))
    with torch.no_grad(), all_of([*adding, keep]):
        model(input_ids=torch.tensor([[11, 7, 5]]))
    return seen[0]


def test_an_mlp_before_the_mlp_is_no_attention() -> None:
    model = build("llama")
    for layer in model.model.layers:
        layer.forward = MlpTwice(layer).forward
        layer.first = LlamaMLP(model.config)
    with pytest.raises(UnknownSites, match=r"layers.0.first.down_proj` among them acts on each token alone"):
        find_sites(model)


class MlpTwice:
    def __init__(self, layer: Any) -> None:
        self.layer, self.own = layer, layer.forward

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> Tensor:
        return self.own(hidden_states + self.layer.first(hidden_states), **kwargs)


def test_every_kind_of_block_is_causal() -> None:
    model = build("lfm2")
    attention = model.model.layers[1].self_attn
    attention.forward = SeesAll(attention).forward
    with pytest.raises(UnknownSites, match=r"in block 1 of `model.layers` a token sees later ones"):
        find_sites(model)


class SeesAll:
    def __init__(self, attention: Any) -> None:
        self.own = attention.forward

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.own(*args, **{**kwargs, "attention_mask": torch.zeros(1, 1, 2, 2)})


def test_the_text_half_of_a_vision_model() -> None:
    vision: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
    vision |= {"intermediate_size": 64, "image_size": 8, "patch_size": 4}
    vision["model_type"] = "clip_vision_model"
    text = model_of("llama").config
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=127)
    sites = find_sites(LlavaForConditionalGeneration(config))
    assert sites.mlp_out[3] == "model.language_model.layers.3.mlp.down_proj"
    assert sites.gain == (1.0,) * 4


def test_a_list_of_what_holds_no_matrices_is_no_list_of_blocks() -> None:
    model = build("llama")
    model.model.rotary_embs = nn.ModuleList([model.model.rotary_emb])  # as Granite has for its two kinds of layers
    assert find_sites(model) == sites_of("llama")


def test_blocks_that_a_text_does_not_reach_are_left_out() -> None:
    """A block that predicts further tokens while training; Llama 3.2's blocks that look at an image."""
    model = build("llama")
    model.model.layers.append(build("llama", seed=1).model.layers[0])
    assert find_sites(model) == sites_of("llama")
    assert sites_of("mllama").layer == tuple(f"model.language_model.layers.{i}" for i in (0, 2, 3, 5))


def test_refused_where_text_alone_does_not_run() -> None:
    model = build("llama")
    model.forward = BlindTo(model).forward
    with pytest.raises(UnknownSites, match=r"does not run on text alone .*pixel_values"):
        find_sites(model)


class BlindTo:
    def __init__(self, model: Any) -> None:
        self.model = model

    def forward(self, input_ids: Tensor, pixel_values: Tensor, **kwargs: Any) -> Tensor:
        raise AssertionError("not reached")


def test_bert_as_a_decoder() -> None:
    settings = {key: value for key, value in SHARED.items() if key != "head_dim"}
    sites = find_sites(BertLMHeadModel(BertConfig(**settings, is_decoder=True)))
    assert sites.attn_out[0] == "bert.encoder.layer.0.attention.output.dense"
    assert sites.mlp_out[0] == "bert.encoder.layer.0.output.dense"
    assert sites.gain == (None,) * 4


def test_refused_where_positions_do_not_begin_at_zero() -> None:
    """RoBERTa's begin behind the id of its padding token: those that Errata passes would be wrong."""
    settings = {key: value for key, value in SHARED.items() if key != "head_dim"}
    model = RobertaForCausalLM(RobertaConfig(**settings, is_decoder=True))
    with pytest.raises(UnknownSites, match="does not count positions from 0"):
        find_sites(model)


def test_refused_without_a_head() -> None:
    with pytest.raises(UnknownSites, match="no language-model head"):
        find_sites(model_of("gpt2").transformer)


def test_refused_when_what_comes_last_is_no_mlp() -> None:
    """In a parallel block that runs its MLP first, attention must not pass for one."""
    model = build("gpt_neox")
    for layer in model.gpt_neox.layers:
        layer.forward = MlpFirst(layer).forward
    with pytest.raises(UnknownSites):
        find_sites(model)


@pytest.mark.parametrize("parallel", [True, False])
def test_refused_where_a_gated_mlp_comes_first(parallel: bool) -> None:
    """Queries and values have an MLP's shapes, and what runs before them could pass for attention."""
    model = build("llama", num_key_value_heads=4)
    for layer in model.model.layers:
        layer.forward = GatedFirst(layer, parallel).forward
    with pytest.raises(UnknownSites, match=r"more than attention|acts on each token alone|attention and an MLP"):
        find_sites(model)


def test_what_runs_behind_the_mlp_is_no_mlp() -> None:
    """An adapter, or a gate of what a layer is told of the token (Gemma 4): the MLP is the one behind attention."""
    model = build("llama")
    for i, layer in enumerate(model.model.layers):
        layer.down, layer.up = nn.Linear(32, 8), nn.Linear(8, 32)
        for linear in (layer.down, layer.up):
            nn.init.normal_(linear.weight, generator=torch.Generator().manual_seed(i))
        if i < 2:
            layer.forward = Adapted(layer).forward
    sites = find_sites(model)
    assert sites.mlp_out == sites_of("llama").mlp_out
    assert sites.attn_out == sites_of("llama").attn_out
    assert sites.gain == (None, None, 1.0, 1.0)
    assert sites.mlp_norm == (None,) * 4


class Adapted:
    def __init__(self, layer: Any) -> None:
        self.layer, self.inner = layer, layer.forward

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> Tensor:
        hidden = self.inner(hidden_states, **kwargs)
        return hidden + self.layer.up(self.layer.down(hidden).relu())


class GatedFirst:
    def __init__(self, layer: Any, parallel: bool) -> None:
        self.layer, self.parallel = layer, parallel

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> Tensor:
        mlp = self.layer.mlp(self.layer.post_attention_layernorm(hidden_states))
        read = hidden_states if self.parallel else hidden_states + mlp
        attention, _ = self.layer.self_attn(hidden_states=self.layer.input_layernorm(read), **kwargs)
        return hidden_states + attention + mlp


class MlpFirst:
    def __init__(self, layer: Any) -> None:
        self.layer = layer

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> Tensor:
        mlp = self.layer.mlp(self.layer.post_attention_layernorm(hidden_states))
        attention, _ = self.layer.attention(self.layer.input_layernorm(hidden_states), **kwargs)
        return hidden_states + attention + mlp


@pytest.mark.parametrize("name", ["gpt2", "gemma2", "bart", "mixtral", "jamba", "mamba2"])
def test_the_model_is_left_as_it_was(name: str) -> None:
    model = build(name).train()
    frozen = next(model.parameters()).requires_grad_(False)
    calm = next(module for module in model.modules() if isinstance(module, nn.Embedding)).eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    rng = torch.get_rng_state()
    try:
        find_sites(model)
    except UnknownSites:
        assert name in REFUSED
    assert torch.equal(rng, torch.get_rng_state())
    assert not frozen.requires_grad
    for module in model.modules():
        assert module.training == (module is not calm)
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_evaluating_restores_each_mode() -> None:
    model = nn.Sequential(nn.Dropout(), nn.Dropout().eval())
    with evaluating(model):
        assert not any(module.training for module in model.modules())
    assert [module.training for module in model] == [True, False]


@pytest.mark.parametrize("name", ["gpt2", "gemma2", "t5", "nemotron_h"])
def test_json_round_trip(name: str) -> None:
    sites = sites_of(name)
    assert Sites.from_json(json.loads(json.dumps(sites.to_json()))) == sites


@pytest.mark.parametrize(
    ("name", "depth", "layers", "layer"),
    [
        ("gpt2", 48, range(13, 18), 17),
        ("gptj", 28, range(3, 9), 5),
        ("gpt_neox", 44, range(6, 11), 15),
        ("llama", 32, range(4, 9), 5),
        ("qwen3", 32, range(4, 9), 6),
        ("qwen3", 28, range(4, 8), 5),
        ("llama", 8, range(1, 4), 2),
        ("gpt2", 12, range(2, 5), 3),
        ("gpt2", 4, range(1, 3), 1),
        ("gpt2", 3, range(0, 2), 0),
        ("gpt2", 2, range(0, 1), 0),
        ("gpt2", 1, range(0, 1), 0),
    ],
)
def test_critical_layers(name: str, depth: int, layers: range, layer: int) -> None:
    some = ("",) * depth
    sites = Sites("", some, (("",),) * depth, some, some, None, "", (1.0,) * depth)
    assert critical_layers(model_of(name), sites) == tuple(layers)
    assert critical_layer(model_of(name), sites) == layer

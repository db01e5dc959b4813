"""A tiny random model of every family of transformers that makes text, from its configuration alone."""

import re
from collections.abc import Mapping
from typing import Any

import torch
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from errata.model.configuration import auto_class

DEPTH, VISION_DEPTH, VOCABULARY = 4, 2, 320
MOST = 20_000_000  # parameters of what counts as tiny

# What is made small, under every name that configurations have for it.
LAYERS = """num_hidden_layers num_layers n_layer n_layers encoder_layers decoder_layers num_decoder_layers
    num_encoder_layers depth""".split()
SIZES: list[tuple[Any, str]] = [
    (DEPTH, " ".join(LAYERS)),
    (
        4,
        """num_attention_heads n_head n_heads num_heads encoder_attention_heads decoder_attention_heads attention_heads
        num_key_value_heads num_kv_heads num_experts num_local_experts n_routed_experts moe_num_experts
        linear_num_value_heads linear_num_key_heads num_attention_groups patch_size rotary_dim
        num_global_key_value_heads index_n_heads mamba_d_head""",
    ),
    (2, "num_experts_per_tok moe_k pad_token_id moe_topk expand mamba_expand"),
    (
        8,
        """head_dim d_kv qk_nope_head_dim qk_rope_head_dim v_head_dim kv_lora_rank q_lora_rank
        hidden_size_per_layer_input sliding_window index_head_dim linear_key_head_dim linear_value_head_dim
        state_size mamba_d_state ssm_state_size swa_head_dim swa_v_head_dim""",
    ),
    (
        16,
        """image_size moe_intermediate_size shared_expert_intermediate_size mamba_n_heads mamba_num_heads qk_head_dim
        shared_experts_intermediate_size expert_ffn_hidden_size""",
    ),
    (
        32,
        """hidden_size d_model n_embd embed_dim word_embed_proj_dim dim emb_dim out_hidden_size projection_dim dim_model
        text_hidden_size adapter_in_dim moe_hidden_size""",
    ),
    (
        64,
        """intermediate_size ffn_dim d_ff n_inner encoder_ffn_dim decoder_ffn_dim dff d_inner ffn_hidden_size mlp_dim
        dim_ff""",
    ),
    (128, "max_position_embeddings n_positions max_seq_len n_ctx"),
    (VOCABULARY, "vocab_size vocab_size_per_layer_input"),
    (0.2, "initializer_range init_std initializer_factor"),
    (1.0, "logit_scale"),  # Cohere divides by 16, which is of its width
    (1, "eos_token_id n_group topk_group n_groups mamba_n_groups"),
    (0, "bos_token_id num_kv_shared_layers"),
]
SMALL: dict[str, Any] = {name: size for size, names in SIZES for name in names.split()}
DROPPED = re.compile("dropout|drop_|_pdrop|layerdrop")
# What the sizes do not say: values that must fit together, or that the default leaves open.
ROPE = {"rope_type": "default", "rope_theta": 10000.0}
BY_KIND = {"full_attention": ROPE, "sliding_attention": ROPE}
SAME_LAYERS: dict[str, Any] = {"per_layer_config": {}}
HEAD = {"head_dim": 8}
OWN: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1]},
    "blt": {"encoder_hash_byte_group_vocab": VOCABULARY},
    "chameleon": {"vocabulary_map": {"<image>": 300}},
    "cohere_compass": {"text_config": {"rope_parameters": BY_KIND}},
    "cohere_compass_text": {"rope_parameters": BY_KIND},
    "deepseek_v2": {"num_experts_per_tok": 2},
    "dots1": {"n_routed_experts": 4},
    "dots3_note_text": SAME_LAYERS,
    "ernie4_5_vl_moe": {"text_config": {"moe_intermediate_size": [16, 16]}},
    "falcon_h1": {
        "mamba_d_ssm": 64, "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1,
        "mamba_chunk_size": 8,
    },
    "florence2": {
        "vision_config": {
            "depths": [1, 1], "patch_size": [3, 3], "patch_stride": [2, 2], "patch_padding": [1, 1],
            "patch_prenorm": [False, True], "embed_dim": [8, 32], "num_heads": [2, 2], "num_groups": [2, 2],
        }
    },
    "gemma4": {"text_config": SAME_LAYERS},
    "gemma4_text": SAME_LAYERS,
    "gemma4_unified": {"text_config": SAME_LAYERS},
    "gemma4_unified_text": SAME_LAYERS,
    "glm4v_moe": {"text_config": {"rope_parameters": {**ROPE, "mrope_section": [1, 1, 0]}}},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"] * 2},
    "hunyuan_v1_dense": HEAD,
    "hunyuan_v1_moe": HEAD,
    "hunyuan_vl": {"text_config": HEAD},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "janus": {"vq_config": {"base_channels": 32, "channel_multiplier": [1], "num_embeddings": 8}},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    "longcat_flash": {"zero_expert_num": 1},
    "mamba2": {"num_heads": 8},
    "mimo_v2_flash": {"rope_parameters": {kind: {**ROPE, "partial_rotary_factor": 0.5} for kind in BY_KIND}},
    "ministral": HEAD,
    "mistral4": {"head_dim": 16},
    "molmo2": {"adapter_config": {"vision_feature_layer": [-1, -2]}},
    "nemotron": {"num_key_value_heads": 4},
    "reformer": {"axial_pos_embds_dim": [16, 16], "axial_pos_shape": [8, 16]},
    "step3p7": {"text_config": {"sliding_window": 8}},
    "xmod": {"default_language": "en_XX"},
    "zaya": {"num_experts_per_tok": 1},
}  # fmt: skip


def text_families() -> list[str]:
    """The model types that transformers maps to a causal language model, or from image and text to text."""
    auto = modeling_auto
    return sorted({*auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES})


# Tiny models ---------------------------------------------------------------------------------------


def tiny_config(family: str) -> Any:
    """The configuration of a family with everything small; encoders that can be decoders are."""
    kind = CONFIG_MAPPING[family]
    default = kind().to_dict()
    config = kind(**_merged(shrunk(default), OWN.get(family, {})))
    if hasattr(config, "is_decoder") and not config.is_encoder_decoder:
        config.is_decoder = True
    return config


def shrunk(default: Mapping[str, Any], vision: bool = False, eyes: bool = False) -> dict[str, Any]:
    """Small values for what a configuration has by default, its parts included; what has no size stays as it is."""
    small: dict[str, Any] = {}
    depth = next((default[name] for name in LAYERS if isinstance(default.get(name), int)), None)
    layers = VISION_DEPTH if vision else DEPTH
    for key, value in default.items():
        if isinstance(value, dict) and value.get("model_type"):
            small[key] = {"model_type": value["model_type"], **shrunk(value, vision or "text" not in key, True)}
        elif key == "rope_parameters" and not vision and depth and _flat(value):
            small[key] = {**ROPE, "mrope_section": [2, 1, 1]} if eyes else {**value, **ROPE}
        elif key in ("image_size", "patch_size") and isinstance(value, list) and len(value) == 2:
            small[key] = [SMALL[key]] * 2
        elif isinstance(value, list) and len(value) == depth and value:
            kinds = [one for i, one in enumerate(value) if one not in value[:i]]
            small[key] = [kinds[i % len(kinds)] for i in range(layers)]
        elif value is None or isinstance(value, bool | dict | list):
            continue
        elif key in SMALL:
            small[key] = layers if key in LAYERS else SMALL[key]
        elif DROPPED.search(key) and isinstance(value, float):
            small[key] = 0.0
        elif key.endswith(("_token_id", "_token_index")) and isinstance(value, int) and value >= VOCABULARY:
            small[key] = VOCABULARY - 1 - sum(map(ord, key)) % 50
    return small


def _flat(rope: Any) -> bool:
    """Whether rotary parameters are those of one kind of layers, of the plain sort."""
    return isinstance(rope, dict) and rope.get("rope_type", "default") == "default" and "rope_theta" in rope


def _merged(values: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    for key, value in own.items():
        both = isinstance(value, dict) and isinstance(values.get(key), dict) and "rope_type" not in value
        values[key] = _merged(values[key], value) if both else value
    return values


def tiny_family(family: str) -> Any:
    """The tiny random model of a family, in eval mode. Raises what transformers does where it cannot be made."""
    config = tiny_config(family)
    auto = auto_class(config)
    with torch.device("meta"):
        parameters = sum(weight.numel() for weight in auto.from_config(config).parameters())
    if parameters > MOST:
        raise ValueError(f"{parameters:,} parameters are left when it is made small")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return auto.from_config(config).float().eval()

"""Tiny random models of many architectures, built in memory: width 32, four layers."""

from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForSeq2SeqLM,
    PreTrainedModel,
)

# Sizes and token ids under the names that most configurations know.
SHARED: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 8,
    "intermediate_size": 64,
    "max_position_embeddings": 128,
    "vocab_size": 128,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
    "initializer_range": 0.2,
}
NO_DROPOUT = """
    activation_dropout attention_dropout attention_probs_dropout_prob attn_pdrop decoder_layerdrop
    dropout dropout_rate embd_pdrop embed_dropout embedding_dropout encoder_layerdrop hidden_dropout
    hidden_dropout_prob layerdrop mlp_dropout resid_dropout resid_pdrop residual_dropout
"""
GROUPED = {"num_key_value_heads": 2}
WINDOW = {"sliding_window": 8}
# Every other layer looks back over the last 8 tokens only.
MIXED = {**WINDOW, "layer_types": ["sliding_attention", "full_attention"] * 2}
ROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}

MLA = {
    "q_lora_rank": 8, "kv_lora_rank": 8, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8,
    "v_head_dim": 8,
}  # fmt: skip

# name -> what differs from SHARED; "type" where the name is not the configuration's model type.
CAUSAL: dict[str, dict[str, Any]] = {
    "gpt2": {"n_inner": 64},
    "openai-gpt": {},
    "gpt_neo": {"num_layers": 4, "attention_types": [[["global", "local"], 2]], "window_size": 8},
    "gptj": {"rotary_dim": 4, "n_inner": 64},
    "gpt_neox": {},
    "gpt_neox_japanese": {"intermediate_multiple_size": 2},
    "gpt_bigcode": {"n_inner": 64},
    "codegen": {"rotary_dim": 4, "n_inner": 64},
    "ctrl": {"dff": 64},
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 32},
    "opt_projected": {
        "type": "opt",
        "ffn_dim": 64,
        "word_embed_proj_dim": 16,
        "do_layer_norm_before": False,
    },
    "bloom": {},
    "falcon": {"head_dim": None, "ffn_hidden_size": 64},
    "falcon_alibi": {
        "type": "falcon",
        "head_dim": None,
        "alibi": True,
        "ffn_hidden_size": 64,
        "parallel_attn": False,
    },
    "falcon_new": {
        "type": "falcon",
        "head_dim": None,
        "new_decoder_architecture": True,
        "num_kv_heads": 2,
        "ffn_hidden_size": 64,
    },
    "mpt": {"expansion_ratio": 2, "max_seq_len": 128},
    "llama": GROUPED,
    "llama_wide_heads": {"type": "llama", "head_dim": 16, **GROUPED},
    "llama_narrow": {"type": "llama", "intermediate_size": 32},
    "mistral": {**GROUPED, **WINDOW},
    "ministral": {**GROUPED, **MIXED, **ROPE},
    "ministral3": {
        **GROUPED,
        "rope_parameters": {
            **ROPE["rope_parameters"],
            "llama_4_scaling_beta": 0.1,
            "original_max_position_embeddings": 64,
        },
    },
    "qwen2": GROUPED,
    "qwen3": {**GROUPED, **MIXED, "use_sliding_window": True},
    "gemma": {"num_key_value_heads": 1},
    "gemma2": {**GROUPED, **MIXED},
    "gemma3_text": {**GROUPED, **MIXED},
    "vaultgemma": {**GROUPED, **MIXED},
    "phi": {},
    "phi3": GROUPED,
    "stablelm": GROUPED,
    "stablelm_parallel": {"type": "stablelm", "use_parallel_residual": True, **GROUPED},
    "starcoder2": {**GROUPED, **WINDOW},
    "olmo": GROUPED,
    "olmo2": GROUPED,
    "olmo3": {**GROUPED, **MIXED},
    "cohere": {**GROUPED, "logit_scale": 0.5},
    "cohere2": {**GROUPED, **MIXED, "logit_scale": 0.5},
    "granite": {
        "residual_multiplier": 0.5,
        "embedding_multiplier": 2.0,
        "logits_scaling": 2.0,
        **GROUPED,
    },
    "glm": GROUPED,
    "glm4": GROUPED,
    "persimmon": {},
    "biogpt": {},
    "xglm": {"d_model": 32, "num_layers": 4, "attention_heads": 4, "ffn_dim": 64},
    "nemotron": GROUPED,
    "helium": GROUPED,
    "smollm3": GROUPED,
    "exaone4": {**GROUPED, **MIXED},
    "ernie4_5": GROUPED,
    "arcee": GROUPED,
    "apertus": {**GROUPED, **ROPE},
    "seed_oss": GROUPED,
    "hunyuan_v1_dense": {**GROUPED, **ROPE},
    "diffllama": GROUPED,
    "bitnet": GROUPED,
    "internlm3": GROUPED,
    "jais2": GROUPED,
    "nanochat": GROUPED,
    "hyperclovax": GROUPED,
    "doge": GROUPED,
    "cwm": {**GROUPED, **MIXED, **ROPE},
    "modernbert-decoder": {"cls_token_id": 0, "sep_token_id": 1, "local_attention": 8},
    "minicpm3": MLA,
    "youtu": MLA,
}

HALVES = {
    "d_model": 32,
    "encoder_layers": 4,
    "decoder_layers": 4,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "decoder_start_token_id": 2,
    "forced_eos_token_id": None,
    "forced_bos_token_id": None,
    "init_std": 0.2,
}
T5 = {
    "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 4, "num_decoder_layers": 4, "num_heads": 4,
    "decoder_start_token_id": 2,
}  # fmt: skip
ENCODER_DECODER: dict[str, dict[str, Any]] = {
    "t5": T5,
    "t5_gated": {
        "type": "t5",
        "feed_forward_proj": "gated-gelu",
        "tie_word_embeddings": False,
        **T5,
    },
    "mt5": T5,
    "umt5": T5,
    "longt5": T5,
    "bart": HALVES,
    "mbart": HALVES,
    "pegasus": HALVES,
    "marian": HALVES,
    "blenderbot": HALVES,
    "blenderbot-small": HALVES,
    "plbart": HALVES,
    "m2m_100": HALVES,
}

SEES: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
    "image_size": 16, "patch_size": 4, "num_channels": 3,
}  # fmt: skip
QWEN_SEES = {
    "depth": 2, "hidden_size": 32, "num_heads": 4, "intermediate_size": 64, "out_hidden_size": 32,
    "patch_size": 4, "temporal_patch_size": 2, "spatial_merge_size": 2,
}  # fmt: skip
MROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
IMAGE = 127  # the token that stands for a part of an image; an image of 16 x 16 points has four

# name -> the language model's configuration, the vision tower's, and what holds the two together.
IMAGE_TEXT: dict[str, dict[str, Any]] = {
    "gemma3": {
        "text_config": {"model_type": "gemma3_text", **GROUPED, **MIXED},
        "vision_config": {"model_type": "siglip_vision_model", **SEES},
        "mm_tokens_per_image": 4,
    },
    "qwen2_5_vl": {
        "text_config": {**GROUPED, "rope_parameters": MROPE},
        "vision_config": {**QWEN_SEES, "window_size": 16, "fullatt_block_indexes": [1]},
    },
    "qwen3_vl": {
        "text_config": {**GROUPED, "rope_parameters": MROPE},
        "vision_config": {
            **QWEN_SEES, "num_position_embeddings": 16, "deepstack_visual_indexes": [0],
        },
    },
    "mistral3": {
        "text_config": {"model_type": "mistral", **GROUPED, "sliding_window": None},
        "vision_config": {"model_type": "pixtral", **SEES, "head_dim": 8},
        "spatial_merge_size": 2,
        "vision_feature_layer": -1,
    },
    "llava": {
        "text_config": {"model_type": "llama", **GROUPED},
        "vision_config": {"model_type": "clip_vision_model", **SEES, "patch_size": 8},
    },
    "smolvlm": {
        "text_config": {"model_type": "llama", **GROUPED},
        "vision_config": {"model_type": "smolvlm_vision", **SEES},
        "scale_factor": 2,
    },
    "mllama": {  # blocks 1 and 4 look at the image, and rest where there is none
        "text_config": {**GROUPED, "num_hidden_layers": 6, "cross_attention_layers": [1, 4], **ROPE},
        "vision_config": {
            **SEES, "patch_size": 8, "attention_heads": 4, "num_global_layers": 1, "max_num_tiles": 1,
            "intermediate_layers_indices": [0], "vision_output_dim": 64,
            "supported_aspect_ratios": [[1, 1]],
        },
    },
    "internvl": {
        "text_config": {"model_type": "qwen2", **GROUPED},
        "vision_config": {
            "model_type": "internvl_vision", **SEES, "image_size": [16, 16], "patch_size": [4, 4],
        },
    },
}  # fmt: skip

EXPERTS = {
    "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "num_experts_per_tok": 2,
    "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16, "n_group": 1,
    "topk_group": 1, **GROUPED,
}  # fmt: skip
SSM = {
    "state_size": 8, "ssm_state_size": 8, "mamba_d_state": 8, "mamba_d_head": 8, "mamba_n_heads": 8,
    "mamba_d_ssm": 64, "mamba_expand": 2, "expand": 2, "n_groups": 1, "mamba_n_groups": 1,
    "chunk_size": 8, "mamba_chunk_size": 8,
}  # fmt: skip
DELTA = {
    "linear_num_value_heads": 4, "linear_num_key_heads": 4, "linear_key_head_dim": 8,
    "linear_value_head_dim": 8, "layer_types": ["linear_attention", "full_attention"] * 2, **GROUPED,
}  # fmt: skip
# Blocks with an MLP behind something that mixes tokens and, in some blocks or all, is not attention.
HYBRID: dict[str, dict[str, Any]] = {
    "qwen3_next": {**DELTA, "num_experts": 0, "linear_num_key_heads": 2},
    "qwen3_5_text": {**DELTA, "linear_num_key_heads": 2},
    "olmo_hybrid": DELTA,
    "granitemoehybrid": {
        **SSM, **GROUPED, "num_local_experts": 0, "num_experts_per_tok": 0, "shared_intermediate_size": 64,
        "layer_types": ["mamba", "attention"] * 2, "residual_multiplier": 0.5,
    },
    "jamba": {
        **SSM, "num_experts": 1, "num_experts_per_tok": 1, "mamba_dt_rank": 4, "attn_layer_period": 2,
        "attn_layer_offset": 1, "use_mamba_kernels": False,
    },
    "falcon_h1": {**SSM, **GROUPED, "mlp_multipliers": [0.5, 0.5]},
    "recurrent_gemma": {"lru_width": 32, "attention_window_size": 8, "intermediate_size": 128},
    "bamba": {**SSM, **GROUPED, "attn_layer_indices": [1]},
    "lfm2": {
        **GROUPED, "layer_types": ["conv", "full_attention"] * 2, "block_auto_adjust_ff_dim": False,
    },
}  # fmt: skip
# A gate behind the MLP, which itself reads the token before.
GATED: dict[str, dict[str, Any]] = {"rwkv": {"attention_hidden_size": 32}}
# Blocks of one layer: a token mixer, or an MLP.
ONE_LAYER: dict[str, dict[str, Any]] = {
    "mamba": SSM,
    "mamba2": {**SSM, "num_heads": 8, "head_dim": 8},
    "falcon_mamba": SSM,
    "nemotron_h": {
        **SSM, **GROUPED, "layers_block_type": ["mamba", "mlp", "attention", "mlp"], "mamba_num_heads": 8,
        "mamba_head_dim": 8,
    },
}  # fmt: skip
# Mixtures of experts: routed, routed beside a shared one, and behind dense blocks.
MIXTURES: dict[str, dict[str, Any]] = {
    "mixtral": EXPERTS,
    "qwen2_moe": EXPERTS,
    "qwen3_moe": EXPERTS,
    "olmoe": EXPERTS,
    "gpt_oss": EXPERTS,
    "phimoe": EXPERTS,
    "granitemoe": EXPERTS,
    "deepseek_v3": {**EXPERTS, **MLA, "num_key_value_heads": 4, "first_k_dense_replace": 1},
    "ernie4_5_moe": {**EXPERTS, "moe_num_experts": 4, "moe_k": 2},
    "llama4_text": {**EXPERTS, "num_experts_per_tok": 1, "interleave_moe_layer_step": 2, "intermediate_size_mlp": 64},
    "jamba_moe": {
        **SSM, **EXPERTS, "type": "jamba", "mamba_dt_rank": 4, "attn_layer_period": 2, "attn_layer_offset": 1,
    },
    "qwen3_next_moe": {**DELTA, **EXPERTS, "type": "qwen3_next", "decoder_sparse_step": 1},
    "minimax": EXPERTS,
}  # fmt: skip
REFUSED: dict[str, dict[str, Any]] = {
    "bert": {},
    "xlnet": {
        "d_model": 32, "n_layer": 4, "n_head": 4, "d_inner": 64, "max_position_embeddings": None,
    },
}  # fmt: skip


def seen(name: str) -> dict[str, Any]:
    """What such a model is asked about an image: text around one of random points, as its processor would give it."""
    ids = torch.tensor([[11, 7, *[IMAGE] * 4, 9, 5]])
    points = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if name.startswith("qwen"):
        kinds = (ids == IMAGE).long()
        grid = torch.tensor([[1, 4, 4]])
        return inputs | {
            "pixel_values": points.view(16, -1).repeat(1, 2),
            "image_grid_thw": grid,
            "mm_token_type_ids": kinds,
        }
    if name == "gemma3":
        return inputs | {"pixel_values": points, "token_type_ids": (ids == IMAGE).long()}
    if name == "mistral3":
        return inputs | {"pixel_values": points, "image_sizes": torch.tensor([[16, 16]])}
    if name == "mllama":
        one = torch.ones(1, 1, 1, dtype=torch.long)
        inputs |= {"aspect_ratio_ids": one[0], "aspect_ratio_mask": one}
        looks = torch.ones(1, ids.shape[1], 1, 1, dtype=torch.long)
        return inputs | {"pixel_values": points[None, None], "cross_attention_mask": looks}
    return inputs | {"pixel_values": points[None] if name == "smolvlm" else points}


def _settings(name: str, overrides: dict[str, Any]) -> dict[str, Any]:
    shared = {**dict.fromkeys(NO_DROPOUT.split(), 0.0), **SHARED}
    if name not in IMAGE_TEXT:
        table = {**CAUSAL, **HYBRID, **ONE_LAYER, **GATED, **ENCODER_DECODER, **MIXTURES, **REFUSED}
        return {**shared, **table[name], **overrides}
    special = {key: value for key, value in SHARED.items() if key.endswith("_token_id")}
    told = dict(IMAGE_TEXT[name])
    told["text_config"] = {**shared, **told["text_config"], **overrides}
    return {**special, **dict.fromkeys(("image_token_id", "image_token_index"), IMAGE), **told}


def build(name: str, seed: int = 0, **overrides: Any) -> PreTrainedModel:
    """The tiny model of that name: random, float32, in eval mode, the same for the same seed."""
    settings = _settings(name, overrides)
    settings = {key: value for key, value in settings.items() if value is not None}
    config = AutoConfig.for_model(settings.pop("type", name), **settings)
    auto = AutoModelForSeq2SeqLM if name in ENCODER_DECODER else AutoModelForCausalLM
    if name in IMAGE_TEXT:
        auto = AutoModelForImageTextToText
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = auto.from_config(config)
        for path, weight in model.named_parameters() if name in IMAGE_TEXT else ():
            if not weight.any() and "bias" not in path:  # Gemma 3 and Llama 3.2 begin blind
                torch.nn.init.normal_(weight, std=0.2)
    return model.float().eval()

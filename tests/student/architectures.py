"""Tiny random checkpoints of many architectures, with the micro-student's tokenizer; no download."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from evaluation.common.checkpoints import MICRO_MODELS

_COMMON: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "tie_word_embeddings": False,
}
_FEW = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
_ROUTED = _FEW | {
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
}
_LATENT = {
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
    "head_dim": 8,
    "num_key_value_heads": 2,
}
_ATTENTION_AND_LINEAR = {"layer_types": ["linear_attention", "full_attention"]}
_LINEAR = {
    "linear_num_value_heads": 2,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
}
_MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_ssm": 64, "mamba_d_state": 8, "mamba_n_groups": 1}
_SSM = {"state_size": 8, "time_step_rank": 4}

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {},
    "qwen2": {},
    "qwen3": {},
    "gemma2": {},
    "gemma3_text": {},
    "gemma3": {"text_config": _COMMON},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 256},
    "gpt_neo": {"num_layers": 2, "num_heads": 2, "attention_types": [[["global", "local"], 1]]},
    "gpt_neox": {},
    "gptj": {"n_embd": 32, "n_layer": 2, "n_head": 2, "rotary_dim": 8, "n_positions": 256},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "bloom": {"n_layer": 2, "n_head": 2},
    "falcon": {},
    "falcon_h1": _MAMBA,
    "mamba": _SSM,
    "mamba2": _SSM | {"num_heads": 4, "head_dim": 16, "n_groups": 1, "expand": 2},
    "jamba": _FEW
    | {
        "num_hidden_layers": 4,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
        "mamba_d_state": 8,
        "mamba_dt_rank": 4,
        "use_mamba_kernels": False,
    },
    "phi": {},
    "phi3": {"pad_token_id": 0},
    "starcoder2": {},
    "stablelm": {},
    "cohere": {},
    "cohere2": {},
    "smollm3": {"pad_token_id": 0},
    "nemotron": {},
    "granite": {},
    "granitemoe": _FEW,
    "olmo": {},
    "olmo2": {},
    "olmoe": _FEW,
    "mixtral": _FEW,
    "qwen2_moe": _FEW | {"shared_expert_intermediate_size": 24},
    "qwen3_moe": _FEW,
    "qwen3_next": _FEW | _LINEAR | _ATTENTION_AND_LINEAR | {"shared_expert_intermediate_size": 24},
    "deepseek_v2": _ROUTED | _LATENT | {"n_group": None, "topk_group": None},
    "deepseek_v3": _ROUTED | _LATENT,
    "glm4": {"pad_token_id": 0},
    "glm4_moe": _ROUTED,
    "gpt_oss": _FEW,
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "ernie4_5": {},
    "exaone4": {},
    "xlnet": {"d_model": 32, "n_layer": 2, "n_head": 2, "d_inner": 48},
    "bert": {},
    "rwkv": {"attention_hidden_size": 32, "context_length": 256},
}
"""What each architecture's configuration needs besides the sizes that all share."""
_VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}


def save_checkpoint(kind: str, directory: Path, seed: int = 0, **changes: Any) -> Path:
    """Write a random checkpoint of an architecture with the micro-student's tokenizer, and return its directory."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(MICRO_MODELS["micro-student"])
    ids = {"vocab_size": len(tokenizer), "bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    values = {**_COMMON, **ids, "pad_token_id": tokenizer.eos_token_id, **ARCHITECTURES[kind], **changes}
    if kind == "gemma3":
        values = {"text_config": {**_COMMON, **ids}, "vision_config": _VISION, "mm_tokens_per_image": 4, **ids}
    left_out = {"falcon": ("head_dim",), "xlnet": ("max_position_embeddings",)}.get(kind, ())
    config = AutoConfig.for_model(kind, **{name: value for name, value in values.items() if name not in left_out})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config).float().eval()
        for parameter in model.parameters():  # as drawn, logits hardly differ from token to token
            if parameter.ndim > 1:
                parameter.data.normal_(0.0, 0.15)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory

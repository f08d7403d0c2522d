"""Small random models of many architectures of transformers, which read their tokens visibly.

Knows transformers' configurations; nothing of the library.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import transformers

V = 128
_SPREAD = 0.3  # of the elements of a matrix, standard deviation
_SPREAD_OF_TOKENS = 0.45  # of a table of tokens: logits then spread by about 2.5

_IDS = {"bos_token_id": None, "eos_token_id": 1, "pad_token_id": 0, "vocab_size": V}
_SMALL = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
_LLAMA = _SMALL | {"num_key_value_heads": 2}
_MOE = _LLAMA | {"num_experts_per_tok": 2, "moe_intermediate_size": 24}
_MAMBA2 = {
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_d_state": 8,
    "mamba_n_groups": 1,
    "mamba_chunk_size": 8,
}
_LATENT = {
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "first_k_dense_replace": 1,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
    "num_key_value_heads": 4,
}

_INDEXED = {"index_n_heads": 16, "index_head_dim": 16, "index_topk": 4}  # of few heads scores tie
_GATED = {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}

# What is built, by a configuration class and fields that differ from its defaults.
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "afmoe": (
        "Afmoe",
        _MOE | {"num_experts": 4, "head_dim": 8, "sliding_window": 5, "num_dense_layers": 1},
    ),
    "apertus": ("Apertus", _LLAMA),
    "arcee": ("Arcee", _LLAMA),
    "axk1": ("AXK1", _MOE | _LATENT),
    "axk2": ("AXK2", _MOE | _LATENT | _INDEXED),
    "bamba": ("Bamba", _LLAMA | _MAMBA2 | {"attn_layer_indices": [1]}),
    "bert decoder": ("Bert", _SMALL | {"is_decoder": True}),
    "biogpt": ("BioGpt", _SMALL),
    "bitnet": ("BitNet", _LLAMA),
    "bloom": ("Bloom", {"hidden_size": 32, "n_layer": 2, "n_head": 4}),
    "codegen": ("CodeGen", {"n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 4}),
    "cohere": ("Cohere", _LLAMA | {"logit_scale": 1.0}),
    "cohere2": ("Cohere2", _LLAMA | {"sliding_window": 5, "logit_scale": 1.0}),
    "cohere2 moe": (
        "Cohere2Moe",
        _MOE | {"num_experts": 4, "sliding_window": 5, "logit_scale": 1.0},
    ),
    "ctrl": ("CTRL", {"n_embd": 32, "dff": 48, "n_layer": 2, "n_head": 4, "n_positions": 64}),
    "cwm": ("Cwm", _LLAMA | {"bos_token_id": 2, "head_dim": 8, "sliding_window": 5}),
    "dbrx": (
        "Dbrx",
        {
            "d_model": 32,
            "n_heads": 4,
            "n_layers": 2,
            "max_seq_len": 64,
            "attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8.0},
            "ffn_config": {
                "hidden_size": 32,
                "ffn_hidden_size": 24,
                "moe_num_experts": 4,
                "moe_top_k": 2,
            },
        },
    ),
    "deepseek v2": ("DeepseekV2", _MOE | _LATENT | {"topk_method": "greedy"}),
    "deepseek v3": ("DeepseekV3", _MOE | _LATENT),
    "deepseek v3.2": ("DeepseekV32", _MOE | _LATENT | _INDEXED),
    "diffllama": ("DiffLlama", _LLAMA),
    "doge": ("Doge", _LLAMA),
    "dots1": ("Dots1", _MOE | _LATENT | {"head_dim": 8}),
    "electra decoder": ("Electra", _SMALL | {"embedding_size": 32, "is_decoder": True}),
    "ernie 4.5": ("Ernie4_5", _LLAMA),
    "ernie 4.5 moe": (
        "Ernie4_5_Moe",
        _MOE | {"moe_num_experts": 4, "moe_k": 2, "moe_num_shared_experts": 1},
    ),
    "exaone 4": ("Exaone4", _LLAMA | {"sliding_window": 5, "sliding_window_pattern": 2}),
    "exaone moe": (
        "ExaoneMoe",
        _MOE | _LATENT | {"num_experts": 4, "head_dim": 8, "sliding_window": 5},
    ),
    "falcon": ("Falcon", {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}),
    "falcon alibi": (
        "Falcon",
        {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "alibi": True},
    ),
    "falcon h1": ("FalconH1", _LLAMA | _MAMBA2 | {"mamba_d_ssm": 64}),
    "falcon mamba": ("FalconMamba", {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8}),
    "falcon new decoder": (
        "Falcon",
        {
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_kv_heads": 2,
            "new_decoder_architecture": True,
        },
    ),
    "flex olmo": ("FlexOlmo", _MOE | {"num_experts": 4}),
    "gemma": ("Gemma", _LLAMA | {"head_dim": 8}),
    "gemma 2": ("Gemma2", _LLAMA | {"head_dim": 8, "sliding_window": 5}),
    "gemma 3": ("Gemma3Text", _LLAMA | {"head_dim": 8, "sliding_window": 5}),
    "gemma 3n": (
        "Gemma3nText",
        _LLAMA
        | {
            "head_dim": 8,
            "sliding_window": 5,
            "hidden_size_per_layer_input": 8,
            "vocab_size_per_layer_input": V,
            "num_kv_shared_layers": 0,
            "laurel_rank": 8,
            "activation_sparsity_pattern": [0.0, 0.0],
        },
    ),
    "gemma 4": (
        "Gemma4Text",
        _LLAMA
        | {
            "head_dim": 8,
            "sliding_window": 5,
            "global_head_dim": 16,
            "hidden_size_per_layer_input": 8,
            "vocab_size_per_layer_input": V,
            "num_kv_shared_layers": 0,
        },
    ),
    "glm": ("Glm", _LLAMA | {"head_dim": 8}),
    "glm 4": ("Glm4", _LLAMA | {"head_dim": 8}),
    "glm 4 moe": ("Glm4Moe", _MOE | _LATENT | {"head_dim": 8}),
    "glm 4 moe lite": ("Glm4MoeLite", _MOE | _LATENT),
    "glm moe dsa": ("GlmMoeDsa", _MOE | _LATENT | _INDEXED),
    "gpt bigcode": ("GPTBigCode", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}),
    "gpt neo": (
        "GPTNeo",
        {
            "hidden_size": 32,
            "num_layers": 2,
            "num_heads": 4,
            "attention_types": [[["global", "local"], 1]],
            "window_size": 5,
            "max_position_embeddings": 64,
        },
    ),
    "gpt neox": ("GPTNeoX", _SMALL),
    "gpt neox japanese": ("GPTNeoXJapanese", _SMALL),
    "gpt oss": (
        "GptOss",
        _MOE | {"num_local_experts": 4, "head_dim": 8, "sliding_window": 5},
    ),
    "gpt-2": ("GPT2", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}),
    "gpt-j": ("GPTJ", {"n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 4}),
    "granite": ("Granite", _LLAMA),
    "granite moe": ("GraniteMoe", _MOE | {"num_local_experts": 4}),
    "granite moe hybrid": (
        "GraniteMoeHybrid",
        _MOE | _MAMBA2 | {"num_local_experts": 4, "layer_types": ["mamba", "attention"]},
    ),
    "granite moe shared": (
        "GraniteMoeShared",
        _MOE | {"num_local_experts": 4, "shared_intermediate_size": 24},
    ),
    "granite swa": ("GraniteSWA", _LLAMA | {"sliding_window": 5}),
    "helium": ("Helium", _LLAMA | {"head_dim": 8}),
    "hunyuan": ("HunYuanDenseV1", _LLAMA | {"head_dim": 8}),
    "hunyuan moe": ("HunYuanMoEV1", _MOE | {"num_experts": 4, "moe_topk": 2, "head_dim": 8}),
    "hy v3": ("HYV3", _MOE | {"num_experts": 4, "head_dim": 8}),
    "hy v4": ("HYV4", _MOE | _LATENT | _INDEXED | {"num_experts": 4, "head_dim": 8}),
    "jais 2": ("Jais2", _LLAMA),
    "jamba": (
        "Jamba",
        _MOE
        | {
            "num_experts": 4,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "expert_layer_period": 2,
            "expert_layer_offset": 1,
            "use_mamba_kernels": False,
            "mamba_d_state": 8,
        },
    ),
    "jetmoe": ("JetMoe", _MOE | {"num_local_experts": 4, "kv_channels": 8}),
    "laguna": ("Laguna", _MOE | {"num_experts": 4, "head_dim": 8, "sliding_window": 5}),
    "lfm2": ("Lfm2", _LLAMA | {"layer_types": ["conv", "full_attention"]}),
    "lfm2 moe": (
        "Lfm2Moe",
        _MOE | {"num_experts": 4, "num_dense_layers": 1, "layer_types": ["conv", "full_attention"]},
    ),
    "llama": ("Llama", _LLAMA),
    "llama 4": (
        "Llama4Text",
        _MOE
        | {
            "num_local_experts": 4,
            "head_dim": 8,
            "attention_chunk_size": 5,
            "intermediate_size_mlp": 48,
        },
    ),
    "mamba": ("Mamba", {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8}),
    "mamba 2": (
        "Mamba2",
        {
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "state_size": 8,
            "num_heads": 8,
            "head_dim": 8,
            "n_groups": 1,
            "chunk_size": 8,
        },
    ),
    "mbart decoder": (
        "MBart",
        {"d_model": 32, "decoder_layers": 2, "decoder_attention_heads": 4, "decoder_ffn_dim": 48},
    ),
    "megatron bert decoder": ("MegatronBert", _SMALL | {"is_decoder": True}),
    "mellum": ("Mellum", _MOE | {"num_experts": 4, "head_dim": 8, "sliding_window": 5}),
    "mimo v2 flash": (
        "MiMoV2Flash",
        _MOE
        | {
            "n_routed_experts": 4,
            "head_dim": 8,
            "v_head_dim": 8,
            "swa_head_dim": 8,
            "swa_v_head_dim": 8,
            "swa_num_attention_heads": 4,
            "swa_num_key_value_heads": 2,
            "sliding_window": 5,
        },
    ),
    "minimax": ("MiniMax", _MOE | {"num_local_experts": 4, "block_size": 8}),
    "minimax m2": ("MiniMaxM2", _MOE | {"num_local_experts": 4, "head_dim": 8}),
    "ministral": ("Ministral", _LLAMA | {"head_dim": 8, "sliding_window": 5}),
    "mistral": ("Mistral", _LLAMA | {"sliding_window": 5}),
    "mixtral": ("Mixtral", _MOE | {"num_local_experts": 4}),
    "modernbert decoder": (
        "ModernBertDecoder",
        _SMALL | {"bos_token_id": 2, "sliding_window": 5, "local_attention": 10},
    ),
    "mpt": ("Mpt", {"d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 64}),
    "nanochat": ("NanoChat", _LLAMA),
    "nemotron": ("Nemotron", _LLAMA),
    "nemotron h": (
        "NemotronH",
        _LLAMA
        | {
            "layers_block_type": ["mamba", "attention"],
            "mamba_num_heads": 8,
            "mamba_head_dim": 8,
            "ssm_state_size": 8,
            "n_groups": 1,
            "chunk_size": 8,
            "head_dim": 8,
        },
    ),
    "olmo": ("Olmo", _LLAMA),
    "olmo 2": ("Olmo2", _LLAMA),
    "olmo 3": ("Olmo3", _LLAMA | {"sliding_window": 5}),
    "olmo hybrid": ("OlmoHybrid", _LLAMA | _GATED),
    "olmoe": ("Olmoe", _MOE | {"num_experts": 4}),
    "openai gpt": ("OpenAIGPT", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}),
    "opt": ("OPT", _SMALL | {"ffn_dim": 48, "word_embed_proj_dim": 24}),
    "persimmon": ("Persimmon", _SMALL),
    "phi": ("Phi", _LLAMA),
    "phi 3": ("Phi3", _LLAMA | {"sliding_window": 5}),
    "phimoe": ("Phimoe", _MOE | {"num_local_experts": 4}),
    "qwen 2": ("Qwen2", _LLAMA),
    "qwen 2 moe": ("Qwen2Moe", _MOE | {"num_experts": 4, "shared_expert_intermediate_size": 24}),
    "qwen 3": ("Qwen3", _LLAMA | {"head_dim": 8}),
    "qwen 3 moe": ("Qwen3Moe", _MOE | {"num_experts": 4, "head_dim": 8}),
    "qwen 3 next": (
        "Qwen3Next",
        _MOE
        | {
            "num_experts": 4,
            "head_dim": 8,
            "shared_expert_intermediate_size": 24,
        }
        | _GATED,
    ),
    "qwen 3.5": ("Qwen3_5Text", _LLAMA | _GATED | {"head_dim": 8}),
    "qwen 3.5 moe": (
        "Qwen3_5MoeText",
        _MOE | _GATED | {"num_experts": 4, "head_dim": 8, "shared_expert_intermediate_size": 24},
    ),
    "recurrent gemma": (
        "RecurrentGemma",
        _LLAMA | {"num_hidden_layers": 3, "lru_width": 32, "attention_window_size": 5},
    ),
    "roberta decoder": ("Roberta", _SMALL | {"is_decoder": True}),
    "rwkv": ("Rwkv", {"hidden_size": 32, "num_hidden_layers": 2, "context_length": 64}),
    "seed oss": ("SeedOss", _LLAMA | {"head_dim": 8}),
    "smollm 3": ("SmolLM3", _LLAMA),
    "solar open": ("SolarOpen", _MOE | _LATENT | {"head_dim": 8}),
    "stablelm": ("StableLm", _LLAMA),
    "starcoder 2": ("Starcoder2", _LLAMA | {"sliding_window": 5}),
    "vaultgemma": ("VaultGemma", _LLAMA | {"head_dim": 8, "sliding_window": 5}),
    "whisper decoder": (
        "Whisper",
        {
            "d_model": 32,
            "encoder_layers": 1,
            "decoder_layers": 2,
            "decoder_attention_heads": 4,
            "decoder_ffn_dim": 48,
        },
    ),
    "xglm": ("XGLM", {"d_model": 32, "ffn_dim": 48, "num_layers": 2, "attention_heads": 4}),
    "xlstm": (
        "xLSTM",
        {
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_heads": 4,
            "chunk_size": 8,
            "return_last_states": True,
        },
    ),
    "youtu": ("Youtu", _LLAMA | _LATENT),
    "zamba 2": (
        "Zamba2",
        _LLAMA
        | {
            "mamba_d_state": 8,
            "mamba_headdim": 8,
            "n_mamba_heads": 8,
            "mamba_ngroups": 1,
            "chunk_size": 8,
            "layers_block_type": ["mamba", "hybrid"],
            "num_mem_blocks": 1,
            "use_mamba_kernels": False,
        },
    ),
}


def build(name: str) -> Any:
    """A float32 model in evaluation mode, far sharper than at initialisation."""
    family, fields = ARCHITECTURES[name]
    config = getattr(transformers, f"{family}Config")(**{**_IDS, **fields})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    sharpen(model)
    return model


@torch.no_grad()
def sharpen(model: Any) -> None:
    """Give random matrices a spread at which attention chooses and logits are far from equal.

    As initialised, a small model attends to all tokens alike and predicts all alike: what is read
    at a wrong place would hardly move log p. What is not drawn around zero, such as the decay rates
    of a state, stays as it is.
    """
    drawn = torch.Generator().manual_seed(3)
    for p in model.parameters():
        if p.dim() < 2 or p.mean().abs() > 0.3 * p.std():
            continue
        if not p.any():  # a router that starts at zero: its experts would tie
            p.normal_(generator=drawn)
        p.mul_((_SPREAD_OF_TOKENS if p.shape[0] == V else _SPREAD) / p.std())


@torch.no_grad()
def liveliness(model: Any) -> tuple[float, float]:
    """Mean entropy as a part of log V, and how far two tokens in another order move log p. Nats."""
    ids = torch.randint(2, V, (1, 16), generator=torch.Generator().manual_seed(4))
    other = ids.clone()
    other[0, -4:-2] = ids[0, -4:-2].flip(0)
    log_p, moved = (
        model(input_ids=x, use_cache=False).logits.log_softmax(-1) for x in (ids, other)
    )
    entropy = -(log_p.exp() * log_p).sum(-1).mean()
    return float(entropy / np.log(V)), float((log_p - moved)[0, -2:].abs().max())

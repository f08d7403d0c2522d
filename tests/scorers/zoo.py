"""Small random models of many architectures, and how far the scorer is from each one's own forward.

    python tests/scorers/zoo.py [NAME ...]

prints the table of docs/models.md. Knows transformers' configurations; the library as its users.
"""

from __future__ import annotations

import copy
import dataclasses
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import transformers

from seqproc.config import PrecisionConfig
from seqproc.errors import SeqprocError
from seqproc.policy import SamplingPolicy, TokenScores
from seqproc.scorers import (
    Float64Lift,
    Shortcuts,
    TeacherForcingScorer,
    TokenSequence,
    build_params_override,
    jvp,
)

V = 128
_SPREAD = 0.3  # of the elements of a matrix, standard deviation
_SPREAD_OF_TOKENS = 0.45  # of a table of tokens: logits then spread by about 2.5
POLICIES = (SamplingPolicy(temperature=0.8, top_p=0.9), SamplingPolicy())
STEP = 1e-6  # of central differences in float64
NEAR_A_CUT = 1e-5  # of mass: rounding decides whether a token is in the support

# Two prompts with three responses each, one of them empty and one of a single token, and a third
# with one: longer together than any window of the models.
LENGTHS = ((9, (7, 1, 11)), (14, (5, 0, 8)), (4, (12,)))

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


def sequences() -> list[TokenSequence]:
    """Random tokens; none is the padding token, whose embedding takes no gradient."""
    drawn, found = torch.Generator().manual_seed(1), []
    for prompt_length, lengths in LENGTHS:
        prompt = torch.randint(2, V, (prompt_length,), generator=drawn)
        for length in lengths:
            response = torch.randint(1, V, (length,), generator=drawn)
            found.append(TokenSequence(prompt_ids=prompt, response_ids=response))
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Oracle:
    """Of one response: what the model's own forward says, in float64 from its logits on."""

    log_p: np.ndarray  # [T]
    log_q: np.ndarray  # [T]; −∞ outside the support
    entropy: np.ndarray  # [T]
    near: np.ndarray  # [T] bool, whether a cut is so near that rounding decides


def own_logits(model: Any, sequence: TokenSequence) -> torch.Tensor:
    """Logits ``[T, V]`` of one plain call on one sequence."""
    ids = torch.cat([sequence.prompt_ids, sequence.response_ids])[None]
    logits = model(input_ids=ids, use_cache=False).logits[0]
    return logits[len(sequence.prompt_ids) - 1 : ids.shape[1] - 1]


def oracle(logits: torch.Tensor, tokens: torch.Tensor, policy: SamplingPolicy) -> Oracle:
    """log p, log q and H by sorting probabilities, one step at a time."""
    raw, steps = logits.detach().double().numpy(), np.arange(len(tokens))
    a = raw / policy.temperature
    p = np.exp(a - a.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    order = np.argsort(-p, axis=-1, kind="stable")
    sums = np.take_along_axis(p, order, -1).cumsum(-1)
    kept = np.zeros_like(p, dtype=bool)
    before = np.pad(sums[:, :-1], ((0, 0), (1, 0)))
    np.put_along_axis(kept, order, (before < policy.top_p) | (policy.top_p == 1), -1)
    q = np.where(kept, p, 0.0)
    q /= q.sum(-1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        log_q = np.log(q)
        entropy = -np.where(kept, q * log_q, 0.0).sum(-1)
    normal = raw - raw.max(-1, keepdims=True)
    log_p = normal - np.log(np.exp(normal).sum(-1, keepdims=True))
    return Oracle(
        log_p=log_p[steps, tokens],
        log_q=log_q[steps, tokens],
        entropy=entropy,
        near=(np.abs(sums - policy.top_p).min(-1) < NEAR_A_CUT) & (policy.top_p < 1),
    )


def distance(scores: list[TokenScores], model: Any, policy: SamplingPolicy) -> float:
    """Largest difference of log p, log q and H from the oracle's; ∞ where a support differs."""
    found = [0.0]
    for sequence, one in zip(sequences(), scores, strict=True):
        if not len(sequence.response_ids):
            continue
        with torch.no_grad():
            own = oracle(own_logits(model, sequence), sequence.response_ids, policy)
        sure = ~own.near
        found += [
            _gap(one.logprobs, own.log_p),
            _gap(one.logqs[sure], own.log_q[sure]),
            _gap(one.stats.rb_entropy[sure], own.entropy[sure]),
        ]
    return float(np.max(found))  # not `max`, which may pass a NaN over


def _gap(ours: torch.Tensor, theirs: np.ndarray) -> float:
    a = ours.detach().double().numpy()
    with np.errstate(invalid="ignore"):  # −∞ on both sides
        return float(np.where(a == theirs, 0.0, np.abs(a - theirs)).max(initial=0.0))


def worst(scorer: TeacherForcingScorer, model: Any, **options: Any) -> float:
    """`distance` of the scorer's scores under each policy from the forwards of ``model``."""
    found = [
        distance(scorer.score(sequences(), policy, **options)[0], model, policy)
        for policy in POLICIES
    ]
    return float(np.max(found))


def float64_precision() -> PrecisionConfig:
    precision = PrecisionConfig()
    for profile in (precision.func_override, precision.tf_nograd, precision.tf_withgrad):
        profile.dtype = "float64"
    return precision


# What is looked at, each a figure of one model.


def packed(model: Any) -> float:
    """Several lengths in a batch, prompts shared, against plain forwards. Nats."""
    return worst(TeacherForcingScorer(model), model)


def padded(model: Any) -> float:
    """Whole sequences in padded batches. Nats."""
    return worst(TeacherForcingScorer(model), model, share_prompts=False)


def alone(model: Any) -> float:
    """One sequence at a time. Nats."""
    return worst(TeacherForcingScorer(model), model, batch_size=1, share_prompts=False)


def own_rounding(model: Any) -> float:
    """The model's own float32 forward against its float64 one: log p of each token. Nats."""
    wide, gaps = copy.deepcopy(model).double(), []
    with torch.no_grad():
        for sequence in [s for s in sequences() if len(s.response_ids)]:
            own = own_logits(model, sequence).double().log_softmax(-1)
            with Float64Lift():
                exact = own_logits(wide, sequence).log_softmax(-1)
            gap = (own - exact).gather(-1, sequence.response_ids[:, None])
            gaps.append(float(gap.abs().max()))
    return float(np.max(gaps))


def float64(model: Any) -> float:
    """True float64 against plain float64 forwards. Nats."""
    scorer = TeacherForcingScorer(model, precision=float64_precision())
    with Float64Lift():
        return worst(scorer, copy.deepcopy(model).double())


def forward_derivative(model: Any) -> float:
    """`jvp` of log p, log q and H in float64 against central differences, of the largest."""
    scorer = TeacherForcingScorer(model, precision=float64_precision())
    drawn, policy = torch.Generator().manual_seed(2), SamplingPolicy(temperature=0.8)
    v = {
        name: (p.detach().abs().mean() + 1e-3) * torch.randn(p.shape, generator=drawn)
        for name, p in model.named_parameters()
    }
    slopes = jvp(scorer, sequences(), policy, v)
    up, down = (
        scorer.score(
            sequences(),
            policy,
            overrides=[
                build_params_override(model, v, eta, dtype=torch.float64, allow_frozen=True)
            ],
        )[0]
        for eta in (STEP, -STEP)
    )
    pairs = [
        pair
        for slope, a, b in zip(slopes, up, down, strict=True)
        for pair in (
            (slope.logprobs, (a.logprobs - b.logprobs) / (2 * STEP)),
            (slope.logqs, (a.logqs - b.logqs) / (2 * STEP)),
            (slope.rb_entropy, (a.stats.rb_entropy - b.stats.rb_entropy) / (2 * STEP)),
        )
    ]
    return _relative(pairs)


def gradient(model: Any) -> float:
    """∇ Σ log p of all sequences in float64 against autograd of the model's own forward."""
    wide = copy.deepcopy(model).double()  # before a graph is kept in any of its states
    scorer = TeacherForcingScorer(model, precision=float64_precision())
    total = torch.cat([s.logprobs for s in scorer.score_with_grad(sequences(), POLICIES[0])]).sum()
    with Float64Lift():
        each = [
            own_logits(wide, s).log_softmax(-1).gather(-1, s.response_ids[:, None]).sum()
            for s in sequences()
            if len(s.response_ids)
        ]
        own = _gradients(torch.stack(each).sum(), wide)
    return _relative(list(zip(_gradients(total, model), own, strict=True)))


def _gradients(value: torch.Tensor, model: Any) -> tuple[torch.Tensor, ...]:
    params = [p for p in model.parameters() if p.requires_grad]
    return torch.autograd.grad(value, params, allow_unused=True, materialize_grads=True)


def _relative(pairs: list[tuple[torch.Tensor, torch.Tensor]]) -> float:
    """Largest difference within a pair, relative to the pair, or to a thousandth of the largest."""
    kept = [(a.detach().double(), b.detach().double()) for a, b in pairs if a.numel()]
    sizes = np.array([float(b.abs().max()) for _, b in kept])
    gaps = np.array([float((a - b).abs().max()) for a, b in kept])
    return float((gaps / np.maximum(sizes, 1e-3 * sizes.max())).max())


COLUMNS: dict[str, tuple[Callable[[Any], float], float]] = {  # and what is right
    "packed": (packed, 2e-5),
    "padded": (padded, 2e-5),
    "alone": (alone, 2e-5),
    "own": (own_rounding, float("inf")),
    "float64": (float64, 1e-10),
    "jvp": (forward_derivative, 1e-5),
    "gradient": (gradient, 1e-5),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One model's row of the table."""

    name: str
    figures: dict[str, float | str]  # a figure, or what was raised
    left_out: list[str]  # shortcuts

    def faults(self) -> dict[str, float | str]:
        """Columns whose figure is too large, or that raised anything."""
        return {
            column: value
            for column, value in self.figures.items()
            if isinstance(value, str) or not value <= COLUMNS[column][1]
        }


def examined(name: str, model: Any) -> Line:
    """Everything about one model."""
    shortcuts = TeacherForcingScorer(model).shortcuts
    names = [f.name for f in dataclasses.fields(Shortcuts)]
    return Line(
        name=name,
        figures={column: _tried(look, model) for column, (look, _) in COLUMNS.items()},
        left_out=[n.replace("_", " ") for n in names if not getattr(shortcuts, n)],
    )


def _tried(look: Callable[[Any], float], model: Any) -> float | str:
    try:
        return look(model)
    except SeqprocError as error:
        return f"refused: {error}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def table(lines: Iterator[Line]) -> Iterator[str]:
    """Markdown, row by row."""
    yield "| model | " + " | ".join(COLUMNS) + " | without |"
    yield "|---" * (len(COLUMNS) + 2) + "|"
    for line in lines:
        cells = [v[:40] if isinstance(v, str) else f"{v:.1e}" for v in line.figures.values()]
        yield f"| {line.name} | " + " | ".join(cells) + f" | {', '.join(line.left_out)} |"


def main() -> None:
    """The table of the models named, or of all."""
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)  # with more, models as small as these wait for one another
    names = sys.argv[1:] or list(ARCHITECTURES)
    for row in table(examined(name, build(name)) for name in names):
        print(row, flush=True)


if __name__ == "__main__":
    main()

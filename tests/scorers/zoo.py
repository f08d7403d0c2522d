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
POLICY = SamplingPolicy(temperature=0.8, top_p=0.9)
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
_MAMBA2 = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1}
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

# What is built, by a configuration class and fields that differ from its defaults.
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "apertus": ("Apertus", _LLAMA),
    "arcee": ("Arcee", _LLAMA),
    "bamba": ("Bamba", _LLAMA | _MAMBA2 | {"attn_layer_indices": [1]}),
    "bert decoder": ("Bert", _SMALL | {"is_decoder": True}),
    "biogpt": ("BioGpt", _SMALL),
    "bloom": ("Bloom", {"hidden_size": 32, "n_layer": 2, "n_head": 4}),
    "codegen": ("CodeGen", {"n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 4}),
    "cohere": ("Cohere", _LLAMA),
    "cohere2": ("Cohere2", _LLAMA | {"sliding_window": 5}),
    "deepseek v2": ("DeepseekV2", _MOE | _LATENT | {"topk_method": "greedy"}),
    "deepseek v3": ("DeepseekV3", _MOE | _LATENT),
    "ernie 4.5": ("Ernie4_5", _LLAMA),
    "exaone 4": ("Exaone4", _LLAMA | {"sliding_window": 5, "sliding_window_pattern": 2}),
    "falcon": ("Falcon", {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}),
    "falcon alibi": (
        "Falcon",
        {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "alibi": True},
    ),
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
    "falcon h1": ("FalconH1", _LLAMA | _MAMBA2 | {"mamba_d_ssm": 64}),
    "falcon mamba": ("FalconMamba", {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8}),
    "gemma": ("Gemma", _LLAMA | {"head_dim": 8}),
    "gemma 2": ("Gemma2", _LLAMA | {"head_dim": 8, "sliding_window": 5}),
    "gemma 3": ("Gemma3Text", _LLAMA | {"head_dim": 8, "sliding_window": 5}),
    "glm": ("Glm", _LLAMA | {"head_dim": 8}),
    "glm 4": ("Glm4", _LLAMA | {"head_dim": 8}),
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
    "gpt oss": (
        "GptOss",
        _MOE | {"num_local_experts": 4, "head_dim": 8, "sliding_window": 5},
    ),
    "gpt-2": ("GPT2", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}),
    "gpt-j": ("GPTJ", {"n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 4}),
    "granite": ("Granite", _LLAMA),
    "granite moe": ("GraniteMoe", _MOE | {"num_local_experts": 4}),
    "helium": ("Helium", _LLAMA | {"head_dim": 8}),
    "hunyuan": ("HunYuanDenseV1", _LLAMA | {"head_dim": 8}),
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
    "lfm2": ("Lfm2", _LLAMA | {"layer_types": ["conv", "full_attention"]}),
    "llama": ("Llama", _LLAMA),
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
    "minimax": ("MiniMax", _MOE | {"num_local_experts": 4, "block_size": 8}),
    "mistral": ("Mistral", _LLAMA | {"sliding_window": 5}),
    "mixtral": ("Mixtral", _MOE | {"num_local_experts": 4}),
    "mpt": ("Mpt", {"d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 64}),
    "nemotron": ("Nemotron", _LLAMA),
    "olmo": ("Olmo", _LLAMA),
    "olmo 2": ("Olmo2", _LLAMA),
    "olmoe": ("Olmoe", _MOE | {"num_experts": 4}),
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
            "layer_types": ["linear_attention", "full_attention"],
            "linear_num_value_heads": 4,
            "linear_num_key_heads": 2,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
        },
    ),
    "recurrent gemma": (
        "RecurrentGemma",
        _LLAMA | {"num_hidden_layers": 3, "lru_width": 32, "attention_window_size": 5},
    ),
    "rwkv": ("Rwkv", {"hidden_size": 32, "num_hidden_layers": 2, "context_length": 64}),
    "seed oss": ("SeedOss", _LLAMA | {"head_dim": 8}),
    "smollm 3": ("SmolLM3", _LLAMA),
    "stablelm": ("StableLm", _LLAMA),
    "starcoder 2": ("Starcoder2", _LLAMA | {"sliding_window": 5}),
    "xglm": ("XGLM", {"d_model": 32, "ffn_dim": 48, "num_layers": 2, "attention_heads": 4}),
    "zamba 2": (
        "Zamba2",
        _LLAMA
        | {
            "mamba_d_state": 8,
            "mamba_headdim": 8,
            "n_mamba_heads": 8,
            "mamba_ngroups": 1,
            "layers_block_type": ["mamba", "hybrid"],
            "num_mem_blocks": 1,
            "use_mamba_kernels": False,
        },
    ),
}


def build(name: str) -> Any:
    """A float32 model in evaluation mode, sharper than at initialisation."""
    family, fields = ARCHITECTURES[name]
    config = getattr(transformers, f"{family}Config")(**{**_IDS, **fields})
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
        for p in model.parameters():
            if p.dim() > 1:
                p.mul_(3.0)
    return model


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


def oracle(logits: torch.Tensor, tokens: torch.Tensor) -> Oracle:
    """log p, log q and H by sorting probabilities, one step at a time."""
    raw, steps = logits.detach().double().numpy(), np.arange(len(tokens))
    a = raw / POLICY.temperature
    p = np.exp(a - a.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    order = np.argsort(-p, axis=-1, kind="stable")
    sums = np.take_along_axis(p, order, -1).cumsum(-1)
    kept = np.zeros_like(p, dtype=bool)
    np.put_along_axis(kept, order, np.pad(sums[:, :-1], ((0, 0), (1, 0))) < POLICY.top_p, -1)
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
        near=np.abs(sums - POLICY.top_p).min(-1) < NEAR_A_CUT,
    )


def worst(scores: list[TokenScores], model: Any) -> float:
    """Largest difference of log p, log q and H from the oracle's; ∞ where a support differs."""
    found = 0.0
    for sequence, one in zip(sequences(), scores, strict=True):
        if not len(sequence.response_ids):
            continue
        with torch.no_grad():
            own = oracle(own_logits(model, sequence), sequence.response_ids)
        mine = (one.logprobs, one.logqs, one.stats.rb_entropy)
        for field, (ours, theirs) in enumerate(
            zip(mine, (own.log_p, own.log_q, own.entropy), strict=True)
        ):
            some = np.ones_like(own.near) if field == 0 else ~own.near
            a, b = ours.detach().double().numpy()[some], theirs[some]
            gaps = np.where(a == b, 0.0, np.abs(a - np.where(a == b, 0.0, b)))
            found = max(found, float(gaps.max(initial=0.0)))
    return found


def float64_precision() -> PrecisionConfig:
    precision = PrecisionConfig()
    for profile in (precision.func_override, precision.tf_nograd, precision.tf_withgrad):
        profile.dtype = "float64"
    return precision


# What is looked at, each a figure of one model.


def packed(model: Any) -> float:
    """Several lengths in a batch, prompts shared, against plain forwards. Nats."""
    return worst(TeacherForcingScorer(model).score(sequences(), POLICY)[0], model)


def padded(model: Any) -> float:
    """Whole sequences in padded batches. Nats."""
    scorer = TeacherForcingScorer(model)
    return worst(scorer.score(sequences(), POLICY, share_prompts=False)[0], model)


def alone(model: Any) -> float:
    """One sequence at a time. Nats."""
    scorer = TeacherForcingScorer(model)
    found = scorer.score(sequences(), POLICY, batch_size=1, share_prompts=False)
    return worst(found[0], model)


def float64(model: Any) -> float:
    """True float64 against plain float64 forwards. Nats."""
    scores = TeacherForcingScorer(model, precision=float64_precision()).score(sequences(), POLICY)
    with Float64Lift():
        return worst(scores[0], copy.deepcopy(model).double())


def forward_derivative(model: Any) -> float:
    """`jvp` of log p and H in float64 against central differences, of the largest."""
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
            (slope.rb_entropy, (a.stats.rb_entropy - b.stats.rb_entropy) / (2 * STEP)),
        )
    ]
    return _relative(pairs)


def gradient(model: Any) -> float:
    """∇ Σ log p of all sequences in float64 against autograd of the model's own forward."""
    wide = copy.deepcopy(model).double()  # before a graph is kept in any of its states
    scorer = TeacherForcingScorer(model, precision=float64_precision())
    total = torch.cat([s.logprobs for s in scorer.score_with_grad(sequences(), POLICY)]).sum()
    with Float64Lift():
        each = [
            own_logits(wide, s).log_softmax(-1).gather(-1, s.response_ids[:, None]).sum()
            for s in sequences()
            if len(s.response_ids)
        ]
        own = _gradients(torch.stack(each).sum(), wide)
    return _relative(list(zip(_gradients(total, model), own, strict=True)))


def _gradients(value: torch.Tensor, model: Any) -> tuple[torch.Tensor, ...]:
    params = list(model.parameters())
    return torch.autograd.grad(value, params, allow_unused=True, materialize_grads=True)


def _relative(pairs: list[tuple[torch.Tensor, torch.Tensor]]) -> float:
    gaps = [float((a.double() - b.double()).abs().max()) for a, b in pairs if a.numel()]
    sizes = [float(b.double().abs().max()) for a, b in pairs if a.numel()]
    return max(gaps) / max(sizes)


COLUMNS: dict[str, tuple[Callable[[Any], float], float]] = {  # and what is right
    "packed": (packed, 1e-5),
    "padded": (padded, 1e-5),
    "alone": (alone, 1e-5),
    "float64": (float64, 1e-10),
    "jvp": (forward_derivative, 1e-6),
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


def examined(name: str) -> Line:
    """Everything about one architecture."""
    model = build(name)
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
    names = sys.argv[1:] or list(ARCHITECTURES)
    for row in table(examined(name) for name in names):
        print(row, flush=True)


if __name__ == "__main__":
    main()

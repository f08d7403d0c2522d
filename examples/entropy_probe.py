"""How entropy moves with the weights: ΔH(η)/η at θ + η·v, down to tiny η, in true float64.

Sequences are sampled once, at θ, and scored again at θ + η·v for a random unit direction v. H is
the mean over sequences of their summed Rao-Blackwell entropies. Two differences are shown: on the
sampled sequences as they are, and reweighted to the distribution at θ + η·v by the importance
weights w = q_η(y)/q_0(y). Both settle to a derivative as η falls; in float32 they would drown in
rounding long before.

    python examples/entropy_probe.py --draws 4 --max-new-tokens 16
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from torch import Tensor, nn

from seqproc import BatchedSequences, LogprobResults, SequenceProcessor, load_model

CONFIG = {
    "generation": {"temperature": 1.0, "top_p": 1.0},
    "precision": {"func_override": {"dtype": "float64"}, "tf_nograd": {"dtype": "float64"}},
}


def main() -> None:
    args = parse_arguments()
    model, tokenizer = load_model(args.model, dtype="float64")
    with SequenceProcessor(model, tokenizer, config=CONFIG, engine=args.engine) as processor:
        processor.config.max_new_tokens = args.max_new_tokens
        prompts, _ = processor.sample_prompts("arithmetic", num_prompts=args.draws, seed=args.seed)
        sequences = processor.generate_batched(prompts, G=1, seed=args.seed)
        direction = unit_direction(model, args.seed)
        at_zero = score(processor, sequences, {}, 0.0)
        print(f"H(0) = {entropies(at_zero).mean():.12f} nats per sequence")
        print("      η    ΔH(η)/η on the samples    ΔH(η)/η reweighted    max |w − 1|")
        for eta in (10.0**-k for k in range(2, 9)):
            shifted = score(processor, sequences, direction, eta)
            plain, reweighted, weights = differences(at_zero, shifted)
            largest = np.abs(weights - 1).max()
            print(f"{eta:.0e} {plain / eta:24.8f} {reweighted / eta:21.8f} {largest:14.2e}")


def unit_direction(model: nn.Module, seed: int) -> dict[str, Tensor]:
    """A random v over all parameters, with ‖v‖ = 1."""
    generator = torch.Generator().manual_seed(seed)
    direction = {
        name: torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p.device)
        for name, p in model.named_parameters()
    }
    norm = sum(float(v.square().sum()) for v in direction.values()) ** 0.5
    return {name: v / norm for name, v in direction.items()}


def score(
    processor: SequenceProcessor,
    sequences: BatchedSequences,
    direction: dict[str, Tensor],
    eta: float,
) -> LogprobResults:
    """Score the sequences at θ + η·v."""
    override = processor.build_params_override(direction, eta)
    return processor.teacher_force_logprobs(sequences, compute_rb=True, params_override=override)


def entropies(results: LogprobResults) -> np.ndarray:
    """Σ_t H(q_t) of each sequence, in nats."""
    return np.array([row[0].sum() for row in results.rb_entropies])


def differences(zero: LogprobResults, shifted: LogprobResults) -> tuple[float, float, np.ndarray]:
    """ΔH on the samples, ΔH with importance weights, and the weights."""
    log_weights = [
        float((after[0] - before[0]).sum())
        for after, before in zip(shifted.token_logqs or [], zero.token_logqs or [], strict=True)
    ]
    weights = np.exp(log_weights)
    before, after = entropies(zero), entropies(shifted)
    plain = float((after - before).mean())
    # Σ w (H_η − H_0) + Σ (w − w̄) H_0: the small parts are never hidden behind large ones.
    moved = (np.expm1(log_weights) - np.expm1(log_weights).mean()) * before
    return plain, float((weights * (after - before) + moved).sum() / weights.sum()), weights


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--engine", default="hf")
    parser.add_argument("--draws", type=int, default=4, help="prompts, one response each")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--max-new-tokens", type=int, default=16)
    return parser.parse_args()


if __name__ == "__main__":
    main()

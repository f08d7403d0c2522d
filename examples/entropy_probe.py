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

from seqproc import LogprobResults, SequenceProcessor, load_model
from seqproc import estimators as est

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
        etas = [10.0**-k for k in range(2, 9)]
        zero, *shifted = (
            results for results, _ in processor.sweep(sequences, direction, [0.0, *etas])
        )
        print(f"H(0) = {est.mean(entropies(zero))} nats per sequence")
        print("      η    ΔH(η)/η on the samples    ΔH(η)/η reweighted    max |w − 1|")
        for eta, at_eta in zip(etas, shifted, strict=True):
            before, after = entropies(zero), entropies(at_eta)
            log_weights = est.sequence_log_weights(logqs(at_eta), logqs(zero))
            plain = est.mean(after - before).value
            reweighted = est.change(after, before, log_weights).value
            largest = np.abs(np.expm1(log_weights)).max()
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


def entropies(results: LogprobResults) -> np.ndarray:
    """Σ_t H(q_t) of each sequence, in nats."""
    return np.array([row[0].sum() for row in results.rb_entropies])


def logqs(results: LogprobResults) -> list[np.ndarray]:
    """log q of the tokens of each sequence, in nats."""
    return [row[0] for row in results.token_logqs or []]


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

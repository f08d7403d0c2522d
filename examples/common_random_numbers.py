"""What a small change of the weights does to the entropy, with and without common random numbers.

The entropy of a response, E[Σ_t H(q_t)], is estimated by sampling at θ and again at θ + η·v, for a
random v that moves every parameter by about its own size. Coupled sampling makes a draw's tokens a
function of its logits and its seed: with the same seeds at both ends most responses stay as they
were, and what they have in common falls out of the difference. With other seeds the noise of both
ends adds up. Both estimates are right; the variance ratio says how many times fewer draws the
first needs.

    python examples/common_random_numbers.py --draws 32 --eta 0.001
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from torch import Tensor, nn

from seqproc import BatchedSequences, SequenceProcessor
from seqproc import estimators as est
from seqproc.models.parameters import ParamMapping


def main() -> None:
    args = parse_arguments()
    options = {"sampler": "coupled"} if args.engine == "vllm" else {}  # hf always couples
    with SequenceProcessor.from_pretrained(
        args.model, args.engine, engine_options=options
    ) as processor:
        processor.config.max_new_tokens = args.max_new_tokens
        prompts, _ = processor.sample_prompts("arithmetic", num_prompts=args.draws, seed=args.seed)
        direction = random_direction(processor.model, args.seed)
        shifted = processor.build_params_override(direction, args.eta)

        at_zero = processor.generate_batched(prompts, G=1, seed=args.seed)
        processor.engine.load_weights(shifted)
        same_seeds = processor.generate_batched(prompts, G=1, seed=args.seed)
        other_seeds = processor.generate_batched(prompts, G=1, seed=args.seed + 1)
        processor.engine.load_weights(None)

        before = entropies(processor, at_zero)
        coupled = est.mean(entropies(processor, same_seeds, shifted) - before)
        independent = est.mean(entropies(processor, other_seeds, shifted) - before)

    print(f"entropy of a response at θ: {est.mean(before)} nats")
    print(f"change at θ + {args.eta:g}·v, same seeds:        {coupled}")
    print(f"change at θ + {args.eta:g}·v, independent seeds: {independent}")
    print(
        f"same tokens as at θ, of {len(prompts)} responses: {num_same(at_zero, same_seeds)} with "
        f"the same seeds, {num_same(at_zero, other_seeds)} with independent ones"
    )
    gain = (independent.standard_error / coupled.standard_error) ** 2
    print(f"variance ratio, independent over same seeds: {gain:.1f}")


def random_direction(model: nn.Module, seed: int) -> dict[str, Tensor]:
    """A random v, as large as the parameters in each of them."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: (torch.randn(p.shape, generator=generator) * p.detach().abs().mean().cpu()).to(p)
        for name, p in model.named_parameters()
    }


def entropies(
    processor: SequenceProcessor, sequences: BatchedSequences, weights: ParamMapping | None = None
) -> np.ndarray:
    """Σ_t H(q_t) of each sequence under the weights that sampled it, in nats."""
    results = processor.teacher_force_logprobs(sequences, compute_rb=True, params_override=weights)
    return np.array([row[0].sum() for row in results.rb_entropies])


def num_same(one: BatchedSequences, other: BatchedSequences) -> int:
    """Responses that are the same, token for token."""
    return sum(
        one.response_ids(b, 0).tolist() == other.response_ids(b, 0).tolist()
        for b in range(one.num_prompts)
    )


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--engine", default="hf", help="one that samples by coupling")
    parser.add_argument("--draws", type=int, default=32, help="prompts, one response each")
    parser.add_argument("--eta", type=float, default=1e-3, help="step, in sizes of the parameters")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--max-new-tokens", type=int, default=32)
    return parser.parse_args()


if __name__ == "__main__":
    main()

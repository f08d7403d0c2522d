"""Two engines and one scorer: do they sample the same tokens, and report the scorer's log q?

The same prompts go to both engines, first greedily and then sampled. Greedy tokens should agree up
to near-ties in the logits. The log q that an engine reports for its own tokens should be the
scorer's, up to rounding: in float32 about 1e-5 on average, and at worst a few 1e-4.

    python examples/compare_engines.py --engine vllm --reference hf --draws 16
"""

from __future__ import annotations

import argparse

from seqproc import BatchedSequences, GenerationConfig, SequenceProcessor


def main() -> None:
    args = parse_arguments()
    names = (args.reference, args.engine)
    reference, other = (SequenceProcessor.from_pretrained(args.model, name) for name in names)
    prompts, _ = reference.sample_prompts("arithmetic", num_prompts=args.draws, seed=args.seed)
    with reference, other:
        for do_sample in (False, True):
            print("sampled, T = 1, top_p = 0.95" if do_sample else "greedy")
            batches = []
            for name, processor in zip(names, (reference, other), strict=True):
                processor.config = GenerationConfig(
                    do_sample=do_sample,
                    top_p=0.95,
                    max_new_tokens=args.max_new_tokens,
                    gen_batch_size=args.draws,
                )
                batches.append(processor.generate_batched(prompts, G=1, seed=args.seed))
                show_logq_differences(name, reference, batches[-1])
            if not do_sample:
                show_token_differences(*batches)


def show_logq_differences(name: str, scorer: SequenceProcessor, batch: BatchedSequences) -> None:
    """The engine's own log q against the scorer's, over every token that it sampled."""
    results = scorer.teacher_force_logprobs(batch)
    assert results.token_logqs is not None
    assert results.engine_logqs is not None
    outside = worst = 0.0
    tokens = 0
    for scored, reported in zip(results.token_logqs, results.engine_logqs, strict=True):
        if reported[0] is None:
            print(f"  {name}: reports no log q")
            return
        inside = scored[0].isfinite()
        difference = (scored[0].double() - reported[0])[inside].abs()
        worst = max(worst, difference.max().item() if len(difference) else 0.0)
        outside += int((~inside).sum())
        tokens += len(inside)
    print(f"  {name}: {tokens} tokens, max |Δ log q| {worst:.2e}, {outside:.0f} out of support")


def show_token_differences(one: BatchedSequences, other: BatchedSequences) -> None:
    """How many responses are the same, token for token."""
    same = sum(
        one.response_ids(b, 0).tolist() == other.response_ids(b, 0).tolist()
        for b in range(one.num_prompts)
    )
    print(f"  {same} of {one.num_prompts} responses identical")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--engine", default="vllm")
    parser.add_argument("--reference", default="hf", help="the engine to compare with")
    parser.add_argument("--draws", type=int, default=16, help="prompts, one response each")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--max-new-tokens", type=int, default=48)
    return parser.parse_args()


if __name__ == "__main__":
    main()

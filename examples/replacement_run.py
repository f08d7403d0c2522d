"""A run of independent draws, kept in a folder and read back a batch at a time.

Each draw is a prompt drawn with replacement and one response to it. Memory does not grow with
their number, so `--draws 32768` is run in the same way:

    python examples/replacement_run.py --out runs/replacement --draws 256 --top-p 0.95
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path

from seqproc import GenerationConfig, SequenceProcessor
from seqproc.runs import Run, RunSpec, open_run, sample_run


def main() -> None:
    args = parse_arguments()
    config = GenerationConfig(top_p=args.top_p, max_new_tokens=args.max_new_tokens)
    spec = RunSpec(dataset=args.dataset, draws=args.draws, seed=args.seed)
    with SequenceProcessor.from_pretrained(args.model, args.engine, config=config) as processor:
        result = sample_run(processor, spec, args.out)

    entropy = result.summary.rb_entropy_per_token
    print(f"{result.summary.num_tokens} tokens, finish reasons {result.summary.finish_reasons}")
    print(f"RB entropy {entropy.mean:.4f} ± {entropy.standard_error or 0:.4f} nats per token")
    for reason, mean in entropy_by_finish_reason(open_run(args.out)).items():
        print(f"  of responses that ended by {reason!r}: {mean:.4f}")


def entropy_by_finish_reason(run: Run) -> dict[str, float]:
    """Mean RB entropy per token, reading two columns and 256 rows at a time."""
    total: dict[str, float] = defaultdict(float)
    count: dict[str, int] = defaultdict(int)
    for batch in run.batches(["finish_reason", "rb_entropies"]):
        for row in batch.to_pylist():
            total[row["finish_reason"]] += sum(row["rb_entropies"])
            count[row["finish_reason"]] += len(row["rb_entropies"])
    return {reason: total[reason] / count[reason] for reason in sorted(total)}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="the run's folder, new or empty")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--engine", default="vllm")
    parser.add_argument("--dataset", default="arithmetic")
    parser.add_argument("--draws", type=int, default=256)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--top-p", type=float, default=0.95)
    parser.add_argument("--max-new-tokens", type=int, default=64)
    return parser.parse_args()


if __name__ == "__main__":
    main()

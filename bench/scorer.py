"""Benchmark of the scorer: time, memory and error, beside other ways to score the same tokens.

    python bench/scorer.py [--parts speed,sharing,memory,overrides,jvp,accuracy]

In float32, T = 1, on the CPU or with --device cuda. Parts:

- speed: every contestant of `_peers.py` on the same batches; prompts of ~90, responses of 100
  tokens, nothing shared. Ratios are to the bare forward.
- sharing: 8 responses to each prompt of ~150 tokens, with and without shared prompts.
- memory: tensors beyond weights and hidden states; a backward pass against the naive one.
- overrides: θ + η·v against θ; a sweep of 8 η on a LoRA direction against 8 passes.
- jvp: derivatives along a direction against a pass of scoring.
- accuracy: largest error of each contestant against full sorts of true float64 logits.

Every measured run comes in each of the interleaved rounds. Prints a table per part, then one line
of JSON with all rows, versions and hardware. TRL and lm-evaluation-harness take part when they are
installed. Prompts are GSM8K's where a folder with test.jsonl is given, else `arithmetic`'s.
"""

from __future__ import annotations

import argparse
import copy
import functools
import os
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from _data import RESPONSE_TOKENS, sample
from _measuring import Row, high_water, tensor_peak, timed_rows
from _memory import PROMPT_TOKENS, memory_rows
from _oracle import cut_gaps, largest_errors, oracle
from _peers import BARE, CONTESTANTS, LM_EVAL, NUCLEUS, WHOLE, Case, Contestant, ours
from _report import json_line, table
from _tree import packed_hidden, packed_rows
from rich.console import Console
from torch import Tensor

from seqproc.config import NoGradProfile, OverrideProfile, PrecisionConfig
from seqproc.models import eos_token_ids, load_model
from seqproc.policy import SamplingPolicy
from seqproc.prompts.gsm8k import FOLDER_VARIABLE
from seqproc.scorers import (
    Batch,
    TeacherForcingScorer,
    TokenSequence,
    build_params_override,
    keep_freed_memory,
)
from seqproc.scorers import jvp as derivatives

SHARED_PROMPT_TOKENS, NUM_RESPONSES = 150, 8
ETAS = [10.0**-k for k in range(1, 9)]
CHECKED_SEQUENCES = 4
_FLOAT64 = PrecisionConfig(tf_nograd=NoGradProfile(dtype="float64"))
_WIDE_STATISTICS = PrecisionConfig(entropy_fp64=True)
_BFLOAT16 = PrecisionConfig(
    tf_nograd=NoGradProfile(dtype="bfloat16"),
    func_override=OverrideProfile(dtype="bfloat16"),
)


class Bench:
    """The model and data that the parts have in common."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.repeats = options, options.repeats
        self.model, self.tokenizer = load_model(options.model, device=options.device)
        self.eos = eos_token_ids(self.model, None, self.tokenizer)
        self.scorer = TeacherForcingScorer(self.model, self.eos)

    @functools.cached_property
    def case(self) -> Case:
        """Sequences without a common prompt."""
        return self._sampled(self.options.sequences, PROMPT_TOKENS)

    @functools.cached_property
    def families(self) -> Case:
        """Eight responses to each of a quarter as many prompts."""
        number = max(1, self.options.sequences // 4)
        return self._sampled(number, SHARED_PROMPT_TOKENS, NUM_RESPONSES)

    def float64(self, case: Case, number: int) -> Case:
        """The first of the sequences, to be scored in true float64."""
        scorer = TeacherForcingScorer(self.model, self.eos, _FLOAT64)
        return Case.of(scorer, self.tokenizer, case.sequences[:number])

    def _sampled(self, prompts: int, prompt_tokens: int, responses: int = 1) -> Case:
        sequences = sample(
            self.model,
            self.tokenizer,
            num_prompts=prompts,
            prompt_tokens=prompt_tokens,
            num_responses=responses,
            gsm8k=self.options.gsm8k,
            seed=self.options.seed,
        )
        return Case.of(self.scorer, self.tokenizer, sequences)


@torch.no_grad()
def speed(bench: Bench) -> Iterable[Row]:
    """Every contestant on sequences without a common prompt."""
    runs = _runs(bench.case, CONTESTANTS)
    rows = timed_rows("speed", runs, bench.repeats, BARE.name)
    for name, row in rows.items():
        row.tensor_peak_bytes, row.high_water_bytes = (
            tensor_peak(runs[name]),
            high_water(runs[name], bench.scorer.device),
        )
    return [*rows.values(), *_missing("speed", CONTESTANTS)]


@torch.no_grad()
def sharing(bench: Bench) -> Iterable[Row]:
    """Shared prompts against the same sequences one by one, and against peers that cannot share."""
    case, peers = bench.families, (BARE, LM_EVAL)
    whole = case.batches
    shared = [b.to(case.scorer.device) for b in case.scorer.schedule(case.sequences).batches]
    trees = packed_rows(case.sequences, case.scorer.device)

    def each(work: Callable[[Any], Any], items: Iterable[Any]) -> None:
        with case.scorer.forwarding(torch.float32):
            for item in items:
                work(item)

    def read(batch: Batch) -> Tensor:
        return case.scorer.parts.hidden_states(batch, None)

    rows = timed_rows(
        "sharing",
        {
            "top_p=0.95, not shared": lambda: ours(case, NUCLEUS),
            "top_p=0.95, shared": lambda: ours(case, NUCLEUS, share_prompts=True),
            "top_p=1, not shared": lambda: ours(case, WHOLE),
            "top_p=1, shared": lambda: ours(case, WHOLE, share_prompts=True),
            "backbone alone, not shared": lambda: each(read, whole),
            "backbone alone, shared": lambda: each(read, shared),
            "backbone alone, tree mask": lambda: each(
                functools.partial(packed_hidden, case.model), trees
            ),
            **_runs(case, peers),
        },
        bench.repeats,
        "top_p=0.95, not shared",
    )
    tokens = sum(b.num_tokens for b in shared) / sum(b.num_tokens for b in whole)
    for what in ("top_p=0.95", "top_p=1", "backbone alone"):
        row, base = rows[f"{what}, shared"], rows[f"{what}, not shared"]
        row.relate(base)
        assert row.ratio is not None
        medians = statistics.median(row.seconds) / statistics.median(base.seconds)
        row.values = {
            "token_ratio": tokens,
            "time_over_token_ratio": row.ratio / tokens,
            "that_of_medians": medians / tokens,
        }
    rows["backbone alone, tree mask"].relate(rows["backbone alone, not shared"])
    checks = (("float32", case), ("float64", bench.float64(case, 2 * NUM_RESPONSES)))
    differences = [
        _sharing_difference(dtype, checked, policy)
        for dtype, checked in checks
        for policy in (NUCLEUS, WHOLE)
    ]
    return [*rows.values(), *_missing("sharing", peers), *differences]


def _sharing_difference(dtype: str, case: Case, policy: SamplingPolicy) -> Row:
    expected = ours(case, policy) | {"gap": cut_gaps(case, policy)}
    found = ours(case, policy, share_prompts=True)
    number = len(case.sequences)
    return Row(
        part="sharing",
        name=f"shared against not, {dtype}, top_p={policy.top_p:g}, {number} sequences",
        max_error=largest_errors(case, found, expected),
        note="largest differences",
    )


def memory(bench: Bench) -> Iterable[Row]:
    """See `_memory.py`."""
    return memory_rows(bench.model, few=max(1, bench.options.sequences // 2))


@torch.no_grad()
def overrides(bench: Bench) -> Iterable[Row]:
    """A full direction built before and within the call; then a sweep on a LoRA direction."""
    case, direction = bench.case, random_direction(bench.model)
    built = build_params_override(bench.model, direction, 1e-3)

    def score(override: Any) -> Any:
        return _score(case.scorer, case.sequences, [override])

    rows = timed_rows(
        "overrides",
        {
            "no override": lambda: score(None),
            "override": lambda: score(built),
            "override, built in the call": lambda: score(
                build_params_override(bench.model, direction, 1e-3)
            ),
        },
        bench.repeats,
        "no override",
    )
    return [*rows.values(), *_sweep_rows(bench)]


def _sweep_rows(bench: Bench) -> Iterable[Row]:
    model = with_lora(bench.model)
    direction = random_direction(model)
    scorer, sequences = TeacherForcingScorer(model, bench.eos), bench.case.sequences

    def steps() -> Iterator[dict[str, Tensor]]:
        return (build_params_override(model, direction, eta) for eta in ETAS)

    one, sweep = "one pass of the LoRA model", f"sweep of {len(ETAS)} η on a LoRA direction"
    runs = {
        one: lambda: _score(scorer, sequences, [None]),
        sweep: lambda: _score(scorer, sequences, steps()),
    }
    rows = timed_rows("overrides", runs, bench.repeats, one)
    rows[sweep].relate(rows[one], times=len(ETAS))
    extra, own = extra_bytes(model, next(steps())), sum(p.nbytes for p in model.parameters())
    rows[sweep].values = {"extra_parameter_bytes": extra, "share_of_parameters": extra / own}
    return rows.values()


def with_lora(model: Any) -> Any:
    """A copy of the model with a random adapter of rank 8."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=8, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    return get_peft_model(copy.deepcopy(model), config).eval()


def random_direction(model: torch.nn.Module) -> dict[str, Tensor]:
    """A direction that moves every trained parameter by about a hundredth of its size."""
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(p.shape, generator=generator).to(p) * (0.01 * p.detach().abs().mean())
        for name, p in model.named_parameters()
        if p.requires_grad
    }


def extra_bytes(model: torch.nn.Module, mapping: dict[str, Tensor]) -> int:
    """Of the tensors of a mapping that are not the model's own."""
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    return sum(t.nbytes for t in mapping.values() if t.untyped_storage().data_ptr() not in own)


@torch.no_grad()
def jvp(bench: Bench) -> Iterable[Row]:
    """Forward-mode derivatives along a full direction, and along that of an adapter."""
    case, direction = bench.case, random_direction(bench.model)
    adapted = with_lora(bench.model)
    along_adapter = random_direction(adapted)
    of_adapted = TeacherForcingScorer(adapted, bench.eos)
    runs: dict[str, Callable[[], Any]] = {
        "one pass of scoring": lambda: _score(case.scorer, case.sequences, [None]),
        "jvp, all parameters": lambda: derivatives(
            case.scorer, case.sequences, NUCLEUS, direction, share_prompts=False
        ),
        "jvp, a LoRA direction": lambda: derivatives(
            of_adapted, case.sequences, NUCLEUS, along_adapter, share_prompts=False
        ),
    }
    rows = timed_rows("jvp", runs | _runs(case, [BARE]), bench.repeats, "one pass of scoring")
    return rows.values()


@torch.no_grad()
def accuracy(bench: Bench) -> Iterable[Row]:
    """Every contestant, and seqproc at every level of precision, against the oracle."""
    exact = bench.float64(bench.case, CHECKED_SEQUENCES)
    case = replace(exact, scorer=bench.scorer)
    named = [(c.name, c.policy, c.score(case)) for c in _present(CONTESTANTS)]
    named += [
        (f"seqproc, {level}, top_p={policy.top_p:g}", policy, ours(at_level, policy))
        for level, at_level in (
            ("float64", exact),
            ("float32, statistics in float64", _at(case, bench.model, _WIDE_STATISTICS)),
            ("bfloat16", _at(case, copy.deepcopy(bench.model).bfloat16(), _BFLOAT16)),
        )
        for policy in (NUCLEUS, WHOLE)
    ]
    oracles = {policy: oracle(exact, policy) for policy in (NUCLEUS, WHOLE)}
    rows = [
        Row(part="accuracy", name=name, max_error=largest_errors(case, found, oracles[policy]))
        for name, policy, found in named
        if found
    ]
    return [*rows, *_missing("accuracy", CONTESTANTS)]


def _at(case: Case, model: Any, precision: PrecisionConfig) -> Case:
    """The case under another precision, in the same batches."""
    return replace(case, scorer=TeacherForcingScorer(model, (), precision))


def _score(scorer: TeacherForcingScorer, sequences: list[TokenSequence], overrides: Any) -> Any:
    return scorer.score(sequences, NUCLEUS, share_prompts=False, overrides=overrides)


def _runs(case: Case, contestants: Sequence[Contestant]) -> dict[str, Callable[[], Any]]:
    return {c.name: functools.partial(c.score, case) for c in _present(contestants)}


def _present(contestants: Sequence[Contestant]) -> list[Contestant]:
    return [c for c in contestants if not c.missing]


def _missing(part: str, contestants: Sequence[Contestant]) -> list[Row]:
    return [Row(part=part, name=c.name, note=c.missing) for c in contestants if c.missing]


PARTS: dict[str, Callable[[Bench], Iterable[Row]]] = {
    "speed": speed,
    "sharing": sharing,
    "memory": memory,
    "overrides": overrides,
    "jvp": jvp,
    "accuracy": accuracy,
}


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", default="smollm2-135m", help="embedded name, folder or hub id")
    parser.add_argument(
        "--device", default="cpu", help="where the model is; cuda takes more sequences"
    )
    parser.add_argument("--sequences", type=int, default=16, help="other numbers follow from it")
    parser.add_argument(
        "--repeats", type=int, default=5, help="interleaved rounds, after a warm-up"
    )
    parser.add_argument(
        "--gsm8k", default=os.environ.get(FOLDER_VARIABLE), help="folder with test.jsonl"
    )
    parser.add_argument("--parts", default=",".join(PARTS), help="comma-separated")
    parser.add_argument("--seed", type=int, default=0, help="of the sampled responses")
    options = parser.parse_args()
    options.parts = options.parts.split(",")
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"unknown parts: {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    return options


def main() -> None:
    """Measure, show a table per part, and end with one line of JSON."""
    options = parse()
    keep_freed_memory()
    bench, console = Bench(options), Console(width=150)
    rows: list[Row] = []
    for part in options.parts:
        found = list(PARTS[part](bench))
        console.print(table(part, found))
        rows += found
    _add_errors(rows)
    settings = vars(options) | {"gsm8k": bool(options.gsm8k), "dtype": "float32"}
    print(json_line(settings | {"response_tokens": RESPONSE_TOKENS}, rows))


def _add_errors(rows: Sequence[Row]) -> None:
    """What was found on some of the sequences, to the rows of the same contestants' times."""
    errors = {row.name: row.max_error for row in rows if row.part == "accuracy"}
    for row in rows:
        if row.part == "speed":
            row.max_error = errors.get(row.name, {})


if __name__ == "__main__":
    main()

"""Benchmark of the engines: tokens per second, each beside its raw library on the same requests.

    python bench/engines.py [--engines hf,vllm] [--gsm8k DIR]

In float32. Parts:

- hf: the engine against `model.generate` with its own sampler, on the same left-padded batches,
  under the same T, top_p, EOS ids, stop strings and limit. Both sample in batches of 32. The raw
  one gives token ids alone; ours decodes them, and tells log q.
- vllm native: the engine against `LLM.generate`, on one LLM and with the sampling parameters that
  ours builds, so that feeding and finishing alone differ. Their tokens are the same.
- vllm coupled: the coupled sampler against vLLM's own, on one LLM: what coupling costs.

Samplers draw responses of other lengths, so speeds are compared, and not times. Every contestant
samples in each of the interleaved rounds, which have seeds of their own. Prints a table per part,
then one line of JSON with all rows, versions and hardware. Bounds are told and not asserted.
Prompts are GSM8K's where a folder with test.jsonl is given, else `arithmetic`'s.
"""

from __future__ import annotations

import argparse
import os
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from _data import TEMPLATE
from _measuring import Row, interleaved
from _report import json_line
from rich.console import Console
from rich.table import Table

from seqproc.config import GenerationConfig
from seqproc.engines import Engine, ModelSource, create_engine
from seqproc.engines.base import Request, StoppingRule
from seqproc.engines.stopping import finish
from seqproc.engines.vllm.options import sampling_params
from seqproc.models.tokenization import encode_prompts
from seqproc.policy import SamplingPolicy
from seqproc.prompts import choose_prompts, draw_seed, load_prompts
from seqproc.prompts.gsm8k import FOLDER_VARIABLE

BATCH_SIZE = 32  # of Hugging Face; vLLM schedules itself
LEAST_SPEED = {"hf": 0.9, "vllm native": 0.97}  # of ours, in the raw library's


class Bench:
    """What the parts have in common: the model, and the requests of every round."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.repeats = options.repeats
        self.source = ModelSource.from_pretrained(options.model)
        self.policy = SamplingPolicy(temperature=options.temperature, top_p=options.top_p)
        self.stopping = StoppingRule(
            max_new_tokens=options.max_new_tokens,
            eos_token_ids=self.source.eos_token_ids,
            stop=GenerationConfig().stop,
        )
        prompts = _prompts(self.source.tokenizer, options)
        self.rounds = [_requests(prompts, number) for number in range(1 + options.repeats)]
        self.described: dict[str, Any] = {}  # what each engine says it is

    @contextmanager
    def engine(self, part: str, name: str, **options: Any) -> Iterator[Engine]:
        """An engine for a part, described before it goes."""
        with create_engine(name, self.source, **options) as engine:
            yield engine
            self.described[part] = engine.describe()

    def ours(self, name: str, engine: Engine) -> Contestant:
        """An engine of ours as a contestant."""
        return Contestant(
            name=name,
            sample=lambda requests: list(engine.generate(requests, self.policy, self.stopping)),
            num_tokens=lambda completions: sum(len(c.token_ids) for c in completions),
        )


def _prompts(tokenizer: Any, options: argparse.Namespace) -> list[tuple[int, ...]]:
    """Token ids, the shortest first: an engine that sorts by length makes the same batches."""
    folder = str(options.gsm8k).removesuffix("test.jsonl")
    pool = load_prompts(*(f"gsm8k:{folder}", "test") if options.gsm8k else ("arithmetic", "train"))
    entries = choose_prompts(pool, options.requests, options.seed)
    texts = [TEMPLATE.format(entry.question) for entry in entries]
    return sorted(encode_prompts(tokenizer, texts), key=len)


def _requests(prompts: Sequence[tuple[int, ...]], number: int) -> list[Request]:
    first = number * len(prompts)
    return [
        Request(index=i, prompt_ids=ids, seed=draw_seed(0, first + i))
        for i, ids in enumerate(prompts)
    ]


@dataclass(kw_only=True)
class Contestant:
    """A way to sample requests. Its first call is the warm-up, the others are the rounds."""

    name: str
    sample: Callable[[list[Request]], Any]
    num_tokens: Callable[[Any], int]  # in what `sample` gave; counted when no clock runs
    outputs: list[Any] = field(default_factory=list)

    def sample_next(self, rounds: Sequence[list[Request]]) -> None:
        """Sample the requests of the next round."""
        self.outputs.append(self.sample(rounds[len(self.outputs)]))


@dataclass(kw_only=True, slots=True)
class SpeedRow(Row):
    """How fast a contestant samples; ratios are of tokens per second, within a round."""

    tokens: list[int]  # of each round
    tokens_per_s: list[float]
    median_tokens_per_s: float
    speed_ratios: list[float] = field(default_factory=list)  # to the baseline
    median_speed_ratio: float | None = None
    least_ratio: float | None = None  # that is asked for

    def compare(self, base: SpeedRow, least_ratio: float | None) -> None:
        """Set the ratios of this row's speed to another's."""
        pairs = zip(self.tokens_per_s, base.tokens_per_s, strict=True)
        self.speed_ratios = [round(own / other, 5) for own, other in pairs]
        self.median_speed_ratio = statistics.median(self.speed_ratios)
        self.baseline, self.least_ratio = base.name, least_ratio


def measured(part: str, bench: Bench, base: Contestant, other: Contestant) -> list[SpeedRow]:
    """Sample in interleaved rounds; the first contestant is the baseline."""
    runs = {c.name: partial(c.sample_next, bench.rounds) for c in (base, other)}
    seconds = interleaved(runs, bench.repeats)
    rows = [_row(part, contestant, seconds[contestant.name]) for contestant in (base, other)]
    rows[1].compare(rows[0], LEAST_SPEED.get(part))
    return rows


def _row(part: str, contestant: Contestant, seconds: list[float]) -> SpeedRow:
    tokens = [contestant.num_tokens(output) for output in contestant.outputs[1:]]
    speeds = [round(n / own, 3) for n, own in zip(tokens, seconds, strict=True)]
    return SpeedRow(
        part=part,
        name=contestant.name,
        seconds=[round(own, 6) for own in seconds],
        median_s=round(statistics.median(seconds), 6),
        min_s=round(min(seconds), 6),
        max_s=round(max(seconds), 6),
        tokens=tokens,
        tokens_per_s=speeds,
        median_tokens_per_s=statistics.median(speeds),
    )


# ---------------------------------------------------------------- parts


def hugging_face(bench: Bench) -> Iterable[SpeedRow]:
    """See the top."""
    with bench.engine("hf", "hf", batch_size=BATCH_SIZE) as engine:
        return measured("hf", bench, raw_transformers(bench), bench.ours("seqproc, hf", engine))


def raw_transformers(bench: Bench) -> Contestant:
    """`model.generate` with the sampler of transformers."""
    from transformers import GenerationConfig as TransformersConfig

    model: Any = bench.source.live_model()
    model.generation_config = TransformersConfig()  # no defaults of the checkpoint's
    tokenizer, stopping = bench.source.tokenizer, bench.stopping
    config = TransformersConfig(
        do_sample=True,
        temperature=bench.policy.temperature,
        top_p=bench.policy.top_p,
        top_k=0,
        max_new_tokens=stopping.max_new_tokens,
        stop_strings=list(stopping.stop),
        eos_token_id=list(stopping.eos_token_ids),
        pad_token_id=stopping.eos_token_ids[0],
    )

    def sample(requests: list[Request]) -> list[list[int]]:
        torch.manual_seed(requests[0].seed)
        rows: list[list[int]] = []
        for start in range(0, len(requests), BATCH_SIZE):
            ids = [list(r.prompt_ids) for r in requests[start : start + BATCH_SIZE]]
            padded = tokenizer.pad({"input_ids": ids}, padding_side="left", return_tensors="pt")
            inputs = padded.to(model.device)
            output = model.generate(**inputs, generation_config=config, tokenizer=tokenizer)
            rows += output[:, inputs["input_ids"].shape[1] :].tolist()
        return rows

    return Contestant(
        name="transformers",
        sample=sample,
        num_tokens=lambda rows: sum(len(finish(row, tokenizer, stopping)[0]) for row in rows),
    )


def vllm_native(bench: Bench) -> Iterable[SpeedRow]:
    """See the top."""
    with bench.engine("vllm native", "vllm") as engine:
        ours = bench.ours("seqproc, vllm native", engine)
        return measured("vllm native", bench, raw_vllm(bench, engine), ours)


def vllm_coupled(bench: Bench) -> Iterable[SpeedRow]:
    """See the top."""
    with bench.engine("vllm coupled", "vllm", sampler="coupled") as engine:
        ours = bench.ours("seqproc, vllm coupled", engine)
        return measured("vllm coupled", bench, raw_vllm(bench, engine), ours)


def raw_vllm(bench: Bench, engine: Any) -> Contestant:
    """`LLM.generate` of the engine's own LLM, with vLLM's sampler."""
    llm = engine._llm  # the engine lends it to nobody else

    def sample(requests: list[Request]) -> Any:
        return llm.generate(
            [{"prompt_token_ids": list(request.prompt_ids)} for request in requests],
            [sampling_params(request.seed, bench.policy, bench.stopping) for request in requests],
            use_tqdm=False,
        )

    return Contestant(
        name="vllm",
        sample=sample,
        num_tokens=lambda outputs: sum(len(o.outputs[0].token_ids) for o in outputs),
    )


# In this order: vLLM binds the threads of the process to cores, for good.
PARTS: dict[str, tuple[Callable[[Bench], Iterable[SpeedRow]], ...]] = {
    "hf": (hugging_face,),
    "vllm": (vllm_native, vllm_coupled),
}


# ---------------------------------------------------------------- report


def table(rows: Sequence[SpeedRow]) -> Table:
    """The rows of a part for people."""
    shown = Table(title=rows[0].part, title_justify="left", title_style="bold")
    shown.add_column("what")
    for column in ("tokens", "median s", "tokens/s", "min-max", "ratio", "min-max", "asked for"):
        shown.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        ratio, least = row.median_speed_ratio, row.least_ratio
        shown.add_row(
            row.name,
            f"{sum(row.tokens):,}",
            f"{row.median_s:.2f}",
            f"{row.median_tokens_per_s:.1f}",
            _range(row.tokens_per_s, ".1f"),
            "" if ratio is None else f"{ratio:.3f}",
            _range(row.speed_ratios, ".3f"),
            "" if ratio is None or least is None else f"{least:g}: {_word(ratio >= least)}",
        )
    return shown


def _range(numbers: Sequence[float], spec: str) -> str:
    return f"{min(numbers):{spec}}-{max(numbers):{spec}}" if numbers else ""


def _word(is_met: bool) -> str:
    return "met" if is_met else "missed"


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", default="smollm2-135m", help="embedded name, folder or hub id")
    parser.add_argument("--engines", default=",".join(PARTS), help="comma-separated")
    parser.add_argument("--requests", type=int, default=64, help="prompts, one response each")
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--top-p", type=float, default=0.95)
    parser.add_argument(
        "--repeats", type=int, default=5, help="interleaved rounds, after a warm-up"
    )
    parser.add_argument(
        "--gsm8k", default=os.environ.get(FOLDER_VARIABLE), help="folder with test.jsonl"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the choice of prompts")
    options = parser.parse_args()
    options.engines = options.engines.split(",")
    if unknown := set(options.engines) - set(PARTS):
        parser.error(f"unknown engines: {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    return options


def main() -> None:
    """Measure, show a table per part, and end with one line of JSON."""
    options = parse()
    bench, console = Bench(options), Console(width=130)
    rows: list[SpeedRow] = []
    for part in [part for name in PARTS if name in options.engines for part in PARTS[name]]:
        found = list(part(bench))
        console.print(table(found))
        rows += found
    settings = vars(options) | {"gsm8k": bool(options.gsm8k), "described": bench.described}
    print(json_line(settings, rows))


if __name__ == "__main__":
    main()

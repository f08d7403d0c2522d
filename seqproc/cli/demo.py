"""`seqproc demo`: the whole of it on the embedded model, with nothing to prepare."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from seqproc.cli.build import build_processor
from seqproc.cli.display import console, printable
from seqproc.cli.options import EngineOptions, ModelOptions, PolicyOptions

if TYPE_CHECKING:
    from seqproc.runs import RunResult, RunSpec

SHOWN = 3  # responses

_Model = Annotated[str, typer.Option(help="Another model, with a chat template.")]
_Engine = Annotated[str, typer.Option(help="vllm, hf, or an installed engine.")]
_Draws = Annotated[int, typer.Option(help="Problems drawn, a response each.")]
_MaxNewTokens = Annotated[int, typer.Option(help="Per response.")]
_Out = Annotated[
    Path | None, typer.Option(help="The run's folder. Default: runs/demo-<time>, here.")
]


def demo(
    model: _Model = "smollm2-135m",
    engine: _Engine = "vllm",
    draws: _Draws = 64,
    max_new_tokens: _MaxNewTokens = 96,
    out: _Out = None,
) -> None:
    """Sample and score a small model on arithmetic problems, and show what comes out."""
    from seqproc.cli.report import print_page
    from seqproc.cli.run_summary import print_result
    from seqproc.report.page import require_report
    from seqproc.runs import RunSpec, sample_run
    from seqproc.runs.format.layout import REPORT
    from seqproc.runs.opening import require_ready

    require_report()
    spec = RunSpec(dataset="arithmetic", draws=draws, seed=0, model=model, chat=True)
    folder = out or Path("runs") / time.strftime("demo-%Y%m%d-%H%M%S")
    require_ready(folder)
    policy = PolicyOptions(temperature=1.0, top_p=0.95)
    sampling = EngineOptions(engine=engine, max_new_tokens=max_new_tokens)
    _tell_plan(spec, sampling)
    with build_processor(ModelOptions(model=model), policy, sampling) as processor:
        result = sample_run(processor, spec, folder)
    _show_responses(result)
    print_result(result)
    console().print()
    print_page(result.open(), folder / REPORT)


def _tell_plan(spec: RunSpec, sampling: EngineOptions) -> None:
    steps = (
        f"1. draw {spec.draws} arithmetic problems with replacement, seed {spec.seed}",
        f"2. sample a response to each with {sampling.engine} from {spec.model}: "
        f"T = 1, top_p = 0.95, at most {sampling.max_new_tokens} tokens",
        "3. read every token again with torch in float32: log p, log q, Rao-Blackwell entropy",
        "4. reward the responses: half for the form, half for the answer",
        "5. write it all to a folder, with a page that shows it",
    )
    out = console()
    for step in steps:
        out.print(printable(step))
    out.print()


def _show_responses(result: RunResult) -> None:
    out = console()
    columns = ["question", "response_text", "logprobs", "rb_entropy_mean", "reward"]
    rows = result.open().rows(columns).slice(0, SHOWN).to_pylist()
    for row in rows:
        mean_logprob = sum(row["logprobs"]) / max(len(row["logprobs"]), 1)
        out.print(f"[bold]{printable(row['question'])}[/]")
        out.print(printable(row["response_text"].strip()))
        out.print(
            f"[dim]mean log p {mean_logprob:.3f}, RB entropy {row['rb_entropy_mean']:.3f} nats per "
            f"token, reward {row['reward']:g}[/]\n"
        )

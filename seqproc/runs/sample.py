"""`sample_run`: a run from its specification to its folder.

Everything that a user can get wrong is refused before the engine starts, and nothing is left
behind then. Memory does not grow with the number of draws: a chunk of them is held at a time, and
the distinct prompts.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NoReturn

from tqdm import tqdm

from seqproc.config import require_count
from seqproc.engines.base import Request
from seqproc.errors import ConfigError, PromptError
from seqproc.models.tokenization import as_chat
from seqproc.prompts import PromptEntry, load_prompts
from seqproc.rewards.rewarder import require_comparable
from seqproc.runs.plan import Draw, RunSpec, plan_draws
from seqproc.runs.result import RunResult
from seqproc.runs.rows import rows_table
from seqproc.runs.steps import Stopwatch, chunks, describe_run, score_and_reward
from seqproc.runs.summary import SummaryAccumulator
from seqproc.runs.writer import RunWriter, require_free

if TYPE_CHECKING:
    from seqproc.processor import SequenceProcessor

CHUNK_SIZE = 256  # draws generated, scored and committed together


def sample_run(
    processor: SequenceProcessor,
    spec: RunSpec,
    out: str | os.PathLike[str],
    *,
    chunk_size: int = CHUNK_SIZE,
) -> RunResult:
    """Sample, score and reward independent draws, and keep them in a folder.

    A draw's tokens depend on the specification and the processor's policy, not on ``chunk_size``.
    When the run is stopped by an error or Ctrl-C, the chunks committed so far stay valid and the
    manifest says "failed"; the error goes on to the caller.

    Args:
        processor: the model, engine, policy and precision. Closing it remains the caller's.
        spec: which draws to make.
        out: the run's folder; must not exist, or be empty.
        chunk_size: draws that are generated, scored and committed together.

    Raises:
        RunError: the folder is occupied, or cannot be written.
        ConfigError: ``spec.model`` is not the processor's model.
        DatasetError: the dataset or split is unknown, malformed or too small.
        PromptError: a prompt is too long, or there is no chat template.
        EngineError: the engine is unknown, cannot start, or fails.
        MissingDependencyError: pyarrow, or what the rewards or the engine need, is missing.
    """
    require_count("chunk_size", chunk_size)
    require_free(out)
    spec = _with_model(spec, processor)
    prompts = _Prompts(processor, spec)
    require_comparable(prompts.golds(), processor.reward)
    manifest = describe_run(processor, "sample", dataclasses.asdict(spec), spec.draws)
    summary, watch = SummaryAccumulator(), Stopwatch()
    with RunWriter.create(out, manifest) as run, _progress(spec.draws) as bar:
        for draws in chunks(prompts.draws(), chunk_size):
            entries = prompts.entries(draws)
            with watch.timing("generation_seconds"):
                sequences = processor.sampler.sample(prompts.requests(draws))
            results, diagnostics = score_and_reward(processor, sequences, entries, watch)
            rows = rows_table(draws, entries, sequences, results, diagnostics)
            summary.add(rows, **watch.lap())
            run.commit(rows, summary.result())
            bar.update(len(draws))
    return RunResult(path=run.path, manifest=run.manifest, summary=summary.result())


def _progress(total: int) -> tqdm[NoReturn]:
    return tqdm(total=total, desc="run", unit="draw", disable=None)


def _with_model(spec: RunSpec, processor: SequenceProcessor) -> RunSpec:
    name = processor.source.name
    if spec.model not in (None, name):
        raise ConfigError(
            f"the specification names the model {spec.model!r}, but the processor's is {name!r}; "
            "open that model, or leave model out of the specification"
        )
    return dataclasses.replace(spec, model=name)


class _Prompts:
    """The prompts that a run draws, each formatted and tokenised once."""

    def __init__(self, processor: SequenceProcessor, spec: RunSpec) -> None:
        self._spec = spec
        self._pool = load_prompts(spec.dataset, spec.split, data_dir=spec.data_dir)
        drawn = sorted({draw.prompt_index for draw in self.draws()})
        self._entries = {i: _as_read(processor, self._pool[i], chat=spec.chat) for i in drawn}
        texts = [self._entries[i].text for i in drawn]
        try:
            tokenised = processor.sampler.requests(texts, seeds=[0] * len(texts))
        except PromptError as error:
            raise PromptError(
                f"of the {len(texts)} prompts drawn from {spec.dataset!r} ({spec.split}): {error}"
            ) from error
        self._ids = {i: request.prompt_ids for i, request in zip(drawn, tokenised, strict=True)}

    def draws(self) -> Iterator[Draw]:
        return plan_draws(self._spec, self._pool)

    def golds(self) -> list[str | None]:
        return [entry.answer for entry in self._entries.values()]

    def entries(self, draws: Sequence[Draw]) -> list[PromptEntry]:
        return [self._entries[draw.prompt_index] for draw in draws]

    def requests(self, draws: Sequence[Draw]) -> list[Request]:
        return [_request(draw, self._ids[draw.prompt_index]) for draw in draws]


def _as_read(processor: SequenceProcessor, entry: PromptEntry, *, chat: bool) -> PromptEntry:
    if not chat:
        return entry
    return dataclasses.replace(entry, text=as_chat(processor.tokenizer, entry.text))


def _request(draw: Draw, prompt_ids: tuple[int, ...]) -> Request:
    assert draw.seed is not None
    return Request(index=draw.index, prompt_ids=prompt_ids, seed=draw.seed)

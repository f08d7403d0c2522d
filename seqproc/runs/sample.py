"""`sample_run`: a run from its specification to its folder, and on from wherever it was stopped.

The draws are planned first. What is left to do is the plan without what is committed: requests go
to the engine as it has room for them, draws are committed as they finish, and their scores after
them. Everything that a user can get wrong is refused before the engine starts, and nothing is left
behind then. Memory does not grow with the number of draws, but for nine bytes each.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal, get_args

from seqproc._util.interruption import raising_on_termination
from seqproc.config import require_count, require_flag
from seqproc.engines.base import Completion
from seqproc.errors import ConfigError, RunError
from seqproc.rewards.rewarder import require_comparable
from seqproc.runs.asking import Answer, Asking, GivenUp
from seqproc.runs.describe import planned_run, with_engine
from seqproc.runs.format.manifest import Manifest
from seqproc.runs.format.manifest_file import read_manifest
from seqproc.runs.format.parts import Part
from seqproc.runs.format.quarantine import failed
from seqproc.runs.format.schema import DEFAULT_TOKEN_COLUMNS, check_token_columns
from seqproc.runs.format.tables import Sample, samples_table
from seqproc.runs.going_on import going_on
from seqproc.runs.merging import merge_parts
from seqproc.runs.opening import open_for_writing, require_ready, require_same
from seqproc.runs.plan import RunSpec
from seqproc.runs.prompts import DrawnPrompts
from seqproc.runs.result import RunResult
from seqproc.runs.run_folder import RunFolder
from seqproc.runs.scoring import ScoringStage, reward_all
from seqproc.runs.shards.executors import ExecutorName, choose_executor
from seqproc.runs.store.folder import Folder
from seqproc.runs.store.lock import RunLock
from seqproc.runs.watch.progress import Progress
from seqproc.runs.watch.tracking import require_tracker, tracked

if TYPE_CHECKING:
    from collections.abc import Sequence

    from seqproc.processor import SequenceProcessor

CHUNK_SIZE = 256  # draws committed together, at most
COMMIT_SECONDS = 60.0  # after which finished draws are committed, however few

ScoreWhen = Literal["auto", "now", "later", "overlap"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Options:
    chunk_size: int
    commit_seconds: float
    score: ScoreWhen


def sample_run(
    processor: SequenceProcessor,
    spec: RunSpec,
    out: str | os.PathLike[str],
    *,
    chunk_size: int = CHUNK_SIZE,
    commit_seconds: float = COMMIT_SECONDS,
    score: ScoreWhen = "auto",
    token_columns: Sequence[str] = DEFAULT_TOKEN_COLUMNS,
    fresh: bool = False,
    retry_quarantined: bool = False,
    track: str | None = None,
    executor: ExecutorName = "local",
    num_workers: int | None = None,
    num_gpus: float | None = None,
    num_shards: int | None = None,
) -> RunResult:
    """Sample, score and reward independent draws, and keep them in a folder.

    Called again with the same arguments it goes on where the folder stands, whatever stopped it. A
    draw's tokens depend on the specification and the processor's policy alone. When the run is
    stopped by an error, Ctrl-C or SIGTERM, what is finished is committed, the manifest says
    "failed" or "interrupted", and the error goes on to the caller.

    A draw that always fails is left out: `Run.quarantined` tells which, and why.

    Args:
        processor: the model, engine, policy and precision. Closing it remains the caller's.
        spec: which draws to make.
        out: the run's folder, new, empty or of the same run; or the URL of one in an object store.
        chunk_size: draws that are scored and committed together, at most.
        commit_seconds: after this time finished draws are committed, however few they are.
        score: "now", when draws are committed, the engine waiting meanwhile; "later", when all are
            sampled; "overlap", beside the sampling, in a thread of its own; "auto", later where the
            engine gives its memory back when it sleeps, and else now.
        token_columns: what to keep per token, of `seqproc.runs.TOKEN_COLUMNS`.
        fresh: begin anew, after all that the folder holds was set aside.
        retry_quarantined: try draws again that are in quarantine.
        track: an experiment tracker to tell how the run goes, "trackio", "wandb" or "mlflow", or
            one of them and a project of it, such as "wandb:my-project". With an executor it is
            told of each shard.
        executor: "local": this process makes the draws; "ray": workers on a Ray cluster do, each
            with a processor of its own that it opens as this one was opened, by
            `SequenceProcessor.from_pretrained`. They make shards below ``out``, which all of them
            can write to; in the end the shards are merged.
        num_workers: of an executor.
        num_gpus: of each worker; none by default.
        num_shards: into which an executor's draws are dealt out; four per worker by default, and
            as many as there are where the run is taken up again.

    Raises:
        RunMismatchError: the folder holds another run; the error says how it differs.
        RunError: the folder holds no run, is at work in another process, or cannot be written.
        ConfigError: ``spec.model`` is not the processor's model, or an option that is none.
        DatasetError: the dataset or split is unknown, malformed or too small.
        PromptError: no prompt can be read, or there is no chat template.
        EngineError: the engine is unknown, cannot start, or fails on everything.
        MissingDependencyError: pyarrow, or what the rewards or the engine need, is missing.
    """
    options = _checked(chunk_size, commit_seconds, score)
    columns = check_token_columns(token_columns)
    require_flag("fresh", fresh)
    require_flag("retry_quarantined", retry_quarantined)
    require_tracker(track)
    spec = _with_model(spec, processor)
    if chosen := choose_executor(executor, num_workers, num_gpus, num_shards):
        from seqproc.runs.shards.sharded import sample_in_shards

        return sample_in_shards(
            processor,
            spec,
            out,
            *chosen,
            {**dataclasses.asdict(options), "token_columns": columns, "track": track},
            fresh=fresh,
            retry_quarantined=retry_quarantined,
        )
    folder = require_ready(out)
    prompts, planned = planned_sample(processor, spec, folder, columns, fresh=fresh)
    manifest = with_engine(planned, processor)
    with raising_on_termination(), RunLock(folder) as lock:
        run = open_for_writing(folder, manifest, lock, fresh=fresh)
        if retry_quarantined:
            run.retry_quarantined()
        if not run.is_done or run.manifest.state != "complete":
            with tracked(run, track, processor.engine), going_on(run):
                _sample(run, processor, prompts, options)
    return RunResult.of(run)


def planned_sample(
    processor: SequenceProcessor,
    spec: RunSpec,
    folder: Folder,
    token_columns: Sequence[str],
    *,
    fresh: bool,
) -> tuple[DrawnPrompts, Manifest]:
    """The prompts of a run and its manifest, as far as it is known before an engine starts.

    Raises:
        SeqprocError: whatever a user can get wrong (`sample_run`), another run in the folder too.
    """
    prompts = DrawnPrompts(processor, spec)
    require_comparable(prompts.golds(), processor.reward)
    planned = planned_run(
        processor, "sample", dataclasses.asdict(spec), spec.draws, prompts.digest(), token_columns
    )
    if not fresh and (existing := read_manifest(folder)) is not None:
        require_same(existing, planned, folder, leave_out=("engine",))
    return prompts, planned


def _sample(
    run: RunFolder, processor: SequenceProcessor, prompts: DrawnPrompts, options: _Options
) -> None:
    todo = run.todo()
    run.add_failed(failed(draw, "prompt", error) for draw, error in prompts.unreadable(todo))
    with (
        Progress(run, engine=processor.engine) as progress,
        ScoringStage(run, processor, _when(options.score, processor)) as scoring,
    ):
        collected = _Collected(run, processor, prompts, options)
        try:
            asking = Asking(
                processor.sampler,
                tell=run.events.tell,
                witness=lambda: next(prompts.requests(run.first_sampled()), None),
            )
            for answer in collected.timed(asking.answers(prompts.requests(run.todo()))):
                if isinstance(answer, GivenUp):
                    draw = prompts.draw(answer.request.index)
                    run.add_failed([failed(draw, "generation", answer.error)])
                    continue
                collected.add(answer)
                progress.advance(1, len(answer.token_ids))
                if collected.is_due():
                    scoring.add(collected.commit())
        except BaseException as error:
            collected.rescue(error)
            raise
        if collected:
            scoring.add(collected.commit())
    merge_parts(run)


class _Collected:
    """Draws that are finished, and not yet committed."""

    def __init__(
        self,
        run: RunFolder,
        processor: SequenceProcessor,
        prompts: DrawnPrompts,
        options: _Options,
    ) -> None:
        self._run, self._processor, self._prompts = run, processor, prompts
        self._options = options
        self._samples: list[Sample] = []
        self._seconds = 0.0  # that the engine took for them

    def __bool__(self) -> bool:
        return bool(self._samples)

    def timed(self, answers: Iterator[Answer]) -> Iterator[Answer]:
        """The answers; the time until each counts as the engine's."""
        while True:
            start = time.perf_counter()
            answer = next(answers, None)
            self._seconds += time.perf_counter() - start
            if answer is None:
                return
            yield answer

    def add(self, completion: Completion) -> None:
        draw = self._prompts.draw(completion.index)
        request = next(self._prompts.requests([draw.index]))
        self._samples.append(
            Sample(
                draw=draw,
                entry=self._prompts.entry(draw),
                prompt_ids=request.prompt_ids,
                response_ids=completion.token_ids,
                response_text=completion.text,
                finish_reason=completion.finish_reason,
                stop_string=_stop_string(completion, self._processor.stopping.stop),
                engine_logqs=completion.logqs,
            )
        )

    def is_due(self) -> bool:
        is_late = self._seconds >= self._options.commit_seconds
        return len(self._samples) >= self._options.chunk_size or (is_late and bool(self._samples))

    def commit(self) -> Part:
        """Reward and commit what is collected."""
        samples = sorted(self._samples, key=lambda sample: sample.draw.index)
        rewarded, failures = reward_all(self._processor, samples, self._run.first_sample)
        part = self._run.add_samples(samples_table(rewarded), {"generation": self._seconds})
        self._run.add_failed(failures)
        self._samples, self._seconds = [], 0.0
        return part

    def rescue(self, error: BaseException) -> None:
        """Commit what is finished when something else went wrong; a second fault is only noted."""
        # What failed may have been what follows a commit: telling of it, for instance.
        self._samples = [one for one in self._samples if not self._run.has(one.draw.index)]
        if not self._samples:
            return
        try:
            self.commit()
        except Exception as second:
            error.add_note(f"{len(self._samples)} finished draws could not be committed: {second}")


def _when(score: ScoreWhen, processor: SequenceProcessor) -> ScoreWhen:
    if score != "auto":
        return score
    return "later" if processor.engine.can_sleep else "now"


def _stop_string(completion: Completion, stops: tuple[str, ...]) -> str | None:
    if completion.finish_reason != "stop":
        return None
    found = [stop for stop in stops if stop in completion.text]
    return min(found, key=lambda stop: completion.text.index(stop) + len(stop), default=None)


def _checked(chunk_size: int, commit_seconds: float, score: str) -> _Options:
    require_count("chunk_size", chunk_size)
    if isinstance(commit_seconds, bool) or not isinstance(commit_seconds, (int, float)):
        raise ConfigError(f"commit_seconds must be a number, got {commit_seconds!r:.60}")
    if not commit_seconds > 0:
        raise ConfigError(f"commit_seconds must be above 0, got {commit_seconds}")
    if score not in get_args(ScoreWhen):
        raise ConfigError(f"score must be one of {', '.join(get_args(ScoreWhen))}, got {score!r}")
    return _Options(chunk_size=chunk_size, commit_seconds=commit_seconds, score=score)  # type: ignore[arg-type]


def _with_model(spec: RunSpec, processor: SequenceProcessor) -> RunSpec:
    if not isinstance(spec, RunSpec):
        raise RunError(f"spec must be a RunSpec, got {type(spec).__name__}")
    name = processor.source.name
    if spec.model not in (None, name):
        raise ConfigError(
            f"the specification names the model {spec.model!r}, but the processor's is {name!r}; "
            "open that model, or leave model out of the specification"
        )
    return dataclasses.replace(spec, model=name)

"""`SequenceProcessor`: sample with an engine, score with torch, under one policy.

It joins prompts, an engine and a scorer; how an engine decodes and how a scorer batches is theirs.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, overload

import torch
from torch import Tensor, nn

from seqproc._util.printing import Facts, Printed, Words
from seqproc.config import (
    ConfigLike,
    GenerationConfig,
    PrecisionConfig,
    load_config,
    require_count,
    require_flag,
    torch_dtype,
)
from seqproc.engines import Engine, ModelSource
from seqproc.engines.base import StoppingRule
from seqproc.errors import (
    ConfigError,
    EngineError,
    OverrideError,
    UnknownAttributeError,
    did_you_mean,
)
from seqproc.models.parameters import ParamMapping
from seqproc.models.tokenization import Tokenizer, as_prompts
from seqproc.models.wrappers import unwrap
from seqproc.policy import SamplingPolicy
from seqproc.processor.compatibility import SpecificationAliases
from seqproc.processor.sampler import Sampler
from seqproc.processor.scoring import Scored, SequenceScorer, require_sequences
from seqproc.prompts import (
    PromptEntry,
    choose_prompts,
    draw_seed,
    load_prompts,
    replacement_indices,
)
from seqproc.rewards import Reward
from seqproc.rewards.rewarder import Rewarder, gold_answers, require_comparable
from seqproc.scorers import TeacherForcingScorer, overrides
from seqproc.scorers.derivatives import TokenDerivatives
from seqproc.scorers.gradients import Gradient, OfScores
from seqproc.types import BatchedSequences, DiagnosticsResults, LogprobResults, Provenance

# What replacement sampling hands on to `generate_with_logprobs`; the rest it decides itself.
_OF_REPLACEMENT_SAMPLING = ("with_grad", "gen_batch_size", "tf_batch_size", "compute_rb")


class SequenceProcessor(Printed, SpecificationAliases):
    """Generate sequences, score them by teacher forcing, and diagnose the sampling policy.

    Args:
        model: a causal language model in torch (data-parallel and PEFT wrappers are fine), or a
            `ModelSource`.
        tokenizer: the model's tokenizer; a source has its own.
        logger: where warnings go; by default the logger ``seqproc``.
        config: a `GenerationConfig`, a mapping with the sections ``generation`` and ``precision``,
            the path of a TOML file, or None for the defaults.
        engine: ``"hf"``, ``"vllm"``, the name of a registered engine, or an `Engine`. An engine
            that reads weights from disk takes a snapshot of the model when it first generates.
        engine_options: the engine's own options, e.g. those of `vllm.LLM`.
        reward: rewards of one prompt's responses, as a function of their texts and the prompt's
            `PromptEntry`; None for `tag_pref` with ``config.reward_weights``.

    Attributes:
        default_examples: entries that rewards are computed with where a call gives none.
        opened_with: arguments that `from_pretrained` was called with; None where it was not.

    Raises:
        ConfigError: when the configuration is not valid.
        ModelError: when model and tokenizer do not fit together.
    """

    def __init__(
        self,
        model: nn.Module | ModelSource,
        tokenizer: Tokenizer | None = None,
        logger: logging.Logger | None = None,
        config: ConfigLike = None,
        engine: str | Engine = "hf",
        *,
        engine_options: Mapping[str, Any] | None = None,
        reward: Reward | None = None,
    ) -> None:
        _require_set_up(logger, engine, engine_options)
        self.source = model if isinstance(model, ModelSource) else _source_of(model, tokenizer)
        self.logger = logger or logging.getLogger("seqproc")
        self._config, self._precision = load_config(config)
        self.tokenizer = self.source.tokenizer
        self.eos_token_ids = self.source.eos_token_ids
        self.default_examples: Sequence[PromptEntry] | None = None
        self._rewarder = Rewarder(self.tokenizer, reward, self.logger)
        self.sampler = Sampler(self.source, self._config, engine, engine_options)
        self.scoring = SequenceScorer(
            self.source, self._config, self._precision, self.provenance, self.logger
        )
        if self.source.is_live:
            self.scoring.teacher  # noqa: B018 - examines the model before anything is sampled
        self._is_set_up = True

    @classmethod
    def from_pretrained(
        cls,
        model: str,
        engine: str | Engine = "vllm",
        *,
        dtype: str = "float32",
        device: str | None = None,
        adapter: str | None = None,
        revision: str | None = None,
        trust_remote_code: bool = False,
        logger: logging.Logger | None = None,
        config: ConfigLike = None,
        engine_options: Mapping[str, Any] | None = None,
        reward: Reward | None = None,
    ) -> SequenceProcessor:
        """Open a model by name or path; the scorer's copy loads when something is first scored.

        Args:
            model: ``"smollm2-135m"`` (embedded), a hub id, or a local directory.
            engine: see the class.
            dtype: of engine and scorer; ``"float64"`` scores in true float64.
            device: of the scorer; None chooses an accelerator when there is one.
            adapter: a PEFT adapter's directory, for engine and scorer alike.
            revision: of the model on the hub.
            trust_remote_code: run code that the model's repository carries; off by default.
            logger: see the class.
            config: see the class.
            engine_options: see the class.
            reward: see the class.
        """
        source = ModelSource.from_pretrained(
            model,
            dtype=dtype,
            device=device,
            adapter=adapter,
            revision=revision,
            trust_remote_code=trust_remote_code,
        )
        processor = cls(
            source, None, logger, config, engine, engine_options=engine_options, reward=reward
        )
        processor.opened_with = {
            "model": model,
            "engine": engine,
            "dtype": dtype,
            "device": device,
            "adapter": adapter,
            "revision": revision,
            "trust_remote_code": trust_remote_code,
            "engine_options": engine_options,
            "reward": reward,
        }
        return processor

    def _facts(self) -> Facts:
        return {
            "model": self.source.name,
            "dtype": Words(self.source.dtype),
            "is_loaded": self.source.is_live,
            "engine": self.sampler.engine_name,
            "is_started": self.sampler.is_started,
            "policy": self.policy,
            "max_new_tokens": self.config.max_new_tokens,
        }

    opened_with: Mapping[str, Any] | None = None
    _is_set_up = False

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute that there is; a subclass may add its own."""
        known = hasattr(type(self), name) or name in vars(self) or not self._is_set_up
        if type(self) is SequenceProcessor and not known:
            hint = did_you_mean(name, [*dir(type(self)), *vars(self)])
            raise UnknownAttributeError(f"a SequenceProcessor has no attribute {name!r}{hint}")
        super().__setattr__(name, value)

    # ------------------------------------------------------------------ what it is made of

    @property
    def config(self) -> GenerationConfig:
        """The generation configuration; its fields may be changed, or all of it replaced."""
        return self._config

    @config.setter
    def config(self, config: GenerationConfig) -> None:
        if not isinstance(config, GenerationConfig):
            raise ConfigError(
                f"config must be a GenerationConfig, got {type(config).__name__}; precision is "
                "set at construction, or on the attribute precision"
            )
        self._config = self.sampler.config = self.scoring.config = config

    @property
    def reward(self) -> Reward | None:
        """The reward given at construction; None for `tag_pref`."""
        return self._rewarder.reward

    @property
    def precision(self) -> PrecisionConfig:
        """Dtypes of forwards and statistics; its fields may be changed, or all of it replaced."""
        return self._precision

    @precision.setter
    def precision(self, precision: PrecisionConfig) -> None:
        if not isinstance(precision, PrecisionConfig):
            raise ConfigError(
                f"precision must be a PrecisionConfig, got {type(precision).__name__}"
            )
        self._precision = precision
        self.scoring.use(precision)

    @property
    def model(self) -> nn.Module:
        """The scorer's model, loaded now if it was not."""
        return self.source.live_model()

    @property
    def engine(self) -> Engine:
        """The engine, started now if it was not."""
        return self.sampler.engine

    @property
    def scorer(self) -> TeacherForcingScorer:
        """The teacher-forcing scorer of the model, under this processor's precision."""
        return self.scoring.teacher

    @property
    def stopping(self) -> StoppingRule:
        """When a response ends, under the current configuration."""
        return self.sampler.stopping

    @property
    def policy(self) -> SamplingPolicy:
        """The sampling policy of the current configuration."""
        return self.config.policy

    def close(self) -> None:
        """Close the engine, if this processor started it, and drop temporary checkpoints."""
        self.sampler.close()
        self.source.close()

    def __enter__(self) -> SequenceProcessor:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ------------------------------------------------------------------ prompts

    def sample_prompts(
        self,
        dataset_name: str,
        split: str = "train",
        num_prompts: int | None = None,
        seed: int | None = None,
    ) -> tuple[list[str], list[PromptEntry]]:
        """Choose prompts of a dataset without replacement.

        Args:
            dataset_name: a registered dataset, e.g. ``"arithmetic"`` or ``"jsonl:PATH"``. A folder
                stands behind the colon, as in ``"gsm8k:FOLDER"``.
            split: its split.
            num_prompts: how many; None for all, in order.
            seed: of the choice; None for a random one.

        Returns:
            The prompts' texts, and their entries with the gold answers.

        Raises:
            DatasetError: unknown dataset or split, or more prompts asked for than there are.
        """
        entries = choose_prompts(
            load_prompts(dataset_name, split), num_prompts, _seed_or_random(seed)
        )
        return [entry.text for entry in entries], entries

    # ------------------------------------------------------------------ generation

    def generate_batched(
        self,
        prompts: Iterable[str],
        G: int | None = None,
        gen_batch_size: int | None = None,
        *,
        seed: int | None = None,
    ) -> BatchedSequences:
        """Sample G responses to each prompt.

        Args:
            prompts: B texts, as a list or from a generator.
            G: responses per prompt; None for ``config.num_return_sequences``.
            gen_batch_size: sequences per batch, for engines that batch statically.
            seed: of the call; response g of prompt b samples with ``draw_seed(seed, b·G + g)``.
                None for a random one; the seeds used are in the result.

        Returns:
            `BatchedSequences` ``[B, G, L]`` on the CPU.

        Raises:
            PromptError: no prompts, an empty one, or one too long for the model's context.
            ConfigError: ``G`` < 1.
            EngineError: when the engine fails.
        """
        prompts = as_prompts(prompts)
        num_responses = require_count("G", self.config.num_return_sequences if G is None else G)
        run_seed = _seed_or_random(seed)
        seeds = [draw_seed(run_seed, i) for i in range(len(prompts) * num_responses)]
        requests = self.sampler.requests(prompts, seeds, num_responses)
        sequences = self.sampler.sample(requests, num_responses, gen_batch_size)
        sequences.provenance = self.provenance()
        return sequences

    def generate_with_logprobs(
        self,
        prompts: Iterable[str] | None = None,
        G: int | None = None,
        dataset_name: str | None = None,
        split: str = "train",
        num_prompts: int | None = None,
        seed: int | None = None,
        with_grad: bool = False,
        gen_batch_size: int | None = None,
        tf_batch_size: int | None = None,
        compute_rb: bool = False,
        *,
        examples: Sequence[PromptEntry] | None = None,
    ) -> tuple[BatchedSequences, LogprobResults, DiagnosticsResults]:
        """Sample, score and reward, end to end.

        Args:
            prompts: B texts, or None to choose them from a dataset.
            G: responses per prompt; None for ``config.num_return_sequences``.
            dataset_name: see `sample_prompts`; give this or ``prompts``.
            split: see `sample_prompts`.
            num_prompts: see `sample_prompts`.
            seed: of the choice of prompts and of the sampling.
            with_grad: score on the live module with a graph.
            gen_batch_size: see `generate_batched`.
            tf_batch_size: sequences per forward; None for ``config.tf_batch_size``.
            compute_rb: fill the Rao-Blackwell entropies.
            examples: entries of the given ``prompts``, for their gold answers.

        Raises:
            ConfigError: when both or neither of ``prompts`` and ``dataset_name`` are given.
            MissingDependencyError: gold answers are to be compared, and math-verify is missing.
        """
        if (prompts is None) == (dataset_name is None):
            raise ConfigError("give either prompts or dataset_name, and not both")
        if prompts is not None and num_prompts is not None:
            raise ConfigError("num_prompts goes with dataset_name: all of prompts are sampled")
        seed = _seed_or_random(seed)
        if dataset_name is not None:
            prompts, examples = self.sample_prompts(dataset_name, split, num_prompts, seed)
        prompts = as_prompts(prompts)
        # Refused now, and not when all has been sampled.
        entries = self.default_examples if examples is None else examples
        require_comparable(gold_answers(entries, len(prompts)), self.reward)
        require_flag("with_grad", with_grad)
        require_flag("compute_rb", compute_rb)
        sequences = self.generate_batched(prompts, G, gen_batch_size, seed=seed)
        results, diagnostics = self.teacher_force_logprobs_with_diagnostics(
            sequences, with_grad=with_grad, tf_batch_size=tf_batch_size, compute_rb=compute_rb
        )
        results.rewards = self.compute_rewards(sequences, examples)
        return sequences, results, diagnostics

    def generate_with_replacement_sampling(
        self,
        total_sequences: int,
        dataset_name: str,
        split: str = "train",
        max_prompts_pool: int | None = None,
        seed: int | None = None,
        G: int = 1,
        **kwargs: Any,
    ) -> tuple[BatchedSequences, LogprobResults, DiagnosticsResults]:
        """Independent draws: a prompt drawn with replacement, and one response, each.

        Args:
            total_sequences: number of draws.
            dataset_name: see `sample_prompts`.
            split: see `sample_prompts`.
            max_prompts_pool: draw from this many prompts of the split, chosen by ``seed``.
            seed: of the run. Draw i does not depend on how many others there are.
            G: always 1, which is what makes the draws independent; anything else is overruled
                with a warning.
            **kwargs: ``with_grad``, ``gen_batch_size``, ``tf_batch_size`` and ``compute_rb`` of
                `generate_with_logprobs`.

        Raises:
            ConfigError: any other keyword.
        """
        require_count("total_sequences", total_sequences)
        _refuse_unknown(kwargs)
        if not (isinstance(G, int) and G == 1):
            self.logger.warning("replacement sampling draws G=1 response per prompt, not %s", G)
        seed = _seed_or_random(seed)
        pool = self.sample_prompts(dataset_name, split, max_prompts_pool, seed)[1]
        drawn = [pool[i] for i in replacement_indices(seed, len(pool), total_sequences)]
        return self.generate_with_logprobs(
            prompts=[entry.text for entry in drawn], G=1, seed=seed, examples=drawn, **kwargs
        )

    # ------------------------------------------------------------------ scoring

    @overload
    def teacher_force_logprobs(
        self,
        sequences: BatchedSequences,
        with_grad: bool = ...,
        tf_batch_size: int | None = ...,
        compute_rb: bool = ...,
        return_baseline_features: bool = ...,
        params_override: ParamMapping | None = ...,
        buffers_override: ParamMapping | None = ...,
    ) -> LogprobResults: ...

    @overload
    def teacher_force_logprobs(
        self,
        sequences: BatchedSequences,
        with_grad: bool = ...,
        tf_batch_size: int | None = ...,
        compute_rb: bool = ...,
        return_baseline_features: bool = ...,
        *,
        params_override: Sequence[ParamMapping],
        buffers_override: ParamMapping | None = ...,
    ) -> list[Scored]: ...

    def teacher_force_logprobs(
        self,
        sequences: BatchedSequences,
        with_grad: bool = False,
        tf_batch_size: int | None = None,
        compute_rb: bool = False,
        return_baseline_features: bool = False,
        params_override: ParamMapping | Sequence[ParamMapping] | None = None,
        buffers_override: ParamMapping | None = None,
    ) -> LogprobResults | list[Scored]:
        """`teacher_force_logprobs_with_diagnostics` without the diagnostics.

        With a list of ``params_override``, the list of (results, diagnostics) comes back.
        """
        scored = self.teacher_force_logprobs_with_diagnostics(
            sequences,
            with_grad,
            tf_batch_size,
            compute_rb,
            return_baseline_features,
            params_override,  # type: ignore[arg-type]
            buffers_override,
        )
        return scored if isinstance(scored, list) else scored[0]

    @overload
    def teacher_force_logprobs_with_diagnostics(
        self,
        sequences: BatchedSequences,
        with_grad: bool = ...,
        tf_batch_size: int | None = ...,
        compute_rb: bool = ...,
        return_baseline_features: bool = ...,
        params_override: ParamMapping | None = ...,
        buffers_override: ParamMapping | None = ...,
    ) -> Scored: ...

    @overload
    def teacher_force_logprobs_with_diagnostics(
        self,
        sequences: BatchedSequences,
        with_grad: bool = ...,
        tf_batch_size: int | None = ...,
        compute_rb: bool = ...,
        return_baseline_features: bool = ...,
        *,
        params_override: Sequence[ParamMapping],
        buffers_override: ParamMapping | None = ...,
    ) -> list[Scored]: ...

    def teacher_force_logprobs_with_diagnostics(
        self,
        sequences: BatchedSequences,
        with_grad: bool = False,
        tf_batch_size: int | None = None,
        compute_rb: bool = False,
        return_baseline_features: bool = False,
        params_override: ParamMapping | Sequence[ParamMapping] | None = None,
        buffers_override: ParamMapping | None = None,
    ) -> Scored | list[Scored]:
        """Score given sequences under the current policy, reading every generated token.

        Args:
            sequences: what to score; responses of length 0 are scored as empty.
            with_grad: score on the live module and keep the graph; takes no override.
            tf_batch_size: sequences per forward; None for ``config.tf_batch_size``. Results do
                not depend on it beyond rounding.
            compute_rb: fill ``rb_entropies``, and with gradients and ``config.rb_requires_grad``
                also ``rb_entropies_torch``.
            return_baseline_features: fill ``baseline_feats_torch``, [T, 7].
            params_override: θ + η·v as from `build_params_override`, possibly only some
                parameters; a list of mappings gives a list of results, by one schedule.
            buffers_override: buffers to replace.

        Returns:
            ``(LogprobResults, DiagnosticsResults)``; a list of them for a list of overrides.

        Raises:
            OverrideError: an override that does not fit, or one together with ``with_grad``.
            SequenceError: token ids outside the vocabulary.
            ScoringError: a log-probability that is not a number.
        """
        filled = {
            "compute_rb": require_flag("compute_rb", compute_rb),
            "baseline_features": require_flag("return_baseline_features", return_baseline_features),
        }
        if require_flag("with_grad", with_grad):
            if params_override is not None or buffers_override is not None:
                raise OverrideError(
                    "with_grad scores the live module and takes no override: score without "
                    "gradients, or differentiate through torch.func.functional_call yourself"
                )
            return self.scoring.score_with_grad(sequences, tf_batch_size, **filled)
        if params_override is None or isinstance(params_override, Mapping):
            one = [params_override]
            return self.scoring.score(sequences, one, buffers_override, tf_batch_size, **filled)[0]
        many = overrides.check_overrides(params_override)
        return self.scoring.score(
            sequences, many, buffers_override, tf_batch_size, num_overrides=len(many), **filled
        )

    def sweep(
        self,
        sequences: BatchedSequences,
        v_named: ParamMapping,
        etas: Sequence[float],
        tf_batch_size: int | None = None,
        compute_rb: bool = True,
    ) -> list[Scored]:
        """Score at θ + η·v for each η, by one schedule of batches, one override at a time.

        Args:
            sequences: what to score.
            v_named: the direction v by parameter name; what it leaves out does not move, and is
                not copied.
            etas: the steps η.
            tf_batch_size: see `teacher_force_logprobs_with_diagnostics`.
            compute_rb: fill ``rb_entropies``.

        Returns:
            ``(LogprobResults, DiagnosticsResults)`` for each η, in order.

        Raises:
            OverrideError: a direction that does not fit the model, or an η that is not finite.
        """
        steps = overrides.check_etas(etas)
        shifted = (self.build_params_override(v_named, eta) for eta in steps)
        return self.scoring.score(
            sequences,
            shifted,
            None,
            tf_batch_size,
            compute_rb=require_flag("compute_rb", compute_rb),
            num_overrides=len(steps),
        )

    def jvp(
        self,
        sequences: BatchedSequences,
        v_named: ParamMapping,
        tf_batch_size: int | None = None,
    ) -> list[list[TokenDerivatives]]:
        """d/dη at η = 0 of log p, log q and H of every token at θ + η·v, by forward mode.

        Args:
            sequences: what to score.
            v_named: the direction v by parameter name.
            tf_batch_size: see `teacher_force_logprobs_with_diagnostics`.

        Returns:
            ``[b][g]`` derivatives, each with the scores themselves. See
            `seqproc.scorers.derivatives`.

        Raises:
            OverrideError: a direction that does not fit the model.
        """
        return self.scoring.jvp(sequences, v_named, tf_batch_size)

    @overload
    def per_sequence_grads(
        self, sequences: BatchedSequences, of: OfScores = ..., project: None = ...
    ) -> Iterator[Gradient]: ...

    @overload
    def per_sequence_grads(
        self,
        sequences: BatchedSequences,
        of: OfScores = ...,
        *,
        project: ParamMapping | Sequence[ParamMapping],
    ) -> Tensor: ...

    def per_sequence_grads(
        self,
        sequences: BatchedSequences,
        of: OfScores = "logprob",
        project: ParamMapping | Sequence[ParamMapping] | None = None,
    ) -> Iterator[Gradient] | Tensor:
        """Gradients of one number per sequence, or their products with directions.

        Each sequence has a graph of its own: a gradient costs a forward and a backward pass of it.

        Args:
            sequences: what to differentiate, on the live module.
            of: ``"logprob"`` Σ log p_raw, ``"logq"`` Σ log q, ``"entropy"`` Σ H(q_t),
                ``"surrogate"`` Σ H_t + log q_t·Σ_{s>t} H_s, whose mean gradient is that of the
                sequence entropy, or a function of a sequence's `TokenScores`.
            project: directions v by parameter name, to get ⟨g, v⟩ and no gradients.

        Returns:
            An iterator over B·G gradients in the order ``[b][g]``, each computed when it is asked
            for; with one direction ``[B, G]``, with a list of K of them ``[B, G, K]``, in float64.

        Raises:
            ConfigError: an unknown name.
            OverrideError: a direction that does not fit the model.
            ScoringError: a score that is not a number, or log q of a token outside the support.
        """
        if project is None:
            return self.scoring.gradients(sequences, of)
        if isinstance(project, Mapping):
            return self.scoring.projected(sequences, [project], of)[..., 0]
        return self.scoring.projected(sequences, project, of)

    def weighted_grad(
        self, sequences: BatchedSequences, weights: Tensor, of: OfScores = "logprob"
    ) -> Gradient:
        """Σ w·g over all sequences, for weights ``[B, G]``, batch by batch.

        ``of`` is that of `per_sequence_grads`.
        """
        return self.scoring.weighted_gradient(sequences, weights, of)

    def gradient_gram(self, sequences: BatchedSequences, of: OfScores = "logprob") -> Tensor:
        """⟨g_i, g_j⟩ ``[B·G, B·G]``, float64; of ``"logq"`` the empirical Fisher kernel.

        ``of`` is that of `per_sequence_grads`. As many gradients as fit in half of the free memory
        are held at a time; those of the others are computed again for each part. How exact it is
        says `seqproc.scorers.gradient_gram`.
        """
        return self.scoring.gradient_gram(sequences, of)

    def provenance(self) -> Provenance:
        """What a result of this moment is made with."""
        return Provenance(
            policy=self.policy,
            model=self.source.name,
            engine=self.sampler.describe(),
            precision=dataclasses.asdict(self.precision),
            reward=self._rewarder.describe(self.config.reward_weights),
        )

    # ------------------------------------------------------------------ rewards

    def compute_rewards(
        self, sequences: BatchedSequences, examples: Sequence[PromptEntry] | None
    ) -> list[list[float]]:
        """Rewards ``[B][G]``: the processor's own, or `tag_pref`, 0 where there is no gold answer.

        Args:
            sequences: the responses.
            examples: one entry per prompt; None for ``default_examples``, or no gold answers.

        Raises:
            SequenceError: when there are not as many entries as prompts, or they are none.
        """
        require_sequences(sequences)
        if examples is None:
            examples = self.default_examples
        return self._rewarder.rewards(sequences, examples, self.config.reward_weights)

    # ------------------------------------------------------------------ overrides

    def build_params_override(
        self, v_named: ParamMapping | None, eta: float, *, allow_frozen: bool = False
    ) -> dict[str, Tensor]:
        """θ + η·v as a full mapping, at ``precision.func_override.dtype``.

        A parameter that ``v_named`` leaves out does not move; with an empty one none does.
        See `seqproc.scorers.overrides.build_params_override`.
        """
        return overrides.build_params_override(
            self.model,
            v_named,
            eta,
            dtype=self._override_dtype(),
            allow_frozen=require_flag("allow_frozen", allow_frozen),
        )

    def _override_dtype(self) -> torch.dtype | None:
        profile = self.precision.func_override
        return torch_dtype(profile.dtype) if profile.cast_params else None


def _source_of(model: nn.Module, tokenizer: Any) -> ModelSource:
    from seqproc.models import check_model_and_tokenizer

    model = unwrap(model)
    check_model_and_tokenizer(model, tokenizer)
    return ModelSource.from_model(model, tokenizer)


def _require_set_up(logger: object, engine: object, engine_options: object) -> None:
    if logger is not None and not hasattr(logger, "warning"):
        hint = "; give a configuration by keyword, config=" if _is_config(logger) else ""
        raise ConfigError(
            f"logger must be a logging.Logger or None, got {type(logger).__name__}{hint}"
        )
    if not isinstance(engine, str | Engine):
        raise EngineError(
            f"engine must be the name of an engine or an Engine, got {type(engine).__name__}"
        )
    if not isinstance(engine_options, Mapping | None):
        raise ConfigError(
            "engine_options must map names of options to values, got "
            f"{type(engine_options).__name__}"
        )


def _refuse_unknown(keywords: Mapping[str, object]) -> None:
    for name in keywords:
        if name not in _OF_REPLACEMENT_SAMPLING:
            raise ConfigError(
                f"generate_with_replacement_sampling has no argument {name!r}; beside its own it "
                f"takes {', '.join(_OF_REPLACEMENT_SAMPLING)}"
            )


def _is_config(value: object) -> bool:
    return isinstance(value, (GenerationConfig, Mapping, str, os.PathLike))


def _seed_or_random(seed: int | None) -> int:
    return secrets.randbits(63) if seed is None else seed

"""seqproc: language-model sequences, sampled fast and scored exactly.

An engine (vLLM, Hugging Face `generate`) samples; a torch scorer re-reads every token under the
same sampling policy. `SequenceProcessor` joins the two; the pieces are public as well.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from seqproc._util.lazy import lazy_names

__version__ = "0.1.0"

# Where each public name lives. Names are imported when first used, so `import seqproc` is quick.
_HOMES = {
    "BatchedSequences": "seqproc.types",
    "DiagnosticsPack": "seqproc.types",
    "DiagnosticsResults": "seqproc.types",
    "DistributionDiagnostics": "seqproc.scorers.diagnostics",
    "GenerationConfig": "seqproc.config",
    "LogprobResults": "seqproc.types",
    "PrecisionConfig": "seqproc.config",
    "PromptEntry": "seqproc.prompts",
    "SamplingPolicy": "seqproc.policy",
    "SeqprocError": "seqproc.errors",
    "SequenceDiagnostics": "seqproc.types",
    "SequenceProcessor": "seqproc.processor",
    "TokenStepDiagnostics": "seqproc.types",
    "build_params_override": "seqproc.scorers.overrides",
    "load_model": "seqproc.models",
    "load_prompts": "seqproc.prompts",
    "register_dataset": "seqproc.prompts",
    "tag_pref": "seqproc.rewards",
}

__all__ = [
    "BatchedSequences",
    "DiagnosticsPack",
    "DiagnosticsResults",
    "DistributionDiagnostics",
    "GenerationConfig",
    "LogprobResults",
    "PrecisionConfig",
    "PromptEntry",
    "SamplingPolicy",
    "SeqprocError",
    "SequenceDiagnostics",
    "SequenceProcessor",
    "TokenStepDiagnostics",
    "__version__",
    "build_params_override",
    "load_model",
    "load_prompts",
    "register_dataset",
    "tag_pref",
]

if TYPE_CHECKING:
    from seqproc.config import GenerationConfig, PrecisionConfig
    from seqproc.errors import SeqprocError
    from seqproc.models import load_model
    from seqproc.policy import SamplingPolicy
    from seqproc.processor import SequenceProcessor
    from seqproc.prompts import PromptEntry, load_prompts, register_dataset
    from seqproc.rewards import tag_pref
    from seqproc.scorers.diagnostics import DistributionDiagnostics
    from seqproc.scorers.overrides import build_params_override
    from seqproc.types import (
        BatchedSequences,
        DiagnosticsPack,
        DiagnosticsResults,
        LogprobResults,
        SequenceDiagnostics,
        TokenStepDiagnostics,
    )

__getattr__, __dir__ = lazy_names(__name__, _HOMES)

"""Parity: proof that an engine samples from the distribution that the scorer scores.

`check_engine` samples, scores, tests and gives a verdict with a stated rate of false alarms, and
the cause of a failure. `compare` says where two coupled runs part, `compare_distributions` how far
two engines' distributions are apart, `first_difference` in which module two models part, and
`canary` whether an engine has the scorer's weights. The parts can be used alone:
`sample`, `score_nominal`, `sampler_findings`, `mismatch`, `decide`.
"""

from seqproc.parity.betting.certificate import Certificate
from seqproc.parity.causes.attribution import attribute
from seqproc.parity.causes.cause import Cause
from seqproc.parity.check import Check, check_engine
from seqproc.parity.draws import Answer, Draws, NominalScores, sample
from seqproc.parity.findings.places import place_findings
from seqproc.parity.findings.sampler import sampler_findings
from seqproc.parity.findings.structure import structure_findings
from seqproc.parity.findings.worst import WorstToken, worst_tokens
from seqproc.parity.freshness import canary, require_weights
from seqproc.parity.metrics import Metric, mismatch
from seqproc.parity.scoring import score, score_nominal
from seqproc.parity.sequential import Look, Until
from seqproc.parity.side_by_side.divergence import Comparison, Divergence, compare
from seqproc.parity.side_by_side.layers import (
    FirstDifference,
    first_difference,
    first_difference_of_engine,
)
from seqproc.parity.side_by_side.pair import (
    Pair,
    ScorerDistributions,
    compare_distributions,
    spread_places,
)
from seqproc.parity.suspects import Suspect, Suspects, without_adapter
from seqproc.parity.verdict import FALSE_ALARMS, Finding, Link, Verdict, decide

__all__ = [
    "FALSE_ALARMS",
    "Answer",
    "Cause",
    "Certificate",
    "Check",
    "Comparison",
    "Divergence",
    "Draws",
    "Finding",
    "FirstDifference",
    "Link",
    "Look",
    "Metric",
    "NominalScores",
    "Pair",
    "ScorerDistributions",
    "Suspect",
    "Suspects",
    "Until",
    "Verdict",
    "WorstToken",
    "attribute",
    "canary",
    "check_engine",
    "compare",
    "compare_distributions",
    "decide",
    "first_difference",
    "first_difference_of_engine",
    "mismatch",
    "place_findings",
    "require_weights",
    "sample",
    "sampler_findings",
    "score",
    "score_nominal",
    "spread_places",
    "structure_findings",
    "without_adapter",
    "worst_tokens",
]

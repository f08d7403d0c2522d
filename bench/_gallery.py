"""The tests' small model, right and broken engines, and what their draws tell, for benchmarks."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from helpers import faults
from helpers.broken import FAULTS, POLICIES, Fault
from helpers.faults import FaultyEngine
from helpers.gallery import ReferenceEngine, requests_of
from helpers.interpreter import install
from helpers.likelihood import Ratios, least_draws, own_ratios, right_ratios
from helpers.parity_range import PER_PROMPT, STOPPING, Range, small_range

__all__ = [
    "FAULTS",
    "PER_PROMPT",
    "POLICIES",
    "STOPPING",
    "Fault",
    "FaultyEngine",
    "Range",
    "Ratios",
    "ReferenceEngine",
    "faults",
    "install",
    "least_draws",
    "own_ratios",
    "requests_of",
    "right_ratios",
    "small_range",
]

"""`SequenceProcessor`: samples, scores and rewards, end to end.

It is made of a `Sampler` (prompts to sequences, by an engine), a `SequenceScorer` (sequences to
scores, by teacher forcing; `assembly` gives them the shapes of results) and a rewarder.
`compatibility` holds names of the specification that have others here.
"""

from seqproc.processor.processor import SequenceProcessor

__all__ = ["SequenceProcessor"]

"""Contexts whose next token is asked about: read at once, or decoded token by token.

A context that is read at once is a path without a response. Knows no back-end.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from seqproc.engines.base import Path, Request, StoppingRule
from seqproc.engines.coupling import one_hot_scores
from seqproc.engines.stopping import check_request
from seqproc.policy import SamplingPolicy, log_q

ONE_TOKEN = StoppingRule(max_new_tokens=1, eos_token_ids=())
_ANY_TOKEN = 0  # in place of tokens that nothing is fed after

# Shapes: N rows of a batch, V tokens of the vocabulary.


def read_at_once(contexts: Sequence[Sequence[int]]) -> list[Path]:
    """Each context as a prompt, and the token after it as the one that is asked about."""
    return [Path(prompt_ids=tuple(context), response_ids=(), steps=(0,)) for context in contexts]


def path_requests(paths: Sequence[Path], max_context: int | None) -> list[Request]:
    """A request with the prompt of each path; its index is the place in the list.

    Raises:
        EngineError: an empty prompt, or a last step that leaves no room for a token.
    """
    requests = [
        Request(index=index, prompt_ids=path.prompt_ids, seed=0) for index, path in enumerate(paths)
    ]
    for request, path in zip(requests, paths, strict=True):
        check_request(request, decoding([path]), max_context)
    return requests


def decoding(paths: Sequence[Path]) -> StoppingRule:
    """The longest of some paths is decoded up to the token after its last step."""
    return StoppingRule(max_new_tokens=1 + max(path.last for path in paths), eos_token_ids=())


def decoded_tokens(path: Path) -> list[int]:
    """What is to be sampled, from the first token to that after the last step."""
    return [*path.response_ids[: path.last], _ANY_TOKEN]


class PathFollower:
    """A logits processor after which greedy decoding gives the tokens of paths.

    It must be the only one: it takes the scores that it is given for the raw logits.

    Args:
        paths: of the N rows.
        policy: what is told is this policy over the logits.
    """

    def __init__(self, paths: Sequence[Path], policy: SamplingPolicy) -> None:
        self._paths = paths
        self._policy = policy
        self._step = 0
        self.found: list[list[Tensor]] = [[] for _ in paths]  # log q [V] of each path's steps

    def __call__(self, _input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores whose argmax is each path's token, ``[N, V]``."""
        step = self._step
        asked = [row for row, path in enumerate(self._paths) if step in path.steps]
        if asked:
            log_q_NV = log_q(scores[asked].double(), self._policy).cpu()
            for row, values in zip(asked, log_q_NV, strict=True):
                self.found[row].append(values)
        tokens = [
            path.response_ids[step] if step < path.last else _ANY_TOKEN for path in self._paths
        ]
        self._step += 1
        return one_hot_scores(torch.tensor(tokens), scores)

"""Contexts whose next token is asked about, as requests of one token. Knows no back-end."""

from __future__ import annotations

from collections.abc import Sequence

from seqproc.engines.base import Request, StoppingRule
from seqproc.engines.stopping import check_request

NEXT_TOKEN = StoppingRule(max_new_tokens=1, eos_token_ids=())


def next_token_requests(
    contexts: Sequence[Sequence[int]], max_context: int | None
) -> list[Request]:
    """A request of one token behind each context; its index is the place in the list.

    Raises:
        EngineError: an empty context, or one that leaves no room for a token.
    """
    requests = [
        Request(index=index, prompt_ids=tuple(context), seed=0)
        for index, context in enumerate(contexts)
    ]
    for request in requests:
        check_request(request, NEXT_TOKEN, max_context)
    return requests

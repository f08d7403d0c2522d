"""The book: every bet on the tokens of some draws, read off the logits that score them.

Joins the catalogue and the echoes with the draws; decides nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from seqproc.parity.betting.alternatives import Alternative, Case, Seen
from seqproc.parity.betting.bans import Bans
from seqproc.parity.betting.blocks import Placed
from seqproc.parity.betting.catalogue import catalogue, log_ratios
from seqproc.parity.betting.distances import Distances, distances
from seqproc.parity.betting.echoes import echo_ratios
from seqproc.parity.betting.evidence import Gains, gains
from seqproc.parity.betting.heads import heads_of, tempered, with_tokens
from seqproc.parity.betting.pairs import all_pairs
from seqproc.parity.positions import Placement, masses
from seqproc.parity.reading import Rows
from seqproc.policy import SamplingPolicy

# Shapes: R rows (steps), V tokens of the vocabulary, M tokens of a head, N tokens of all draws.

_PREFIX = "bets/"


class Book:
    """All bets on D draws.

    Args:
        prompts: their prompts' token ids, ``[D][·]``.
        responses: their own, ``[D][·]``, each with a token.
        owners: ``[D]`` number of each one's prompt.
        policy: they were sampled under.
        eos_token_ids: E ids.
    """

    def __init__(
        self,
        prompts: Sequence[Sequence[int]],
        responses: Sequence[Sequence[int]],
        owners: Sequence[int],
        policy: SamplingPolicy,
        eos_token_ids: Sequence[int],
    ) -> None:
        self._prompts, self._responses = prompts, responses
        self._policy, self._eos = policy, list(eos_token_ids)
        self._alternatives = catalogue(policy, self._eos)
        self._lengths = np.array([len(ids) for ids in responses])
        self._tokens = np.concatenate([np.array(ids, dtype=np.int64) for ids in responses])
        self._pairs = all_pairs(np.asarray(owners))
        self._bans = Bans()

    def columns(
        self,
        logits_RV: Tensor,
        log_q_RV: Tensor,
        placed: Placement,
        rows: Rows,
        model_logits_RV: Tensor | None = None,
        controls_R: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """What is to be read of some rows. Each row is to be read once.

        Args:
            logits_RV: float64, to which the policy belongs.
            log_q_RV: of the policy, of these logits.
            placed: the tokens in it.
            rows: the tokens.
            model_logits_RV: see `heads_of`.
            controls_R: tokens that were drawn from the policy's q, for `Gains.distances`.
        """
        self._bans.note(log_q_RV, rows.tokens)
        heads = heads_of(logits_RV, rows.tokens, self._policy, model_logits_RV)
        case = Case(
            heads=heads,
            nominal=tempered(heads, heads.inverse_temperature),
            policy=self._policy,
            logqs=placed.logqs,
            mass_below=placed.mass_below,
            mass_before=placed.mass_before,
            log_eos=placed.eos_probs.log(),
            is_eos=self._is_eos(rows.tokens),
            seen=self._seen(heads.ids, rows),
        )
        found = {f"{_PREFIX}ratios": log_ratios(self._alternatives, case).float()}
        if controls_R is None:
            return found
        before_R, below_R = masses(log_q_RV, controls_R)
        control = replace(
            case,
            heads=with_tokens(heads, logits_RV, controls_R),
            logqs=log_q_RV.gather(-1, controls_R.unsqueeze(-1)).squeeze(-1),
            mass_below=below_R,
            mass_before=before_R,
            is_eos=self._is_eos(controls_R),
        )
        control = replace(
            control, nominal=tempered(control.heads, control.heads.inverse_temperature)
        )
        ratios = log_ratios(self._alternatives, control, unknown=math.nan)
        return found | {f"{_PREFIX}controls": ratios.float()}

    def _is_eos(self, tokens_R: Tensor) -> Tensor:
        return torch.isin(tokens_R, torch.tensor(self._eos, device=tokens_R.device))

    def _seen(self, ids_RM: Tensor, rows: Rows) -> Seen:
        """How often the tokens of the heads came before. Rows of a draw follow one another."""
        ids, device = ids_RM.cpu().numpy(), ids_RM.device
        in_prompt, in_response = np.zeros((2, *ids.shape), dtype=np.float64)
        owner, size = -1, 1 + int(ids.max(initial=0))
        counts: list[NDArray[np.float64]] = []
        places = zip(rows.sequences.tolist(), rows.steps.tolist(), strict=True)
        for row, (sequence, step) in enumerate(places):
            response = self._responses[sequence]
            if sequence != owner:
                owner = sequence
                before = (self._prompts[sequence], response[:step])
                counts = [_counted(ids_, size) for ids_ in before]
            in_prompt[row], in_response[row] = (count[ids[row]] for count in counts)
            if response[step] < size:
                counts[1][response[step]] += 1
        return Seen(
            in_prompt=torch.from_numpy(in_prompt).to(device),
            in_response=torch.from_numpy(in_response).to(device),
        )

    def gains(
        self,
        columns: Mapping[str, Any],
        logqs: NDArray[np.float64],
        ranks: NDArray[np.int64],
        masses: tuple[NDArray[np.float64], NDArray[np.float64]],
        uniforms: NDArray[np.float64],
        reported: NDArray[np.float64] | None,
    ) -> Gains:
        """What the bets came to.

        Args:
            columns: those of `columns`, of all tokens ``[N, ·]``.
            logqs: ``[N]`` log q of the tokens.
            ranks: ``[N]`` theirs in q.
            masses: q of the tokens before each, ``[N]``, in the order of ids and in that of falling
                probability.
            uniforms: ``[N]`` their transforms in the order of their ids.
            reported: ``[N]`` log q as the engine reported them, NaN where it did not.
        """
        below, before = masses
        placed = Placed(
            ids=self._tokens, logqs=logqs, below=below, before=before, uniforms=uniforms
        )
        echoes, echoed = echo_ratios(self._pairs, placed, self._lengths)
        ratios = np.concatenate([columns[f"{_PREFIX}ratios"], echoed], axis=1)
        bets: list[Alternative] = [*self._alternatives, *echoes]
        found = gains(bets, ratios, logqs, ranks, self._lengths, self._bans.log_e, reported)
        controls = columns.get(f"{_PREFIX}controls")
        if controls is None:
            return found
        apart = distances(controls, self._lengths, self._policy.truncates)
        # Of noise there are no others: the tokens themselves tell.
        echoes_apart = distances(echoed, self._lengths, truncates=False)
        return replace(found, distances=Distances.joined([apart, echoes_apart], axis=1))


def _counted(ids: Sequence[int], size: int) -> NDArray[np.float64]:
    """How often each id below ``size`` is among the given ones."""
    array = np.asarray(ids, dtype=np.int64)
    return np.bincount(array[array < size], minlength=size).astype(np.float64)

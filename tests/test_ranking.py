"""The largest logits of rows, by numpy and by PyTorch, against a full sort."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from helpers.adversarial import KINDS, adversarial
from seqproc.support import top_logits as ranking
from seqproc.support.top_logits import largest

INF = float("inf")
DTYPES = [torch.float32, torch.float64]


@pytest.fixture(params=["numpy", "topk"])
def way(request, monkeypatch):
    """Both ways to select; numpy's is that of few threads."""
    threads = 99 if request.param == "numpy" else 0
    monkeypatch.setattr(ranking, "_FEW_THREADS", threads)
    monkeypatch.setattr(ranking, "_MIN_NUMBER", 1)
    return request.param


def require_largest(logits: torch.Tensor, ids: torch.Tensor) -> None:
    """Distinct ids, in falling order of their logits, which a full sort puts first."""
    assert ids.dtype == torch.int64
    number = ids.shape[-1]
    assert all(len(set(row)) == number for row in ids.tolist())
    wanted = -np.sort(-logits.numpy(), axis=-1)[:, :number]
    assert np.array_equal(logits.gather(-1, ids).numpy(), wanted)


@pytest.mark.parametrize("dtype", DTYPES, ids=["fp32", "fp64"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("number", [2, 192, 2048])
def test_through_groups(way, kind, number, dtype):
    """A vocabulary that is no multiple of the group, so that its last ids are in none."""
    logits = adversarial(kind, 12, 40_037, dtype)
    logits[0, -1] = 99.0
    assert math.isqrt(40_037 // number) >= ranking._MIN_GROUP.cpu
    require_largest(logits, largest(logits, number))


@pytest.mark.parametrize("dtype", DTYPES, ids=["fp32", "fp64"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("number", [1, 100, 259, 260])
def test_of_a_small_vocabulary(way, kind, number, dtype):
    logits = adversarial(kind, 40, 260, dtype)
    require_largest(logits, largest(logits, number))


def test_every_float32_has_its_place(way):
    """No order may change by the way that numpy is given the numbers.

    They go from −∞ over the smallest and largest magnitudes of either sign to ∞, with neighbours.
    """
    info = torch.finfo(torch.float32)
    ordinary = torch.linspace(-5, 5, 101)
    edges = torch.tensor([0.0, info.smallest_normal, 1e-45, 1.0, info.max, INF])
    some = torch.cat([edges, -edges, ordinary, ordinary.nextafter(torch.tensor(INF))])
    generator = torch.Generator().manual_seed(0)
    rows = torch.stack([some[torch.randperm(len(some), generator=generator)] for _ in range(50)])
    for number in (1, 50, len(some)):
        require_largest(rows, largest(rows, number))


def test_negative_numbers_are_turned(monkeypatch):
    """Without it, their bits are in the order of their magnitudes."""
    monkeypatch.setattr(ranking, "_FEW_THREADS", 99)
    monkeypatch.setattr(ranking, "_MIN_NUMBER", 1)
    monkeypatch.setattr(ranking, "_MAGNITUDE", 0)
    assert largest(torch.tensor([[-1.0, -2.0, -3.0]]), 1).item() == 2


def test_both_ways_find_the_same(monkeypatch):
    logits = adversarial("gaussian", 30, 30_000, torch.float32)
    found = []
    for threads in (0, 99):
        monkeypatch.setattr(ranking, "_FEW_THREADS", threads)
        found.append(largest(logits, 500))
    assert torch.equal(*found)


@pytest.mark.parametrize("threads", [0, 99])
def test_rows_are_left_as_they_were(monkeypatch, threads):
    monkeypatch.setattr(ranking, "_FEW_THREADS", threads)
    logits = adversarial("gaussian", 3, 700, torch.float32).requires_grad_()
    before = logits.detach().clone()
    largest(logits, 600)
    assert torch.equal(logits.detach(), before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_narrow_dtypes(way, dtype):
    logits = adversarial("gaussian", 5, 300, torch.float32).to(dtype)
    ids = largest(logits, 10)
    assert torch.equal(logits.gather(-1, ids), logits.sort(descending=True).values[:, :10])


def test_within_transforms_of_torch_func(way):
    logits = adversarial("gaussian", 4, 300, torch.float32)

    def sum_of_largest(rows):
        return rows.gather(-1, largest(rows, 3)).sum()

    gradient = torch.func.grad(sum_of_largest)(logits)
    assert torch.equal(gradient.nonzero()[:, 1], largest(logits, 3).sort().values.flatten())


@pytest.mark.parametrize("layout", ["columns", "every second", "one row repeated"])
def test_rows_in_any_layout(way, layout):
    logits = adversarial("gaussian", 6, 700, torch.float32)
    rows = {
        "columns": logits.t().contiguous().t(),
        "every second": logits[::2, ::2],
        "one row repeated": logits[:1].expand(4, -1),
    }[layout]
    require_largest(rows, largest(rows, 5))
    require_largest(rows, largest(rows, 200))


def test_no_rows(way):
    assert largest(torch.zeros(0, 300), 7).shape == (0, 7)
    assert largest(torch.zeros(0, 60_000), 7).shape == (0, 7)

"""How far vLLM's top-p kernels are from the exact nucleus, and what that does to q.

    python bench/vllm_top_p.py [--vocab 2000,20000] [--rows 16] [--top-p 0.9,0.95]

vLLM masks top-p on a GPU by Triton kernels that search for the cut: one for batches of at most 64
rows ("split"), another for larger ones ("monolithic"). Both get the same rows of logits, flat to
peaked, and are compared with `seqproc.policy.support`. On a GPU the kernels run there; elsewhere in
Triton's interpreter (`make test` installs it), which takes seconds a row.

Prints a table, then one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from helpers.interpreter import install

HAS_GPU = torch.cuda.is_available()
if not HAS_GPU:
    install()

from vllm.v1.sample.ops import topk_topp_triton as kernels  # noqa: E402 - after the interpreter

from seqproc._util.versions import library_versions  # noqa: E402
from seqproc.policy import SamplingPolicy, support  # noqa: E402

NUM_SM = 132  # of an H100: into how many parts the split kernel cuts a row
ROUNDING = 1e-6  # of a mass in float32: a cut nearer to a token than this is nobody's fault

Kernel = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One kernel on rows of one kind."""

    kernel: str
    logits: str
    vocab: int
    top_p: float
    rows: int
    rows_off: int  # whose nucleus is another, and not by rounding alone
    tokens_too_many: int  # at most, of a row
    tokens_missing: int  # at most, of a row
    support: int  # size of the exact nucleus, median
    log_q_error: float  # at most: |log s' − log s|, by which log q of every kept token is off, nats
    total_variation: float  # at most: between q and what is sampled


def monolithic(logits: Tensor, top_p: Tensor) -> Tensor:
    """The kernel for more than 64 rows; on a GPU the batch is filled up to get it."""
    num_rows = len(logits)
    if HAS_GPU:
        times = -(-65 // num_rows)
        logits, top_p = logits.repeat(times, 1), top_p.repeat(times)
    return kernels.apply_top_k_top_p_triton(logits, None, top_p)[:num_rows]


def split(logits: Tensor, top_p: Tensor) -> Tensor:
    """The kernel for at most 64 rows."""
    kernels._apply_topp_split(logits, None, top_p, -float("inf"), NUM_SM)
    return logits


KERNELS: dict[str, Kernel] = {"split (≤ 64 rows)": split, "monolithic (> 64 rows)": monolithic}


def kinds(num_rows: int, vocab: int) -> Iterator[tuple[str, Tensor]]:
    """Rows of logits, flat to peaked."""
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(num_rows, vocab, generator=generator)
    ranks = torch.arange(1, vocab + 1).log()
    for spread in (0.05, 1.0, 3.0):
        yield f"N(0, {spread:g}²)", normal * spread
    shuffled = torch.stack([ranks[torch.randperm(vocab, generator=generator)] for _ in normal])
    yield "Zipf, −1.2 log rank + N(0, 0.1²)", -1.2 * shuffled + 0.1 * normal


def compare(name: str, kind: str, logits: Tensor, top_p: float) -> Row:
    """Run a kernel on a copy, and look at what it kept."""
    device = "cuda" if HAS_GPU else "cpu"
    logits = logits.to(device)
    masked = KERNELS[name](logits.clone(), torch.full((len(logits),), top_p, device=device))
    # vLLM keeps top_p in float32: it is not to be blamed for that.
    policy = SamplingPolicy(top_p=float(torch.tensor(top_p)))
    kept, exact = masked > -float("inf"), support(logits, policy)
    p = logits.double().softmax(-1)
    head, exact_head = (p * kept).sum(-1), (p * exact).sum(-1)
    last = p.masked_fill(~exact, 1.0).amin(-1)
    is_sure = torch.minimum(exact_head - policy.top_p, policy.top_p - exact_head + last) > ROUNDING
    q = p * exact / exact_head.unsqueeze(-1)
    sampled = p * kept / head.unsqueeze(-1)
    off = (kept != exact).any(-1) & is_sure
    surely = off.unsqueeze(-1)
    return Row(
        kernel=name,
        logits=kind,
        vocab=logits.shape[-1],
        top_p=top_p,
        rows=len(logits),
        rows_off=int(off.sum()),
        tokens_too_many=int((kept & ~exact & surely).sum(-1).max()),
        tokens_missing=int((exact & ~kept & surely).sum(-1).max()),
        support=int(exact.sum(-1).median()),
        log_q_error=float(((head / exact_head).log().abs() * off).max()),
        total_variation=float(((q - sampled).abs().sum(-1) / 2 * off).max()),
    )


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--vocab", default="2000,20000")
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--top-p", default="0.9,0.95")
    settings = parser.parse_args()
    rows: list[Row] = []
    shown = Table("kernel", "logits", "V", "top_p", "rows off", "tokens +", "tokens −", "|S|")
    shown.add_column("log q off by")
    shown.add_column("total variation")
    for vocab in map(int, settings.vocab.split(",")):
        for kind, logits in kinds(settings.rows, vocab):
            for top_p in map(float, settings.top_p.split(",")):
                for name in KERNELS:
                    row = compare(name, kind, logits, top_p)
                    rows.append(row)
                    shown.add_row(
                        *(name, kind, f"{vocab:,}", f"{top_p:g}"),
                        *(f"{row.rows_off} of {row.rows}", f"{row.tokens_too_many}"),
                        *(f"{row.tokens_missing}", f"{row.support:,}"),
                        *(f"{row.log_q_error:.1e}", f"{row.total_variation:.1e}"),
                    )
    Console(width=150).print(shown)
    where = torch.cuda.get_device_name() if HAS_GPU else "Triton's interpreter"
    facts = {"where": where, "versions": library_versions(), "settings": vars(settings)}
    print(json.dumps(facts | {"rows": [asdict(row) for row in rows]}))


if __name__ == "__main__":
    main()

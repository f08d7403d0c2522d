"""What objects print, in a terminal and in a notebook: short, true, and never what tensors hold."""

from __future__ import annotations

import copy
import math
import pickle
import time
from collections.abc import Callable
from html.parser import HTMLParser
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from helpers.run_folders import Maker
from seqproc import LogprobResults, SamplingPolicy
from seqproc._util.printing import Facts, Printed, as_text, items, quoted, spread
from seqproc._util.snippets import card, safe, table
from seqproc.parity import Cause, Certificate, Check, Comparison, Finding, Link, Verdict
from seqproc.parity.run import ParityReport
from seqproc.policy import score_tokens
from seqproc.runs.format.summary import Estimate, RunSummary
from seqproc.scorers import TokenSequence
from seqproc.scorers.derivatives import TokenDerivatives
from seqproc.types import (
    BatchedSequences,
    DiagnosticsPack,
    DiagnosticsResults,
    Provenance,
    SequenceDiagnostics,
    TokenStepDiagnostics,
)

HOSTILE = "<script>alert('x')</script>\x1b[31m\u202e\u200b\ud800 \"&\n"
HUGE = "x" * 100_000
TAGS = {"div", "strong", "table", "caption", "thead", "tbody", "tr", "th", "td"}
POLICY = SamplingPolicy(temperature=0.7, top_p=0.95)
SHOWN_POLICY = "SamplingPolicy(temperature=0.7, top_p=0.95, do_sample=True)"


class Reader(HTMLParser):
    """The tags, attributes and text of a piece of HTML."""

    def __init__(self, piece: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(piece)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.text += data


def batch(model: str = "tiny") -> BatchedSequences:
    return BatchedSequences(
        sequences=torch.arange(24).reshape(2, 2, 6),
        prompt_lens=[2, 2],
        gen_lens=[[4, 4], [4, 4]],
        attention_masks=torch.ones(2, 2, 6, dtype=torch.int64),
        finish_reasons=[["eos", "eos"], ["length", "stop"]],
        seeds=[[1, 2], [3, 4]],
        provenance=Provenance(policy=POLICY, model=model, engine={"name": "hf"}),
    )


def results(lengths: tuple[int, ...] = (3, 1), **fields: Any) -> LogprobResults:
    return LogprobResults(
        logprobs=[[torch.full([n], math.nan) for n in lengths]],
        entropies=[[np.zeros(n) for n in lengths]],
        sequence_logprobs=[[math.nan for _ in lengths]],
        rb_entropies=[[np.zeros(0) for _ in lengths]],
        rewards=[[0.0 for _ in lengths]],
        **fields,
    )


def diagnostics(num: int = 3) -> DiagnosticsPack:
    arrays = {name: np.full(num, 0.5, np.float32) for name in TokenStepDiagnostics.__annotations__}
    values: dict[str, Any] = dict.fromkeys(SequenceDiagnostics.__annotations__, 0.25)
    return DiagnosticsPack(
        step=TokenStepDiagnostics(**arrays | {"cut_margin": None}),
        seq=SequenceDiagnostics(**values | {"T": num}),
    )


def check(text: str = "support", *, holds: bool = False) -> Check:
    failed = () if holds else (text, "log q", "PIT")
    links = [Finding(name=name, link=Link.POLICY, p_value=1e-9, detail=text) for name in failed]
    fine = Finding(name="fine", link=Link.TEXT, p_value=0.5)
    cause = Cause(link=Link.POLICY, description=text, explains=True, detail=text)
    return Check(
        engine={"name": text},
        noise=None,
        policy=POLICY,
        num_prompts=2,
        num_draws=64,
        num_tokens=1234,
        logit_error=1e-4,
        assumed=None,
        findings=(*links, fine),
        verdict=Verdict(holds=holds, false_alarms=1e-3, failed=failed, num_tests=4),
        certificate=None,
        mismatch=None,
        replay=None,
        causes=() if holds else (cause, cause),
        worst=(),
        answers=(),
    )


def report(text: str = "vllm", **changes: Any) -> ParityReport:
    fields: dict[str, Any] = {
        "model": text,
        "seed": 0,
        "checks": {text: [check(text), check(text, holds=True)]},
        "comparisons": [],
        "is_complete": True,
    }
    return ParityReport(**fields | changes)


def summary(**changes: Any) -> RunSummary:
    names = RunSummary.__annotations__
    known = {
        "num_draws": 24,
        "num_tokens": 90,
        "logq_per_token": Estimate(mean=-1.25, standard_error=0.0123),
        "rb_entropy_per_token": Estimate(mean=1.5, standard_error=None),
        "reward": Estimate(mean=None, standard_error=None),
        "num_out_of_support": 0,
    }
    return RunSummary(**dict.fromkeys(names) | known | changes)  # type: ignore[arg-type]


def comparison() -> Comparison:
    told = [SimpleNamespace(is_explained=True), SimpleNamespace(is_explained=False)]
    return Comparison(
        engines=("hf", "vllm"),
        num_draws=64,
        num_identical=62,
        tolerance=1e-4,
        divergences=tuple(told),  # type: ignore[arg-type]
    )


def derivatives() -> TokenDerivatives:
    scores = score_tokens(torch.zeros(3, 5), torch.zeros(3, dtype=torch.int64), POLICY)
    return TokenDerivatives(
        logprobs=scores.logprobs, logqs=scores.logqs, rb_entropy=scores.logqs, scores=scores
    )


EXPECTED: dict[str, tuple[Callable[[], Any], str]] = {
    "batch": (
        batch,
        "BatchedSequences(shape=[2, 2, 6], device='cpu', generated=16 (4 each),\n"
        "    finished=2 eos + 1 length + 1 stop, also=seeds,\n"
        f"    policy={SHOWN_POLICY}, model='tiny')",
    ),
    "results": (
        lambda: results(out_of_support=[[2, 0]], head_mass=[[np.ones(3), np.ones(1)]]),
        "LogprobResults(prompts=1, responses=2, tokens=4 (1 to 3 each), dtype=float32, "
        "out_of_support=2,\n    also=head_mass)",
    ),
    "diagnostics": (
        lambda: DiagnosticsResults(diagnostics=[[diagnostics(3)], [diagnostics(5)]]),
        "DiagnosticsResults(prompts=2, responses=2 (1 each), tokens=8 (3 to 5 each), "
        "dtype=float32)",
    ),
    "pack": (
        diagnostics,
        "DiagnosticsPack(tokens=3, dtype=float32, rb_entropy_mean=0.25, naive_surprisal_mean=0.25)",
    ),
    "step": (
        lambda: diagnostics().step,
        "TokenStepDiagnostics(tokens=3, dtype=float32, statistics=12)",
    ),
    "seq": (
        lambda: diagnostics().seq,
        "SequenceDiagnostics(T=3, rb_entropy_sum=0.25, rb_entropy_mean=0.25, "
        "naive_surprisal_sum=0.25,\n"
        "    naive_surprisal_mean=0.25, top1_prob_mean=0.25, eff_support_mean=0.25, "
        "eos_prob_mean=0.25)",
    ),
    "provenance": (
        lambda: batch().provenance,
        f"Provenance(model='tiny', policy={SHOWN_POLICY},\n    engine='hf')",
    ),
    "scores": (
        lambda: score_tokens(torch.zeros(3, 5), torch.zeros(3, dtype=torch.int64), POLICY),
        "TokenScores(shape=[3], dtype=float32, device='cpu')",
    ),
    "statistics": (
        lambda: score_tokens(torch.zeros(3, 5), torch.zeros(3, dtype=torch.int64), POLICY).stats,
        "PolicyStatistics(shape=[3], dtype=float32, device='cpu', statistics=12)",
    ),
    "derivatives": (
        derivatives,
        "TokenDerivatives(tokens=3, dtype=float32, derivatives=of logprobs, logqs, rb_entropy)",
    ),
    "sequence": (
        lambda: TokenSequence(prompt_ids=torch.arange(5), response_ids=torch.arange(3)),
        "TokenSequence(prompt_tokens=5, response_tokens=3, device='cpu')",
    ),
    "policy": (lambda: POLICY, SHOWN_POLICY),
    "verdict": (
        lambda: check().verdict,
        "Verdict(holds=False, failed=['support', 'log q', 'PIT'], tests=4, false_alarms=0.001)",
    ),
    "check": (
        check,
        "Check(holds=False, engine='support',\n"
        f"    policy={SHOWN_POLICY}, draws=64, tokens=1234,\n"
        "    tests=4, failed=['support', 'log q', … 1 more], causes=['support', … 1 more])",
    ),
    "report": (
        report,
        "ParityReport(holds=False, model='vllm', engines=['vllm'], checks=2, failed=1)",
    ),
    "unfinished": (
        lambda: report(checks={}, is_complete=False),
        "ParityReport(holds=False, is_complete=False, model='vllm', engines=[], checks=0)",
    ),
    "comparison": (
        comparison,
        "Comparison(holds=False, engines=['hf', 'vllm'], draws=64, identical=62, explained=1)",
    ),
    "certificate": (
        lambda: Certificate(
            within=0.01, level=1e-3, num_ruled_out=7, num_near=2, left=(), suspects={}
        ),
        "Certificate(is_given=True, within=0.01, level=0.001, ruled_out=7, near=2)",
    ),
    "summary": (
        summary,
        "RunSummary(draws=24, tokens=90, logq_per_token=-1.25 ± 0.012,\n"
        "    rb_entropy_per_token=1.5 ± undetermined)",
    ),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_objects_print_what_is_expected_in_three_lines_at_most(name):
    make, expected = EXPECTED[name]
    printed = repr(make())
    assert printed == expected
    lines = printed.splitlines()
    assert len(lines) <= 3
    assert max(map(len, lines)) <= 100


@pytest.mark.parametrize("name", EXPECTED)
def test_a_notebook_shows_the_same_facts(name):
    thing = EXPECTED[name][0]()
    read = Reader(thing._repr_html_())
    assert type(thing).__name__ in read.text
    for key, value in thing._facts().items():
        if value is not None and value != "":
            assert key in read.text
            assert as_text(value) in read.text
    assert set(read.tags) <= {
        "div",
        "strong",
        "table",
        "caption",
        "thead",
        "tbody",
        *["tr", "th", "td"],
    }


def test_a_run_its_result_and_a_processor(tmp_path):
    maker = Maker()
    processor = maker.processor()
    assert repr(processor) == (
        "SequenceProcessor(model='LlamaForCausalLM', dtype=float32, is_loaded=True, "
        "engine='scripted',\n    is_started=True, "
        "policy=SamplingPolicy(temperature=1.0, top_p=0.9, do_sample=True),\n    max_new_tokens=6)"
    )
    assert repr(processor.engine) == "Scripted(name='scripted')"
    assert repr(processor.scorer) == (
        "TeacherForcingScorer(model='LlamaForCausalLM', device='cpu', dtype=float32)"
    )
    result = maker.complete(tmp_path / "run")
    run = result.open()
    tail = (
        "draws=24, state='complete', model='LlamaForCausalLM', engine='scripted', temperature=1, "
        "top_p=0.9, do_sample=True)"
    )
    assert " ".join(repr(run).split()) == f"Run(url={quoted(run.url)}, rows=24, {tail}"
    tokens = sum(run.rows(["gen_len"])["gen_len"].to_pylist())
    assert f"draws=24, tokens={tokens}," in " ".join(repr(result).split())
    assert "quarantined" not in repr(result)
    assert "24" in Reader(run._repr_html_()).text


def test_an_engine_and_a_processor_that_have_not_started(tmp_path):
    from seqproc import SequenceProcessor

    maker = Maker()
    processor = SequenceProcessor(maker.model, maker.tokenizer)
    assert "engine='hf', is_started=False" in " ".join(repr(processor).split())
    assert "is_started=False" in " ".join(repr(processor).split())  # printing has not started it
    assert repr(processor.engine) == (
        "HFEngine(name='hf', batch_size=32, model='LlamaForCausalLM', dtype=float32)"
    )


@pytest.mark.parametrize("text", [HOSTILE, HUGE])
@pytest.mark.parametrize("make", [check, report, batch], ids=["check", "report", "batch"])
def test_hostile_texts_are_escaped_and_long_ones_cut(make, text):
    thing = make(text)
    printed, shown = repr(thing), thing._repr_html_()
    assert len(printed) < 1000
    assert len(shown) < 40_000
    for bad in ("\x1b", "\u202e", "\u200b", "\ud800"):
        assert bad not in printed
        assert bad not in shown
    printed.encode()
    shown.encode()
    assert "script" not in Reader(shown).tags
    assert all(name in {"style", "scope"} for name, _ in Reader(shown).attributes)


def test_a_text_of_100_kb_says_how_much_is_left_out():
    assert quoted(HUGE) == f"'{'x' * 80}'… 99,920 more characters"
    assert safe(HUGE, 10) == f"{'x' * 10} … 99,990 more characters"
    assert safe("x" * 10, 10) == "x" * 10
    assert f"model='{'x' * 80}'… 99,920 more characters" in repr(batch(HUGE))


def test_hostile_texts_come_out_of_html_as_they_are_seen():
    piece = card(HOSTILE, {HOSTILE: HOSTILE}, table(HOSTILE, [HOSTILE], [[HOSTILE]]))
    read = Reader(piece)
    seen = "<script>alert('x')</script>⟨U+001B⟩[31m⟨U+202E⟩⟨U+200B⟩⟨U+D800⟩ \"&\n"
    assert read.text == seen * 6
    assert "script" not in read.tags


class Odd(Printed):
    def __init__(self, value: object) -> None:
        self.value = value

    def _facts(self) -> Facts:
        return {"value": self.value}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (math.nan, "nan"),
        (-math.inf, "-inf"),
        (1 / 3, "0.333333"),
        (True, "True"),
        (np.int64(7), "7"),
        (10**5000, "<an integer of 16,610 bits>"),
        ([1, 2, 3, 4, 5], "[1, 2, 3, … 2 more]"),
        (torch.zeros(3), "<Tensor>"),
        (np.zeros(10**6), "<ndarray>"),
        ({"a": 1}, "<dict>"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_odd_values(value, expected):
    assert repr(Odd(value)) == f"Odd(value={expected})"


def test_a_repr_never_raises():
    broken = batch()
    broken.gen_lens = None  # type: ignore[assignment]
    printed = "<BatchedSequences that cannot be described: TypeError>"
    assert repr(broken) == printed
    assert Reader(broken._repr_html_()).text == printed
    unmade = BatchedSequences.__new__(BatchedSequences)
    assert repr(unmade) == "<BatchedSequences that cannot be described: AttributeError>"


def test_empty_results():
    assert repr(results(())) == "LogprobResults(prompts=1, responses=0)"
    empty = LogprobResults(
        logprobs=[], entropies=[], sequence_logprobs=[], rb_entropies=[], rewards=[]
    )
    assert repr(empty) == "LogprobResults(prompts=0)"
    assert repr(DiagnosticsResults(diagnostics=[])) == "DiagnosticsResults(prompts=0)"
    assert spread([]) is None
    assert items([]) == "[]"


def test_no_tensor_is_read():
    thing = batch()
    thing.sequences = torch.empty(2, 2, 6, dtype=torch.int64, device="meta")  # holds no numbers
    thing.attention_masks = thing.sequences
    assert "device='meta'" in repr(thing)
    scores = results()
    scores.logprobs = [[torch.empty(10**12, device="meta")]]
    assert "tokens=1000000000000" in repr(scores)


def test_large_results_print_at_once():
    scores = results(tuple([3] * 32_768))
    began = time.perf_counter()
    repr(scores)
    assert time.perf_counter() - began < 2  # 0.05 s where this was written


def test_records_are_still_compared_copied_and_pickled():
    policy = SamplingPolicy(temperature=0.7, top_p=0.95)
    assert policy == POLICY
    assert policy != SamplingPolicy()
    assert hash(policy) == hash(POLICY)
    assert eval(repr(policy)) == policy
    assert not hasattr(policy, "__dict__")
    verdict = check().verdict
    assert pickle.loads(pickle.dumps(verdict)) == copy.copy(verdict) == verdict

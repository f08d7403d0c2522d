"""The panels of a run's page: what each says, its figures, and a table beside every figure.

A panel whose numbers a run does not hold says so in a line.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING

from seqproc.errors import RunError, SequenceError
from seqproc.plot import figures
from seqproc.plot.of_runs import ESTIMATORS, TITLES, of_comparison
from seqproc.report import numbers, weights
from seqproc.report.panel import Panel, Row, Table, View, estimate, histogram_view
from seqproc.report.rows import NotKeptError
from seqproc.report.text import count, number, plus_minus

if TYPE_CHECKING:
    from seqproc.runs import Run

_MAX_ROWS = 128  # of a table of positions
_MAX_SETS = 8  # sets of scores with a figure each; the table has all


def panels(run: Run) -> Iterator[Panel]:
    """All panels of a run's numbers, in their order."""
    for name, title, fill in _PANELS:
        panel = Panel(id=name, title=title)
        _try(panel, "", partial(fill, run, panel))
        yield panel


def _try(
    panel: Panel, what: str, fill: Callable[[], None], expected: type[RunError] = NotKeptError
) -> None:
    """Fill a panel, or say what the run lacks for it."""
    try:
        fill()
    except (expected, SequenceError) as error:  # or numbers that no estimator takes
        reason = str(error)
        panel.missing.append(f"{what}: {reason}" if what else reason[0].upper() + reason[1:])


def _headline(run: Run, panel: Panel) -> None:
    found = numbers.summary_of_rows(run)
    estimates = [
        ("log p", found.logprob_per_token, "nats per token"),
        ("log q, inside the support", found.logq_per_token, "nats per token"),
        ("Rao-Blackwell entropy", found.rb_entropy_per_token, "nats per token"),
        ("Rao-Blackwell entropy", found.rb_entropy_per_sequence, "nats per response"),
        ("reward", found.reward, f"over {count(found.num_rewarded, 'draw')} that are rewarded"),
    ]
    rows: list[Row] = [
        ("draws", number(found.num_draws), "sampled and scored"),
        ("tokens", number(found.num_tokens), "generated"),
        (
            "length",
            number(found.length_mean),
            f"tokens on average, {number(found.length_min)} to {number(found.length_max)}",
        ),
        *((name, plus_minus(e.mean, e.standard_error), unit) for name, e, unit in estimates),
        ("out of support", number(found.num_out_of_support), "tokens with log q = −∞"),
        *_speeds(run),
    ]
    panel.lines.append(
        "± is one standard error, clustered by draw: draws are taken to be independent."
    )
    panel.tables.append(Table(caption="The run in numbers", header=("what", "", ""), rows=rows))


def _speeds(run: Run) -> Iterator[Row]:
    """Of the manifest, which alone knows times."""
    summary = run.manifest.summary or {}
    for name in ("generation", "scoring"):
        speed = summary.get(f"{name}_tokens_per_second")
        if isinstance(speed, (int, float)):
            yield name, number(speed, 4), "tokens per second"


def _distributions(run: Run, panel: Panel) -> None:
    captions = {
        "length": "How long responses are.",
        "reward": "What responses earned.",
        "logprob": "log p of the raw model (T = 1, nothing cut off), summed over a response.",
        "logprob_per_token": "The same over the length of the response.",
        "entropy": "The Rao-Blackwell entropy Σ H(q), summed over a response.",
        "entropy_per_token": "The same over the length of the response.",
    }
    for name, caption in captions.items():
        found = numbers.of_draws(run, name)
        panel.views.append(histogram_view(name, caption, found, TITLES[name]))


def _entropy(run: Run, panel: Panel) -> None:
    found = numbers.entropy_comparison(run)
    gain = found.gain
    rows: list[Row] = [
        (ESTIMATORS[0], estimate(gain.rao_blackwell), "nats per response"),
        (ESTIMATORS[1], estimate(gain.naive), "nats per response"),
        ("naive − Rao-Blackwell", estimate(gain.difference), "nats per response, paired"),
        ("z of the difference", number(gain.z_score, 4), "in its standard errors"),
        (
            "variance ratio",
            plus_minus(gain.variance_ratio, found.variance_ratio_error),
            "Var(naive) / Var(Rao-Blackwell); standard error by the jackknife over draws",
        ),
    ]
    panel.lines.append(
        "Under the policy both have one expectation, the entropy of a response. A variance ratio "
        "of r means that the naive estimator needs r times as many draws."
    )
    if run.manifest.kind == "score":
        panel.lines.append(
            "These responses were given, and not sampled under the policy that scored them: the "
            "two need not agree."
        )
    if found.num_left_out:
        panel.lines.append(
            f"{count(found.num_left_out, 'draw')} with a token outside the support, whose −log q "
            "is infinite, left out."
        )
    panel.tables.append(Table(caption="Both estimators", header=("what", "", ""), rows=rows))
    view = View(
        name="entropy-comparison",
        caption="Both estimators, draw by draw: the narrower one is the better.",
        figure=of_comparison(found),
        table=Table(
            caption="Draws by bin",
            header=("from", "to", *ESTIMATORS),
            rows=[
                (number(left), number(right), number(int(first)), number(int(second)))
                for left, right, first, second in zip(
                    found.naive.edges[:-1].tolist(),
                    found.naive.edges[1:].tolist(),
                    found.rao_blackwell.counts,
                    found.naive.counts,
                    strict=True,
                )
            ],
        ),
    )
    panel.views.append(view)


def _positions(run: Run, panel: Panel) -> None:
    panel.lines.append(
        "Means over the draws that reach a position; the band is ± 1.96 standard errors over them. "
        "Who reaches late positions is not a random choice: long responses differ from short ones."
    )
    for name, what in (("rb_entropies", "Mean H(q)"), ("logqs", "Mean log q")):
        _try(panel, what, partial(_position_view, run, panel, name, what))


def _position_view(run: Run, panel: Panel, name: str, what: str) -> None:
    found = numbers.by_position(run, name)
    step = -(-len(found.mean) // _MAX_ROWS)
    some = "" if step == 1 else f", every {step}th"
    left_out = (
        f" {count(found.num_left_out, 'token')} that are not finite are in no mean."
        if found.num_left_out
        else ""
    )
    rows: list[Row] = [
        (str(t + 1), number(found.mean[t]), number(found.standard_error[t], 2), f"{found.num[t]:,}")
        for t in range(0, len(found.mean), step)
    ]
    panel.views.append(
        View(
            name=f"by-position-{name.replace('_', '-')}",
            caption=f"{what} by position.{left_out}",
            figure=figures.of_positions(found, TITLES[name]),
            table=Table(
                caption=f"{what} by position{some}",
                header=("position", "mean", "standard error", "draws"),
                rows=rows,
            ),
        )
    )


def _reasons(run: Run, panel: Panel) -> None:
    found = numbers.finish_reasons(run)
    total = sum(found.values())
    panel.views.append(
        View(
            name="finish-reasons",
            caption="Why responses ended: at an EOS token, with a stop string, or at the limit.",
            figure=figures.of_counts(found, TITLES["finish_reason"]),
            table=Table(
                caption="Draws by reason",
                header=("reason", "draws", "share"),
                rows=[(name, f"{n:,}", f"{100 * n / total:.1f} %") for name, n in found.items()],
            ),
        )
    )


def _support(run: Run, panel: Panel) -> None:
    captions = {
        "head_mass": "The mass of the support under softmax(ℓ/T): what the nucleus keeps.",
        "cut_margin": "The distance in scaled logits between the last token kept and the first "
        "dropped one: how near the support is to changing. ∞ where nothing is dropped.",
    }
    for name, caption in captions.items():
        _try(panel, name.replace("_", " "), partial(_token_view, run, panel, name, caption))


def _token_view(run: Run, panel: Panel, name: str, caption: str) -> None:
    found = numbers.of_tokens(run, name)
    view = histogram_view(name.replace("_", "-"), caption, found, TITLES[name], "tokens")
    panel.views.append(view)


def _gap(run: Run, panel: Panel) -> None:
    found = numbers.engine_gap(run)
    where = f"draw {found.largest_draw}, position {found.largest_position + 1}"
    rows: list[Row] = [
        ("tokens compared", number(found.gaps.num), ""),
        ("mean of Δ", estimate(found.mean), "nats, clustered by draw"),
        ("mean of |Δ|", estimate(found.mean_absolute), "nats, clustered by draw"),
        ("largest |Δ|", number(found.largest, 4), f"nats, at {where}"),
        ("tokens left out", number(found.num_left_out), "log q not finite on a side"),
        ("draws left out", number(found.num_silent), "the engine reported nothing of them"),
    ]
    panel.lines.append("Δ = log q as the engine reported it − log q of the scorer, per token.")
    panel.tables.append(Table(caption="Differences", header=("what", "", ""), rows=rows))
    caption = "Δ over all tokens. Rounding spreads it about 0; another measure shifts it."
    view = histogram_view("engine-gap", caption, found.gaps, TITLES["gap"], "tokens")
    panel.views.append(view)


def _weights(run: Run, panel: Panel) -> None:
    names = weights.score_sets(run)
    panel.lines.append(
        "log w = Σ (log q′ − log q) of a draw, from the run's own policy q to the measure q′ of "
        "each further set of scores. ESS = (Σw)²/Σw². k̂ is the shape of a generalised Pareto tail "
        "of the M = min(N/5, 3·√N) largest weights: where it is above what N draws can bear, a few "
        "draws decide, and estimates are not to be trusted. Its own standard error is about "
        "(1 + k̂)/√M."
    )
    if run.manifest.kind == "score":
        panel.lines.append(
            "These responses were given: they are weights only if the run's policy sampled them."
        )
    rows: list[Row] = []
    for name in names:
        _try(panel, name, partial(_of_set, run, panel, rows, name), RunError)
    header = (
        "set",
        "scored at",
        "draws",
        "left out",
        "mean of w",
        "ESS",
        "ESS / N",
        "k̂",
        "at most",
    )
    if rows:
        panel.tables.insert(0, Table(caption="Sets of scores", header=header, rows=rows))


def _of_set(run: Run, panel: Panel, rows: list[Row], name: str) -> None:
    found = weights.importance_weights(run, name)
    size, num = found.effective_sample_size, found.num_draws
    rows.append(
        (
            name,
            weights.scored_at(found.made_by),
            number(num),
            number(found.num_left_out),
            estimate(found.mean),
            number(size, 5),
            number(size / num, 3),
            number(found.pareto_k, 3),
            number(found.largest_trusted_k, 3),
        )
    )
    if len(panel.views) < _MAX_SETS:
        caption = f"log w of the draws under {name}."
        title = TITLES["log_weight"]
        view = f"log-weights-{len(panel.views)}"
        panel.views.append(histogram_view(view, caption, found.log_weights, title))


_PANELS = (
    ("headline", "Headline numbers", _headline),
    ("distributions", "Distributions over draws", _distributions),
    ("entropy", "Entropy: Rao-Blackwell against naive", _entropy),
    ("positions", "By position", _positions),
    ("finish", "Finish reasons", _reasons),
    ("support", "Head mass and cut margin", _support),
    ("engine", "Engine against scorer", _gap),
    ("weights", "Importance weights", _weights),
)

"""A comparison as tables and figures, for the page and for the terminal. Knows no markup."""

from __future__ import annotations

from collections.abc import Iterator

from seqproc.compare.compare import Comparison, Paired
from seqproc.compare.numbers import Difference
from seqproc.compare.tokens import OF_DRAWS, TokenGap
from seqproc.estimators import Estimate
from seqproc.report.histograms import histogram
from seqproc.report.panel import Panel, Row, Table, estimate, histogram_view
from seqproc.report.text import count, number, plus_minus

NOTHING = "–"


def panels(found: Comparison) -> Iterator[Panel]:
    """The panels of a page, without that of the sequences."""
    yield _settings(found)
    yield _numbers(found)
    if found.paired is not None:
        yield _responses(found.paired)
        yield _differences(found.paired)
        yield _tokens(found.paired)


def _settings(found: Comparison) -> Panel:
    panel = Panel(id="settings", title="What differs")
    same = count(found.num_same_settings, "setting")
    rows: list[Row] = [(one.name, one.a, one.b) for one in found.settings]
    if rows:
        panel.lines.append(f"Of what rows depend on. Beside these, {same} are the same.")
        panel.tables.append(settings_table(found))
    else:
        panel.lines.append(f"All that rows depend on is the same: {same}.")
    return panel


def settings_table(found: Comparison) -> Table:
    """The settings that differ, side by side."""
    return Table(
        caption="Settings that differ",
        header=("setting", "A", "B"),
        rows=[(one.name, one.a, one.b) for one in found.settings],
    )


def _numbers(found: Comparison) -> Panel:
    panel = Panel(id="numbers", title="Headline numbers", lines=[found.pairing.said, *found.notes])
    independent = "draws" if found.clusters == "draw" else "prompts"
    panel.lines.append(
        f"± is one standard error; {independent} are taken to be independent. z is the difference "
        "in its standard errors, p the two-sided probability of as large a z where there is no "
        f"difference. Each p is for itself: of {len(found.numbers)}, one below 0.05 is no surprise."
    )
    panel.tables.append(numbers_table(found))
    panel.lines += left_out(found)
    return panel


def numbers_table(found: Comparison) -> Table:
    """Every headline number of A and B, and the difference."""
    return Table(
        caption="The runs in numbers",
        header=("what", "A", "B", "A − B", "z", "p", ""),
        rows=[_row(one) for one in found.numbers],
    )


def left_out(found: Comparison) -> list[str]:
    """Which numbers are not of all draws."""
    noun = "draw" if found.paired is None else "pair"
    return [
        f"{one.name[0].upper()}{one.name[1:]}: {count(one.num_left_out, noun)} without it, not "
        "rewarded or not finite."
        for one in found.numbers
        if one.num_left_out
    ]


def _row(one: Difference) -> Row:
    return (
        one.name,
        _estimate(one.a),
        _estimate(one.b),
        plus_minus(one.difference, one.standard_error),
        number(one.z, 3),
        number(one.p, 3),
        one.unit,
    )


def _estimate(found: Estimate | None) -> str:
    return NOTHING if found is None else estimate(found)


def identical_line(paired: Paired) -> str:
    """How many responses are the same, and where the others part."""
    found = paired.responses
    verb = "has" if found.num == 1 else "have"
    same = f"{found.num_identical:,} of {count(found.num, 'pair')} {verb} the same tokens."
    if found.num_identical == found.num and paired.differing:
        return f"{same} Not the same in all of them: {', '.join(paired.differing)}."
    if found.num_identical == found.num:
        return f"{same} Whatever else both keep is the same, too."
    partings = histogram(found.partings.astype(float), whole=True)
    return (
        f"{same} The others part at step {number(partings.least)} at the earliest and "
        f"{number(partings.most)} at the latest, median {number(partings.median)}, counted from 0."
    )


def _responses(paired: Paired) -> Panel:
    panel = Panel(id="responses", title="Responses", lines=[identical_line(paired)])
    partings = paired.responses.partings.astype(float)
    if len(partings):
        caption = "The first step at which two responses have another token, or one has ended."
        shown = histogram(partings, whole=True)
        panel.views.append(histogram_view("partings", caption, shown, "step, from 0", "pairs"))
    return panel


def _differences(paired: Paired) -> Panel:
    panel = Panel(id="differences", title="Differences over draws")
    panel.lines.append("A minus B, of the same draw.")
    for column, shown in paired.differences.items():
        name, unit = OF_DRAWS[column]
        title = f"Δ {name}, {unit}" if unit else f"Δ {name}"
        if not shown.num:
            panel.missing.append(f"{title}: no pair has a number in both.")
        elif shown.least == shown.most == 0 and not shown.left_out:
            panel.lines.append(f"{title}: 0 in all {count(shown.num, 'pair')}.")
        else:
            caption = f"A − B of {name}."
            panel.views.append(
                histogram_view(f"delta-{column}", caption, shown, title, noun="pairs")
            )
    return panel


def _tokens(paired: Paired) -> Panel:
    panel = Panel(id="shared", title="Tokens that both share")
    if not paired.token_gaps:
        panel.missing.append("No token has a number in both runs that could be compared.")
        return panel
    panel.lines.append(
        "Tokens up to where two responses part: the same token after the same tokens. Δ is A minus "
        "B; k3 = r − 1 − log r with log r = −Δ."
    )
    if paired.responses.num_identical == paired.responses.num:
        panel.lines.append(
            "Where A's policy drew the tokens, the mean k3 of log q estimates KL(A‖B) per token."
        )
    else:
        panel.lines.append(
            "Some responses part, and what they share is a selection: k3 is then a measure of "
            "distance, and no estimate of KL(A‖B)."
        )
    panel.tables.append(tokens_table(paired))
    return panel


def tokens_table(paired: Paired) -> Table:
    """Differences per token of shared tokens."""
    return Table(
        caption="Differences per token, nats",
        header=("what", "tokens", "mean Δ", "mean |Δ|", "largest |Δ|", "at", "mean k3", ""),
        rows=[_gap_row(gap) for gap in paired.token_gaps],
    )


def _gap_row(gap: TokenGap) -> Row:
    return (
        gap.name,
        number(gap.num_tokens),
        estimate(gap.mean),
        estimate(gap.mean_absolute),
        number(gap.largest),
        f"draw {gap.largest_draw}, step {gap.largest_position}" if gap.largest else NOTHING,
        _estimate(gap.k3),
        f"{count(gap.num_left_out, 'token')} not finite" if gap.num_left_out else "",
    )

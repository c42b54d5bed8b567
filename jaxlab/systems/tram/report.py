"""The report of a comparison of optimizers: finding, table, tests by seed, figures.

Means are over seeds, intervals are Student's 95 %, differences are paired by seed (the
same data order) with a sign-flip test; a difference is one where its interval does not
hold 0 and p is below 0.05, which takes six seeds.
The zero-shot number of a run is the mean of its targets: of perplexities or accuracies.
"""

import pathlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jaxlab.core import report
from jaxlab.reports import figures
from jaxlab.reports import page as page_lib
from jaxlab.stats import paired
from jaxlab.systems.tram import study

_SEEDS_OF_A_TEST = 6  # of five pairs no sign-flip test says less than p = 0.06
REFERENCES = ("adam", "asam")  # that every row is compared with
_TERMS = {
    "±": "half the 95 % interval of the mean over seeds, by Student's t",
    "less ...": "the mean difference from that row, seed by seed; p is a sign-flip "
    "test's; * where p is below 0.05 and the 95 % interval does not hold 0",
    "rate, strength": "multiples of the config's learning rate, and of the strength "
    "that the optimizer's paper names",
    "Hessian": "the largest eigenvalue of the loss's second derivative on the source",
    "sharpness": "how much the source's loss rises, in nats, at the worst point within "
    "a small distance of the weights",
    "drift": "how far the hidden states of the targets have moved from the start, "
    "1 - CKA: 0 is not at all, 1 is nothing in common",
    "time": "of a run's steps, as a multiple of adam's",
}


class Row(NamedTuple):
    """An optimizer in the table.

    Attributes:
        row: its name.
        setting: that was tuned.
        source, zero_shot: (mean over seeds, half the interval).
        against: reference -> difference of the zero-shot number from it.
        eigenvalue, sharpness, drift: means over seeds.
        seconds: of the steps of a run, the median.
    """

    row: str
    setting: study.Setting
    source: tuple[float, float]
    zero_shot: tuple[float, float]
    against: dict[str, paired.PairedDifference]
    eigenvalue: float
    sharpness: float
    drift: float
    seconds: float


def rows(
    runs: Mapping[str, Sequence[study.Run]], protocol: study.Protocol
) -> list[Row]:
    """The table, best zero-shot number first."""
    zero_shot = {
        row: _metric(some, protocol, protocol.targets) for row, some in runs.items()
    }
    result = []
    for row, some in runs.items():
        against = {
            reference: paired.paired_difference(zero_shot[row], zero_shot[reference])
            for reference in REFERENCES
            if reference in runs and reference != row
        }
        result.append(
            Row(
                row,
                some[0].setting,
                _interval(_metric(some, protocol, (protocol.source,))),
                _interval(zero_shot[row]),
                against,
                *(
                    float(np.mean([getattr(run, name) for run in some]))
                    for name in ("eigenvalue", "sharpness", "drift")
                ),
                float(np.median([run.seconds for run in some])),
            )
        )
    sign = -1 if protocol.higher_is_better else 1
    return sorted(result, key=lambda row: sign * row.zero_shot[0])


def verdicts(table: Sequence[Row], protocol: study.Protocol) -> list[str]:
    """What holds of the paper's claim, in words; "not different" is said as well."""
    sign = 1 if protocol.higher_is_better else -1
    lines = []
    for row in table:
        if not row.row.startswith("tram"):
            continue
        for reference, gap in row.against.items():
            word = "better than" if sign * gap.mean > 0 else "worse than"
            if not _is_certain(gap):
                word = "not different from"
            lines.append(
                f"{row.row} is {word} {reference} on the other targets: "
                f"{gap.mean:+.3f} {protocol.metric} [{gap.low:+.3f}, "
                f"{gap.high:+.3f}], p {gap.p_value:.3f}, {gap.n} seeds"
            )
    return lines


def write(
    workdir: pathlib.Path,
    runs: Mapping[str, Sequence[study.Run]],
    protocol: study.Protocol,
    title: str,
    seconds: float,
    *,
    tuned: bool = True,
) -> list[Row]:
    """Writes WORKDIR/report.html and report.json; returns the table.

    Args:
        workdir: gets the files.
        runs: row -> its runs, one per seed.
        protocol: of the study.
        title: of the page.
        seconds: that it all took.
        tuned: whether settings were chosen, or are every paper's value.
    """
    table = rows(runs, protocol)
    lines = verdicts(table, protocol)
    page = page_lib.Page(title)
    page.numbers(
        title=title,
        metric=protocol.metric,
        source=protocol.source,
        tuned=tuned,
        targets=list(protocol.targets),
        table=table,
        runs=runs,
        verdicts=lines,
        seconds={"total": seconds},
        versions=report.versions(),
    )
    page.finding(finding(table, protocol, tuned=tuned))
    page.table(*cells(table, protocol))
    shown = {*cells(table, protocol)[0], "±"}
    if any(row.against for row in table):
        shown.add("less ...")
    page.terms(
        {
            protocol.source: f"{protocol.metric} on text of the source",
            "zero-shot": f"{protocol.metric}, the mean of {_targets(protocol)}",
            **{term: text for term, text in _TERMS.items() if term in shown},
        }
    )
    best = table[0].row
    page.figures(
        f"Mean zero-shot {protocol.metric} with its 95 % interval; {best} is best.",
        _bars(table, protocol),
    )
    if lines:
        page.heading("Does the paper's claim hold here?")
    for line in lines:
        page.text(line)
    page.heading("By target")
    page.table(*_by_target(runs, table, protocol))
    page.figures(
        f"Zero-shot {protocol.metric} (bars: 95 % intervals) by sharpness and by "
        f"drift; {best}, the best, in red. The paper expects what is less sharp, and "
        "has moved less, to be better.",
        *_scatters(table, protocol),
    )
    page.write(workdir)
    return table


def finding(table: Sequence[Row], protocol: study.Protocol, *, tuned: bool) -> str:
    """The answer in a paragraph: which optimizer, how sure, and with which catch."""
    best = table[0]
    chosen = f"the setting that was best on {protocol.tuned_on}"
    if not tuned:
        chosen = "its paper's value; nothing was tuned"
    mean, half = best.zero_shot
    text = (
        f"{best.row} has the best mean {protocol.metric} on {_targets(protocol)} that "
        "nothing was trained or chosen on: "
        f"{mean:.3f} ± {half:.3f} (95 % interval)"
    )
    gaps = {f"from {name}": gap for name, gap in best.against.items()}
    after = table[1] if len(table) > 1 else None
    if after is not None and best.row in after.against:  # it is a reference itself
        gaps[f"between it and the next, {after.row}"] = after.against[best.row]
    for words, gap in gaps.items():
        certain = "beyond" if _is_certain(gap) else "not beyond"
        text += (
            f"; {gap.mean:+.3f} [{gap.low:+.3f}, {gap.high:+.3f}] {words}, {certain} "
            f"chance (sign-flip test, p {gap.p_value:.3f})"
        )
    if gaps and min(gap.n for gap in gaps.values()) < _SEEDS_OF_A_TEST:
        text += ". So few seeds are too few for any test to say more"
    return f"{text}. Each optimizer ran at {chosen}."


def cells(table: Sequence[Row], protocol: study.Protocol) -> tuple[list, list]:
    """Head and rows of the table as text."""
    references = [name for name in REFERENCES if any(r.row == name for r in table)]
    head = [
        "optimizer", "zero-shot", *(f"less {name}" for name in references),
        f"{protocol.source}", "rate, strength", "Hessian", "sharpness", "drift",
        "time",
    ]  # fmt: skip
    adam = next((row.seconds for row in table if row.row == "adam"), None)
    body = []
    for row in table:
        body.append(
            [
                row.row,
                _with_interval(row.zero_shot),
                *(_difference(row.against.get(name)) for name in references),
                _with_interval(row.source),
                f"{row.setting.rate:g}, {row.setting.strength:g}",
                f"{row.eigenvalue:.2f}",
                f"{row.sharpness:.4f}",
                f"{row.drift:.4f}",
                f"{row.seconds / adam:.2f}x" if adam else "",
            ]
        )
    return head, body


def _targets(protocol) -> str:
    count = len(protocol.targets)
    return "1 target" if count == 1 else f"{count} targets"


def _by_target(runs, table, protocol):
    order = [row.row for row in table]
    body = []
    for target in protocol.targets:
        means = [np.mean(_metric(runs[row], protocol, (target,))) for row in order]
        body.append([target, *(f"{mean:.3f}" for mean in means)])
    return ["target", *order], body


def _bars(table, protocol):
    size = (figures.WIDTH, 0.35 * len(table) + 1)
    figure, [[axes]] = figures.panels(size=size)
    names = [row.row for row in table][::-1]
    means, errors = zip(*[row.zero_shot for row in table][::-1], strict=True)
    figures.points_with_errors(axes, names, means, errors)
    axes.set_xlabel(f"mean zero-shot {protocol.metric}")
    return figure


def _scatters(table, protocol):
    drawn = []
    for name in ("sharpness", "drift"):
        height = max(3.2, 0.2 * len(table) + 1)  # a line per name
        figure, [[axes]] = figures.panels(size=(figures.HALF, height))
        points = {row.row: (getattr(row, name), *row.zero_shot) for row in table}
        figures.points_with_names(axes, points, table[0].row)
        axes.set_xlabel(name)
        axes.set_ylabel(f"zero-shot {protocol.metric}")
        drawn.append(figure)
    return drawn


def _metric(runs, protocol, names) -> np.ndarray:
    """[seeds]: the mean over evaluations."""
    return np.array(
        [np.mean([run.evals[name][protocol.metric] for name in names]) for run in runs]
    )


def _interval(values: np.ndarray) -> tuple[float, float]:
    spread = np.std(values, ddof=1) / np.sqrt(len(values))
    return float(values.mean()), float(
        paired.t_quantile(0.95, len(values) - 1) * spread
    )


def _with_interval(pair) -> str:
    return f"{pair[0]:.3f} ± {pair[1]:.3f}"


def _difference(gap: paired.PairedDifference | None) -> str:
    if gap is None:
        return ""
    star = "*" if _is_certain(gap) else ""
    return f"{gap.mean:+.3f}{star} (p {gap.p_value:.2f})"


def _is_certain(gap: paired.PairedDifference) -> bool:
    return (gap.low > 0 or gap.high < 0) and gap.p_value < 0.05

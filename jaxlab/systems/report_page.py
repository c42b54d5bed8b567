"""The demo's report: one self-contained HTML file, plots inline."""

import base64
import html
import io
import json
import pathlib
from collections.abc import Mapping

import numpy as np

from jaxlab.systems import data_ablation

_STYLE = """
body{font:16px/1.5 system-ui,sans-serif;max-width:62rem;margin:2rem auto;padding:0 1rem;
color:#1b1b1b}h1{margin-bottom:.2rem}table{border-collapse:collapse;margin:1rem 0}
td,th{border-bottom:1px solid #ddd;padding:.25rem .7rem;text-align:right}
td:first-child,th:first-child{text-align:left}pre{background:#f6f6f4;padding:.8rem;
white-space:pre-wrap;overflow-wrap:anywhere}img{max-width:100%}.note{color:#666}
"""


def write(
    path: pathlib.Path,
    study: data_ablation.Study,
    outcome: data_ablation.Outcome,
    summary: Mapping,
    pages: Mapping,
    workdir: pathlib.Path,
) -> None:
    """Writes the report; every number in it is in report.json or metrics.jsonl."""
    tokens = study.base.data.length * study.base.data.batch_size
    parts = [
        "<h1>Which data mixture would train best?</h1>",
        f"<p>One seed model ({study.base.steps * tokens:,} tokens), one expert a "
        f"domain ({study.unit_steps * tokens:,} tokens each), all "
        f"{2 ** len(outcome.domains) - 1} averages of experts scored on every domain's "
        "held-out text. A few mixtures were then trained for real, on as many tokens "
        "as one expert, to see whether merging predicted them (Na et al. 2024, "
        "arXiv:2410.15661).</p>",
        "<h2>Did merging predict training?</h2>",
        _agreement(outcome),
        _image(_scatter(outcome)),
        '<p class="note">Each point is a mixture of two or more domains that was also '
        "trained; single domains are left out, since their prediction is the trained "
        "model. The hollow points are the trivial prediction, the mean of the members' "
        "own losses: a merge that does not beat it has shown nothing. Where points "
        "form two clusters, the lower one are mixtures with the target's own domain: "
        "telling the two apart is the easy part.</p>",
        "<h2>Ranking by target</h2>",
        *(_ranking(outcome, target) for target in outcome.ranking),
        "<h2>What each expert gained and lost</h2>",
        _image(_heatmap(outcome)),
        "<h2>Training loss</h2>",
        _image(_curves(workdir)),
        "<h2>A sample of the average of all experts</h2>",
        *(f"<pre><b>{_safe(p)}</b>{_safe(text)}</pre>" for p, text in pages["samples"]),
        "<h2>Files</h2><ul>",
        *(
            f"<li><code>{_safe(folder.relative_to(workdir))}</code> "
            "(Hugging Face folder)</li>"
            for folder in pages["exports"]
        ),
        "<li><code>runs/*/metrics.jsonl</code>, <code>runs/*/checkpoints</code></li>"
        "<li><code>data/text</code>: the embedded text, every document's source named"
        "</li></ul>",
        "<h2>Time and versions</h2>",
        _seconds(summary),
    ]
    page = (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        f"<title>jaxlab demo</title><style>{_STYLE}</style>"
        f"<body>{''.join(parts)}</body></html>"
    )
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(page, "utf-8")
    temporary.replace(path)


def _agreement(outcome) -> str:
    rows = []
    for target in outcome.ranking:
        c = outcome.correlation(target)
        rows.append(
            [
                target, str(c["n"]), _two(c["spearman"]), _two(c["pearson"]),
                _two(c["baseline_spearman"]), _two(c["baseline_pearson"]),
            ]
        )  # fmt: skip
    return _table(
        ["target", "mixtures", "Spearman", "Pearson", "mean of members: Spearman",
         "Pearson"],
        rows,
    )  # fmt: skip


def _ranking(outcome, target: str, shown: int = 8) -> str:
    rows = []
    for place, row in enumerate(outcome.ranking[target], start=1):
        name = data_ablation.name_of(row.mixture)
        actual = outcome.trained[target].get(name)
        if place <= shown or actual is not None:
            rows.append(
                [
                    f"{place}. {name}",
                    f"{row.predicted_perplexity:.2f}",
                    "" if actual is None else f"{actual:.2f}",
                    f"{outcome.baseline[target][name]:.2f}",
                ]
            )
    head = ["mixture", "predicted perplexity", "trained", "mean of members"]
    return (
        f"<h3>{_safe(target)} <span class=note>seed model "
        f"{outcome.seed[target]:.2f}</span></h3>" + _table(head, rows)
    )


def _seconds(summary) -> str:
    rows = [
        [stage, f"{seconds:.1f} s"] for stage, seconds in summary["seconds"].items()
    ]
    rows += [[name, version] for name, version in summary["versions"].items()]
    return _table(["stage or package", ""], rows)


def _scatter(outcome):
    plot = _pyplot()
    targets = list(outcome.ranking)
    figure, axes = plot.subplots(
        1, len(targets), figsize=(3.1 * len(targets), 3.3), squeeze=False
    )
    for axis, target in zip(axes[0], targets, strict=True):
        predicted = {
            data_ablation.name_of(row.mixture): row.predicted_perplexity
            for row in outcome.ranking[target]
        }
        names = list(outcome.trained[target])
        actual = [outcome.trained[target][name] for name in names]
        trivial = [outcome.baseline[target][name] for name in names]
        axis.scatter(trivial, actual, facecolors="none", edgecolors="#999999")
        axis.scatter([predicted[name] for name in names], actual, color="#b3261e")
        axis.set_title(target, fontsize=10)
        axis.set_xlabel("predicted perplexity", fontsize=9)
    axes[0][0].set_ylabel("trained perplexity", fontsize=9)
    return figure


def _heatmap(outcome):
    plot = _pyplot()
    change = np.zeros((len(outcome.domains), len(outcome.ranking)))
    for j, (target, rows) in enumerate(outcome.ranking.items()):
        single = {
            data_ablation.name_of(row.mixture): row.predicted_perplexity for row in rows
        }
        for i, expert in enumerate(outcome.domains):
            change[i, j] = 100 * (single[expert] / outcome.seed[target] - 1)
    bound = max(np.abs(change).max(), 1e-9)
    figure, axis = plot.subplots(figsize=(1.6 * len(outcome.ranking) + 2, 3.4))
    axis.imshow(change, cmap="RdBu_r", vmin=-bound, vmax=bound, aspect="auto")
    axis.set_xticks(range(len(outcome.ranking)), list(outcome.ranking), fontsize=8)
    axis.set_yticks(range(len(outcome.domains)), outcome.domains, fontsize=8)
    axis.set_ylabel("expert")
    axis.set_title("change of perplexity against the seed model, %", fontsize=10)
    for (i, j), value in np.ndenumerate(change):
        axis.text(j, i, f"{value:+.0f}", ha="center", va="center", fontsize=8)
    return figure


def _curves(workdir: pathlib.Path):
    plot = _pyplot()
    figure, axis = plot.subplots(figsize=(8, 3.2))
    start = 0
    for run in sorted((workdir / "runs").iterdir(), key=lambda p: p.name != "seed"):
        if run.name != "seed" and not run.name.startswith("expert-"):
            continue
        rows = [json.loads(line) for line in (run / "metrics.jsonl").open()]
        points = [(row["step"], row["loss"]) for row in rows if row.get("loss")]
        steps, losses = np.array(points).T
        axis.plot(start + steps, losses, label=run.name, linewidth=1)
        start = steps[-1] if run.name == "seed" else start
    axis.set_xlabel("step")
    axis.set_ylabel("loss, nats a token")
    axis.legend(fontsize=7, ncols=2)
    return figure


def _pyplot():
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def _image(figure) -> str:
    figure.tight_layout()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    _pyplot().close(figure)
    return (
        '<img alt="" src="data:image/png;base64,'
        f'{base64.b64encode(buffer.getvalue()).decode()}">'
    )


def _table(head: list[str], rows: list[list[str]]) -> str:
    cells = "".join(f"<th>{_safe(cell)}</th>" for cell in head)
    body = "".join(
        "<tr>" + "".join(f"<td>{_safe(cell)}</td>" for cell in row) + "</tr>"
        for row in rows
    )
    return f"<table><tr>{cells}</tr>{body}</table>"


def _two(value: float) -> str:
    return f"{value:.2f}" if np.isfinite(value) else "undefined"


def _safe(text: object) -> str:
    return html.escape(str(text))

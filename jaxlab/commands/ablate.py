"""`jaxlab ablate`: rank data mixtures by the losses of merged experts."""

import argparse
import functools
import math
import pathlib
import tempfile
from typing import Any

from jaxlab import ablation
from jaxlab.commands import devices, output, texts
from jaxlab.core import report, types
from jaxlab.data import loader, token_files
from jaxlab.evals import perplexity
from jaxlab.systems import loading


def run(args: argparse.Namespace) -> None:
    """Prints the ranking of every target, with what it has to beat."""
    experts = dict(args.experts)
    if len(experts) < len(args.experts):
        raise types.UserError("an expert's name is given twice; name each differently")
    with devices.using(args.mesh) as mesh, tempfile.TemporaryDirectory() as folder:
        seed = [args.seed_model] if args.seed_model else []
        opened = loading.open_alike([*experts.values(), *seed], mesh=mesh)
        pool = ablation.ModelPool.create(
            {name: model.params for name, model in zip(experts, opened, strict=False)},
            seed=opened[-1].params if seed else None,
        )
        decoder, tokenizer = opened[0].decoder, opened[0].tokenizer
        length = args.length or decoder.config.length
        rows = devices.rounded(args.batch_size, mesh)
        mixtures = pool.mixtures(args.max_size)
        losses = functools.partial(perplexity.row_losses, decoder.apply)
        results = {}
        for target, file in _targets(args.target, experts, tokenizer, folder).items():
            batches = [
                {name: batch[name] for name in ("tokens", "loss_mask")}
                for batch in loader.eval_batches(file, length, rows, args.max_batches)
            ]
            ranking = ablation.rank_mixtures(pool, mixtures, {target: batches}, losses)
            known = ablation.baselines(pool, mixtures, losses, batches)
            results[target] = _result(mixtures, ranking[target], known)
            _print(target, results[target], args.top)
    if args.json:
        report.write_json(
            args.json,
            {
                "ranking": {name: result["rows"] for name, result in results.items()},
                "seed_perplexity": {n: r["seed"] for n, r in results.items()},
                "experts": experts,
            },
        )


def _targets(
    wanted: list[str], experts: dict[str, str], tokenizer: Any, folder: str
) -> dict[str, token_files.TokenFile]:
    """Name -> token file: held-out sets of the experts' runs, or text."""
    known: dict[str, token_files.TokenFile] = {}
    for expert, path in experts.items():
        for name, file in loading.held_out(path).items():
            other = known.setdefault(name, file)
            if other.info.get("sha256") != file.info.get("sha256"):
                known[f"{expert}:{name}"] = file  # another text of the same name
    if not wanted and not known:
        raise types.UserError("the experts keep no held-out text; give --target DIR")
    chosen: dict[str, token_files.TokenFile] = {} if wanted else known
    for number, target in enumerate(wanted):
        if target in known:
            chosen[target] = known[target]
        elif pathlib.Path(target).exists():
            place = pathlib.Path(folder) / str(number)
            chosen |= texts.open_text(target, tokenizer, place)
        else:
            have = f" ({', '.join(known)})" if known else ""
            raise types.UserError(
                f"target {target!r} is neither a held-out set of the experts{have} nor "
                "a folder or file of text"
            )
    return chosen


def _result(mixtures, ranking, known) -> dict[str, Any]:
    """Rows, best first, as in report.json of the demo; and the seed's perplexity."""
    means = {
        tuple(mixture): float(loss)
        for mixture, loss in zip(mixtures, known.mean_of_individual, strict=True)
    }
    rows = [
        {
            "mixture": row.mixture,
            "predicted_perplexity": row.predicted_perplexity,
            "mean_of_members_perplexity": math.exp(means[tuple(row.mixture)]),
            "trained_perplexity": None,
        }
        for row in ranking
    ]
    return {"rows": rows, "seed": None if known.seed is None else math.exp(known.seed)}


def _print(target: str, result: dict[str, Any], top: int) -> None:
    rows = result["rows"]
    print(f"\n{target}: {len(rows)} mixtures, best predicted first")
    output.table(
        ["mixture", "predicted perplexity", "mean of members"],
        [
            [
                " + ".join(row["mixture"]),
                f"{row['predicted_perplexity']:,.2f}",
                f"{row['mean_of_members_perplexity']:,.2f}",
            ]
            for row in rows[:top]
        ],
    )
    if result["seed"] is not None:
        print(f"the seed model: {result['seed']:,.2f}")

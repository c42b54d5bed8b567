"""The demo: real text, real models, and an answer within minutes on a laptop.

    embedded corpus -> tokenizer -> seed model -> one expert a domain -> all merged
    mixtures ranked for each target -> a few trained for real -> how well was it
    predicted? -> generated text, report.html, report.json, Hugging Face folders

A study of `systems/data_ablation.py` at a size that two CPU cores train in minutes.
`--data DIR` runs the same on a folder of text with a subfolder a domain.
"""

import importlib.metadata
import pathlib
import platform
import time

import jax
import ml_collections
import numpy as np

from jaxlab import generate, models
from jaxlab.core import process, report
from jaxlab.systems import data_ablation, defaults, olmo, report_page

_PROMPTS = ("The ", "def ", "Returns ")


def main(
    *,
    quick: bool = False,
    data: str | None = None,
    workdir: str | pathlib.Path = "runs/demo",
) -> data_ablation.Outcome:
    """Runs or continues the demo.

    Args:
        quick: a smaller one, under 90 seconds, for tests.
        data: a folder with a subfolder (or NAME.jsonl) a domain; None uses the text
            that Python and the installed packages ship.
        workdir: everything is kept here; the same command continues.

    Raises:
        UserError: unreadable text, or a workdir that holds another study.
    """
    workdir = pathlib.Path(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    process.start()
    clock = _Clock()
    existing = workdir / "report.html"
    if existing.exists():
        clock.say(f"{workdir} holds a demo: finished parts are kept, {existing} anew")
    study = (quick_study if quick else full_study)(workdir, data)
    clock.say(
        f"reading {'the embedded corpus' if data is None else data}, training a "
        f"tokenizer of {study.base.data.vocab_size} tokens"
    )
    corpus = olmo.open_corpus(study.base.data, workdir)
    for name, file in corpus.train.items():
        clock.say(f"  {name:<20} {file.size:>9,} training tokens")
    clock.seconds["corpus and tokenizer"] = clock.elapsed()
    outcome = data_ablation.run(study, workdir, say=clock.say, done=clock.progress)
    clock.say("generating a sample, exporting, writing the report")
    pool = data_ablation.open_pool(workdir, outcome.domains)
    pages = {
        "samples": _samples(study, pool, corpus),
        "exports": _export(study, workdir, pool, corpus, outcome),
    }
    clock.seconds |= outcome.seconds
    summary = summarise(outcome, {**clock.seconds, "total": clock.elapsed()})
    report.write_json(workdir / "report.json", summary)
    report_page.write(workdir / "report.html", study, outcome, summary, pages, workdir)
    for line in findings(outcome):
        clock.say(line)
    clock.say(f"report: {workdir / 'report.html'} ({report.duration(clock.elapsed())})")
    return outcome


def full_study(workdir: pathlib.Path, data: str | None = None) -> data_ablation.Study:
    """About 1.3 M matmul parameters, 0.8 M seed tokens, 82 k tokens a unit."""
    base = _base(workdir, data)
    base.steps = 400
    base.model.update({"embed": 128, "layers": 4, "heads": 4, "mlp": 512})
    base.data.update({"vocab_size": 2048, "max_bytes_per_domain": 900_000})
    base.data.update({"length": 256, "batch_size": 8})
    base.optim.update({"learning_rate": 6e-3, "warmup_steps": 50, "epsilon": 1e-8})
    base.eval_batches = 4
    return data_ablation.Study(base, unit_steps=40, unit_rate=2e-3, trained=10)


def quick_study(workdir: pathlib.Path, data: str | None = None) -> data_ablation.Study:
    """The same in miniature: the numbers mean little, the path is the same."""
    base = _base(workdir, data)
    base.steps = 60
    base.model.update({"embed": 64, "layers": 2, "heads": 4, "mlp": 256})
    base.data.update({"vocab_size": 1024, "max_bytes_per_domain": 150_000})
    base.data.update({"length": 128, "batch_size": 8})
    base.optim.update({"learning_rate": 1e-2, "warmup_steps": 10, "epsilon": 1e-8})
    base.eval_batches = 2
    return data_ablation.Study(base, unit_steps=20, unit_rate=4e-3, trained=5)


def _base(workdir: pathlib.Path, data: str | None) -> ml_collections.ConfigDict:
    config = defaults.pretraining()
    config.data.source = "embedded" if data is None else str(data)
    config.data.folder = str(workdir / "data")  # shared by all runs
    config.data.held_out_fraction = 0.1
    config.model.update({"dtype": "float32", "tied": True})
    config.run.update({"save_every": 100, "eval_every": 0, "log_seconds": 10.0})
    return config


def findings(outcome: data_ablation.Outcome) -> list[str]:
    """What a researcher wants to know, a line a target."""
    lines = ["best predicted mixture of two or more domains, by target:"]
    for target in outcome.ranking:
        mixed = (row for row in outcome.ranking[target] if len(row.mixture) > 1)
        best, agreement = next(mixed, None), outcome.correlation(target)
        if best is None:
            continue
        lines.append(
            f"  {target}: {data_ablation.name_of(best.mixture)} at perplexity "
            f"{best.predicted_perplexity:.1f} (seed model {outcome.seed[target]:.1f}); "
            f"spearman {agreement['spearman']:.2f} over {agreement['n']} trained "
            f"mixtures (mean of members alone {agreement['baseline_spearman']:.2f})"
        )
    return lines


def summarise(outcome: data_ablation.Outcome, seconds: dict[str, float]) -> dict:
    """report.json: ranking, correlation, versions, seconds, baselines."""
    ranking = {
        target: [
            {
                "mixture": dict(row.mixture),
                "predicted_perplexity": row.predicted_perplexity,
                "trained_perplexity": outcome.trained[target].get(
                    data_ablation.name_of(row.mixture)
                ),
                "mean_of_members_perplexity": outcome.baseline[target][
                    data_ablation.name_of(row.mixture)
                ],
            }
            for row in rows
        ]
        for target, rows in outcome.ranking.items()
    }
    packages = ("jax", "flax", "optax", "orbax-checkpoint", "numpy", "sentencepiece")
    versions = {name: importlib.metadata.version(name) for name in packages}
    return {
        "ranking": ranking,
        "correlation": {t: _finite(outcome.correlation(t)) for t in outcome.ranking},
        "seed_perplexity": outcome.seed,
        "versions": {"python": platform.python_version(), **versions},
        "seconds": seconds,
    }


def _finite(values: dict) -> dict:
    return {k: v if np.isfinite(v) else None for k, v in values.items()}


def _samples(study, pool, corpus) -> list[tuple[str, str]]:
    """(prompt, continuation) of the average of all experts."""
    params = pool.merged(dict.fromkeys(pool.names, 1.0))
    model, tokenizer = data_ablation.decoder(study.base, corpus), corpus.tokenizer
    texts = generate.generate(
        model,
        params,
        [[tokenizer.eos_id, *tokenizer.encode(prompt)] for prompt in _PROMPTS],
        max_new_tokens=60,
        key=jax.random.key(0),
        temperature=0.7,
        top_p=0.95,
        eos_id=tokenizer.eos_id,
        pad_id=tokenizer.pad_id,
    )
    return [(p, tokenizer.decode(t)) for p, t in zip(_PROMPTS, texts, strict=True)]


def _export(study, workdir, pool, corpus, outcome) -> list[pathlib.Path]:
    """The seed model and the best mixture of each target, as Hugging Face folders."""
    folders = {"seed": pool.seed}
    config = data_ablation.decoder(study.base, corpus).config
    for rows in outcome.ranking.values():
        best = next((row.mixture for row in rows if len(row.mixture) > 1), None)
        if best is not None:
            folders[data_ablation.name_of(best)] = pool.merged(best)
    for name, params in folders.items():
        models.hf.save(
            workdir / "export" / name,
            config,
            params,
            tokenizer_folder=workdir / "data" / "tokenizer",
            overwrite=True,
        )
    return [workdir / "export" / name for name in folders]


class _Clock:
    """Time since the start, the seconds of each stage, and what is left."""

    def __init__(self):
        self.seconds: dict[str, float] = {}
        self._started, self._work_started = time.monotonic(), None

    def elapsed(self) -> float:
        return time.monotonic() - self._started

    def say(self, text: str) -> None:
        report.line(f"[{report.duration(self.elapsed()):>5}] {text}")

    def progress(self, stage: str, share: float) -> None:
        left = self.elapsed() * (1 - share) / max(share, 1e-9)
        self.say(f"{stage}: {share:.0%} of the demo done, {report.duration(left)} left")

"""The demo: real text, real models, and an answer within minutes on a laptop.

    embedded corpus -> tokenizer -> seed model -> one expert per domain -> all merged
    mixtures ranked for each target -> a few trained for real -> how well was it
    predicted? -> generated text, report.html, report.json, Hugging Face folders

A study of `systems/data_ablation/study.py` at a size that two CPU cores train in
minutes. `--data DIR` runs the same on a folder of text with a subfolder per domain.
"""

import pathlib

import jax

from jaxlab import generate, models
from jaxlab.core import process, progress
from jaxlab.data import prepared
from jaxlab.systems import branches
from jaxlab.systems.data_ablation import experts, pools, results
from jaxlab.systems.data_ablation import report as report_lib
from jaxlab.systems.data_ablation import study as study_lib

_PROMPTS = ("The ", "def ", "Returns ")


def main(
    *,
    quick: bool = False,
    data: str | None = None,
    workdir: str | pathlib.Path = "runs/demo",
) -> study_lib.Outcome:
    """Runs or continues the demo.

    Args:
        quick: a smaller one, under 90 seconds, for tests.
        data: a folder with one subfolder (or NAME.jsonl) per domain; None uses the text
            that Python and the installed packages ship.
        workdir: everything is kept here; the same command continues.

    Raises:
        UserError: unreadable text, or a workdir that holds another study.
    """
    workdir = pathlib.Path(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    process.start()
    watch = progress.Clock()
    existing = workdir / "report.html"
    if existing.exists():
        watch.say(f"{workdir} holds a demo: finished parts are kept, {existing} anew")
    study = (quick_study if quick else full_study)(workdir, data)
    watch.say(
        f"reading {'the embedded corpus' if data is None else data}, training a "
        f"tokenizer of {study.recipe.base.data.vocab_size} tokens"
    )
    corpus = pools.open_corpus(study.recipe, workdir, study.units)
    for name, file in corpus.train.items():
        watch.say(f"  {name:<20} {file.size:>9,} training tokens")
    watch.seconds["corpus and tokenizer"] = watch.elapsed()
    outcome = study_lib.run(study, workdir, say=watch.say, done=watch.progress)
    watch.say("generating a sample, exporting, writing the report")
    with watch.announce("opening the experts"):
        pool = experts.open_pool(workdir)
    with watch.announce("generating a sample"):
        samples = _samples(study, pool, corpus)
    with watch.announce("exporting the best mixtures"):
        exports = _export(study, workdir, pool, corpus, outcome)
    watch.seconds |= outcome.seconds
    seconds = {**watch.seconds, "total": watch.elapsed()}
    with watch.announce("writing the report"):
        report_lib.write(workdir, outcome, seconds, samples=samples, exports=exports)
    for line in results.headlines(outcome):
        watch.say(line)
    took = progress.duration(watch.elapsed())
    watch.say(f"report: {workdir / 'report.html'} ({took})")
    return outcome


def full_study(workdir: pathlib.Path, data: str | None = None) -> study_lib.Study:
    """About 1.3 M matmul parameters, 0.8 M seed tokens, 82 k tokens per unit."""
    recipe = branches.recipe_at_size("small", data or prepared.EMBEDDED, workdir)
    return study_lib.Study(recipe, trained=10)


def quick_study(workdir: pathlib.Path, data: str | None = None) -> study_lib.Study:
    """The same in miniature: the numbers mean little, the path is the same."""
    recipe = branches.recipe_at_size("quick", data or prepared.EMBEDDED, workdir)
    return study_lib.Study(recipe, trained=5)


def _samples(study, pool, corpus) -> list[tuple[str, str]]:
    """(prompt, continuation) of the average of all experts."""
    params = pool.average(dict.fromkeys(pool.names, 1.0))
    model, tokenizer = branches.decoder(study.recipe.base, corpus), corpus.tokenizer
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
    config = branches.decoder(study.recipe.base, corpus).config
    for rows in outcome.ranking.values():
        best = next((row.mixture for row in rows if len(row.mixture) > 1), None)
        if best is not None:
            folders[experts.name_of(best)] = pool.average(best)
    for name, params in folders.items():
        models.hf.save(
            workdir / "export" / name,
            config,
            params,
            tokenizer_folder=workdir / "data" / "tokenizer",
            overwrite=True,
        )
    return [workdir / "export" / name for name in folders]

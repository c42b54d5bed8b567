"""Data ablation by merging: rank data mixtures without training them.

Na et al. 2024 (arXiv:2410.15661), section 3: continue one seed model on each domain
alone, average the experts of a mixture, and read the average's perplexity as a
prediction of the perplexity of one model trained on the union.

    seed model -> one expert a domain (equal token budgets) -> all 2^n - 1 averages
    -> ranking by target -> a few mixtures trained for real, to see if it predicted them

Deviations: a mixture trained for real gets the tokens of one unit, not of one unit a
member: compute is then equal, and to first order training on a mixture moves the seed
model by the mean of what its members move it, which is the average that predicts it.
(With a unit a member and a seed model far from converged, the number of members decided
the outcome more than their choice.) Optimizer state is not carried over from the seed,
as the paper's code does: experts and mixtures start AdamW afresh at a constant rate.
Correlations leave out single domains, whose prediction is the trained model itself.
"""

import dataclasses
import functools
import itertools
import json
import math
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence

import ml_collections
import numpy as np

from jaxlab import ablation, models, train
from jaxlab.core import checkpoint, types
from jaxlab.core import mesh as mesh_lib
from jaxlab.data import loader, prepared
from jaxlab.evals import perplexity
from jaxlab.stats import correlation
from jaxlab.systems import olmo

Mixture = Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class Study:
    """A data ablation as data.

    Attributes:
        base: a pre-training config; its steps and schedule are the seed model's.
        unit_steps: updates of one base unit: of an expert, and of a trained mixture.
        unit_rate: the constant learning rate of experts and mixtures.
        trained: how many mixtures of two or more domains are trained for real.
        seed: of the choice of those mixtures.
    """

    base: ml_collections.ConfigDict
    unit_steps: int
    unit_rate: float
    trained: int
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a study found.

    Attributes:
        domains: in the pool's order.
        seed: target -> perplexity of the seed model.
        ranking: target -> every mixture, best predicted first.
        trained: target -> {mixture name: perplexity trained for real}.
        baseline: target -> {mixture name: exp(mean of the members' own losses)}.
        seconds: stage -> wall seconds.
    """

    domains: tuple[str, ...]
    seed: dict[str, float]
    ranking: dict[str, list[ablation.RankedMixture]]
    trained: dict[str, dict[str, float]]
    baseline: dict[str, dict[str, float]]
    seconds: dict[str, float]

    def correlation(self, target: str) -> dict[str, float]:
        """How the predictions of the trained mixtures agree with the outcome.

        Returns:
            spearman, pearson and n; `baseline_spearman` and `baseline_pearson` are
            those of the trivial prediction that merges nothing.
        """
        trained = self.trained[target]
        predicted = {
            name_of(row.mixture): row.predicted_perplexity
            for row in self.ranking[target]
        }
        names = list(trained)
        actual = np.array([trained[name] for name in names])
        result: dict[str, float] = {"n": len(names)}
        for prefix, proxy in (("", predicted), ("baseline_", self.baseline[target])):
            values = np.array([proxy[name] for name in names])
            for kind in ("spearman", "pearson"):
                result[prefix + kind] = float(
                    getattr(correlation, kind)(values, actual)
                )
        return result


def run(
    study: Study,
    workdir: pathlib.Path,
    *,
    say: Callable[[str], None] = print,
    done: Callable[[str, float], None] = lambda stage, share: None,
) -> Outcome:
    """Runs or resumes a study; every model is a run directory below `workdir/runs`.

    Args:
        study: what to do.
        workdir: also holds the prepared corpus, in `workdir/data`.
        say: gets a line of text now and then.
        done: called with (stage, share of all the training and scoring done).
    """
    mesh = mesh_lib.make_mesh(study.base.mesh.to_dict())
    corpus = olmo.open_corpus(study.base.data, workdir)
    domains = tuple(corpus.train)
    if len(domains) < 2:
        raise types.UserError(
            f"{study.base.data.source} has one domain; a mixture needs two subfolders"
        )
    chosen = choose(domains, study.trained, study.seed)
    plan = _Plan(study, len(domains), chosen, done)
    runs = workdir / "runs"

    seed_dir = runs / "seed"
    _train(study.base, seed_dir, mesh, "seed")
    plan.finished("seed model", study.base.steps)
    for name in domains:
        config = unit_config(study, {name: 1.0}, seed_dir)
        _train(config, runs / f"expert-{name}", mesh, f"expert {name}")
        plan.finished("experts", study.unit_steps)

    pool = open_pool(workdir, domains)
    mixtures = affordable_mixtures(pool)
    model = decoder(study.base, corpus)
    say(f"scoring {len(mixtures)} merged mixtures on {len(corpus.held_out)} targets")
    evaluation = held_out_batches(study.base, corpus)
    losses = functools.partial(_summed, model.apply)
    ranking, baseline, seed = {}, {}, {}
    for target, batches in evaluation.items():
        ranking |= ablation.rank_mixtures(
            pool, mixtures, {target: batches}, losses, mode="map"
        )
        own = {
            row_name: row.predicted_loss
            for row in ranking[target]
            if len(row.mixture) == 1
            for row_name in row.mixture
        }
        means = ablation.mean_of_individual_losses(pool, mixtures, own)
        baseline[target] = {
            name_of(mixture): float(np.exp(loss))
            for mixture, loss in zip(mixtures, means, strict=True)
        }
        seed[target] = last_evaluation(seed_dir)[target]
        plan.finished("merged mixtures", plan.score_steps)

    trained: dict[str, dict[str, float]] = {target: {} for target in evaluation}
    for mixture in chosen:
        folder = runs / f"mixture-{name_of(mixture)}"
        config = unit_config(study, mixture, seed_dir)
        _train(config, folder, mesh, f"mixture {name_of(mixture)}")
        for target, value in last_evaluation(folder).items():
            trained[target][name_of(mixture)] = value
        plan.finished("trained mixtures", config.steps)
    return Outcome(domains, seed, ranking, trained, baseline, plan.seconds)


def open_pool(workdir: pathlib.Path, domains: Sequence[str]) -> ablation.ModelPool:
    """The trained experts of a study and their seed model."""
    runs = workdir / "runs"
    return ablation.ModelPool.create(
        {name: checkpoint.load_params(runs / f"expert-{name}") for name in domains},
        seed=checkpoint.load_params(runs / "seed"),
    )


def affordable_mixtures(
    pool: ablation.ModelPool, most: int = 256
) -> list[dict[str, float]]:
    """Every subset of the experts, or all up to the size of which `most` can be had."""
    sizes = range(1, len(pool.names) + 1)
    counts = itertools.accumulate(math.comb(len(pool.names), size) for size in sizes)
    fitting = [size for size, n in zip(sizes, counts, strict=True) if n <= most]
    return pool.mixtures(max_size=max(fitting, default=1))


def unit_config(
    study: Study, mixture: Mixture, seed_dir: pathlib.Path
) -> ml_collections.ConfigDict:
    """The config of an expert (one domain) or of a mixture trained for real."""
    config = ml_collections.ConfigDict(study.base.to_dict())
    config.steps = study.unit_steps
    config.init_from = str(seed_dir)
    config.data.weights = dict(mixture)
    config.optim.update(
        {
            "learning_rate": study.unit_rate, "schedule": "constant",
            "warmup_steps": 0, "final": 1.0,
        }
    )  # fmt: skip
    config.data.seed = study.base.data.seed + 1  # not the seed model's order again
    return config


def choose(domains: Sequence[str], count: int, seed: int) -> list[dict[str, float]]:
    """Mixtures of two or more domains to be trained, equal shares, small ones first.

    Sizes take turns, so that the check is not of one size only; within a size the
    choice is random, so that it is not the ranking's favourites either.

    >>> [sorted(mixture) for mixture in choose(["a", "b", "c"], 2, seed=0)]
    [['b', 'c'], ['a', 'b', 'c']]
    """
    random = np.random.default_rng(seed)
    by_size = []
    for size in range(2, min(len(domains), 5) + 1):
        subsets = list(itertools.combinations(domains, size))
        by_size.append([subsets[i] for i in random.permutation(len(subsets))])
    turns = itertools.chain.from_iterable(itertools.zip_longest(*by_size))
    chosen = list(itertools.islice((subset for subset in turns if subset), count))
    chosen.sort(key=len)
    return [dict.fromkeys(subset, 1.0 / len(subset)) for subset in chosen]


def name_of(mixture: Mixture) -> str:
    """The mixture as a name: its domains in order, joined by `+`."""
    return "+".join(sorted(mixture))


def decoder(
    config: ml_collections.ConfigDict, corpus: prepared.Prepared
) -> models.Decoder:
    """The model that all runs of a study share."""
    return models.Decoder(olmo.transformer_config(config.model, corpus.tokenizer))


def held_out_batches(
    config: ml_collections.ConfigDict, corpus: prepared.Prepared
) -> dict[str, list]:
    """Target -> the held-out batches that the runs themselves are evaluated on."""
    data = config.data
    return {
        name: [
            {k: v for k, v in batch.items() if k not in ("document", "text_bytes")}
            for batch in loader.eval_batches(
                file, data.length, data.batch_size, config.eval_batches
            )
        ]
        for name, file in corpus.held_out.items()
    }


def last_evaluation(workdir: pathlib.Path) -> dict[str, float]:
    """Target -> perplexity in the last evaluation rows of a run's metrics.jsonl.

    Raises:
        UserError: the run was never evaluated.
    """
    found = {}
    for line in (workdir / "metrics.jsonl").read_text("utf-8").splitlines():
        for key, value in json.loads(line).items():
            if key.startswith("eval/") and key.endswith("/perplexity"):
                found[key.removeprefix("eval/").removesuffix("/perplexity")] = value
    if not found:
        raise types.UserError(f"{workdir} has no evaluation; remove it to train again")
    return found


def _summed(apply, params, batch):
    nats, tokens = perplexity.row_losses(apply, params, batch)
    return nats.sum(), tokens.sum()


def _train(config, workdir, mesh, name) -> None:
    with mesh_lib.use(mesh):
        experiment = olmo.pretrain(config, workdir, mesh)
    run = {key: value or None for key, value in config.run.items()}
    if not train.fit(experiment, workdir, mesh=mesh, name=name, **run).finished:
        raise KeyboardInterrupt


class _Plan:
    """How much of the study is done, in training steps, and what each stage took."""

    def __init__(self, study, domains, chosen, done):
        self.score_steps = study.unit_steps // 2  # of one target; a rough equivalent
        units = domains + len(chosen)
        self.total = study.base.steps + units * study.unit_steps
        self.total += domains * self.score_steps
        self.seconds: dict[str, float] = {}
        self._done, self._report, self._since = 0.0, done, time.monotonic()

    def finished(self, stage: str, steps: float) -> None:
        now = time.monotonic()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now - self._since
        self._since = now
        self._done += steps
        self._report(stage, self._done / self.total)

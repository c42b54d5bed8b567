"""Data ablation by merging: predict how mixtures would train, and check it.

Na et al. 2024 (arXiv:2410.15661), section 3: continue one seed model on each partition
alone, average the experts of a mixture, and read the average's loss as a prediction of
the loss of one model trained on the union.

    seed model -> one expert per partition (equal token budgets) -> averages of experts,
    and ensembles of their predictions -> ranking by target -> searches -> mixtures, and
    what the searches chose, trained for real: was it predicted?

What it found is computed from an `Outcome` by `systems/data_ablation/results.py`.

Deviations: with `budget="mixture"` a mixture trained for real gets the tokens of one
unit, not of one unit per member: compute is then equal, and to first order training on
a mixture moves the seed model by the mean of what its members move it, which is the
average that predicts it. `budget="member"` is the paper's. The branch point is stated
in `systems/data_ablation/experts.py`.
"""

import dataclasses
import functools
import itertools
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from jaxlab import ablation
from jaxlab.ablation import methods
from jaxlab.core import errors, progress
from jaxlab.core import mesh as mesh_lib
from jaxlab.data import prepared
from jaxlab.systems import branches
from jaxlab.systems.data_ablation import experts, pools
from jaxlab.systems.data_ablation import mixtures as mixtures_lib

Mixture = Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class Study:
    """A data ablation as data.

    Attributes:
        recipe: how the seed model, experts and mixtures are trained.
        trained: how many mixtures of two or more partitions are trained for real.
        units: the partitions that are base units; () is all. The held-out text of the
            other domains is a target that no unit is of.
        budget: tokens of a mixture trained for real: one unit, or one unit per member.
        largest: members of a mixture trained for real at most.
        repeated: how many of them are trained again,
        repeats: this often in all, with other data orders.
        searched: targets for which every search's choice is trained too.
        search_size: members of such a choice at most; all choices are trained on the
            budget of so many members, so that their regrets compare.
        candidates: mixtures that are merged and scored at most, small ones first.
        seed: of the choice of mixtures.
    """

    recipe: branches.Recipe
    trained: int
    units: tuple[str, ...] = ()
    budget: Literal["mixture", "member"] = "mixture"
    largest: int = 5
    repeated: int = 0
    repeats: int = 1
    searched: tuple[str, ...] = ()
    search_size: int = 3
    candidates: int = 256
    seed: int = 0

    def units_of(self, mixture: Mixture) -> int:
        """The budget of a mixture trained for real, in base units."""
        return len(mixture) if self.budget == "member" else 1

    @property
    def choice_units(self) -> int:
        """The budget of a search's choice, whatever its size, in base units."""
        return self.search_size if self.budget == "member" else 1


class Trained(NamedTuple):
    """A model that was trained for real: an expert (one member) or a mixture."""

    mixture: dict[str, float]
    path: pathlib.Path
    units: int
    why: Literal["expert", "checked", "repeated", "chosen"]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a study measured.

    Attributes:
        study: what was done.
        units: partition -> its domain, in the pool's order.
        seed: target -> perplexity of the seed model.
        mixtures: the K that were predicted.
        predicted: target -> proxy -> losses of the K by document.
        models: the R that were trained for real.
        actual: target -> losses of the R by document.
        found: target -> method of searching -> its choice, in whole percents.
        seconds: stage -> wall seconds.
    """

    study: Study
    units: dict[str, str]
    seed: dict[str, float]
    mixtures: list[dict[str, float]]
    predicted: dict[str, dict[str, ablation.DocumentLosses]]
    models: list[Trained]
    actual: dict[str, ablation.DocumentLosses]
    found: dict[str, dict[str, ablation.Found]]
    seconds: dict[str, float]

    @functools.cached_property
    def ranking(self) -> dict[str, list[ablation.RankedMixture]]:
        """Target -> every mixture by its merged model, best first."""
        return {
            target: ablation.rank(self.mixtures, by_proxy["merged"])
            for target, by_proxy in self.predicted.items()
        }

    @property
    def comparisons(self) -> list[int]:
        """Places in `models` of the mixtures that the predictions are held against."""
        return [i for i, model in enumerate(self.models) if model.why == "checked"]


def run(
    study: Study,
    workdir: pathlib.Path,
    *,
    say: Callable[[str], None] = print,
    done: Callable[[str, float], None] = lambda stage, share: None,
) -> Outcome:
    """Runs or resumes a study: makes the pool, and judges it.

    Args:
        study: what to do.
        workdir: the pool; see `systems/data_ablation/pools.py`.
        say: gets a line of text now and then.
        done: called with (stage, share of all the training and scoring done).
    """
    recipe = study.recipe
    corpus = pools.open_corpus(recipe, workdir, study.units)
    units = study.units or tuple(corpus.train)
    check(study, units, corpus)
    to_check = mixtures_lib.choose(units, study.trained, study.seed, study.largest)
    total = recipe.base.steps + len(units) * recipe.unit_steps
    total += judging_steps(study, len(units), to_check, len(corpus.held_out))
    plan = progress.Stages(total, done)
    mesh = mesh_lib.make_mesh(recipe.base.mesh.to_dict())
    pools.make(recipe, workdir, mesh, units=study.units, finished=plan.count)
    return judge(study, workdir, plan, say=say)


def judge(
    study: Study,
    workdir: pathlib.Path,
    plan: progress.Stages,
    *,
    to_check: Sequence[Mixture] | None = None,
    say: Callable[[str], None] = print,
) -> Outcome:
    """Scores all mixtures of a pool, searches, trains what the study says, compares.

    Args:
        study: what to do; the units are those of the pool, added ones too.
        workdir: the pool.
        plan: told what is finished.
        to_check: mixtures to be trained for real; None for those of `mixtures.choose`.
        say: gets a line of text now and then.
    """
    opened = _open(study, workdir)
    names = opened.pool.names
    check(study, names, opened.corpus)
    if to_check is None:
        to_check = mixtures_lib.choose(names, study.trained, study.seed, study.largest)
    mixtures = mixtures_lib.affordable(opened.pool, study.candidates)
    mixtures += [mixture for mixture in to_check if mixture not in mixtures]
    say(f"scoring {len(mixtures)} merged mixtures on {len(opened.evaluation)} targets")
    predicted, choices = {}, {}
    for target in opened.evaluation:
        logps, predicted[target] = _score(study, opened, mixtures, target, plan)
        if target in study.searched:
            known = (mixtures, {target: predicted[target]["merged"].loss})
            choices[target] = _search(study, opened, target, logps, known, plan)
    models = _train(study, workdir, to_check, choices, plan)
    return Outcome(
        study=study,
        units={name: experts.domain_of(name, opened.corpus) for name in names},
        seed={t: float(np.exp(p["seed"].loss[0])) for t, p in predicted.items()},
        mixtures=mixtures,
        predicted=predicted,
        models=models,
        actual=_measure(study, opened, models, plan),
        found=choices,
        seconds=plan.seconds,
    )


class _Opened(NamedTuple):
    """A pool, its text, and how its models are asked."""

    pool: ablation.ModelPool
    corpus: prepared.Prepared
    evaluation: dict[str, list]  # target -> held-out batches
    losses_fn: Any
    logps_fn: Any


def _open(study: Study, workdir: pathlib.Path) -> _Opened:
    base, corpus = study.recipe.base, prepared.open_folder(workdir / "data")
    model = branches.decoder(base, corpus)
    return _Opened(
        experts.open_pool(workdir),
        corpus,
        branches.held_out_batches(base, corpus),
        experts.losses_of(model),
        experts.logps_of(model),
    )


def _score(study, opened, mixtures, target, plan):
    """(the experts' predictions on a target, proxy -> losses of the mixtures)."""
    batches = opened.evaluation[target]
    logps = ablation.expert_logps(opened.pool, opened.logps_fn, batches)
    plan.count("predictions of experts", 0)
    losses = ablation.predictions(
        opened.pool, mixtures, opened.losses_fn, batches, logps=logps
    )
    plan.count("merged mixtures", _score_steps(study, len(mixtures)))
    return logps, losses


def _search(study, opened, target, logps, known, plan) -> dict[str, ablation.Found]:
    """Method of searching -> its choice for a target, in whole percents."""
    choices = methods.search_by_all(
        opened.pool,
        {target: opened.evaluation[target]},
        {target: logps},
        opened.losses_fn,
        ablation.Limits(max_size=study.search_size),
        known=known,
    )
    plan.count("searches", 0)
    return {
        method: choice._replace(mixture=mixtures_lib.whole_percents(choice.mixture))
        for method, choice in choices.items()
    }


def _train(study, workdir, to_check, choices, plan) -> list[Trained]:
    """The experts, and everything else that the study trains for real."""
    recipe = study.recipe
    mesh = mesh_lib.make_mesh(recipe.base.mesh.to_dict())
    models = [
        Trained({unit.name: 1.0}, workdir / unit.path, 1, "expert")
        for unit in ablation.pool_folder.members(workdir)
    ]

    def train(mixture: Mixture, why: str, units: int, repeat: int = 0) -> None:
        folder = experts.train_mixture(
            recipe, workdir, mixture, mesh, units=units, repeat=repeat
        )
        models.append(Trained(dict(mixture), folder, units, why))
        plan.count(f"{why} mixtures trained", units * recipe.unit_steps)

    for mixture in to_check:
        train(mixture, "checked", study.units_of(mixture))
    for mixture in to_check[: study.repeated]:
        for repeat in range(1, study.repeats):
            train(mixture, "repeated", study.units_of(mixture), repeat)
    for choice in itertools.chain.from_iterable(c.values() for c in choices.values()):
        wanted = experts.name_of(choice.mixture), study.choice_units
        if wanted not in [(experts.name_of(m.mixture), m.units) for m in models]:
            train(choice.mixture, "chosen", study.choice_units)
    return models


def _measure(study, opened, models, plan) -> dict[str, ablation.DocumentLosses]:
    """Target -> losses of the trained models by document."""
    return experts.measure_losses(
        [model.path for model in models],
        opened.losses_fn,
        opened.evaluation,
        functools.partial(
            plan.count,
            "losses of trained models",
            len(opened.evaluation) * _score_steps(study, 1),
        ),
    )


def check(study: Study, units: Sequence[str], corpus: prepared.Prepared) -> None:
    """Refuses a study of one unit, or one that searches for an unknown target."""
    source = study.recipe.base.data.source
    if len(units) < 2:
        raise errors.UserError(
            f"{source} has one domain; a mixture needs two subfolders"
        )
    for name in study.searched:
        if name not in corpus.held_out:
            raise errors.UserError(
                f"no target {name}; there are {', '.join(corpus.held_out)}"
            )


def judging_steps(
    study: Study, units: int, to_check: Sequence[Mixture], targets: int
) -> float:
    """The training steps that `judge` takes, and what else takes as long as so many.

    Args:
        study: what to do.
        units: how many the pool has.
        to_check: mixtures to be trained for real.
        targets: how many there are.
    """
    unit_steps = study.recipe.unit_steps
    trained = sum(map(study.units_of, to_check))
    again = sum(map(study.units_of, to_check[: study.repeated]))
    # Guessed: methods of searching that agree on a mixture train it once.
    trained += again * (study.repeats - 1)
    trained += 3 * study.choice_units * len(study.searched)
    mixtures = mixtures_lib.affordable_size(units, study.candidates)[1] + len(to_check)
    # Merged mixtures, and each trained model, are scored on every target.
    mixtures += units + len(to_check) + study.repeated * (study.repeats - 1)
    return unit_steps * trained + targets * _score_steps(study, mixtures)


def _score_steps(study, mixtures) -> float:
    """What scoring on one target takes, in training steps: a third of one per batch."""
    return mixtures * study.recipe.base.eval_batches / 3

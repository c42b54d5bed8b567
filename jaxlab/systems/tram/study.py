"""TRAM's comparison: which optimizer leaves a model better where it was not trained.

Sherborne et al. 2023 (arXiv:2310.03646), section 5: fine-tune a pre-trained model on
one domain (or language), look at all the others without training on them.

    for each optimizer:
        tune      the rate at the paper's strength, then the strength at that rate:
                  one seed, judged on the source alone
        compare   the best setting, S seeds: other targets, sharpness, drift
    across optimizers: paired by seed, intervals, sign-flip tests

All optimizers get the same number of updates, the same rates, and three strengths about
the value that its paper names, tuned one after the other: five runs instead of nine.
Nothing of a zero-shot target is used to
choose anything.

Deviations: models and budgets of a laptop. The strength of TRAM is a factor on its
radius, which the paper does not have and the released code does: after few updates at a
small rate the divergence between two steps is tiny, and so is the climb. Adam, SAM and
the penalties are tuned as widely.
"""

import dataclasses
import functools
import pathlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import ml_collections
import numpy as np

from jaxlab import objectives
from jaxlab.core import errors, json_text, progress, report, runs, types, value_types
from jaxlab.core import mesh as mesh_lib
from jaxlab.evals import sharpness as sharpness_lib
from jaxlab.stats import cka
from jaxlab.systems import experiments, trust_methods, trust_regions

RATES = (0.5, 1.0, 2.0)  # of the config's
STRENGTHS = (0.3, 1.0, 3.0)  # of the paper's value
RADIUS_SCALES = (1.0, 3.0, 10.0)
_RESULT = "result.json"
_KINDS = {
    "evals": value_types.OBJECT, "seconds": value_types.NUMBER,
    **dict.fromkeys(
        ("eigenvalue", "sharpness", "drift"), value_types.NUMBER.or_null()
    ),
}  # fmt: skip


def compared_rows() -> tuple[str, ...]:
    """The optimizers of a study that names none."""
    return tuple(name for name, row in trust_methods.ROWS.items() if row.is_compared)


class Setting(NamedTuple):
    """An optimizer of the comparison: a row of the tables, and its tuning."""

    row: str
    rate: float = 1.0
    strength: float = 1.0

    @property
    def name(self) -> str:
        """As a folder."""
        return f"{self.row}/rate-{self.rate:g}_strength-{self.strength:g}"


@dataclasses.dataclass(frozen=True)
class Protocol:
    """A task on which optimizers are compared.

    Attributes:
        config: of one run, a row's trust region left out.
        system: (config, workdir, mesh) -> Experiment; `experiment.evals` has every name
            in `tuned_on`, `source` and `targets`.
        task: what is trained, for sharpness and drift.
        metric: of the evaluations, e.g. perplexity or accuracy.
        higher_is_better: of the metric.
        tuned_on: evaluation that chooses settings; its text is the source's.
        source: evaluation of the source that is reported.
        targets: evaluations that nothing was trained or chosen on.
        surface: batches of the source, for sharpness.
        probes: target -> batches, for drift.
        start: parameters that every run starts from.
        radius: of epsilon-sharpness.
    """

    config: ml_collections.ConfigDict
    system: Callable[..., types.Experiment]
    task: objectives.Task
    metric: str
    higher_is_better: bool
    tuned_on: str
    source: str
    targets: tuple[str, ...]
    surface: Sequence[types.Batch]
    probes: Mapping[str, Sequence[types.Batch]]
    start: types.Params
    radius: float = 0.05

    @functools.cached_property
    def loss_fn(self) -> Callable[[types.Params, types.Batch], types.Loss]:
        """The plain loss; one object, so that it is compiled once."""
        objective = objectives.task_loss(self.task)

        def loss_fn(params, batch):
            return objective(params, batch, key=None, frozen=None)

        return loss_fn

    @functools.cached_property
    def programs(self) -> dict[str, dict]:
        """Row -> its compiled step: rates and strengths are arguments of it."""
        return {}

    @functools.cached_property
    def hidden(self) -> Callable[[types.Params, types.Batch], jax.Array]:
        """What the head reads, one row per answer that counts."""
        return jax.jit(lambda params, b: self.task.answer(params, b).hidden)


@dataclasses.dataclass(frozen=True)
class Study:
    """A comparison as data.

    Attributes:
        rows: optimizers, names of `trust_methods.ROWS`.
        seeds: runs of each at its best setting. Of five pairs no sign-flip test can
            say less than p = 0.06; six can say 0.03.
        rates: the grid, multiples of the config's rate.
        tune: False takes every paper's value at the config's rate.
    """

    rows: tuple[str, ...] = dataclasses.field(default_factory=compared_rows)
    seeds: int = 6
    rates: tuple[float, ...] = RATES
    tune: bool = True

    def grid(self, row: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """The rates and the strengths that are tried for an optimizer."""
        if not self.tune:
            return (1.0,), (1.0,)
        strength = trust_methods.ROWS[row].strength
        if not strength:
            return self.rates, (1.0,)
        return self.rates, RADIUS_SCALES if strength == "radius_scale" else STRENGTHS

    def tuning_runs(self, row: str) -> int:
        """How many runs choose its setting; none where there is one alone."""
        rates, strengths = self.grid(row)
        count = len(rates) + len(strengths) - 1
        return count if count > 1 else 0


class Run(NamedTuple):
    """What one run left.

    Attributes:
        setting, seed: what it was.
        evals: evaluation -> metric -> value.
        seconds: of its steps, each the median's.
        eigenvalue: the largest of the Hessian on the source; NaN while tuning.
        sharpness: what the loss rises within the radius, in nats.
        drift: 1 - CKA with the model at the start, mean over the probes.
    """

    setting: Setting
    seed: int
    evals: dict[str, dict[str, float]]
    seconds: float
    eigenvalue: float = float("nan")
    sharpness: float = float("nan")
    drift: float = float("nan")


def run(
    study: Study,
    protocol: Protocol,
    workdir: pathlib.Path,
    *,
    done: Callable[[str, int, int], None] = lambda name, count, of: None,
) -> dict[str, list[Run]]:
    """Tunes and compares; finished runs are not repeated.

    Args:
        study: what to do.
        protocol: the task.
        workdir: gets runs/ROW/SETTING/SEED, each with its result.json and metrics.
        done: called with (name of a run, runs done, runs in all).

    Returns:
        Row -> its runs at the best setting, one per seed.

    Raises:
        UserError: an unknown row, or one whose runs all fail.
    """
    check(study)
    tuning = sum(map(study.tuning_runs, study.rows))
    count, total = 0, tuning + study.seeds * len(study.rows)

    def run_once(setting, seed, is_tuning):
        nonlocal count
        name = "tuning" if is_tuning else f"seed-{seed}"
        folder = workdir / "runs" / setting.name / name
        needed = (protocol.tuned_on,)
        if not is_tuning:
            needed += (protocol.source, *protocol.targets)
        result = _load_result(folder, setting, seed, protocol.metric, needed)
        result = result or _train(protocol, setting, seed, folder, is_tuning)
        count += 1
        done(f"{setting.name}/{name}", count, total)
        return result

    def tune(row):
        rates, strengths = study.grid(row)
        if not study.tuning_runs(row):
            return Setting(row, rates[0])
        # A seed of its own: what is compared did not choose.
        tried = [run_once(Setting(row, rate), -1, True) for rate in rates]
        best = _best(protocol, tried)
        tried += [
            run_once(best._replace(strength=strength), -1, True)
            for strength in strengths
            if strength != best.strength
        ]
        return _best(protocol, tried)

    best = {row: tune(row) for row in study.rows}
    return {
        row: [run_once(setting, seed, False) for seed in range(study.seeds)]
        for row, setting in best.items()
    }


def check(study: Study) -> None:
    """Refuses rows that there are not, and a comparison without seeds."""
    if unknown := [row for row in study.rows if row not in trust_methods.ROWS]:
        raise errors.UserError(
            f"no optimizer {', '.join(unknown)}; use {', '.join(trust_methods.ROWS)}"
        )
    if study.seeds < 2:
        raise errors.UserError(
            f"{study.seeds} is too few seeds to compare; use 6 or more"
        )


def configure(
    config: ml_collections.ConfigDict, setting: Setting, seed: int
) -> ml_collections.ConfigDict:
    """The config of one run."""
    config = ml_collections.ConfigDict(config.to_dict(), allow_dotted_keys=True)
    config.optim.learning_rate *= setting.rate
    trust_methods.choose(config, setting.row, strength=setting.strength)
    config.seed = config.data.seed = 1000 + seed
    config.run.update({"save_every": 0, "eval_every": 0, "log_seconds": 3600.0})
    return config


def _train(protocol, setting, seed, folder, is_tuning) -> Run:
    """Trains, measures, keeps the numbers and not the weights."""
    config = configure(protocol.config, setting, seed)
    mesh = mesh_lib.make_mesh(config.mesh.to_dict())
    with mesh_lib.use(mesh):
        experiment = protocol.system(config, folder, mesh)
    if is_tuning:
        evals = {protocol.tuned_on: experiment.evals[protocol.tuned_on]}
        experiment = dataclasses.replace(experiment, evals=evals)
    state = experiments.finish(
        experiment,
        folder,
        mesh,
        config.run,
        name=setting.row,
        programs=protocol.programs.setdefault(setting.row, {}),
    )
    found = _read(folder, setting, seed)
    if not is_tuning:
        params = trust_regions.normalize_head(
            state.params, trust_methods.TrustConfig(**config.trust.to_dict())
        )
        text = f"[{setting.row}] measuring sharpness and drift"
        with progress.announce(text):
            found = found._replace(**_measure(protocol, params))
    report.write_json(folder / _RESULT, found)
    shutil.rmtree(runs.checkpoints(folder))
    return found


def _measure(protocol, params) -> dict[str, float]:
    top = sharpness_lib.top_eigenvalue(
        protocol.loss_fn, params, protocol.surface, key=jax.random.key(0), tol=1e-2
    )
    sharpness = sharpness_lib.epsilon_sharpness(
        protocol.loss_fn, params, protocol.surface, radius=protocol.radius, steps=5
    )
    drifts = []
    for batches in protocol.probes.values():
        for batch in batches:
            counts = np.asarray(protocol.task.rows(batch)).reshape(-1) > 0
            sides = [
                np.asarray(protocol.hidden(p, batch)).reshape(len(counts), -1)[counts]
                for p in (protocol.start, params)
            ]
            drifts.append(1 - float(cka.linear_cka(*sides)))
    return {
        "eigenvalue": float(top.value),
        "sharpness": float(sharpness),
        "drift": float(np.mean(drifts)),
    }


def _best(protocol, tried: Sequence[Run]) -> Setting:
    values = [each.evals[protocol.tuned_on][protocol.metric] for each in tried]
    sign = -1.0 if protocol.higher_is_better else 1.0
    scores = sign * np.array(values)
    if not np.isfinite(scores).any():
        raise errors.UserError(
            f"no setting of {tried[0].setting.row} gave a finite {protocol.metric}; "
            "lower the learning rate"
        )
    return tried[int(np.nanargmin(scores))].setting


def _read(folder, setting, seed) -> Run:
    """The last evaluations of a run, and the median time of a step."""
    evals: dict[str, dict[str, float]] = {}
    seconds = []
    for row in runs.rows(folder):
        seconds += [row["seconds"]] if "seconds" in row else []
        for key, value in row.items():
            if key.startswith("eval/"):
                _, name, metric = key.split("/")
                evals.setdefault(name, {})[metric] = value
    return Run(setting, seed, evals, float(np.median(seconds)) * len(seconds))


def _load_result(folder, setting, seed, metric, needed) -> Run | None:
    file = folder / _RESULT
    fix = "remove it: the run is made again"
    fields = [field for field in Run._fields if field not in ("setting", "seed")]
    content = json_text.read_object(file, fix, fields)
    if content is None:
        return None
    value_types.check(content, _KINDS, file=str(file))
    for name in needed:
        value_types.check(content["evals"], {name: value_types.OBJECT}, "", str(file))
        value = content["evals"].get(name, {}).get(metric, "")
        if not isinstance(value, int | float | None):  # null: it was not finite
            raise errors.UserError(f"{file} has no {metric} of {name}; {fix}")
    values = {k: float("nan") if v is None else v for k, v in content.items()}
    return Run(**{**values, "setting": setting, "seed": seed})

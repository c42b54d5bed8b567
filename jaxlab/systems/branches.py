"""A base model and what is continued from it: sizes, recipes, the configs of branches.

    base model      trained at a named size, or a run of the user's
    -> branches     the base, continued for `unit_steps` on a domain or a mixture

Pools of experts (`data_ablation/`) and the domains of TRAM's comparison (`tram/`) are
made so. The branch point is stated: parameters of the base's last step; AdamW's moments
fresh; a constant learning rate without warm-up; another data order than the base's.
"""

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import ml_collections

from jaxlab import load, models
from jaxlab.core import checkpoint, errors, paths, ranges, runs
from jaxlab.core import mesh as mesh_lib
from jaxlab.data import prepared
from jaxlab.data.batches import loader
from jaxlab.models import sections as sections_lib
from jaxlab.systems import experiments, sizes
from jaxlab.systems.olmo import config as olmo_config
from jaxlab.systems.olmo import pretraining

Mixture = Mapping[str, float]
_RANGES = {
    "--unit-steps": ranges.AT_LEAST_1,
    "--unit-rate": ranges.ABOVE_0,
    "--parts": ranges.AT_LEAST_1,
}


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a base model, or seed model, and its branches are trained.

    Attributes:
        base: a pre-training config; its steps and schedule are the seed model's.
        unit_steps: updates of a branch, called one base unit.
        unit_rate: the constant learning rate of branches.
        seed_domains: what the seed model is trained on, in equal shares; () is all, in
            proportion to their sizes.
        seed_model: a run directory that is the seed model; "" trains it.
    """

    base: ml_collections.ConfigDict
    unit_steps: int
    unit_rate: float
    seed_domains: tuple[str, ...] = ()
    seed_model: str = ""

    @property
    def unit_tokens(self) -> int:
        """The token budget of one base unit."""
        return self.unit_steps * self.base.data.length * self.base.data.batch_size


_HELD_OUT = 0.1  # of the documents of each domain
# Of experts of the user's own model, against its training, as in `sizes.SIZES`.
_UNIT_STEPS, _UNIT_RATE = 1 / 10, 1 / 3


def recipe_at_size(
    size: str,
    source: str,
    pool: pathlib.Path,
    *,
    unit_steps: int | None = None,
    unit_rate: float | None = None,
    vocab_size: int | None = None,
    parts: int = 1,
    seed_domains: Sequence[str] = (),
) -> Recipe:
    """A recipe that trains the seed model too.

    Args:
        size: one of `sizes.SIZES`.
        source: of the text, as `data.source` of a config; or one folder of token files.
        pool: the folder that holds the data and the runs.
        unit_steps: updates of a base unit; None for the size's.
        unit_rate: their learning rate; None for the size's.
        vocab_size: of the tokenizer; None for the size's.
        parts: partitions of each domain.
        seed_domains: what the seed model is trained on; () is all.
    """
    chosen = sizes.SIZES[size]
    base = olmo_config.pretraining()
    base.steps, base.eval_batches = chosen.steps, chosen.eval_batches
    base.model.update({"dtype": "float32", "tied": True})
    for name in ("embed", "layers", "heads", "mlp"):
        base.model[name] = getattr(chosen, name)
    base.data.update({"length": chosen.length, "batch_size": chosen.batch_size})
    base.data.vocab_size = _or_default(vocab_size, chosen.vocab_size)
    base.data.max_bytes_per_domain = chosen.embedded_bytes
    base.optim.update({"learning_rate": chosen.rate, "epsilon": 1e-8})
    base.optim.warmup_steps = chosen.warmup_steps
    return _recipe(
        base,
        source,
        pool,
        parts,
        unit_steps=_or_default(unit_steps, chosen.unit_steps),
        unit_rate=_or_default(unit_rate, chosen.unit_rate),
        seed_domains=tuple(seed_domains),
    )


def recipe_from_run(
    run: str,
    source: str,
    pool: pathlib.Path,
    *,
    unit_steps: int | None = None,
    unit_rate: float | None = None,
    parts: int = 1,
) -> Recipe:
    """A recipe whose seed model is a run of the user's: its model, its tokenizer.

    Args:
        run: its directory.
        source: as for `recipe_at_size`.
        pool: as for `recipe_at_size`.
        unit_steps: None for a tenth of the run's steps.
        unit_rate: None for a third of the run's peak.
        parts: as for `recipe_at_size`.

    Raises:
        UserError: no run directory, or one that was not trained but merged.
    """
    trained = runs.find(run)
    if trained is None or not trained.is_trained:
        raise errors.UserError(
            f"{run} does not say how it was trained; give a run of `jaxlab train`, "
            "which may start from it (--config.init_from)"
        )
    model = load.decoder(run)
    base = olmo_config.pretraining()
    saved = tuples(trained.config)
    data = saved["data"] | {"files": (), "weights": {}}
    saved = {name: saved[name] for name in base if name in saved}
    base.update(saved | {"data": data, "init_from": ""})
    base.model.vocab = model.config.vocab  # as it was rounded up then
    base.data.tokenizer = str(load.tokenizer_path(run))
    base.data.max_bytes_per_domain = 0
    return _recipe(
        base,
        source,
        pool,
        parts,
        unit_steps=_or_default(unit_steps, max(1, round(base.steps * _UNIT_STEPS))),
        unit_rate=_or_default(unit_rate, base.optim.learning_rate * _UNIT_RATE),
        seed_model=str(pathlib.Path(run)),
    )


def base_config(recipe: Recipe, domains: Sequence[str]) -> ml_collections.ConfigDict:
    """The config of a seed model on domains in equal shares; () is all, by size."""
    config = _config(recipe)
    config.data.weights = _weights(dict.fromkeys(domains, 1.0))
    return config


def branch_config(
    recipe: Recipe, mixture: Mixture, seed_dir: pathlib.Path
) -> ml_collections.ConfigDict:
    """The config of an expert (one partition) or of a mixture, for one base unit."""
    config = _config(recipe)
    config.steps = recipe.unit_steps
    config.init_from = str(seed_dir)
    config.data.weights = _weights(mixture)
    config.optim.update(
        {
            "learning_rate": recipe.unit_rate, "schedule": "constant",
            "warmup_steps": 0, "final": 1.0,
        }
    )  # fmt: skip
    config.data.seed = recipe.base.data.seed + 1  # not the seed model's order again
    return config


def fit(
    config: ml_collections.ConfigDict,
    workdir: pathlib.Path,
    mesh: jax.sharding.Mesh,
    name: str,
) -> None:
    """Trains a run by its config, or finishes it.

    Raises:
        Interrupt: a signal stopped it; the same call goes on.
    """
    if _is_finished(config, workdir):
        return
    with mesh_lib.use(mesh):
        experiment = pretraining.pretrain(config, workdir, mesh)
    experiments.finish(experiment, workdir, mesh, config.run, name=name)


def decoder(
    config: ml_collections.ConfigDict, corpus: prepared.Prepared
) -> models.Decoder:
    """The model that a base and its branches share."""
    return models.Decoder(
        sections_lib.transformer_config(config.model, corpus.tokenizer)
    )


def held_out_batches(
    config: ml_collections.ConfigDict, corpus: prepared.Prepared
) -> dict[str, list]:
    """Target -> the held-out batches that the runs themselves are evaluated on."""
    data = config.data
    return {
        name: list(
            loader.eval_batches(file, data.length, data.batch_size, config.eval_batches)
        )
        for name, file in corpus.held_out.items()
    }


def _recipe(base, source, pool, parts, **fields) -> Recipe:
    asked = {
        f"--{k.replace('_', '-')}": v for k, v in (fields | {"parts": parts}).items()
    }
    ranges.check("", asked, _RANGES)
    source = ",".join(str(pathlib.Path(part)) for part in paths.split(str(source)))
    base.data.update(
        {
            "source": source, "parts": parts, "held_out_fraction": _HELD_OUT,
            "folder": data_folder(pool),  # shared by all runs
        }
    )  # fmt: skip
    base.run.update({"save_every": 100, "eval_every": 0, "log_seconds": 10.0})
    return Recipe(base, **fields)


def _or_default(value, default):
    return default if value is None else value


def data_folder(pool: pathlib.Path) -> str:
    """Where the token files lie that all runs below `pool` read."""
    return str(pathlib.Path(pool).absolute() / "data")


def _is_finished(config, workdir) -> bool:
    """Whether a run of this config is whole, wherever the pool was when it was trained.

    Another config is left to `train.fit`, which refuses it.
    """
    if checkpoint.steps(runs.checkpoints(workdir))[:1] != [config.steps]:
        return False
    saved = dict(runs.read(workdir).config)
    wanted = json.loads(json.dumps(config.to_dict()))
    for each in (saved, wanted):
        each.update({"init_from": "", "mesh": {}, "run": {}})
        each["data"].update({"folder": "", "source": ""})
    return all(saved.get(key) == wanted[key] for key in wanted)


def _config(recipe: Recipe) -> ml_collections.ConfigDict:
    """A copy of the base that reads the token files as they are, added ones too."""
    config = recipe.base.to_dict()
    config["data"]["source"] = ""
    return ml_collections.ConfigDict(config, allow_dotted_keys=True)


def _weights(mixture: Mixture) -> ml_collections.ConfigDict:
    return ml_collections.ConfigDict(dict(mixture), allow_dotted_keys=True)


def tuples(value: Any) -> Any:
    """JSON's lists as the tuples that configs have."""
    if isinstance(value, Mapping):
        return {key: tuples(each) for key, each in value.items()}
    return tuple(map(tuples, value)) if isinstance(value, list) else value

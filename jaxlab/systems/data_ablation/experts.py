"""The models of a data ablation, each a run directory below one pool.

    POOL/data             token files of every partition, held-out files of every domain
    POOL/runs/seed        the seed model
    POOL/runs/expert-X    the seed model, continued on partition X for one base unit
    POOL/runs/mixture-Y   the same on a mixture, to see what was predicted
    POOL/pool.json        what was trained on what, with hashes (`pool_folder.py`)

Na et al. 2024 (arXiv:2410.15661), sections 2 and 3.

The branch point is stated: parameters of the seed model's last step; AdamW's moments
fresh; a constant learning rate without warm-up; another data order than the seed's. The
released code carries the moments over and lets its trainer restore the seed's schedule,
so that the rate of its experts cannot be told from its configs.
"""

import functools
import hashlib
import json
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxlab import ablation, models
from jaxlab.core import checkpoint, errors, folders, links, runs, types
from jaxlab.data import prepared
from jaxlab.evals import perplexity
from jaxlab.systems import branches


def train_seed(
    recipe: branches.Recipe, pool: pathlib.Path, mesh: jax.sharding.Mesh
) -> None:
    """Trains the seed model, or finishes or copies it, and makes the pool."""
    config = branches.base_config(recipe, recipe.seed_domains)
    folder = pool / "runs" / "seed"
    if recipe.seed_model:
        _copy_run(pathlib.Path(recipe.seed_model), folder, config)
    else:
        branches.fit(config, folder, mesh, "seed")
    branch = ablation.pool_folder.Branch(
        optimizer_state="fresh",
        schedule="constant",
        learning_rate=recipe.unit_rate,
        warmup_steps=0,
        unit_tokens=recipe.unit_tokens,
    )
    seed = ablation.pool_folder.fingerprint(checkpoint.load_params(folder))
    ablation.pool_folder.create(pool, "runs/seed", seed, branch)


def train_expert(
    recipe: branches.Recipe,
    pool: pathlib.Path,
    name: str,
    corpus: prepared.Prepared,
    mesh: jax.sharding.Mesh,
) -> pathlib.Path:
    """Trains the expert of one partition, or finishes it, and adds it to the pool.

    Returns:
        Its run directory.
    """
    path = f"runs/expert-{name}"
    config = branches.branch_config(recipe, {name: 1.0}, pool / "runs" / "seed")
    branches.fit(config, pool / path, mesh, f"expert {name}")
    params = checkpoint.load_params(pool / path)
    file = corpus.train[name]
    unit = ablation.pool_folder.Unit(
        name=name,
        path=path,
        fingerprint=ablation.pool_folder.fingerprint(params),
        seed_fingerprint=ablation.pool_folder.read(pool).seed_fingerprint,
        tokens_trained=recipe.unit_tokens,
        partition_tokens=file.size,
        steps=config.steps,
        source=domain_of(name, corpus),
        data_sha256=file.info.get("sha256", ""),
        config_sha256=_sha256(config.to_dict()),
    )
    ablation.pool_folder.add(pool, unit)
    return pool / path


def train_mixture(
    recipe: branches.Recipe,
    pool: pathlib.Path,
    mixture: branches.Mixture,
    mesh: jax.sharding.Mesh,
    *,
    units: int = 1,
    repeat: int = 0,
) -> pathlib.Path:
    """Trains one model on a mixture from the seed model; returns its run directory.

    Args:
        recipe: of the pool.
        pool: its folder.
        mixture: partition -> share of the data.
        mesh: of devices.
        units: its token budget in base units.
        repeat: another number is another data order, to see how much that changes.
    """
    name = name_of(mixture) + (f"@{repeat}" if repeat else "")
    if units > 1:
        name += f"@{units}units"
    folder = pool / "runs" / f"mixture-{name}"
    config = branches.branch_config(recipe, mixture, pool / "runs" / "seed")
    config.steps = units * recipe.unit_steps
    config.data.seed += repeat
    branches.fit(config, folder, mesh, f"mixture {name}")
    return folder


def open_pool(pool: pathlib.Path) -> ablation.ModelPool:
    """The experts and the seed model, checked against what was recorded."""
    return ablation.pool_folder.open(pool)


def name_of(mixture: branches.Mixture) -> str:
    """A mixture as a name: its members in order, with percentages if they differ.

    >>> name_of({"law": 0.5, "code": 0.5}), name_of({"law": 0.75, "code": 0.25})
    ('code+law', 'code=25+law=75')
    """
    shares = [mixture[name] for name in mixture]
    if max(shares) - min(shares) < 1e-6:
        return "+".join(sorted(mixture))
    total = sum(shares)
    return "+".join(f"{n}={100 * mixture[n] / total:.0f}" for n in sorted(mixture))


def check_name(name: str) -> None:
    """Refuses a partition whose name would be read as a mixture's, or as several.

    Raises:
        UserError: it has one of + = @ and the comma.
    """
    if bad := re.search("[+=@,]", name):
        raise errors.UserError(
            f"no partition may be called {name!r}: {bad[0]!r} joins the names of "
            "mixtures; rename its folder or file"
        )


def domain_of(name: str, corpus: prepared.Prepared) -> str:
    """The domain that a partition is of: its own name, or that without the part's."""
    return name if name in corpus.held_out else re.sub(r"\.\d+$", "", name)


def losses_of(model: models.Decoder) -> Any:
    """(params, batch) -> nats and tokens by row; equal for one model."""
    return functools.partial(perplexity.row_losses, model.apply)


def logps_of(model: models.Decoder) -> Any:
    """(params, batch) -> log-probabilities and weights of every label."""
    return functools.partial(perplexity.token_logps, model.apply)


def measure_losses(
    runs: Sequence[pathlib.Path],
    losses_fn: Any,
    evaluation: Mapping[str, Sequence[types.Batch]],
    done: Callable[[], None] = lambda: None,
) -> dict[str, ablation.DocumentLosses]:
    """Target -> losses by document of the models of K runs; `done` after each run."""
    losses: dict[str, list[ablation.DocumentLosses]] = {t: [] for t in evaluation}
    for run in runs:
        alone = ablation.ModelPool.create({"run": checkpoint.load_params(run)})
        for target, batches in evaluation.items():
            losses[target].append(
                ablation.document_losses(alone, [{"run": 1.0}], losses_fn, batches)
            )
        done()
    return {target: _join(parts) for target, parts in losses.items()}


def training_seconds(run: pathlib.Path) -> float:
    """What the steps of a run took, evaluations and start left out."""
    return sum(row.get("seconds", 0.0) for row in runs.rows(run))


def _copy_run(run: pathlib.Path, folder: pathlib.Path, config: Any) -> None:
    """The newest checkpoint of a run, under the config that its experts start from."""
    if folder.exists():
        return
    steps = checkpoint.steps(runs.checkpoints(run))
    if not steps:
        raise errors.UserError(f"{run} has no checkpoint; train it first")
    links.check(run)
    links.check_all(runs.checkpoints(run) / str(steps[0]))
    with folders.new_folder(folder) as part:
        runs.copy(run, part, steps[0], config.to_dict())


def _sha256(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def _join(parts: Sequence[ablation.DocumentLosses]) -> ablation.DocumentLosses:
    return parts[0]._replace(nats=np.concatenate([part.nats for part in parts]))

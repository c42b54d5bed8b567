"""Trust regions in any training run: which optimizer climbs, what is penalised.

Every optimizer of the tables of TRAM (Sherborne et al. 2023, arXiv:2310.03646) is one
row of `systems/trust_methods.py`; it changes an Experiment without touching its model,
data or loop:

    plain                      the optimizer as it is (SGD, Adam)
    sam  asam  fsam            a climb of constant radius       optim/sharpness_aware.py
    tram_theta  tram_theta0    a climb as far as answers moved  optim/trust_region.py
    tram_ema  tram_x           ... from an average, ... under noise
    tram_fisher                Fisher-SAM at noisy input
    trpo  mesa                 a penalty towards an anchor      objectives/penalties.py
    r3f  r4f                   a penalty for changes under noise
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import ml_collections
import optax

from jaxlab import objectives, optim, systems
from jaxlab.core import errors, factored_logits, ranges, step, types
from jaxlab.systems import trust_methods

# Settings of a section, which has no None, whose empty value is None.
_EMPTY_IS_NONE = {"max_radius", "anchor_dtype"}


def with_trust(
    experiment: types.Experiment,
    task: objectives.Task,
    config: trust_methods.TrustConfig,
    *,
    precise: objectives.Task | None = None,
) -> types.Experiment:
    """The experiment, trained by a method of TRAM's tables.

    Args:
        experiment: of any task; its `tx` is the optimizer that steps, and its objective
            that of `task`.
        task: what is trained.
        config: the method.
        precise: the same task computed in `config.second_pass`, for the second pass.

    Raises:
        UserError: a setting that the method cannot use.
    """
    row = trust_methods.of(config.method)
    if row.normalized_head:
        task = objectives.normalize_spectrally(task)
    changes: dict = {
        "objective": _objective(task, row, config),
        "tx": _transform(experiment.tx, row, config),
    }
    if row.normalized_head:
        changes["evals"] = {
            name: lambda params, evaluate=evaluate: evaluate(
                normalize_head(params, config)
            )
            for name, evaluate in experiment.evals.items()
        }
    if row.penalty == "anchor":
        changes["reads"] = optim.anchor_of
    if row.transform:
        changes["opt_metrics"] = optim.climb_metrics
        changes["update_args"] = functools.partial(
            _update_args, task, precise, row, config, experiment.micro_batches
        )
    return dataclasses.replace(experiment, **changes)


def from_section(
    experiment: types.Experiment,
    section: ml_collections.ConfigDict,
    make_task: Callable[[Callable], objectives.Task],
) -> types.Experiment:
    """The experiment with the trust region of its config, if it has one.

    Args:
        experiment: its model is a module with a field `config`.
        section: the config's `trust`.
        make_task: of a model's `apply`, e.g. `objectives.classifier`.

    Raises:
        UserError: an unknown method, or a setting that it cannot use.
    """
    config = trust_methods.TrustConfig(**section.to_dict())
    if config.method == "plain":
        return experiment
    model, precise = experiment.model, None
    if config.second_pass:
        wide = dataclasses.replace(model.config, dtype=config.second_pass)
        precise = make_task(model.clone(config=wide).apply)
    return with_trust(experiment, make_task(model.apply), config, precise=precise)


def normalize_head(
    params: types.Params, config: trust_methods.TrustConfig
) -> types.Params:
    """The parameters as the trained model uses them: r4f divides its head by its norm.

    Raises:
        UserError: r4f of a model whose head is its embedding.
    """
    if not trust_methods.of(config.method).normalized_head:
        return params
    heads = [name for name in ("lm_head", "classify") if name in params]
    if not heads:
        raise errors.UserError(
            f"trust.method {config.method} needs a head of its own; untie it"
        )
    kernel = objectives.divide_by_norm(params[heads[0]]["kernel"])
    return {**params, heads[0]: {"kernel": kernel}}


def _objective(task, row, config):
    if row.penalty == "anchor":
        return objectives.near_anchor(task, config.weight)
    if row.penalty == "noise":
        return objectives.r3f(
            task, config.weight, sigma=config.sigma, noise=config.noise
        )
    return objectives.task_loss(task, keep=row.compares)


def _transform(optimizer, row, config):
    if row.penalty == "anchor":
        keep = optim.keep_anchor(
            row.anchor, decay=config.anchor_decay, dtype=config.anchor_dtype or None
        )
        return optax.chain(optimizer, keep)
    if not row.transform:
        return optimizer
    arguments = {name: getattr(config, name) for name in row.arguments}
    for name in _EMPTY_IS_NONE & arguments.keys():
        value = arguments[name]
        if ranges.is_zero(value) or (isinstance(value, str) and not value):
            arguments[name] = None
    if row.compares:
        arguments["anchor"] = row.anchor or None
        arguments["divergence_fn"] = functools.partial(
            factored_logits.kl_divergence, direction=arguments.pop("direction")
        )
    if config.stochastic_rounding:
        arguments["stochastic_rounding"] = True
    wrap = systems.resolve(row.transform)
    return wrap(optimizer, **arguments, **row.constants)


def _update_args(
    task,
    precise,
    row,
    config,
    micro_batches,
    params,
    batch,
    key,
    frozen,
    outputs=None,
):
    """What the climb needs to know of this batch, for `tx.update`."""
    arguments = {}
    if precise is not None:
        gradients = step.mean_and_grad(objectives.task_loss(precise), micro_batches)
        arguments["grad_fn"] = lambda p, _=None: gradients(p, batch, key, frozen)[1]
    if row.fisher_noise:
        noisy = objectives.with_noise(task, sigma=config.sigma, noise=config.noise)
        shaken = step.mean_and_grad(noisy, micro_batches)

        def fisher_fn(params):
            return jax.tree.map(jnp.square, shaken(params, batch, key, frozen)[1])

        arguments["fisher_fn"] = fisher_fn
    if outputs is None:
        return arguments
    now = _as_answer(task, params, batch, outputs)
    noise = None
    if not row.anchor:
        noise = objectives.input_noise(key, batch, now, config.sigma, config.noise)

    def answers(params):
        def hidden(part):
            return task.answer(params, part["batch"], part["noise"]).hidden

        parts = {"batch": batch, "noise": noise}
        return now.replace(
            hidden=step.map_parts(hidden, parts, micro_batches),
            kernel=task.kernel(params),
        )

    where = task.rows(batch)
    return arguments | {"logits": now, "logits_fn": answers, "where": where}


def _as_answer(task, params, batch, hidden):
    """The answer of the first pass, from the hidden states that it kept."""
    shape = jax.eval_shape(task.answer, params, batch)
    return shape.replace(hidden=hidden, kernel=task.kernel(params))

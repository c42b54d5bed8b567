"""Any training run with a trust region: which optimizer climbs, what is penalised.

Every row of the tables of TRAM (Sherborne et al. 2023, arXiv:2310.03646) is one
`TrustConfig`, and changes an Experiment without touching its model, data or loop:

    plain                      the optimizer as it is (SGD, Adam)
    sam  asam  fsam            a climb of constant radius       optim/sharpness_aware.py
    tram_theta  tram_theta0    a climb as far as answers moved  optim/trust_region.py
    tram_ema  tram_x           ... from an average, ... under noise
    tram_fisher                Fisher-SAM at noisy input
    trpo  mesa                 a penalty towards an anchor         objectives.py
    r3f  r4f                   a penalty for changes under noise
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import optax

from jaxlab import models, objectives, optim
from jaxlab.core import errors, factored_logits, step, types

METHODS = (
    "plain", "sam", "asam", "fsam", "tram_theta", "tram_theta0", "tram_ema", "tram_x",
    "tram_fisher", "trpo", "mesa", "r3f", "r4f",
)  # fmt: skip
_ANCHORS = {"tram_theta": "previous", "tram_theta0": "initial", "tram_ema": "ema"}


@dataclasses.dataclass(frozen=True)
class TrustConfig:
    """A trust region as data.

    Attributes:
        method: one of METHODS.
        rho: radius of sam (paper 0.05) and asam (0.5).
        gamma: radius of fsam and tram_fisher (0.1).
        eta: asam and tram: T = |theta| + eta; fsam and tram_fisher: F^-1 is
            1 / (1 + eta F).
        radius_scale: of tram: d is multiplied by it.
        max_radius: of tram; 0 is no bound.
        direction: of tram's KL: forward, reverse or symmetric.
        anchor_decay: of tram_ema and mesa.
        anchor_dtype: of tram's anchor, e.g. bfloat16; "" is the parameters'.
        sigma: standard deviation of the noise of tram_x, tram_fisher, r3f and r4f.
        noise: normal or uniform.
        weight: of the penalty of trpo, mesa, r3f and r4f.
        second_pass: dtype that the model computes the second pass in, e.g. float32
            where its first is bfloat16; "" is the model's.
        stochastic_rounding: of the climbed parameters to bfloat16.
    """

    method: str = "plain"
    rho: float = 0.5
    gamma: float = 0.1
    eta: float = 0.0
    radius_scale: float = 1.0
    max_radius: float = 0.0
    direction: str = "forward"
    anchor_decay: float = 0.999
    anchor_dtype: str = ""
    sigma: float = 0.1
    noise: str = "normal"
    weight: float = 0.1
    second_pass: str = ""
    stochastic_rounding: bool = False

    def __post_init__(self):
        """Refuses a method that does not exist."""
        if self.method not in METHODS:
            raise errors.UserError(
                f"trust.method {self.method!r}; use one of {', '.join(METHODS)}"
            )


def with_trust(
    experiment: types.Experiment,
    predictor: objectives.Predictor,
    config: TrustConfig,
    *,
    precise: objectives.Predictor | None = None,
) -> types.Experiment:
    """The experiment, trained by a method of TRAM's tables.

    Args:
        experiment: of any task; its `tx` is the optimizer that steps, and its objective
            that of `predictor`.
        predictor: the task.
        config: the method.
        precise: the same task computed in `config.second_pass`, for the second pass.

    Raises:
        UserError: a setting that the method cannot use.
    """
    if config.method == "r4f":
        predictor = objectives.spectrally_normalized(predictor)
    objective = _objective(predictor, config)
    changes: dict = {"objective": objective, "tx": _transform(experiment.tx, config)}
    if config.method == "r4f":
        changes["evals"] = {
            name: lambda params, evaluate=evaluate: evaluate(evaluated(params, config))
            for name, evaluate in experiment.evals.items()
        }
    if config.method in ("trpo", "mesa"):
        changes["reads"] = optim.anchor_of
    if config.method not in ("plain", "trpo", "mesa", "r3f", "r4f"):
        changes["opt_metrics"] = optim.climb_metrics
        changes["update_args"] = functools.partial(
            _update_args, predictor, precise, config, experiment.micro_batches
        )
    return dataclasses.replace(experiment, **changes)


def of_decoder(
    experiment: types.Experiment, config: TrustConfig, *, z_loss: float
) -> types.Experiment:
    """An experiment of a decoder with its trust region, if it has one."""
    if config.method == "plain":
        return experiment
    precise = None
    if config.second_pass:
        wide = dataclasses.replace(experiment.model.config, dtype=config.second_pass)
        precise = objectives.language_model(models.Decoder(wide).apply, z_loss=z_loss)
    predictor = objectives.language_model(experiment.model.apply, z_loss=z_loss)
    return with_trust(experiment, predictor, config, precise=precise)


def evaluated(params: types.Params, config: TrustConfig) -> types.Params:
    """The parameters as the trained model uses them: r4f divides its head by its norm.

    Raises:
        UserError: r4f of a model whose head is its embedding.
    """
    if config.method != "r4f":
        return params
    heads = [name for name in ("lm_head", "classify") if name in params]
    if not heads:
        raise errors.UserError("trust.method r4f needs a head of its own; untie it")
    kernel = objectives.divided_by_norm(params[heads[0]]["kernel"])
    return {**params, heads[0]: {"kernel": kernel}}


def _objective(predictor, config):
    if config.method in ("trpo", "mesa"):
        return objectives.near_anchor(predictor, config.weight)
    if config.method in ("r3f", "r4f"):
        return objectives.r3f(
            predictor, config.weight, sigma=config.sigma, noise=config.noise
        )
    keep = config.method in (*_ANCHORS, "tram_x")
    return objectives.answered(predictor, keep=keep)


def _transform(optimizer, config):
    climb = {"stochastic_rounding": config.stochastic_rounding}
    method = config.method
    if method == "sam":
        return optim.sam(optimizer, config.rho, **climb)
    if method == "asam":
        return optim.asam(optimizer, config.rho, eta=config.eta, **climb)
    if method == "fsam":
        return optim.fisher_sam(optimizer, config.gamma, eta=config.eta, **climb)
    if method == "tram_fisher":
        return optim.tram_fisher(optimizer, config.gamma, eta=config.eta, **climb)
    if method == "trpo":
        return optax.chain(optimizer, optim.keep_anchor("previous"))
    if method == "mesa":
        return optax.chain(
            optimizer, optim.keep_anchor("ema", decay=config.anchor_decay)
        )
    if method in (*_ANCHORS, "tram_x"):
        return optim.tram(
            optimizer,
            anchor=_ANCHORS.get(method),
            anchor_decay=config.anchor_decay,
            anchor_dtype=config.anchor_dtype or None,
            divergence_fn=functools.partial(
                factored_logits.kl_divergence, direction=config.direction
            ),
            radius_scale=config.radius_scale,
            max_radius=config.max_radius or None,
            eta=config.eta,
            **climb,
        )
    return optimizer


def _update_args(
    predictor, precise, config, micro_batches, params, batch, key, frozen, outputs=None
):
    """What the climb needs to know of this batch, for `tx.update`."""
    found = {}
    if precise is not None:
        gradients = step.mean_and_grad(objectives.answered(precise), micro_batches)
        found["grad_fn"] = lambda p, _=None: gradients(p, batch, key, frozen)[1]
    if config.method == "tram_fisher":
        noisy = objectives.with_noise(predictor, sigma=config.sigma, noise=config.noise)
        shaken = step.mean_and_grad(noisy, micro_batches)

        def fisher_fn(params):
            return jax.tree.map(jnp.square, shaken(params, batch, key, frozen)[1])

        found["fisher_fn"] = fisher_fn
    if outputs is None:
        return found
    now = _as_answer(predictor, params, batch, outputs)
    noise = None
    if config.method == "tram_x":
        noise = objectives.input_noise(key, batch, now, config.sigma, config.noise)

    def answers(params):
        def hidden(part):
            return predictor.answer(params, part["batch"], part["noise"]).hidden

        parts = {"batch": batch, "noise": noise}
        return now.replace(
            hidden=step.by_parts(hidden, parts, micro_batches),
            kernel=predictor.kernel(params),
        )

    where = predictor.rows(batch)
    return found | {"logits": now, "logits_fn": answers, "where": where}


def _as_answer(predictor, params, batch, hidden):
    """The answer of the first pass, from the hidden states that it kept."""
    shape = jax.eval_shape(predictor.answer, params, batch)
    return shape.replace(hidden=hidden, kernel=predictor.kernel(params))

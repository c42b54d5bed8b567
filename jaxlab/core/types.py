"""Key types of all rooms: Batch, Loss, Objective, TrainState, Experiment.

An `Experiment` is one training run as data. `jaxlab.train.fit` runs any of them:
pre-training, instruction tuning, DPO, reward models, TRAM, encoders and the router all
differ only in what they put into these fields.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import flax.struct
import jax
import numpy as np
import optax

Params = Any  # nested dict of jax.Array, plain and unboxed
Batch = dict[str, jax.Array]  # leading axis is always `batch`


class Loss(NamedTuple):
    """A loss as sums, so that microbatches and devices weight tokens alike.

    Attributes:
        total: f32[]: sum over everything that counts (tokens, pairs, queries).
        weight: f32[]: how many counted. The loss that is minimised is
            `total / weight`, divided once, after all microbatches are summed.
        metrics: name -> f32[], each a sum that is divided by `weight` like `total`.
        outputs: what the model said, arrays with the rows first, for `update_args`;
            None keeps nothing.
    """

    total: jax.Array
    weight: jax.Array
    metrics: dict[str, jax.Array]
    outputs: Any = None


class Objective(Protocol):
    """A pure function from parameters and a batch to a `Loss`.

    `frozen` is a pytree that is read and never updated: reference policy, teacher,
    anchor. It is an argument and not a closure, because closures bake arrays into
    the compiled program and fail on several hosts.
    """

    def __call__(
        self, params: Params, batch: Batch, *, key: jax.Array, frozen: Any
    ) -> Loss: ...


class Batches(Protocol):
    """A pure function of the step: the data order is (seed, step), nothing else.

    Attributes:
        rows: of the global batch. Several hosts must agree on it before any of them
            has made a batch, so there it is needed; `train.fit` checks it first.

    The argument `rows` selects rows of the global batch, so that each of several hosts
    reads only what its devices hold. It is passed only when there are several hosts.
    """

    rows: int

    def __call__(
        self, step: int, rows: slice = slice(None)
    ) -> Mapping[str, np.ndarray]: ...


@flax.struct.dataclass
class TrainState:
    """Everything that changes from step to step. Arrays only."""

    step: jax.Array  # i32[], updates attempted so far
    params: Params
    opt_state: Any
    key: jax.Array  # the run's key; a step uses fold_in(key, step)


class Numbers(NamedTuple):
    """Numbers of an experiment that its compiled step takes as arguments.

    Another rate is then no other program. They reach the step through `remake` alone,
    which counts only while the experiment's own parts are those that were made with it.

    Attributes:
        values: name -> number.
        remake: the same names -> traced numbers, to an experiment with them.
        parts: `Experiment.parts` of the one that has the values.
    """

    values: Mapping[str, float]
    remake: Callable[[Mapping[str, Any]], "Experiment"]
    parts: tuple


@dataclasses.dataclass(frozen=True)
class Experiment:
    """One training run as data.

    Attributes:
        model: a flax module; `model.init(key, *example)["params"]` makes parameters.
        objective: what is minimised.
        tx: any optax transform; extra arguments are offered to those that take them.
        batches: step -> global batch of host arrays.
        steps: number of updates.
        example: arguments of `model.init`, e.g. `(np.zeros((1, 8), np.int32),)`.
        init_from: parameters to start from, or None for `model.init`. Copied, since
            the step donates its state.
        frozen: given to the objective and never updated.
        evals: name -> function of params that returns {metric: float}.
        update_args: (params, batch, key, frozen) -> extra arguments of `tx.update`;
            with `outputs=`, in the batch's order, where the objective returns some.
        reads: optimizer state -> what the objective gets as `frozen` instead, e.g.
            `optim.anchor_of`; or None.
        opt_metrics: optimizer state -> {name: f32[]} of the step; or None.
        micro_batches: the batch is cut into this many parts, one after the other.
        seed: of initialisation and of the per-step keys.
        config: what is saved as config.json and compared when a run resumes.
        flops_per_token: forward + backward FLOPs per token, for utilisation; or None.
        learning_rate: n -> rate of the optimizer's n-th update, only to be reported:
            after skipped steps n is less than the step; or None.
        numbers: those that are no part of the compiled step; or None, all are.
    """

    model: Any
    objective: Objective
    tx: optax.GradientTransformation
    batches: Batches
    steps: int
    example: tuple = ()
    init_from: Params | None = None
    frozen: Any = None
    evals: Mapping[str, Callable[[Params], Mapping[str, float]]] = dataclasses.field(
        default_factory=dict
    )
    update_args: Callable[..., Mapping[str, Any]] | None = None
    reads: Callable[[Any], Any] | None = None
    opt_metrics: Callable[[Any], Mapping[str, jax.Array]] | None = None
    micro_batches: int = 1
    seed: int = 0
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    flops_per_token: float | None = None
    learning_rate: Callable[[int], Any] | None = None
    numbers: Numbers | None = None

    @property
    def parts(self) -> tuple:
        """What a step is compiled from."""
        return (
            self.objective,
            self.tx,
            self.update_args,
            self.reads,
            self.opt_metrics,
        )

    @property
    def traced(self) -> dict[str, float]:
        """What its step takes as arguments; {} of one whose parts were replaced."""
        numbers = self.numbers
        if numbers is None:
            return {}
        pairs = zip(numbers.parts, self.parts, strict=True)
        return dict(numbers.values) if all(a is b for a, b in pairs) else {}

"""TRAM: sharpness-aware minimisation inside a trust region of the model's answers.

    g   = grad L(theta_t)                               forward and backward; keep f(x)
    d   = E_x KL(p(x; anchor) || p(x; theta_t))         one more forward pass
    e   = d T^2 g / |T g|_2,   T = |theta_t| + eta      ASAM's climb, of radius d
    g'  = grad L(theta_t + e)                           forward and backward
    theta_{t+1} = theta_t - optimizer(g') at theta_t

The radius of the climb is how much the model's answers have moved: since the last step
(anchor "previous"), since the start ("initial"), since an average ("ema"), or when its
input embeddings are shaken (None: TRAM-x, where the anchor is theta_t on noisy input).
d and e are constants: no gradient flows through them. Three forward and two backward
passes per step, 7/3 of Adam's; one copy of the parameters more, none for TRAM-x.

Sherborne, Saphra, Dasigi and Peng 2023, *TRAM: Bridging Trust Regions and Sharpness
Aware Minimization*, arXiv:2310.03646, algorithm 1, equations 4, 5 and 7.

Decisions where the paper is silent: the first step of "previous" has d = 0 and is an
ordinary one; the expectation over x is the mean over rows (tokens that count, for a
language model).

Deviations from the released code, whose ascent leaves the gradient out (it climbs along
theta^2), divides the divergence by batch and classes once more, and moves the anchor
before it is read: here as the paper has it.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxlab.core import divergences
from jaxlab.optim import anchors, ascent


@ascent.spell_out_options
def tram(
    optimizer: optax.GradientTransformation,
    *,
    anchor: str | None = "previous",
    anchor_decay: Any = 0.999,
    divergence_fn: Callable[..., jax.Array] | None = None,
    radius_scale: ascent.Scalar = 1.0,
    max_radius: Any = None,
    adaptive: ascent.PerLeaf = True,
    eta: Any = 0.0,
    mask: ascent.PerLeaf | None = None,
    anchor_dtype: Any = None,
    **options: Any,
) -> optax.GradientTransformationExtraArgs:
    """TRAM over any optimizer.

        updates, state = tx.update(
            grads, state, params, grad_fn=..., logits=..., logits_fn=...)

    `grad_fn(params, i)` returns the gradients of the same loss on the same batch (all
    of its microbatches), as for `optax.contrib.sam`: it is called once, at theta + e.
    `logits` are the model's at `params`, kept from the pass that made `grads`;
    `logits_fn(p)` returns them at p, and is called once: at the anchor or, with
    `anchor=None`, at `params`, with the noise closed over. Both with one dropout key
    (or none), else d measures dropout. `where` marks rows of the logits that count.
    `radius=` replaces all this by a number of one's own. Further arguments go to the
    optimizer.

    Clipping, schedules and weight decay belong into `optimizer`; what stands before
    `tram` in a chain only changes g, which is normalised anyway.

    Args:
        optimizer: makes the step from g'.
        anchor: "previous", "initial", "ema" or None; see above.
        anchor_decay: of "ema".
        divergence_fn: (target logits, logits, where=...) -> scalar; None is
            `kl_divergence`; `mmd`, `l2`, or one of your own, of any outputs. `where`
            is passed only if it was given. (Name it in `static_args` of
            `optax.inject_hyperparams`, which takes functions for schedules.)
        radius_scale: d is multiplied by this number or schedule of the updates so far.
        max_radius: bound on d, after the scale; the theory assumes one, the authors
            used none.
        adaptive: T = |theta| + eta; False is T = 1 (SAM's climb); or by leaf.
        eta: without it, parameters that are 0 are never perturbed.
        mask: leaves that are perturbed; see `ascent.Climb`.
        anchor_dtype: bfloat16 halves the anchor, and rounds d; see `keep_anchor`.
        **options: eps, norm_dtype, batch_axis_name, param_axis_name, m_sharpness,
            second_pass_dtype, stochastic_rounding: fields of `ascent.Climb`.

    Returns:
        A transform whose state is a `TRAMState`.

    Raises:
        ValueError: an unknown anchor; in `update`, missing arguments.

    >>> logits = lambda p: jnp.array([[1.0, 2.0], [3.0, 1.0]]) * p["w"]
    >>> loss = lambda p, _=None: -jax.nn.log_softmax(logits(p))[:, 0].mean()
    >>> params = {"w": jnp.array(1.0)}
    >>> tx = tram(optax.sgd(0.1), anchor="initial")
    >>> state = tx.init(params)
    >>> for _ in range(2):
    ...     updates, state = tx.update(
    ...         jax.grad(loss)(params), state, params, grad_fn=jax.grad(loss),
    ...         logits=logits(params), logits_fn=logits)
    ...     params = optax.apply_updates(params, updates)
    >>> bool(state.radius > 0)
    True
    """
    if anchor is not None:
        anchors.check(anchor)
    divergence_fn = divergence_fn or divergences.kl_divergence
    climb = ascent.Climb(mask=mask, adaptive=adaptive, eta=eta, **options)

    def measure(state, params, logits, logits_fn, where):
        if logits is None or logits_fn is None:
            raise ValueError(
                "tram needs logits= (of the first pass) and logits_fn= in tx.update, "
                "or radius="
            )
        centre = params
        if anchor is not None:
            centre = jax.tree.map(lambda a, p: a.astype(p.dtype), state.anchor, params)
        weights = {} if where is None else {"where": where}
        distance = divergence_fn(logits_fn(centre), logits, **weights)
        if climb.batch_axis_name is not None and not climb.m_sharpness:
            distance = jax.lax.pmean(distance, climb.batch_axis_name)
        return distance

    def find(
        grads, state, params, *, logits=None, logits_fn=None, radius=None, where=None
    ):
        if radius is None:
            radius = measure(state, params, logits, logits_fn, where)
        radius = radius * ascent.at(radius_scale, state.count)
        if max_radius is not None:
            radius = jnp.minimum(radius, max_radius)
        radius = jax.lax.stop_gradient(radius)
        return ascent.scales(params, climb), radius

    keep = None
    if anchor is not None:
        keep = (
            lambda params: anchors.first_anchor(anchor, params, anchor_dtype),
            lambda value, params: anchors.next_anchor(
                anchor, value, params, anchor_decay
            ),
        )
    names = ("logits", "logits_fn", "radius", "where")
    return ascent.climbing_optimizer(optimizer, find, names, climb, keep)

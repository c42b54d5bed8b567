"""SAM, ASAM, Fisher-SAM and TRAM-Fisher: climbs of a constant radius.

    sam          e = rho g / |g|
    asam         e = rho T^2 g / |T g|,   T = |theta| + eta
    fisher_sam   e = gamma F^-1 g / sqrt(g F^-1 g)
    tram_fisher  the same with F at noisy input embeddings

Foret et al. 2021 (arXiv:2010.01412); Kwon et al. 2021 (arXiv:2102.11600); Kim et al.
2022 (arXiv:2206.04920); Sherborne et al. 2023 (arXiv:2310.03646), equations 8 and 9.

F is a diagonal, and F^-1 stands for 1 / (1 + eta F), as FSAM's practice has it; the
default F is g^2. Two forward and two backward passes per step; `tram_fisher` takes one
more of both for F. No memory beyond the optimizer's.

Deviations: equation 8 of TRAM prints neither gamma nor the root; this is FSAM's form,
which is what gamma = 0.1 means. `F` is a function's answer (`fisher_fn`), because
equation 9 can be read as the squared gradient of the batch and as the mean of squared
gradients of examples.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxlab.optim import ascent


@ascent.spell_out_options
def sam(
    optimizer: optax.GradientTransformation,
    rho: ascent.Scalar = 0.05,
    *,
    mask: ascent.PerLeaf | None = None,
    **options: Any,
) -> optax.GradientTransformationExtraArgs:
    """SAM: `asam` with T = 1. Arguments as there; passes: 2 forward, 2 backward."""
    return asam(optimizer, rho, eta=0.0, mask=mask, adaptive=False, **options)


@ascent.spell_out_options
def asam(
    optimizer: optax.GradientTransformation,
    rho: ascent.Scalar = 0.5,
    *,
    eta: Any = 0.01,
    mask: ascent.PerLeaf | None = None,
    adaptive: ascent.PerLeaf = True,
    **options: Any,
) -> optax.GradientTransformationExtraArgs:
    """ASAM over any optimizer: `tx.update(grads, state, params, grad_fn=...)`.

    Args:
        optimizer: makes the step from the gradient at theta + e.
        rho: the radius, a number or a schedule of the updates so far.
        eta: T = |theta| + eta (the authors' 0.01).
        mask: leaves that are perturbed; None: all floats.
        adaptive: True, False (SAM), or by leaf; the authors' code has T = 1 on biases:
            `adaptive=lambda params: jax.tree.map(lambda x: x.ndim > 1, params)`.
        **options: as for `tram`.

    Returns:
        A transform whose state is a `TRAMState` without an anchor.

    >>> loss = lambda p, _=None: jnp.sum(p["w"] ** 4)
    >>> params = {"w": jnp.array([1.0, -1.0])}
    >>> tx = asam(optax.sgd(0.1))
    >>> updates, _ = tx.update(
    ...     jax.grad(loss)(params), tx.init(params), params, grad_fn=jax.grad(loss))
    >>> bool(abs(updates["w"][0]) > 0.4)  # steeper than at params, where it is 0.4
    True
    """
    climb = ascent.Climb(mask=mask, adaptive=adaptive, eta=eta, **options)

    def find(grads, state, params):
        del grads
        return ascent.scales(params, climb), ascent.at(rho, state.count)

    return ascent.climbing_optimizer(optimizer, find, (), climb)


@ascent.spell_out_options
def fisher_sam(
    optimizer: optax.GradientTransformation,
    gamma: ascent.Scalar = 0.1,
    *,
    eta: Any = 0.1,
    mask: ascent.PerLeaf | None = None,
    **options: Any,
) -> optax.GradientTransformationExtraArgs:
    """Fisher-SAM: `tx.update(grads, state, params, grad_fn=..., fisher_fn=None)`.

    Args:
        optimizer: makes the step from the gradient at theta + e.
        gamma: the radius, a number or a schedule.
        eta: F^-1 is 1 / (1 + eta F).
        mask: leaves that are perturbed; None: all floats.
        **options: as for `tram`.

    `fisher_fn(params)` returns F, a tree of non-negative arrays like the parameters;
    without it F is the square of the gradient.

    >>> loss = lambda p, _=None: jnp.sum(p["w"] ** 4)
    >>> params = {"w": jnp.array([1.0, -1.0])}
    >>> tx = fisher_sam(optax.sgd(0.1))
    >>> _, state = tx.update(
    ...     jax.grad(loss)(params), tx.init(params), params, grad_fn=jax.grad(loss))
    >>> round(float(state.radius), 3)
    0.1
    """
    return _by_fisher(optimizer, gamma, eta, mask, options, is_required=False)


@ascent.spell_out_options
def tram_fisher(
    optimizer: optax.GradientTransformation,
    gamma: ascent.Scalar = 0.1,
    *,
    eta: Any = 0.1,
    mask: ascent.PerLeaf | None = None,
    **options: Any,
) -> optax.GradientTransformationExtraArgs:
    """TRAM-Fisher: `tx.update(grads, state, params, grad_fn=..., fisher_fn=...)`.

    As `fisher_sam`, with F at noisy input: `fisher_fn(params)` is to return the square
    of the batch's gradient at x + z, z ~ N(0, sigma^2) on the input embeddings, or the
    mean of the examples' squares. 3 forward and 3 backward passes.

    Args:
        optimizer, gamma, eta, mask, **options: as for `fisher_sam`.

    >>> tx = tram_fisher(optax.sgd(0.1))
    >>> loss = lambda p, x=2.0: jnp.sum(p["w"] ** 2) * x
    >>> params = {"w": jnp.ones(2)}
    >>> fisher = lambda p: jax.tree.map(jnp.square, jax.grad(loss)(p, 2.1))
    >>> updates, _ = tx.update(jax.grad(loss)(params), tx.init(params), params,
    ...     grad_fn=jax.grad(lambda p, _: loss(p)), fisher_fn=fisher)
    >>> updates["w"].shape
    (2,)
    """
    return _by_fisher(optimizer, gamma, eta, mask, options, is_required=True)


def _by_fisher(optimizer, gamma, eta, mask, options, *, is_required):
    climb = ascent.Climb(mask=mask, **options)

    def find(grads, state, params, *, fisher_fn=None):
        if fisher_fn is None and is_required:
            raise ValueError(
                "tram_fisher needs fisher_fn= in tx.update: params -> the Fisher "
                "information at noisy input"
            )
        fisher = grads if fisher_fn is None else fisher_fn(params)
        if fisher_fn is None:
            fisher = jax.tree.map(jnp.square, grads)
        if not climb.m_sharpness:
            fisher = ascent.batch_mean(fisher, climb)

        def inverse(scale, f):
            if scale is None:
                return None
            wide = jnp.promote_types(f.dtype, climb.norm_dtype)
            return 1 / (1 + eta * f.astype(wide))

        squares = jax.tree.map(
            inverse, ascent.scales(params, climb), fisher, is_leaf=lambda x: x is None
        )
        return squares, jnp.asarray(ascent.at(gamma, state.count))

    return ascent.climbing_optimizer(optimizer, find, ("fisher_fn",), climb)

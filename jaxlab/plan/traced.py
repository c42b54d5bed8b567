"""FLOPs of a traced program: matmuls, where XLA's own count sees a loop only once.

    dot_general  2 x outputs x contracted;   a scan times its length;   a branch: the
    most expensive;   shard_map times its devices;   a Pallas kernel times its grid

Element-wise work is not counted: it is under a percent of a decoder's. A kernel's grid
includes blocks that its mask leaves out, so its share is the caller's to say.
"""

import math
from typing import Any

from jax.extend import core as jax_core


def matmul_flops(jaxpr: Any, kernel_share: float = 1.0) -> float:
    """FLOPs of all matmuls of a program, on all its devices together.

    Args:
        jaxpr: of `jax.jit(f).trace(...)` or of `jax.make_jaxpr(f)(...)`.
        kernel_share: of the blocks of a Pallas kernel's grid that are computed: just
            over half of causal attention.

    >>> import jax, jax.numpy as jnp
    >>> x = jnp.ones((4, 4))
    >>> loop = lambda x: jax.lax.scan(lambda c, _: (c @ x, None), x, None, length=10)[0]
    >>> matmul_flops(jax.make_jaxpr(loop)(x)) == 10 * 2 * 4**3
    True
    """
    if isinstance(jaxpr, jax_core.ClosedJaxpr):
        jaxpr = jaxpr.jaxpr
    return sum(_flops(equation, kernel_share) for equation in jaxpr.eqns)


def _flops(equation, share):
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        left = equation.invars[0].aval.shape
        outputs = math.prod(equation.outvars[0].aval.shape)
        return 2.0 * outputs * math.prod(left[axis] for axis in contracted)
    inner = [matmul_flops(jaxpr, share) for jaxpr in _inside(params)]
    if name == "cond":
        return max(inner)
    times = 1.0
    if name == "scan":
        times = params["length"]
    elif name == "pallas_call":
        times = share * math.prod(params["grid_mapping"].grid)
    elif name == "shard_map":
        mesh = params["mesh"]
        times = math.prod(mesh.shape[axis] for axis in params["newly_manual_axes"])
    return times * sum(inner)


def _inside(params):
    """Every program that an equation runs."""
    for value in params.values():
        values = value if isinstance(value, tuple | list) else (value,)
        for each in values:
            if isinstance(each, jax_core.ClosedJaxpr | jax_core.Jaxpr):
                yield each

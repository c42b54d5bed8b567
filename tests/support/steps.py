"""A few steps of an experiment without the loop, and what an optimizer says of them."""

import jax
import numpy as np

from jaxlab.core import mesh, state, step
from tests.support import compiling, devices


def steps_of(run, count=3, at=None, numbers=None):
    """Parameters and metrics after a few steps; `numbers` as `make_step` has them.

    The step is compiled once, quickly, and serves all of them: it would refuse a state
    that is of another shape or placed otherwise than the first.
    """
    at = at or devices.one()
    with mesh.use(at):
        target, _ = state.abstract(run, at)
        now = state.initial(run, target)
        once, rows = None, []
        for i in range(count):
            given = now, mesh.global_batch(run.batches, i, at), run.frozen, numbers
            if once is None:
                once = step.make_step(run, target).lower(*given)
                once = once.compile(compiling.QUICKLY)
            now, metrics = once(*given)
            rows.append({name: float(value) for name, value in metrics.items()})
    return jax.device_get(now.params), rows


def furthest(a, b):
    """The largest difference of two trees' numbers."""
    return max(
        float(np.abs(x - y).max())
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


def check_what_is_said(method, params, rows, plain):
    """Asserts what the metrics of a trust region's first steps are to say.

    Args:
        method: of `trust_methods`.
        params: after the steps.
        rows: metrics of the steps.
        plain: parameters after the same steps of the optimizer alone.
    """
    assert all(np.isfinite(row["loss"]) and not row["skipped"] for row in rows)
    if method != "plain":
        assert 0 < furthest(params, plain) < 0.1
    climbs = method.startswith(("tram", "sam", "asam", "fsam"))
    assert ("radius" in rows[-1]) == climbs
    assert ("penalty" in rows[-1]) == (method in ("trpo", "mesa", "r3f", "r4f"))
    if climbs:
        assert rows[-1]["radius"] > 0
        assert rows[-1]["ascent_norm"] > 0
    if method in ("tram_theta", "tram_theta0", "tram_ema"):
        assert rows[0]["radius"] == 0.0  # the first step is at its own anchor

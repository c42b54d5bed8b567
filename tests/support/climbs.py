"""A small network for the optimizers that climb, and their algorithm written out."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxlab import optim

SHAPES = {"embed": (11, 6), "w1": (6, 8), "b1": (8,), "w2": (8, 4), "b2": (4,)}
STEPS = 4


def logits_of(params, ids, noise=0.0, *, detach=False):
    rows = params["embed"][ids]
    rows = jax.lax.stop_gradient(rows) if detach else rows
    hidden = jnp.tanh(jnp.mean(jnp.tanh(rows + noise), axis=1) @ params["w1"] + row(
        params["b1"]
    ))  # fmt: skip
    return hidden @ params["w2"] + row(params["b2"])


def row(vector):
    return vector[None]


def loss_of(params, ids, labels, noise=0.0):
    logps = jax.nn.log_softmax(logits_of(params, ids, noise))
    return -jnp.mean(jnp.take_along_axis(logps, labels[:, None], axis=1))


def problem(seed=0, steps=STEPS):
    random = np.random.default_rng(seed)
    tree = {k: jnp.asarray(random.normal(size=s) * 0.5) for k, s in SHAPES.items()}
    far = {k: v + 0.1 * random.normal(size=v.shape) for k, v in tree.items()}
    ids = jnp.asarray(random.integers(0, 11, (steps, 6, 5)))
    labels = jnp.asarray(random.integers(0, 4, (steps, 6)))
    noise = jnp.asarray(0.1 * random.normal(size=(steps, 6, 5, 6)))
    return tree, far, ids, labels, noise


def flat(tree):
    return np.concatenate([np.ravel(tree[k]) for k in SHAPES])


def shared_problem(vectors):
    data = vectors("tram_problem")
    name = list(SHAPES)
    init = {name[i]: jnp.asarray(data[f"init_{i}"]) for i in range(5)}
    anchor = {name[i]: jnp.asarray(data[f"anchor_{i}"]) for i in range(5)}
    return init, anchor, jnp.asarray(data["input_ids"]), jnp.asarray(data["labels"])


def arguments(params, ids, labels, noise=None, *, fisher=None):
    """What a training step hands to `tx.update`, beside the gradients."""
    grad = jax.grad(loss_of)
    extra = {"grad_fn": lambda p, _: grad(p, ids, labels)}
    if fisher is not None:
        extra["fisher_fn"] = lambda p: fisher(p, ids, labels, noise)
    else:
        z = 0.0 if noise is None else noise
        extra["logits"] = logits_of(params, ids)
        extra["logits_fn"] = lambda p: logits_of(p, ids, z)
    return grad(params, ids, labels), extra


def run(tx, given, *, noisy=False, fisher=None, anchor=None, jit=True):
    """[steps, 158] parameters after every step, and the radii."""
    params, _, ids, labels, noise = given
    state = tx.init(params)
    if anchor is not None:
        state = state._replace(anchor=anchor)

    def step(params, state, ids, labels, noise):
        shaken = noise if noisy or fisher is not None else None
        grads, extra = arguments(params, ids, labels, shaken, fisher=fisher)
        updates, state = tx.update(grads, state, params, **extra)
        return optax.apply_updates(params, updates), state

    step = jax.jit(step, donate_argnums=(0, 1)) if jit else step
    params = jax.tree.map(jnp.copy, params)
    rows, radii = [], []
    for i in range(len(ids)):
        params, state = step(params, state, ids[i], labels[i], noise[i])
        rows.append(flat(params))
        radii.append(float(state.radius))
    return np.stack(rows), np.array(radii)


def written_out(given, kind, *, anchor=None, noisy=False, rate=0.5, **settings):
    """The same on one vector: SGD, every formula as the papers print it."""
    params, _, ids, labels, noise = given
    sizes = np.cumsum([int(np.prod(s)) for s in SHAPES.values()])[:-1]

    def tree(vector):
        parts = zip(SHAPES.items(), np.split(vector, sizes), strict=True)
        return {k: jnp.asarray(v.reshape(s)) for (k, s), v in parts}

    theta = flat(params)
    centre = theta if anchor is None else flat(anchor)
    rows, radii = [], []
    for x, y, z in zip(ids, labels, noise, strict=True):
        grad = lambda v: flat(jax.grad(loss_of)(tree(v), x, y))  # noqa: B023, E731
        g = grad(theta)
        if kind == "fisher":
            f = flat(jax.grad(loss_of)(tree(theta), x, y, z if noisy else 0.0)) ** 2
            inverse = 1 / (1 + settings["eta"] * f)
            radius = settings["gamma"]
            e = radius * inverse * g / np.sqrt(np.sum(g * inverse * g))
        else:
            radius = settings.get("rho")
            if kind == "tram":
                source = theta if noisy else centre
                p = np.exp(jax.nn.log_softmax(
                    logits_of(tree(source), x, z if noisy else 0.0)
                ))  # fmt: skip
                q = np.exp(jax.nn.log_softmax(logits_of(tree(theta), x)))
                radius = np.mean(np.sum(p * (np.log(p) - np.log(q)), axis=1))
                radius = min(
                    radius * settings.get("scale", 1.0), settings.get("most", 9)
                )
            t = np.abs(theta) + settings.get("eta", 0.0)
            t = t if settings.get("adaptive", True) else np.ones_like(t)
            e = radius * t**2 * g / np.linalg.norm(t * g)
        keep = settings.get("decay", 0.0)
        centre = keep * centre + (1 - keep) * theta
        theta = theta - rate * grad(theta + e)
        rows.append(theta)
        radii.append(radius)
    return np.stack(rows), np.array(radii)


def fisher_of_batch(params, ids, labels, noise):
    grads = jax.grad(loss_of)(params, ids, labels, noise)
    return jax.tree.map(jnp.square, grads)


symmetric = functools.partial(optim.kl_divergence, direction="symmetric")

reverse = functools.partial(optim.kl_divergence, direction="reverse")

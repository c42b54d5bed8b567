"""optax's wrappers around the optimizers that climb: they step, or say what to do."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxlab import optim

X, Y = np.linspace(-1, 1, 8, dtype=np.float32)[:, None], np.arange(8) % 2
PARAMS = {"w": jnp.full((1, 2), 0.3), "b": jnp.array([0.1, -0.1])}


@jax.tree_util.register_pytree_node_class
class Net:
    """A module that is a tree and can be called, as Equinox's."""

    def __init__(self, w, b):
        self.w, self.b = w, b

    def __call__(self, x):
        return x @ self.w + self.b[None]

    def tree_flatten(self):
        return (self.w, self.b), None

    @classmethod
    def tree_unflatten(cls, _, children):
        return cls(*children)


def linear(params):
    return X @ params["w"] + params["b"][None]


def step(tx, params=PARAMS, logits=linear, steps=2):
    def loss(p, _=None):
        each = optax.softmax_cross_entropy_with_integer_labels(logits(p), Y)
        return jnp.mean(each)

    grad = jax.grad(loss)
    state = tx.init(params)
    for _ in range(steps):
        updates, state = tx.update(
            grad(params), state, params, grad_fn=lambda p, _: grad(p),
            logits=logits(params), logits_fn=logits, fisher_fn=fisher(grad),
        )  # fmt: skip
        params = optax.apply_updates(params, updates)
    return params


def fisher(grad):
    return lambda params: jax.tree.map(jnp.square, grad(params))


def equal(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), a, b)


FACTORIES = {
    "sam": (optim.sam, {"rho": 0.2}),
    "asam": (optim.asam, {"rho": 0.2, "eta": 0.1}),
    "fisher_sam": (optim.fisher_sam, {"gamma": 0.2}),
    "tram_fisher": (optim.tram_fisher, {"gamma": 0.2, "eps": 1e-9}),
    "tram": (optim.tram, {"radius_scale": 3.0, "max_radius": 0.1}),
    "tram_ema": (optim.tram, {"anchor": "ema", "anchor_decay": 0.5}),
}


@pytest.mark.parametrize("name", FACTORIES)
def test_inject_hyperparams_changes_nothing_but_where_the_numbers_are(name):
    make, settings = FACTORIES[name]
    injected = optax.inject_hyperparams(make)(optax.adam(0.1), **settings)
    equal(step(injected), step(make(optax.adam(0.1), **settings)))
    numbers = injected.init(PARAMS).hyperparams
    assert {k for k, v in settings.items() if isinstance(v, float)} <= {*numbers}
    assert "options" not in numbers


@pytest.mark.parametrize("name", FACTORIES)
def test_a_misspelt_option_is_refused_by_the_factory_and_by_inject_hyperparams(name):
    make, _ = FACTORIES[name]
    with pytest.raises(TypeError, match="stochastic"):
        make(optax.adam(0.1), stochastic=True)
    with pytest.raises(TypeError, match="stochastic"):
        optax.inject_hyperparams(make)(optax.adam(0.1), stochastic=True)


def test_an_injected_schedule_is_followed():
    rho = optax.linear_schedule(0.1, 0.5, 5)
    injected = optax.inject_hyperparams(optim.sam)(optax.adam(0.1), rho=rho)
    equal(step(injected), step(optim.sam(optax.adam(0.1), rho=rho)))


@pytest.mark.parametrize("name", FACTORIES)
def test_flattening_goes_inside_a_climb(name):
    make, settings = FACTORIES[name]
    outside = optax.flatten(make(optax.sgd(0.1), **settings))
    with pytest.raises(ValueError, match=r"put it inside, e\.g\. sam\(optax\.flatten"):
        outside.init(PARAMS)
    inside = make(optax.flatten(optax.sgd(0.1)), **settings)
    equal(step(inside), step(make(optax.sgd(0.1), **settings)))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda tx: optax.masked(tx, {"w": True, "b": False}),
        lambda tx: optax.multi_transform(
            {"climb": tx, "sgd": optax.sgd(0.1)}, {"w": "climb", "b": "sgd"}
        ),
    ],
    ids=["masked", "multi_transform"],
)
@pytest.mark.parametrize("name", FACTORIES)
def test_a_wrapper_that_hides_parameters_is_refused_with_the_way_out(wrap, name):
    make, settings = FACTORIES[name]
    tx = wrap(make(optax.sgd(0.1), **settings))
    with pytest.raises(ValueError, match=r"give the climb a mask, e\.g\. sam\(optax"):
        tx.init(PARAMS)


def test_the_way_out_of_a_hidden_parameter_works():
    mask = {"w": True, "b": False}
    inner = optax.chain(
        optax.masked(optax.sgd(0.1), mask),
        optax.masked(optax.set_to_zero(), {"w": False, "b": True}),
    )
    params = step(optim.sam(inner, mask=mask))
    equal(params["b"], PARAMS["b"])
    assert (params["w"] != PARAMS["w"]).all()


@pytest.mark.parametrize("argument", ["mask", "adaptive"])
def test_a_tree_of_bools_that_can_be_called_is_a_tree(argument):
    tree, dictionary = Net(True, False), {"w": True, "b": False}
    params = step(
        optim.tram(optax.sgd(0.1), **{argument: tree}),
        Net(PARAMS["w"], PARAMS["b"]),
        lambda net: net(X),
    )
    expected = step(optim.tram(optax.sgd(0.1), **{argument: dictionary}))
    equal((params.w, params.b), (expected["w"], expected["b"]))


def test_a_mask_may_be_a_function_a_prefix_or_of_arrays():
    nested = {"layer": PARAMS}
    of_nested = lambda p: linear(p["layer"])  # noqa: E731
    masks = (
        {"layer": True},
        lambda p: {"layer": True},
        {"layer": {"w": np.True_, "b": jnp.array(True)}},
        True,
        None,
    )
    moved = [step(optim.sam(optax.sgd(0.1), mask=m), nested, of_nested) for m in masks]
    for other in moved[1:]:
        equal(moved[0], other)
    with pytest.raises(ValueError, match="a tree of bools like the parameters"):
        step(optim.sam(optax.sgd(0.1), mask={"layers": True}), nested, of_nested)


@pytest.mark.parametrize("name", FACTORIES)
def test_numbers_of_python_are_parameters_too(name):
    make, settings = FACTORIES[name]

    def logits(params):
        return X * jnp.stack([jnp.asarray(params["a"]), jnp.asarray(params["b"])])[None]

    floats = step(make(optax.sgd(0.1), **settings), {"a": 0.3, "b": -0.2}, logits)
    arrays = {"a": jnp.array(0.3), "b": jnp.array(-0.2)}
    equal(floats, step(make(optax.sgd(0.1), **settings), arrays, logits))

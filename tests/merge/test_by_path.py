"""Weights by path: rules, layer gradients, tied leaves, errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab import merge


def model(value, layers=3):
    """Zeros or ones, one dict a layer."""
    block = {"attn": np.full((2,), value, np.float32), "mlp": np.full(3, value, "f4")}
    return {
        "layers": [jax.tree.map(np.copy, block) for _ in range(layers)],
        "norm": np.full((2,), value, np.float32),
    }


def test_the_first_rule_that_is_found_decides():
    W = merge.weights_by_path([("layers/1", 0.25), ("attn", 0.5), (None, 1.0)])
    found = merge.interpolate(model(0), model(1), W)
    means = jax.tree.map(lambda leaf: float(leaf.mean()), found)
    plain = {"attn": 0.5, "mlp": 1.0}
    first = {"attn": 0.25, "mlp": 0.25}
    assert means == {"layers": [plain, first, plain], "norm": 1.0}


def test_a_gradient_runs_linearly_from_the_first_layer_to_the_last():
    ramp = merge.gradient([0, 1, 0.5])
    W = merge.weights_by_path([(r"layers/(\d+)", ramp), (None, 0.0)])
    found = merge.interpolate(model(0, 5), model(1, 5), W)
    # l / 4 = 0, .25, .5, .75, 1 between the values at 0, .5 and 1
    expected = [0.0, 0.5, 1.0, 0.75, 0.5]
    np.testing.assert_allclose([b["mlp"][0] for b in found["layers"]], expected)
    np.testing.assert_array_equal(found["norm"], 0)


def test_a_gradient_over_stacked_layers_is_the_one_over_separate_layers():
    layers = [np.random.default_rng(i).normal(size=(4, 2, 3)) for i in range(2)]
    layers = [x.astype(np.float32) for x in layers]
    a, b = ({"blocks": x} for x in layers)
    stacked = merge.interpolate(
        a, b, merge.weights_by_path([("blocks", merge.gradient([0, 0.3, 1], axis=0))])
    )
    separate = merge.interpolate(
        {"layers": list(a["blocks"])},
        {"layers": list(b["blocks"])},
        merge.weights_by_path([(r"layers/(\d+)", merge.gradient([0, 0.3, 1]))]),
    )
    np.testing.assert_allclose(stacked["blocks"], separate["layers"], atol=1e-6)


@pytest.mark.parametrize(
    "combine",
    [
        lambda trees, W: merge.average(trees, [W, 0.5, 0.1]),
        lambda trees, W: merge.average(trees, [W, 0.5, 0.1], normalize=False),
        lambda trees, W: merge.apply_task_vectors(trees[0], trees[1:], [W, 0.5], lam=W),
        lambda trees, W: merge.slerp(*trees[:2], W),
        lambda trees, W: merge.nuslerp(*trees[:2], [W, 0.4]),
        lambda trees, W: merge.nuslerp(*trees[:2], [W, 0.4], along="row"),
        lambda trees, W: merge.multislerp(trees, [0.2, W, 0.4]),
        lambda trees, W: merge.karcher(trees, [0.2, W, 0.4]),
    ],
)
def test_every_merge_takes_weights_by_path(combine):
    rng = np.random.default_rng(0)
    trees = [
        {n: rng.normal(size=(3, 4)).astype("f4") for n in ("x", "y")} for _ in range(3)
    ]
    W = merge.weights_by_path([("x", 0.3), ("y", 0.8)])
    found = combine(trees, W)
    for name, weight in (("x", 0.3), ("y", 0.8)):
        alone = combine([tree[name] for tree in trees], weight)
        np.testing.assert_allclose(found[name], alone, atol=1e-6)


def test_weights_by_path_can_be_traced_and_differentiated():
    @jax.jit
    def loss(weights):
        W = merge.weights_by_path([(r"layers/(\d+)", merge.gradient(weights))])
        tree = merge.interpolate(model(0)["layers"], model(1)["layers"], _moved(W))
        return sum(jnp.sum(leaf) for leaf in jax.tree.leaves(tree))

    def _moved(W):
        rules = [(r"^(\d+)", weight) for weight in W.weights]
        return merge.weights_by_path(rules)

    # three layers of five numbers; the middle one stands at the middle value
    np.testing.assert_allclose(jax.grad(loss)(jnp.array([0.1, 0.2, 0.3])), 5.0)


def test_tied_leaves_stay_tied_when_their_rules_agree_and_part_when_not():
    shared = [jnp.ones(3) * k for k in (1.0, 3.0)]
    trees = [{"embed": x, "head": x} for x in shared]
    same = merge.average(trees, [merge.weights_by_path([(None, 1.0)]), 3.0])
    assert same["embed"] is same["head"]
    parted = merge.weights_by_path([("embed", 1.0), (None, 0.0)])
    found = merge.average(trees, [parted, 1.0])
    np.testing.assert_allclose(found["embed"], 2.0)
    np.testing.assert_allclose(found["head"], 3.0)


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ([("atn", 1.0), (None, 0.5)], "'atn' is found in no path.*layers/0/attn"),
        ([("attn", 1.0)], r"no rule for layers/0/mlp; end with \(None, weight\)"),
        ([("attn", merge.gradient([0, 1])), (None, 1.0)], "capture the layer's number"),
        ([(None, merge.gradient([0, 1], axis=2))], "no axis 2 for its gradient"),
        ([(None, float("inf"))], "not all finite"),
    ],
)
def test_rules_that_cannot_be_meant_are_refused(rules, message):
    with pytest.raises(ValueError, match=message):
        merge.average([model(0), model(1)], [merge.weights_by_path(rules), 1.0])


def test_rules_that_are_none_are_refused_at_once():
    with pytest.raises(ValueError, match="not a regular expression"):
        merge.weights_by_path([("(", 1.0)])
    with pytest.raises(ValueError, match="pairs"):
        merge.weights_by_path([])
    with pytest.raises(ValueError, match="list of values"):
        merge.gradient([])
    with pytest.raises(ValueError, match="is no scalar; trees have"):
        merge.weights_by_path([(None, [1.0, 2.0])])
    with pytest.raises(ValueError, match="'half' of None is no scalar"):
        merge.weights_by_path([(None, "half")])
    opposite = merge.weights_by_path([("norm", -1.0), (None, 1.0)])
    with pytest.raises(ValueError, match="sum to 0"):
        merge.average([model(0), model(1)], [opposite, 1.0])

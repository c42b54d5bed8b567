"""Weights that depend on where a leaf stands: by regular expression, by layer.

    attention = merge.weights_by_path([
        (r"layers/(\\d+)/attn", merge.gradient([0, 0.5, 1])),  # first to last layer
        (r"mlp", 0.9),
        (None, 0.5),                                           # all other leaves
    ])
    merge.interpolate(a, b, attention)
    merge.average([a, b], [attention, 0.3])

A rule is a regular expression, searched in the path as `core.tree.path_name` writes it
(`blocks/attn/q/kernel`), and a weight; the first rule that is found wins, `None` is
found everywhere. A gradient is mergekit's list: values at equal distances over the
layers, linear between them, so that layer l of L has the value at l / (L - 1).

The values are leaves of a pytree: they may be traced, differentiated and mapped over.

Deviations from mergekit: its filters are substrings; a rule that is found nowhere and
a leaf that no rule is found for are errors here and not silently the default.
"""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlab.core import tree


class ByLeaf(NamedTuple):
    """A coefficient that differs between leaves.

    Attributes:
        values: one array per leaf, in the order of `jax.tree.leaves`. Behind the axes
            of the coefficient (none for a scalar, [M] for M weights) it has none,
            or as many as the leaf, to be broadcast against it.
    """

    values: list[Any]


@jax.tree_util.register_pytree_node_class
class PathWeights:
    """Weights by path; made by `weights_by_path`."""

    def __init__(self, patterns: tuple[str | None, ...], weights: tuple[Any, ...]):
        self.patterns, self.weights = patterns, weights

    def tree_flatten(self):
        return self.weights, self.patterns

    @classmethod
    def tree_unflatten(cls, patterns, weights):
        return cls(patterns, tuple(weights))

    def __repr__(self) -> str:
        rules = list(zip(self.patterns, self.weights, strict=True))
        return f"weights_by_path({rules})"


@jax.tree_util.register_pytree_node_class
class Gradient:
    """A weight that changes from layer to layer; made by `gradient`."""

    def __init__(self, values: Any, axis: int | None, layers: int | None):
        self.values, self.axis, self.layers = values, axis, layers

    def tree_flatten(self):
        return (self.values,), (self.axis, self.layers)

    @classmethod
    def tree_unflatten(cls, static, children):
        return cls(*children, *static)

    def __repr__(self) -> str:
        return f"gradient({self.values}, axis={self.axis}, layers={self.layers})"


def weights_by_path(rules: Sequence[tuple[str | None, Any]]) -> PathWeights:
    """A weight for every leaf, by its path; accepted wherever a weight is.

    Args:
        rules: (regular expression or None, weight): a scalar, traced, or a `gradient`.

    Raises:
        ValueError: no rules, no regular expression, no scalar. When it is used: a rule
            found in no path, a leaf without a rule.

    >>> weights = weights_by_path([("norm", 0.0), (None, 0.5)])
    >>> [float(w) for w in resolve(weights, {"mlp": 1.0, "norm": 1.0})]
    [0.5, 0.0]
    """
    rules = [tuple(rule) for rule in rules]
    if not rules or any(len(rule) != 2 for rule in rules):
        raise ValueError("weights_by_path needs (regular expression, weight) pairs")
    for pattern, weight in rules:
        scalar = not isinstance(weight, str) and np.shape(weight) == ()
        if not isinstance(weight, Gradient) and not scalar:
            raise ValueError(
                f"the weight {weight!r} of {pattern!r} is no scalar; trees have a "
                "weights_by_path each, layers a gradient"
            )
        try:
            re.compile(pattern or "")
        except (re.error, TypeError) as error:
            raise ValueError(
                f"{pattern!r} is not a regular expression: {error}"
            ) from None
    patterns, weights = zip(*rules, strict=True)
    return PathWeights(patterns, weights)


def gradient(
    values: Any, *, axis: int | None = None, layers: int | None = None
) -> Gradient:
    """A weight that runs linearly through `values` from the first layer to the last.

    Args:
        values: f32[n], n >= 1, traced.
        axis: of the leaf, where layers are stacked (0 in this library's decoders).
            None: the layer is the number that the rule's expression captures, as in
            `layers/(\\d+)/attn`.
        layers: how many there are; None for the largest number captured plus one, or
            the size of the axis.

    Raises:
        ValueError: no values.
    """
    if np.ndim(values) != 1 or not len(values):
        raise ValueError(f"gradient needs a list of values, not {values!r}")
    return Gradient(values, axis, layers)


def resolve(weights: PathWeights, like: Any) -> list[Any]:
    """The weight of every leaf of a tree, in its order.

    Equal rules give one array object, so that tied leaves can be seen to agree.

    Raises:
        ValueError: everything that is wrong, in one message.
    """
    leaves = tree.flatten(like)
    rules = [_rule(leaves, p, w) for p, w in weights_and_patterns(weights)]
    wrong = [
        f"{pattern!r} is found in no path"
        for pattern, matches in zip(weights.patterns, rules, strict=True)
        if pattern is not None and not matches
    ]
    chosen = {}
    for name in leaves:
        values = [matches[name] for matches in rules if name in matches]
        if values:
            chosen[name] = values[0]
        else:
            wrong.append(f"no rule for {name}; end with (None, weight)")
    wrong += [value for value in chosen.values() if isinstance(value, str)]
    if wrong:
        shown = ", ".join(list(leaves)[:4])
        raise ValueError(
            f"weights_by_path: {'; '.join(dict.fromkeys(wrong))} (paths are like "
            f"{shown})"
        )
    return list(chosen.values())


def weights_and_patterns(weights: PathWeights) -> list[tuple[str | None, Any]]:
    """The rules, as they were given."""
    return list(zip(weights.patterns, weights.weights, strict=True))


def piecewise_linear(values: Any, position: Any) -> jax.Array:
    """The piecewise-linear function through `values` at positions in [0, 1]."""
    knots = jnp.linspace(0.0, 1.0, len(values))
    return jnp.interp(jnp.asarray(position, float), knots, jnp.asarray(values, float))


def _rule(leaves, pattern, weight) -> dict[str, Any]:
    """Path -> weight where a rule is found; a str says what is wrong."""
    matches = {
        name: re.search(pattern, name) if pattern is not None else None
        for name in leaves
        if pattern is None or re.search(pattern, name)
    }
    if not isinstance(weight, Gradient):
        return dict.fromkeys(matches, weight)
    if weight.axis is not None:
        return {name: _along(name, leaves[name], weight) for name in matches}
    try:
        numbers = {name: int(match[1]) for name, match in matches.items()}
    except (TypeError, IndexError, ValueError):
        line = f"{pattern!r} has a gradient: capture the layer's number, as in (\\d+)"
        return dict.fromkeys(matches, line + ", or say axis=0")
    count = weight.layers or max(numbers.values(), default=0) + 1
    values = {n: _at(weight.values, n, count) for n in {*numbers.values()}}
    return {name: values[number] for name, number in numbers.items()}


def _along(name, leaf, weight):
    shape = np.shape(leaf)
    if not -len(shape) <= weight.axis < len(shape):
        return f"{name} of shape {shape} has no axis {weight.axis} for its gradient"
    size = shape[weight.axis]
    wide = [1] * len(shape)
    wide[weight.axis] = size
    return _at(weight.values, np.arange(size), weight.layers or size).reshape(wide)


def _at(values, layer, layers):
    return piecewise_linear(values, layer / max(layers - 1, 1))

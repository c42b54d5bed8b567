"""The encoders and rerankers of tests/values/bert, and what to ask of them."""

import dataclasses
import functools

import jax
import numpy as np

from jaxlab.core import mesh as mesh_lib
from jaxlab.models import BertEncoder, BertScorer, hf
from tests.support import peers

VALUES = peers.VALUES / "bert"
KINDS = ("bert", "bert_scorer", "roberta_scorer", "xlm_roberta")
TOLERANCE = 1e-4


@functools.cache
def loaded(kind):
    return hf.load(VALUES / kind)


@functools.cache
def expected(kind):
    values = peers.expected(VALUES / kind)
    return values | {"mask": values["mask"].astype(bool)}


def inputs(kind):
    return [expected(kind)[name] for name in ("tokens", "mask", "token_types")]


@functools.partial(jax.jit, static_argnums=(0, 1))
def run(config, method, params, tokens, mask, token_types=None, noise=None):
    model = (BertScorer if config.head == "score" else BertEncoder)(config)
    return model.apply(
        {"params": params}, tokens, mask, token_types, noise, method=method
    )


def shapes(config, kind):
    """Of the parameters that the model itself makes."""
    model = (BertScorer if config.head == "score" else BertEncoder)(config)
    made = jax.eval_shape(model.init, jax.random.key(0), *inputs(kind))["params"]
    return mesh_lib.unbox(made)


def vectors(config, params, *more):
    """By the encoder, also of a scorer's config."""
    config = dataclasses.replace(config, head="none")
    return np.asarray(run(config, "__call__", params, *more))

"""Decoding with a cache: each new token reads every weight of a matmul once.

Greedy; the prompt's own pass is part of the time.
"""

import jax
import jax.numpy as jnp
import measure
import numpy as np
import rows
import sizes
import training
from flax import linen as nn

from jaxlab import generate, models


def check(clock: rows.Clock, peaks: measure.Peaks) -> None:
    size = sizes.decoding(measure.is_accelerator())
    config = training.decoder(size.model)
    model = models.Decoder(config)
    init = jax.jit(lambda key: nn.unbox(model.init(key, jnp.zeros((1, 8), jnp.int32))))
    params = init(jax.random.key(0))["params"]
    params = jax.tree.map(lambda x: x.astype(measure.dtype()), params)
    shape = (size.batch, size.prompt)
    prompts = np.random.default_rng(0).integers(0, config.vocab, shape).tolist()

    def one():
        return generate.generate(
            model, params, prompts, max_new_tokens=size.new, key=jax.random.key(0),
            temperature=0.0, eos_id=config.vocab, pad_id=0,
        )  # fmt: skip

    found = one()
    good = found == one() and all(len(row) == size.new for row in found)
    seconds = measure.seconds(one)
    whole = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    looked_up = config.vocab * config.embed * jnp.dtype(measure.dtype()).itemsize
    share = (whole - looked_up) * size.new / seconds / peaks.copy()
    rows.emit(
        "decoding", str(size), size.batch * size.new / seconds, "tokens/s",
        share=share, of="copy", good=good, note="greedy twice: the same tokens",
    )  # fmt: skip

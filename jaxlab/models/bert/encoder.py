"""Published sentence encoders and rerankers: BERT, MiniLM, RoBERTa, XLM-R.

    x  = LayerNorm(words[token] + positions[place] + token_types[type])
    x  = LayerNorm(x + attn(x));  x = LayerNorm(x + mlp(x))       every layer
    mlp(x) = gelu(x W_up + b_up) W_down + b_down                  gelu(x) = x Phi(x)
    score  = tanh(x_first W_pool + b_pool) W_score + b_score      cross-encoders

Devlin et al. 2018 (arXiv:1810.04805); Liu et al. 2019 (RoBERTa, arXiv:1907.11692);
Conneau et al. 2019 (XLM-R, arXiv:1911.02116); Wang et al. 2020 (MiniLM,
arXiv:2002.10957). Vectors of texts by pooling: Reimers and Gurevych 2019
(arXiv:1908.10084). Checked against transformers to 1e-4.

Letters and flat activations as in `models/transformer.py`. Parameters are f32, blocks
stacked (layers, ...):
    embed/{embedding, positions, token_types}     embed/norm/{scale, bias}
    blocks/attn/{q,k,v,o}/{kernel, bias}          blocks/attn_norm/{scale, bias}
    blocks/mlp/{up,down}/{kernel, bias}           blocks/mlp_norm/{scale, bias}
    pooler/{kernel, bias}                         score/{kernel, bias}

*Deviations*: there is no dropout: fine-tuning passes see the function that is used.
A truncated vector that is compared by its cosine is normalised again, which
sentence-transformers leaves to the comparison.
Padding sees padding, not the text; no text sees it either way. The head is in f32.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxlab.core import errors, mesh, types
from jaxlab.models.bert import blocks
from jaxlab.models.bert.config import BertConfig


class BertEncoder(nn.Module):
    """Tokens to one vector per row: the bi-encoder.

    >>> config = BertConfig(vocab=96, embed=32, layers=2, heads=2, mlp=64)
    >>> tokens, mask = jnp.zeros((1, 8), jnp.int32), jnp.ones((1, 8), bool)
    >>> params = BertEncoder(config).init(jax.random.key(0), tokens, mask)["params"]
    >>> BertEncoder(config).apply({"params": nn.unbox(params)}, tokens, mask).shape
    (1, 32)
    """

    config: BertConfig

    def setup(self):
        self.embed = blocks.Embed(self.config)
        self.blocks = blocks.stack(self.config)
        if self.config.head == "pooler":
            self.pooler = _pooler(self.config)

    def __call__(
        self,
        tokens: jax.Array,
        mask: jax.Array,
        token_types: jax.Array | None = None,
        noise: jax.Array | None = None,
    ) -> jax.Array:
        """Vectors of rows; pooled, normalised and truncated as the config says.

        Args:
            tokens: i32[B, L], L at most `config.length`.
            mask: bool[B, L], True at real tokens. A row without any is finite: zero
                under "mean".
            token_types: i32[B, L]; None = all 0.
            noise: f32[B, L, D], added to the word embeddings, which no gradient
                reaches then (R3F's form, as in `Decoder.factored`); None = none.

        Returns:
            f32[B, D]; f32[B, L, D] when pooling is "none"; of D the first `truncate`.
        """
        hidden = self.hidden(tokens, mask, token_types, noise).astype(jnp.float32)
        if self.is_initializing() and self.config.head == "pooler":
            self.pooler(hidden[:, 0])  # makes its parameters, which travel along
        return _pool(self.config, hidden, mask)

    def hidden(
        self,
        tokens: jax.Array,
        mask: jax.Array,
        token_types: jax.Array | None = None,
        noise: jax.Array | None = None,
    ) -> jax.Array:
        """[B, L, D] of the last layer, in the compute dtype."""
        return blocks.trunk(self, tokens, mask, token_types, noise)


class BertScorer(nn.Module):
    """Tokens of a pair to one number per row: the cross-encoder, or a classifier.

    >>> config = BertConfig(96, embed=32, layers=2, heads=2, mlp=64, head="score")
    >>> tokens, mask = jnp.zeros((3, 8), jnp.int32), jnp.ones((3, 8), bool)
    >>> params = BertScorer(config).init(jax.random.key(0), tokens, mask)["params"]
    >>> BertScorer(config).apply({"params": nn.unbox(params)}, tokens, mask).shape
    (3,)
    """

    config: BertConfig

    def setup(self):
        c = self.config
        if c.head != "score":
            raise errors.UserError(
                f"the config's head is {c.head!r}; a scorer needs one: see "
                "`bert.as_scorer`"
            )
        self.embed = blocks.Embed(c)
        self.blocks = blocks.stack(c)
        self.pooler = _pooler(c)
        self.score = _score(c)

    def __call__(
        self,
        tokens: jax.Array,
        mask: jax.Array,
        token_types: jax.Array | None = None,
        noise: jax.Array | None = None,
    ) -> jax.Array:
        """f32[B], the logit of the one label; arguments as `BertEncoder`'s."""
        if len(self.config.labels) != 1:
            raise errors.UserError(
                f"the model has {len(self.config.labels)} labels, not one; call it "
                'with method="logits"'
            )
        return self.logits(tokens, mask, token_types, noise)[:, 0]

    def logits(
        self,
        tokens: jax.Array,
        mask: jax.Array,
        token_types: jax.Array | None = None,
        noise: jax.Array | None = None,
    ) -> jax.Array:
        """f32[B, labels]."""
        hidden = self.hidden(tokens, mask, token_types, noise)
        return self.score(jnp.tanh(self.pooler(hidden[:, 0].astype(jnp.float32))))

    def hidden(
        self,
        tokens: jax.Array,
        mask: jax.Array,
        token_types: jax.Array | None = None,
        noise: jax.Array | None = None,
    ) -> jax.Array:
        """[B, L, D] of the last layer, in the compute dtype."""
        return blocks.trunk(self, tokens, mask, token_types, noise)


def as_scorer(
    config: BertConfig,
    params: types.Params,
    key: jax.Array,
    labels: tuple[str, ...] = ("LABEL_0",),
) -> tuple[BertConfig, types.Params]:
    """An encoder as the start of a cross-encoder: (config, params of `BertScorer`).

    Args:
        config, params: of an encoder or a scorer, as `hf.load` gives them. All but a
            score head is kept, the pooler included.
        key: draws the score head, and a pooler where there is none.
        labels: names of what is scored.
    """
    plain = {x.name: x.default for x in dataclasses.fields(config)}
    of_texts = {name: plain[name] for name in config.OF_TEXTS}  # a scorer reads pairs
    config = dataclasses.replace(config, head="score", labels=labels, **of_texts)
    row = jnp.zeros((1, config.embed))
    first, second = jax.random.split(key)
    drawn = {
        "pooler": _pooler(config).init(first, row)["params"],
        "score": _score(config).init(second, row)["params"],
    }
    drawn = mesh.unbox(drawn)
    return config, {"pooler": drawn["pooler"], **params, "score": drawn["score"]}


def _pooler(config):
    return blocks.Dense(
        config.embed, config.embed, ("embed", "features"), config.initializer_std
    )


def _score(config):
    return blocks.Dense(
        config.embed,
        len(config.labels),
        ("embed", "features"),
        config.initializer_std,
    )


def _pool(config, hidden, mask):
    if config.pooling == "mean":
        weight = mask.astype(jnp.float32)[..., None]
        count = jnp.maximum(weight.sum(axis=1), 1.0)
        hidden = (hidden * weight).sum(axis=1) / count
    elif config.pooling == "cls":
        hidden = hidden[:, 0]
    if config.normalize:
        hidden = _unit(hidden)
    if config.truncate is None:
        return hidden
    hidden = hidden[..., : config.truncate]
    return _unit(hidden) if config.similarity == "cosine" else hidden


def _unit(hidden):
    """Vectors divided by their lengths."""
    # The square is bounded, not the norm: the gradient of a zero vector is then finite.
    square = jnp.sum(hidden * hidden, axis=-1, keepdims=True)
    return hidden * jax.lax.rsqrt(jnp.maximum(square, 1e-24))

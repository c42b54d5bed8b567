"""Texts to vectors with any encoder, in few shapes and in the order given.

Texts are tokenized a window at a time, sorted by length, longest first, and cut into
batches of about as many tokens each; a batch is as wide as its longest row, rounded up
to one of a few widths. So few programs are compiled, and few tokens are padding. The
last batch of a window is filled up to a power of 2 with rows of padding.

Normalisation is the model's: `BertConfig.normalize`.
"""

import functools
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from jaxlab.core import errors, types
from jaxlab.core import mesh as mesh_lib
from jaxlab.data.examples import text_rows
from jaxlab.data.tokenizers import tokenizer as tokenizer_lib

_WIDTHS = (16, 32, 48, 64, 96, 128, 192, 256, 384, 512)
_WIDE = 256  # above, multiples of this


class Encoded(NamedTuple):
    """Vectors of texts.

    Attributes:
        vectors: f32[N, D], in the order of the texts.
        truncated: how many texts were longer than the rows and lost their end.
    """

    vectors: np.ndarray
    truncated: int


def embed_texts(
    apply: Callable,
    params: types.Params,
    tokenizer: tokenizer_lib.Tokenizer,
    texts: Iterable[str],
    *,
    length: int,
    batch_tokens: int = 8192,
    mesh: Mesh | None = None,
    progress: Callable[[int], None] | None = None,
) -> Encoded:
    """Vectors of all texts; arguments are those of `embed_windows`.

    Raises:
        UserError: no text, or one that is not Unicode (names it).
    """
    options = {"length": length, "batch_tokens": batch_tokens, "mesh": mesh}
    options["progress"] = progress
    windows = list(embed_windows(apply, params, tokenizer, texts, **options))
    if not windows:
        raise errors.UserError("no texts to encode; give at least one")
    vectors, truncated = zip(*windows, strict=True)
    return Encoded(np.concatenate(vectors), sum(truncated))


def embed_windows(
    apply: Callable,
    params: types.Params,
    tokenizer: tokenizer_lib.Tokenizer,
    texts: Iterable[str],
    *,
    length: int,
    batch_tokens: int = 8192,
    window: int = 4096,
    mesh: Mesh | None = None,
    progress: Callable[[int], None] | None = None,
) -> Iterator[Encoded]:
    """Vectors of `window` texts after the other: batches for `Index.build`.

    They depend on the window's texts alone, so that a build which goes on at the start
    of a window makes the same bytes as one that was never interrupted.

    Args:
        apply: `apply({"params": params}, tokens, mask, token_types)` -> [B, D], e.g.
            `BertEncoder(config).apply`. It keys the compilation cache: pass one
            function object, or methods of equal modules.
        params: the encoder's.
        tokenizer: of a tokenizer.json.
        texts: any number of them; "" is encoded as special tokens only.
        length: of the longest rows in tokens, special tokens included. What is beyond
            is cut and counted.
        batch_tokens: rows times width of a batch, at most, where one row is not more.
        window: how many texts at a time.
        mesh: whose devices share the rows of each batch; None is one device.
        progress: called with the number of texts that are done.

    Raises:
        UserError: a text that is not Unicode, or a length without room for text.
    """
    done = 0
    for some in _windows(texts, window):
        try:
            rows = text_rows.encode_texts(tokenizer, some, length)
        except errors.UserError as error:
            raise errors.UserError(f"texts from {done}: {error}") from None
        note = (
            None
            if progress is None
            else functools.partial(_report_from, progress, done)
        )
        vectors = apply_rows(
            apply, params, rows, batch_tokens=batch_tokens, mesh=mesh, progress=note
        )
        yield Encoded(vectors, rows.truncated)
        done += len(some)


def apply_rows(
    apply: Callable,
    params: types.Params,
    rows: text_rows.TextRows,
    *,
    batch_tokens: int = 8192,
    mesh: Mesh | None = None,
    progress: Callable[[int], None] | None = None,
) -> np.ndarray:
    """The output of `apply` for each row, f32[N, ...] in their order.

    Args:
        apply: as for `embed_windows`; of `BertScorer` and pairs the result is [N].
        params: the model's.
        rows: at least one, of `text_rows.encode_texts` or `text_rows.encode_pairs`.
        batch_tokens, mesh: as for `embed_windows`.
        progress: called with the number of rows that are done.
    """
    lengths = rows.mask.sum(axis=1)
    order = np.argsort(-lengths, kind="stable")
    outputs: list[np.ndarray] = []
    running, start = None, 0
    while start < len(order):
        width = _width(int(lengths[order[start]]), rows.tokens.shape[1])
        chosen = order[start : start + _power_below(batch_tokens // width)]
        dispatched = _apply_jitted(apply, params, *_cut(rows, chosen, width, mesh))
        if running is not None:  # the device works on while the last one is fetched
            outputs.append(np.asarray(running, np.float32))
            if progress is not None:
                progress(start)
        running, start = dispatched[: len(chosen)], start + len(chosen)
    outputs.append(np.asarray(running, np.float32))
    if progress is not None:
        progress(start)
    sorted_outputs = np.concatenate(outputs)
    restored = np.empty_like(sorted_outputs)
    restored[order] = sorted_outputs
    return restored


def _windows(texts, size):
    if isinstance(texts, str):
        raise errors.UserError("texts is one string; give a list of them")
    some = []
    for text in texts:
        some.append(text)
        if len(some) == size:
            yield some
            some = []
    if some:
        yield some


def _report_from(progress, before, done):
    progress(before + done)


def _width(longest: int, limit: int) -> int:
    """Of a batch whose longest row is this.

    >>> _width(3, 256), _width(70, 256), _width(250, 250), _width(600, 2048)
    (16, 96, 250, 768)
    """
    wide = -(-longest // _WIDE) * _WIDE
    return min(next((width for width in _WIDTHS if width >= longest), wide), limit)


def _power_below(count: int) -> int:
    return 1 << max(count.bit_length() - 1, 0)


def _cut(rows, chosen, width, mesh):
    """The chosen rows' first columns, with rows of padding up to a power of 2.

    On a mesh, up to what its devices share evenly.
    """
    size = 1 << (len(chosen) - 1).bit_length()
    if mesh is not None:
        shards = mesh_lib.batch_shards(mesh)
        size = -(-size // shards) * shards
    cut = []
    for array in rows[:3]:
        part = np.zeros((size, width), array.dtype)
        part[: len(chosen)] = array[chosen, :width]
        if mesh is not None:
            part = jax.device_put(part, mesh_lib.batch_sharding(mesh))
        cut.append(part)
    return cut


@functools.partial(jax.jit, static_argnums=0)
def _apply_jitted(apply, params, tokens, mask, token_types):
    return apply({"params": params}, tokens, mask, token_types)

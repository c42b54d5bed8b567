"""Held-out batches: every token of every document scored exactly once.

A document of n tokens (its end token included) is cut into disjoint windows of at most
length - 1 labels. Each window begins with one context token: the end-of-text token for
the first window, the token before it for the later ones. That is the "post-hoc
perplexity" of Na et al. (2024, arXiv:2410.15661) and the rolling windows of the LM
evaluation harness. Rows are never shared, so attention sees one document only.

Where not all windows can be read, they are spread: one of each document, then a second
of those that have one, and so on, so that no long document stands for a whole text.
"""

from collections.abc import Iterator

import numpy as np

from jaxlab.core import errors
from jaxlab.data.batches import packing
from jaxlab.data.corpus import token_files


def eval_batches(
    file: token_files.TokenFile,
    length: int,
    batch_size: int,
    max_batches: int | None = None,
    *,
    seed: int = 1234,
    spread: bool = True,
) -> Iterator[dict[str, np.ndarray]]:
    """Batches of one shape that go through a token file once.

    Args:
        file: held-out documents.
        length: tokens of a row.
        batch_size: rows of a batch; the last batch is filled up with padding rows.
        max_batches: at most so many; then windows are drawn by `seed` (1234 in the
            released code of the paper), spread over documents.
        seed: of that draw.
        spread: False takes all windows of a drawn document before the next document.

    Yields:
        `tokens` i32[B, L]; `loss_mask` f32[B, L], 1 on the labels; `document` i32[B],
        the document's number in the file, -1 for a padding row; and, where the file
        knows them, `text_bytes` i32[B]: the UTF-8 bytes that the row's labels stand
        for. A document's bytes are shared out over its windows by tokens and add up
        exactly: bits per byte = sum of losses in nats / (log(2) * sum of text_bytes).

    Raises:
        UserError: no end-of-text id, or the file changed meanwhile.
    """
    if batch_size < 1:
        raise errors.UserError(f"batch_size {batch_size} is too small; use 1 or more")
    if file.eos_id is None:
        raise errors.UserError(f"{file.path} needs eos_id to be evaluated; pass it")
    pieces = packing.cut(file.ends, length)
    order = np.arange(len(pieces.start))
    if max_batches is not None:
        order = _draw(pieces.document, seed, spread)[: max_batches * batch_size]
    shares = _text_bytes(file, pieces)
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        yield _batch(file, pieces, shares, chosen, (batch_size, length))


def _draw(document: np.ndarray, seed: int, spread: bool) -> np.ndarray:
    """Windows by document, in an order of documents that is drawn.

    Spread: in rounds, one window drawn from each document.

    >>> document = np.array([0, 0, 0, 1, 2, 2])
    >>> document[_draw(document, seed=0, spread=True)].tolist()
    [1, 2, 0, 2, 0, 0]
    """
    draw = np.random.Generator(np.random.PCG64(seed))
    rank = draw.permutation(document[-1] + 1)[document]
    if not spread:
        return np.argsort(rank, kind="stable")
    order = np.lexsort((draw.random(len(document)), document))
    first = np.searchsorted(document, document[order])  # documents are in order
    turn = np.empty_like(order)
    turn[order] = np.arange(len(order)) - first
    return np.lexsort((rank, turn))


def _text_bytes(
    file: token_files.TokenFile, pieces: packing.Pieces
) -> np.ndarray | None:
    """i64[pieces]: bytes before each piece's end minus those before its start."""
    if file.document_bytes is None:
        return None
    sizes = file.document_bytes[pieces.document].astype(np.int64)
    starts = np.concatenate([[0], file.ends[:-1]])[pieces.document]
    tokens = file.ends[pieces.document] - starts
    before = sizes * (pieces.start - starts) // tokens
    return sizes * (pieces.stop - starts) // tokens - before


def _batch(
    file: token_files.TokenFile,
    pieces: packing.Pieces,
    shares: np.ndarray | None,
    chosen: np.ndarray,
    shape: tuple[int, int],
) -> dict[str, np.ndarray]:
    data = file.tokens
    tokens = np.full(shape, file.info.get("pad_id", file.eos_id), np.int32)
    loss_mask = np.zeros(shape, np.float32)
    document = np.full(shape[0], -1, np.int32)
    text_bytes = np.zeros(shape[0], np.int32)
    for i, piece in enumerate(chosen.tolist()):
        start, stop = int(pieces.start[piece]), int(pieces.stop[piece])
        tokens[i, 0] = file.eos_id if pieces.is_first[piece] else data[start - 1]
        tokens[i, 1 : 1 + stop - start] = data[start:stop]
        loss_mask[i, 1 : 1 + stop - start] = 1
        document[i] = pieces.document[piece]
        if shares is not None:
            text_bytes[i] = shares[piece]
    batch = {"tokens": tokens, "loss_mask": loss_mask, "document": document}
    return batch if shares is None else batch | {"text_bytes": text_bytes}

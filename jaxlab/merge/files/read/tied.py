"""Embeddings and output heads that are one matrix, in files that hold it twice or once.

Of a tied model some files hold the embedding, some the head, some both. Merged as two
tensors, the copies would get masks and parameters of their own and be one no longer.
"""

import re
from collections.abc import Sequence

import numpy as np

from jaxlab.core import errors
from jaxlab.merge.files.read import source as source_lib

# Of Llama's and most, of GPT-NeoX, of GPT-2.
_PAIRS = (
    (r"(^|\.)embed_tokens\.weight$", r"(^|\.)lm_head\.weight$"),
    (r"(^|\.)embed_in\.weight$", r"(^|\.)embed_out\.weight$"),
    (r"(^|\.)wte\.weight$", r"(^|\.)lm_head\.weight$"),
)
_AT_ONCE = 1 << 20  # bytes


def find(inputs: Sequence[source_lib.Source]) -> dict[str, str]:
    """Head -> embedding, where they are the same bytes in every input.

    Inputs that hold both are made like those that hold one: the copy is left out.

    Raises:
        UserError: config.json says that they are tied, and they differ.
    """
    if any(source.kind != "folder" for source in inputs):
        return {}
    names = {name for source in inputs for name in source.tensors}
    embedding, head = _pair(names)
    if head is None or embedding is None:
        return {}
    is_tied = [_is_tied(source, embedding, head) for source in inputs]
    if not all(is_tied):
        return {}
    held = [{embedding, head} & source.tensors.keys() for source in inputs]
    if all(len(each) == 2 for each in held):
        return {head: embedding}
    for source in inputs:
        if embedding not in source.tensors:
            source.tensors[embedding] = source.tensors[head]
        source.tensors.pop(head, None)
    return {}


def _pair(names) -> tuple[str | None, str | None]:
    for patterns in _PAIRS:
        found = [[n for n in names if re.search(pattern, n)] for pattern in patterns]
        if all(len(each) == 1 for each in found):
            return found[0][0], found[1][0]
    return None, None


def _is_tied(source, embedding, head) -> bool:
    """Whether both are one matrix; of an input that holds one, whether it says so."""
    says = source.config.get("tie_word_embeddings")
    if not {embedding, head} <= source.tensors.keys():
        return says is not False
    is_same = _same_bytes(source.tensors[embedding], source.tensors[head])
    if says is True and not is_same:
        raise errors.UserError(
            f"{source.path}: tie_word_embeddings is true, but {head} differs from "
            f"{embedding}; set it to false in its config.json"
        )
    return is_same


def _same_bytes(a: source_lib.Stored, b: source_lib.Stored) -> bool:
    if (a.dtype, a.shape) != (b.dtype, b.shape):
        return False
    x, y = (
        np.memmap(at.file, np.uint8, "r", at.offset, (at.size,))
        for at in (a.extents[0], b.extents[0])
    )
    starts = range(0, len(x), _AT_ONCE)
    return all(np.array_equal(x[i : i + _AT_ONCE], y[i : i + _AT_ONCE]) for i in starts)

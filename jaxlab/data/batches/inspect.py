"""Inspection: what a run reads, or read, at a step (`jaxlab data inspect --step N`).

OLMo promises that the tokens of any training step can be looked up; since batches here
are a function of (seed, step), no index file has to survive for that.
"""

from collections.abc import Callable

from jaxlab.core import errors
from jaxlab.data.batches import loader as loader_
from jaxlab.data.tokenizers import tokenizer as tokenizer_lib


def print_order(
    loader: loader_.Loader,
    step: int,
    tokenizer: tokenizer_lib.Tokenizer | None = None,
    out: Callable[[str], None] = print,
    *,
    characters: int = 60,
) -> None:
    """Prints, for each row of a step's batch, its file and the documents in it.

    Args:
        loader: of the run: same files, length, batch size and seed.
        step: number of the batch, from 0.
        tokenizer: if given, the beginning of each document's part is shown as text.
        out: called with each line.
        characters: of text shown at most.
    """
    for row in loader.describe(step):
        head = (
            f"step {step} row {row['row']}: {row['source']} epoch {row['epoch']} "
            f"index {row['index']} ({row['file']})"
        )
        out(errors.spell_out(head))
        files = [f for f in loader.mixture.sources if str(f.path) == row["file"]]
        for document in row["documents"]:
            start, stop = document["start"], document["stop"]
            line = f"  tokens {start}-{stop} of {document['id']}"
            if document["source"]:
                line += f" from {document['source']}"
            if tokenizer is not None:
                ids = files[0].tokens[start : min(stop, start + characters)]
                line += f": {tokenizer.decode(ids.tolist())[:characters]!r}"
            out(errors.spell_out(line))
    out(f"order of epoch 0: sha256 {loader.order_sha256(0)}")

"""What a tuned run reads, or read, at a step, and which of it is learnt.

    step 3 row 0: epoch 0, talk.jsonl:5, 41 tokens, 12 learnt
      | <|user|>\\nSay 3.\\n<|assistant|>\\n
    + | 3, gladly.</s>

A line of text is learnt where it begins with a plus. Batches are a function of (seed,
step): what a run read is found again from its data alone.
"""

import itertools
from collections.abc import Callable, Sequence

from jaxlab.core import errors
from jaxlab.data.examples import chat, conversation_rows
from jaxlab.data.tokenizers import tokenizer as tokenizer_lib

_CHARACTERS = 60  # of a piece, where not all of it is shown


def print_step(
    rows: conversation_rows.Rows | conversation_rows.PairRows,
    step: int,
    names: Sequence[str],
    tokenizer: tokenizer_lib.Tokenizer,
    out: Callable[[str], None] = print,
    *,
    is_whole: bool = False,
) -> None:
    """Prints the conversations, or both sides of the pairs, of each row of a batch.

    Args:
        rows: of the run.
        step: number of the batch, from 0.
        names: of the conversations or pairs, by their number in the data.
        tokenizer: of the run.
        out: called with each line.
        is_whole: show all text, not only the beginning of each piece.
    """
    if isinstance(rows, conversation_rows.PairRows):
        sides = {" chosen": rows.sides[0], " rejected": rows.sides[1]}
    else:
        sides = {"": rows.examples}
    for number, (epoch, items) in enumerate(rows.describe(step)):
        for item in items:
            for side, examples in sides.items():
                name = f"{names[examples.number[item]]}{side}"
                ids, is_label = _example(examples, item)
                head = f"step {step} row {number}: epoch {epoch}, {name}, "
                head += f"{len(ids)} tokens, {sum(is_label)} learnt"
                out(errors.spell_out(head))
                for learnt, piece in _pieces(ids, is_label):
                    text = tokenizer.decode(piece, special=True)
                    if not is_whole and len(text) > _CHARACTERS:
                        text = f"{text[:_CHARACTERS]} ..."
                    out(errors.spell_out(f"{'+' if learnt else ' '} | {text}"))
    out(f"data: sha256 {rows.fingerprint['sha256']}")


def _example(examples: chat.Examples, item: int) -> tuple[list[int], list[bool]]:
    stop = int(examples.ends[item])
    span = slice(stop - int(examples.sizes[item]), stop)
    return examples.tokens[span].tolist(), examples.is_label[span].tolist()


def _pieces(ids, is_label):
    """(whether it is learnt, ids) of one piece after the other."""
    pairs = itertools.groupby(zip(is_label, ids, strict=True), lambda pair: pair[0])
    return [(learnt, [i for _, i in piece]) for learnt, piece in pairs]

"""Conversations in a model's own chat template: tokens, and which are labels.

    template = load.chat_template("SmolLM2-135M-Instruct")
    encode(template, conversations, names, length=2048)   ->   chat.Examples

Labels are what an assistant wrote and the token that ends its turn, of the answers that
are learnt (`templates.labels`); a template with {% generation %} says itself what its
answers are. What a template writes of today (`strftime_now`) is of one fixed day, so
that a run reads tomorrow what it read today.
"""

import datetime
from collections.abc import Iterator, Sequence

import numpy as np

from jaxlab.core import errors
from jaxlab.data import templates
from jaxlab.data.examples import chat

DAY = datetime.datetime(2024, 7, 26)  # that Llama 3.1's template has where no clock is
_MOST_NAMED = 10  # rows that a refusal names


def encode(
    template: templates.Template,
    conversations: Sequence[Sequence[chat.Message]],
    names: Sequence[str],
    *,
    length: int | None = None,
    last_only: bool = False,
) -> chat.Examples:
    """Tokens and labels of conversations.

    Args:
        template: of the model.
        conversations: messages in their order.
        names: of the rows that they are of, for errors.
        length: tokens an example may have; the rest is cut off. None cuts nothing.
        last_only: only the last answer is trained on.

    Raises:
        UserError: the template refuses some of them, as some do a system message, or
            two of one role; they are named.
    """
    return chat.collect(_encode_all(template, conversations, names, last_only), length)


def _encode_all(template, conversations, names, last_only) -> Iterator[tuple]:
    refused: dict[str, templates.RefusalError] = {}
    for name, messages in zip(names, conversations, strict=True):
        answers = [i for i, m in enumerate(messages) if m.role == "assistant"]
        learnt = answers[-1:] if last_only else answers
        said = [{"role": m.role, "content": m.content} for m in messages]
        try:
            encoded = template.encode(
                said, learnt=[i for i in learnt if messages[i].is_learnt], now=DAY
            )
        except templates.RefusalError as error:
            refused.setdefault(name, error)
            if len(refused) < _MOST_NAMED:
                continue
            break
        if not refused:
            yield np.array(encoded.ids, np.int32), np.array(encoded.labels, bool)
    if refused:
        first, *others = refused
        also = f" (and {', '.join(others)})" if others else ""
        raise errors.UserError(
            f"{first}{also}: {refused[first]}; change or remove the row"
            + "s" * bool(others)
        )

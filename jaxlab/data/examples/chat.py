r"""TÜLU's chat format: conversations as tokens, and which of these are labels.

    <|system|>\n{content}\n<|user|>\n{content}\n<|assistant|>\n{content}</s>\n

Wang et al. 2023 (arXiv:2306.04751), section 3. Role markers are ordinary text; `</s>`
stands for the tokenizer's end of text. Models are trained on what assistants say; the
published programs differ in the details, which are the styles here:

    style           content    "\n" after an answer  header of a first turn  last "\n"
    open_instruct   stripped   label                 label if an answer's    cut
    template        as it is   read                  label if an answer's    cut
    olmo            stripped   read                  read                    kept

open_instruct is open-instruct's of 2024 (TÜLU 1) and, with `begin` the tokenizer's bos,
EasyLM's (TÜLU 2); template is open-instruct's of 2026; olmo, with `begin` the end of
text, is OLMo's `prepare_tulu_data.py`.

A model with a chat template of its own can be tuned in that: `own_template`.

Deviation: an end of text that a message spells out, as `</s>` here, is encoded as
ordinary characters and ends nothing.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from jaxlab.core import errors
from jaxlab.data.tokenizers import tokenizer as tokenizer_lib

ROLES = ("system", "user", "assistant")
_AT_ONCE = 1000  # conversations that are lists of Python integers at one time


class Message(NamedTuple):
    """One turn of a conversation; `role` is one of ROLES.

    Attributes:
        is_learnt: whether an answer is trained on; it is read by others either way.
    """

    role: str
    content: str
    is_learnt: bool = True


class Style(NamedTuple):
    """How a program of the table above writes conversations and masks labels."""

    strips: bool
    newline_is_label: bool
    first_header_is_label: bool
    keeps_last_newline: bool = False


OWN = "own"  # no style of these: the chat template of the model itself
BEGINS = ("bos", "eos", "none")
STYLES = {
    "open_instruct": Style(True, True, True),
    "template": Style(False, False, True),
    "olmo": Style(True, False, False, keeps_last_newline=True),
}


class Examples(NamedTuple):
    """Conversations as tokens, one after the other.

    Attributes:
        tokens: i32[T].
        is_label: bool[T].
        ends: i64[N]: where each example ends; the first begins at 0.
        number: i64[N]: which of the given conversations each one is.
        truncated: how many of them lost their end.
        dropped: how many conversations are missing: nothing was left to learn.
    """

    tokens: np.ndarray
    is_label: np.ndarray
    ends: np.ndarray
    number: np.ndarray
    truncated: int
    dropped: int

    @property
    def sizes(self) -> np.ndarray:
        """i64[N]: tokens of each."""
        return np.diff(self.ends, prepend=0)

    def take(self, chosen: np.ndarray) -> "Examples":
        """Some of them, by index, in a new order."""
        starts = self.ends - self.sizes
        spans = [np.arange(starts[i], self.ends[i]) for i in chosen]
        index = np.concatenate([np.zeros(0, np.int64), *spans])
        return self._replace(
            tokens=self.tokens[index],
            is_label=self.is_label[index],
            ends=np.cumsum(self.sizes[chosen]),
            number=self.number[chosen],
        )


def encode(
    tokenizer: tokenizer_lib.Tokenizer,
    conversations: Sequence[Sequence[Message]],
    *,
    style: str = "open_instruct",
    length: int | None = None,
    begin: int | None = None,
    last_only: bool = False,
) -> Examples:
    """Tokens and labels of conversations.

    Args:
        tokenizer: of the model.
        conversations: messages in their order.
        style: of STYLES.
        length: tokens an example may have; the rest is cut off. None cuts nothing.
        begin: id of a token in front; None puts none there.
        last_only: only the last answer is trained on (EasyLM's DPO).

    Raises:
        UserError: an unknown style.
    """
    if style not in STYLES:
        raise errors.UserError(f"chat style {style!r}; use one of {', '.join(STYLES)}")
    encoded = _encode_all(tokenizer, conversations, STYLES[style], begin, last_only)
    return collect(encoded, length)


def collect(
    encoded: Iterable[tuple[np.ndarray, np.ndarray]], length: int | None = None
) -> Examples:
    """Examples of conversations that have something to learn.

    Args:
        encoded: (i32[T] tokens, bool[T] whether each is a label) of each.
        length: tokens an example may have; the rest is cut off. None cuts nothing.
    """
    tokens, labels, number, truncated, count = [], [], [], 0, 0
    for index, (ids, is_label) in enumerate(encoded):
        count += 1
        cut_labels = is_label[:length]
        if cut_labels[1:].any():  # the first token is predicted from nothing
            truncated += len(cut_labels) < len(ids)
            tokens.append(ids[:length])
            labels.append(cut_labels)
            number.append(index)
    sizes = np.array([len(ids) for ids in tokens], np.int64)
    return Examples(
        np.concatenate([np.zeros(0, np.int32), *tokens]),
        np.concatenate([np.zeros(0, bool), *labels]),
        np.cumsum(sizes),
        np.array(number, np.int64),
        truncated,
        count - len(number),
    )


def prompt(
    tokenizer: tokenizer_lib.Tokenizer,
    messages: Sequence[Message],
    *,
    style: str = "open_instruct",
    begin: int | None = None,
) -> list[int]:
    """Tokens that an assistant's next answer follows; arguments as in `encode`."""
    asked = [*messages, Message("assistant", "")]
    ((ids, _),) = _encode_all(tokenizer, [asked], STYLES[style], begin, False)
    return ids[: np.flatnonzero(ids == tokenizer.eos_id)[-1]].tolist()


def begin_id(tokenizer: tokenizer_lib.Tokenizer, begin: str) -> int | None:
    """The token in front of conversations: bos (if the tokenizer has it), eos or none.

    Raises:
        UserError: none of these.
    """
    if begin not in BEGINS:
        raise errors.UserError(f"begin {begin!r}; use one of {', '.join(BEGINS)}")
    return {"bos": tokenizer.bos_id, "eos": tokenizer.eos_id, "none": None}[begin]


class _Segment(NamedTuple):
    """What stands before an end of text, or at the end of a conversation."""

    text: str
    labels: tuple[tuple[int, int], ...]  # characters start:stop
    end: bool  # whether an end of text follows
    end_is_label: bool


def _encode_all(tokenizer, conversations, style, begin, last_only) -> Iterator[tuple]:
    for start in range(0, len(conversations), _AT_ONCE):
        some = conversations[start : start + _AT_ONCE]
        parts = [_segments(messages, style, last_only) for messages in some]
        texts = []
        for segment in (segment for segments in parts for segment in segments):
            bounds = [bound for span in segment.labels for bound in span]
            texts += [segment.text, *(segment.text[:bound] for bound in bounds)]
        ids = iter(tokenizer.encode_batch(texts))
        for segments in parts:
            yield _join(segments, ids, tokenizer.eos_id, begin)


def _join(segments, ids, eos, begin):
    tokens = [] if begin is None else [begin]
    labels = [False] * len(tokens)
    for segment in segments:
        own = next(ids)
        is_label = [False] * len(own)
        for _ in segment.labels:
            # As published: a label starts after as many tokens as its prefix has.
            first, last = len(next(ids)), len(next(ids))
            is_label[first:last] = [True] * len(is_label[first:last])
        tokens += own + [eos] * segment.end
        labels += is_label + [segment.end_is_label] * segment.end
    return np.array(tokens, np.int32), np.array(labels, bool)


def _segments(messages, style: Style, last_only: bool) -> list[_Segment]:
    answers = [i for i, m in enumerate(messages) if m.role == "assistant"]
    segments, text, spans = [], "", ()
    for index, message in enumerate(messages):
        content = message.content.strip() if style.strips else message.content
        text += f"<|{message.role}|>\n"
        if message.role != "assistant":
            text += f"{content}\n"
            continue
        is_trained = message.is_learnt and (not last_only or index == answers[-1])
        start = 0 if index == 0 and style.first_header_is_label else len(text)
        text += content
        spans = (*spans, (start, len(text))) if is_trained else spans
        segments.append(_Segment(text, spans, True, is_trained))
        text = "\n"
        spans = ((0, 1),) if is_trained and style.newline_is_label else ()
    if not style.keeps_last_newline:
        ends_in_answer = messages and messages[-1].role == "assistant"
        text = "" if ends_in_answer else text.rstrip() if style.strips else text
    if text:
        segments.append(_Segment(text, spans, False, False))
    return segments

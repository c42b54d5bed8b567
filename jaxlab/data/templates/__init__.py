"""A model's own chat template: conversations as ids that no content can forge.

    template = load("SmolLM2-135M-Instruct")
    ids, labels, text = template.encode([{"role": "user", "content": "Hello"}], ...)

`text` is what transformers' `apply_chat_template(tokenize=False)` gives; ids are those
of `apply_chat_template` where no content spells a control token. Where one does, they
differ on purpose: `<|im_end|>` in a message is five or ten ordinary tokens (`control`).
A begin-of-text token is one where the template writes it, and never doubled. Labels
follow from who wrote a character (`labels`).

Templates are programs of strangers: they run in jinja2's sandbox within counted limits
(`sandbox`), and what they raise is an error of one line.
"""

import contextlib
import datetime
import functools
import pathlib
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import jinja2

from jaxlab.core import errors, tokenizer_files
from jaxlab.data import lines
from jaxlab.data.templates import control, labels, sandbox, traced
from jaxlab.data.tokenizers import special_tokens
from jaxlab.data.tokenizers import tokenizer as tokenizer_lib

_ROLE = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")
_REASONING = ("reasoning_content", "thinking", "reasoning")
_FREE_CHARACTERS, _CHARACTERS_PER_CHARACTER = 1 << 20, 16


class RefusalError(errors.UserError):
    """A template takes no such conversation; it may take others."""


class Encoded(NamedTuple):
    """A conversation as tokens.

    Attributes:
        ids: of the T tokens.
        labels: whether each holds a character of an answer, or ends it.
        text: as the template renders it.
    """

    ids: list[int]
    labels: list[bool]
    text: str


class Template:
    """A chat template with its tokenizer; made by `load`.

    Attributes:
        tokenizer: of the model.
    """

    def __init__(
        self,
        name: str,
        templates: Mapping[str, str],
        tokenizer: tokenizer_lib.Tokenizer,
        allowed: Sequence[str] = (),
    ):
        self._name, self._templates = name, dict(templates)
        self.tokenizer = tokenizer
        self._encoder = control.Encoder(tokenizer, allowed)
        unknown = [text for text in allowed if text not in self._encoder.added]
        if unknown:
            raise errors.UserError(
                f"{name} has no added token {unknown[0]!r}; allow one of "
                f"{', '.join(sorted(self._encoder.added))}"
            )

    def encode(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        generation_prompt: bool = False,
        learnt: Collection[int] | None = None,
        now: datetime.datetime | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> Encoded:
        """The ids, labels and text of a conversation.

        Args:
            messages: of OpenAI's form: role, content, tool_calls, ...
            tools: JSON schemas of functions, of the same form.
            generation_prompt: ends with what an answer follows.
            learnt: numbers of the messages whose answers are labels; None: all
                answers.
            now: the time that the template is told; None: of the clock.
            options: what else it may read, e.g. {"enable_thinking": False}.

        Raises:
            RefusalError: what the template itself raises, e.g. for a system message.
            UserError: no message, or one that is none; a template that is damaged or
                never ends.
        """
        text = self._render(messages, tools, generation_prompt, now, options)
        lines.require_utf8(str.__str__(text), f"{self._name}: the conversation")
        answers = _answers(messages)
        tokens = self._encoder.encode(text, answers)
        spans = labels.find_spans(
            text,
            tokens,
            messages,
            self._frame,
            {*answers} if learnt is None else {*learnt},
        )
        is_label = bytearray(len(text))
        for start, stop in spans:
            is_label[start:stop] = b"\1" * (stop - start)
        return Encoded(
            [token.id for token in tokens],
            [1 in is_label[token.start : token.stop] for token in tokens],
            str.__str__(text),
        )

    def check(self) -> None:
        """Refuses a template that takes no conversation at all.

        Raises:
            UserError: it is damaged, or never ends.
        """
        turn = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        with contextlib.suppress(RefusalError):
            self.encode(turn)

    @property
    def texts(self) -> dict[str, str]:
        """Name -> Jinja text, as `tokenizer_files.chat_templates` gives them."""
        return dict(self._templates)

    @property
    def ends(self) -> frozenset[int]:
        """Ids that end an answer: the end of its turn, and the end of text."""
        return self._frame.ends

    @functools.cached_property
    def _frame(self) -> labels.Frame:
        """What the template writes around an answer, found by asking it."""
        question = {"role": "user", "content": "a"}
        answer = {"role": "assistant", "content": "b"}
        try:
            asked = self._render([question], None, False)
            prompt = self._render([question], None, True)
            whole = self._render([question, answer], None, False)
        except errors.UserError:  # it takes no such conversation
            return labels.Frame((), frozenset([self.tokenizer.eos_id]))
        tokens = self._encoder.encode(whole, [1])
        return labels.find_frame(asked, prompt, whole, tokens, self.tokenizer.eos_id)

    def _render(
        self, messages, tools, generation_prompt, now=None, options=None
    ) -> traced.Traced:
        if not messages:
            raise errors.UserError(
                f"{self._name}: a conversation has a message; give one"
            )
        text = None if tools is None else self._templates.get("tool_use")
        text = text or self._templates.get("default")
        if text is None:
            raise errors.UserError(
                f"{self._name} has chat templates {', '.join(sorted(self._templates))} "
                "and none that is called default; name one so"
            )
        values = {
            "messages": [_mark(n, m, self._name) for n, m in enumerate(messages)],
            "tools": traced.mark_all(tools, traced.FOREIGN),
            "documents": None,
            "add_generation_prompt": generation_prompt,
            **self._special(),
            **traced.mark_all(dict(options or {}), traced.FOREIGN),
        }
        given = _count([messages, tools, options])
        longest = _FREE_CHARACTERS + _CHARACTERS_PER_CHARACTER * given
        kind = errors.UserError
        try:
            template = sandbox.compile_template(text)
            return sandbox.render(template, values, longest=longest, now=now)
        except jinja2.TemplateSyntaxError as error:
            reason = f"is damaged (line {error.lineno}: {error.message})"
        except sandbox.LimitError as error:
            reason = f"does not end: {error}"
        except jinja2.TemplateError as error:
            kind, reason = RefusalError, f"refuses this conversation: {error}"
        except RecursionError:
            reason = "does not end: it calls itself"
        except Exception as error:  # templates can provoke any
            kind, reason = RefusalError, f"fails on this conversation: {error}"
        raise kind(f"the chat template of {self._name} {_one_line(reason)}")

    def _special(self) -> dict[str, traced.Traced]:
        """The tokens that a template may name."""
        config = self.tokenizer.config
        texts = {
            name: special_tokens.token_text(value)
            for name, value in config.items()
            if name.endswith("_token") and isinstance(value, str | Mapping)
        }
        for name, token in self.tokenizer.special_tokens._asdict().items():
            if token is not None and name != "pad":  # that may be one of the others
                texts[f"{name}_token"] = token[1]
        return {name: traced.Traced(x, traced.OWN) for name, x in texts.items()}


def load(folder: str | pathlib.Path, *, allowed: Sequence[str] = ()) -> Template:
    """The chat template of a model's folder.

    Args:
        folder: with a tokenizer, and the template as chat_template.jinja or in
            tokenizer_config.json, as a string or as a list of named ones.
        allowed: added tokens that an assistant's contents may use, e.g. "<think>".

    Raises:
        UserError: no tokenizer or no template; `allowed` names no added token.
    """
    templates = tokenizer_files.chat_templates(folder)
    if not templates:
        raise errors.UserError(
            f"{folder} has no chat template; put the model's chat_template.jinja there"
        )
    return Template(str(folder), templates, tokenizer_lib.load(folder), allowed)


def _answers(messages) -> list[int]:
    return [n for n, m in enumerate(messages) if m["role"] == "assistant"]


def _mark(number: int, message: Any, name: str) -> dict[str, Any]:
    """A message whose strings are marked as its own, but for its role."""
    role = message.get("role") if isinstance(message, Mapping) else None
    if not (isinstance(role, str) and _ROLE.fullmatch(role)):
        raise errors.UserError(
            f"message {number} has the role {role!r}; write user, assistant, system or "
            "what the chat template knows"
        )
    message = {key: value for key, value in message.items() if value is not None}
    thoughts = (message[key] for key in _REASONING if message.get(key) is not None)
    if (thought := next(thoughts, None)) is not None:  # as transformers does
        message = {"thinking": thought, **message, "reasoning_content": thought}
    marked = traced.mark_all(dict(message), traced.of_message(number), but=("role",))
    return marked | {"role": traced.Traced(role, traced.OWN)}


def _count(value: Any) -> int:
    """Characters in the strings of a value."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, Mapping):
        return sum(map(_count, value)) + sum(map(_count, value.values()))
    return sum(map(_count, value)) if isinstance(value, list | tuple) else 0


def _one_line(text: str) -> str:
    return " ".join(errors.spell_out(text).split())[:500]

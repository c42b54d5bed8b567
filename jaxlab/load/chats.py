"""How a model is asked and tuned: in one of TULU's styles, or its own chat template."""

import logging
import pathlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from jaxlab.core import errors, tokenizer_files
from jaxlab.data.examples import chat, chat_templates
from jaxlab.data.tokenizers import tokenizer as tokenizer_lib
from jaxlab.load import source as source_lib

if TYPE_CHECKING:
    from jaxlab.data import templates

_log = logging.getLogger(__name__)


class Chat(NamedTuple):
    """How a model is asked.

    Attributes:
        ask: a question -> ids that an answer follows.
        ends: ids that end an answer.
    """

    ask: Callable[[str], list[int]]
    ends: frozenset[int]


def chat_format(
    path: str | pathlib.Path, *, tokenizer: str | pathlib.Path | None = None
) -> tuple[str, str] | None:
    """How a model's conversations are written: (style, begin) of `data.examples.chat`.

    Args:
        path: of the model.
        tokenizer: that is used instead of its own.

    Returns:
        What a tuned run was tuned in, or what the folder's template says; None where
        nothing is said.

    Raises:
        UserError: it has a chat template of its own, which is none of the styles.
    """
    found = _find(path, tokenizer)
    if isinstance(found, pathlib.Path):
        raise errors.UserError(
            f"{path} has a chat template of its own, which is none of TULU's styles"
        )
    return found


def chat_template(
    path: str | pathlib.Path,
    *,
    tokenizer: str | pathlib.Path | None = None,
    allowed: Sequence[str] = (),
) -> "templates.Template":
    """A model's chat template; of what was tuned in one of TULU's styles, that.

    Args:
        path: of the model.
        tokenizer: that is used instead of its own.
        allowed: added tokens that an assistant's contents may use.

    Raises:
        UserError: it has none, or a damaged one; `allowed` names no added token.
    """
    from jaxlab.data import templates  # here: no other start needs jinja2

    found = _find(path, tokenizer)
    if isinstance(found, pathlib.Path):
        return templates.load(found, allowed=allowed)
    if found is None:
        raise errors.UserError(
            f"{path} has no chat template; put its chat_template.jinja there, or use "
            f"one of TULU's styles, --config.data.style={next(iter(chat.STYLES))}"
        )
    own = _tokenizer(path, tokenizer)
    text = chat_templates.of_tokenizer(own, *found)
    return templates.Template(str(path), {"default": text}, own, allowed)


def chat_texts(path: str | pathlib.Path) -> dict[str, str]:
    """Name -> Jinja text of what a model's conversations are written in; {} if nothing.

    Args:
        path: of the model.
    """
    found = _find(path, None)
    if found is None:
        return {}
    if isinstance(found, pathlib.Path):
        return tokenizer_files.chat_templates(found)
    return {"default": chat_templates.of_tokenizer(_tokenizer(path, None), *found)}


def chat_of(
    path: str | pathlib.Path, *, tokenizer: str | pathlib.Path | None = None
) -> Chat:
    """How a model is asked as its users do.

    Args:
        path: of the model.
        tokenizer: that is used instead of its own.

    Returns:
        In the format that the model was tuned in, or in its folder's own template;
        in TULU's where it says nothing of conversations.

    Raises:
        UserError: its template is damaged, or refuses a question.
    """
    found = _find(path, tokenizer)
    if isinstance(found, pathlib.Path):
        template = chat_template(path, tokenizer=tokenizer)

        def follow(question: str) -> list[int]:
            asked = [{"role": "user", "content": question}]
            return template.encode(asked, generation_prompt=True).ids

        return Chat(follow, template.ends)
    if found is None:
        _log.warning(
            "%s does not say how conversations are written; --chat asks in TULU's "
            "format, which only a model that was tuned in it can read",
            path,
        )
    style, begin = found or ("open_instruct", "bos")
    own = _tokenizer(path, tokenizer)

    def ask(question: str) -> list[int]:
        asked = [chat.Message("user", question)]
        return chat.prompt(own, asked, style=style, begin=chat.begin_id(own, begin))

    return Chat(ask, frozenset([own.eos_id]))


def _tokenizer(path, tokenizer) -> tokenizer_lib.Tokenizer:
    return tokenizer_lib.load(tokenizer or source_lib.find(path).tokenizer_path())


def _find(path, tokenizer) -> tuple[str, str] | pathlib.Path | None:
    """A style and its begin, or the folder of another chat template."""
    source = source_lib.find(path)
    tuned = source.tuned_in()
    if tuned is not None and tuned[0] != chat.OWN:
        return tuned
    folder = pathlib.Path(tokenizer or source.tokenizer_path())
    said = tokenizer_files.chat_templates(folder)
    if not said:
        return None
    return chat_templates.find_style(said.get("default", "")) or folder

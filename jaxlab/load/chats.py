"""How a model is asked: in the style that it was tuned in, or its own chat template."""

import logging
import pathlib
from collections.abc import Callable

from jaxlab.core import errors, tokenizer_files
from jaxlab.data.examples import chat, chat_templates
from jaxlab.data.tokenizers import tokenizer as tokenizer_lib
from jaxlab.load import source as source_lib

_log = logging.getLogger(__name__)


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


def chat_prompt(
    path: str | pathlib.Path, *, tokenizer: str | pathlib.Path | None = None
) -> Callable[[str], list[int]]:
    """What asks a model as its users do: a question -> ids that an answer follows.

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
        from jaxlab.data import templates  # here: no other start needs jinja2

        template = templates.load(found)

        def follow(question: str) -> list[int]:
            asked = [{"role": "user", "content": question}]
            return template.encode(asked, generation_prompt=True).ids

        return follow
    if found is None:
        _log.warning(
            "%s does not say how conversations are written; --chat asks in TULU's "
            "format, which only a model that was tuned in it can read",
            path,
        )
    style, begin = found or ("open_instruct", "bos")
    own = tokenizer_lib.load(tokenizer or source_lib.find(path).tokenizer_path())

    def ask(question: str) -> list[int]:
        asked = [chat.Message("user", question)]
        return chat.prompt(own, asked, style=style, begin=chat.begin_id(own, begin))

    return ask


def _find(path, tokenizer) -> tuple[str, str] | pathlib.Path | None:
    """A style and its begin, or the folder of another chat template."""
    source = source_lib.find(path)
    if (tuned := source.tuned_in()) is not None:
        return tuned
    folder = pathlib.Path(tokenizer or source.tokenizer_path())
    said = tokenizer_files.chat_templates(folder)
    if not said:
        return None
    return chat_templates.find_style(said.get("default", "")) or folder

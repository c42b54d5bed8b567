r"""TULU's styles as Jinja, for the folder of a model that was tuned in one of them.

    {% for message in messages %}<|role|>\n{content}{eos_token}\n...

What `chat.encode` and `chat.prompt` write, transformers, vLLM and others write by the
`chat_template` of tokenizer_config.json.

*Deviation*: an empty last question that is not answered keeps the newline of its role.
"""

from jaxlab.data.examples import chat
from jaxlab.data.tokenizers import tokenizer as tokenizer_lib

_BEGIN = {"bos": "{{ bos_token }}", "eos": "{{ eos_token }}", "none": ""}


def of_style(style: str, begin: str) -> str:
    """The template of a style.

    Args:
        style: of `chat.STYLES`.
        begin: bos, eos or none, what stands in front; bos for tokenizers that have it.
    """
    rules = chat.STYLES[style]
    content = "message['content'] | trim" if rules.strips else "message['content']"
    newline = "{{ '\\n' }}"
    if not rules.keeps_last_newline:
        goes_on = "not loop.last or add_generation_prompt"
        if not rules.strips:
            goes_on += " or message['role'] != 'assistant'"
        newline = f"{{% if {goes_on} %}}{newline}{{% endif %}}"
    return (
        f"{_BEGIN[begin]}{{% for message in messages %}}"
        f"{{{{ '<|' + message['role'] + '|>\\n' + ({content}) }}}}"
        "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}"
        f"{newline}{{% endfor %}}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
    )


def of_tokenizer(tokenizer: tokenizer_lib.Tokenizer, style: str, begin: str) -> str:
    """The template of a style, where `begin` may be of a token that there is not."""
    is_bare = chat.begin_id(tokenizer, begin) is None
    return of_style(style, "none" if is_bare else begin)


def find_style(template: str) -> tuple[str, str] | None:
    """The (style, begin) that a template is of; None for one of somebody else.

    >>> find_style(of_style("olmo", "eos")), find_style("{{ messages }}")
    (('olmo', 'eos'), None)
    """
    for style in chat.STYLES:
        for begin in _BEGIN:
            if template == of_style(style, begin):
                return style, begin
    return None

"""The Jinja of a style writes what `chat` reads and asks."""

import jinja2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlab.data.examples import chat, chat_templates
from jaxlab.data.tokenizers import byte_pairs
from tests.support import published

TOKENIZER = byte_pairs.BytePairs.from_bytes(
    published.tokenizer().to_str().encode(), published.TOKENIZER, "toy"
)
TEXTS = st.text("ab \n<|>é", min_size=1).filter(lambda text: text.strip())


def write(style, begin, messages, asks):
    """As transformers renders a template, and then reads it."""
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(chat_templates.of_style(style, begin))
    text = template.render(
        messages=[message._asdict() for message in messages],
        add_generation_prompt=asks,
        bos_token="<s>",
        eos_token="</s>",
    )
    return TOKENIZER.encode(text, special=True)


@settings(deadline=None, max_examples=40)
@given(
    style=st.sampled_from(list(chat.STYLES)),
    begin=st.sampled_from(["bos", "eos", "none"]),
    roles=st.lists(st.sampled_from(chat.ROLES), min_size=1, max_size=4),
    texts=st.lists(TEXTS, min_size=4, max_size=4),
)
def test_a_template_writes_the_tokens_of_its_style(style, begin, roles, texts):
    messages = [chat.Message(*each) for each in zip(roles, texts, strict=False)]
    first = chat.begin_id(TOKENIZER, begin)
    asked = chat.prompt(TOKENIZER, messages, style=style, begin=first)
    assert write(style, begin, messages, True) == asked
    if roles[-1] == "assistant":
        read = chat.encode(TOKENIZER, [messages], style=style, begin=first)
        assert write(style, begin, messages, False) == read.tokens.tolist()


@pytest.mark.oracle
@pytest.mark.parametrize("begin", ["bos", "eos", "none"])
@pytest.mark.parametrize("style", chat.STYLES)
def test_transformers_reads_the_tokens_that_a_style_is_trained_on(
    style, begin, tmp_path
):
    transformers = pytest.importorskip("transformers")
    template = chat_templates.of_style(style, begin)
    folder = published.write(tmp_path / "m", settings={"chat_template": template})
    peer = transformers.AutoTokenizer.from_pretrained(str(folder))
    texts = ["System. ", " What?\n", " This.", "é你", "<|user|>\n", "And\n\nso"]
    roles = ("system", "user", "assistant", "user", "assistant", "assistant")
    talk = [chat.Message(*each) for each in zip(roles, texts, strict=True)]
    first = chat.begin_id(TOKENIZER, begin)
    said = [{"role": m.role, "content": m.content} for m in talk]
    for stop in (3, 5, 6):
        ids = peer.apply_chat_template(said[:stop], return_dict=False)
        read = chat.encode(TOKENIZER, [talk[:stop]], style=style, begin=first)
        assert ids == read.tokens.tolist()
    asks = {"add_generation_prompt": True, "return_dict": False}
    asked = chat.prompt(TOKENIZER, talk[:4], style=style, begin=first)
    assert peer.apply_chat_template(said[:4], **asks) == asked


def test_a_style_is_known_by_its_template():
    for style in chat.STYLES:
        assert chat_templates.find_style(chat_templates.of_style(style, "bos")) == (
            style,
            "bos",
        )
    assert chat_templates.find_style(published.TEMPLATE) is None
    with pytest.raises(KeyError):
        chat_templates.of_style("chatml", "bos")

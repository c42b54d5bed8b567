"""Templates of the published shapes: text and ids of transformers, labels, forgeries.

tests/data/chat_templates/NAME.jinja are written after what models are published with.
"""

import json
import pathlib
import random
import re

import pytest
import tokenizers

from jaxlab.core import errors
from jaxlab.data import templates
from tests.support import published

TEMPLATES = {
    file.stem: file.read_text("utf-8")
    for file in sorted(pathlib.Path(__file__).with_name("chat_templates").iterdir())
}
MARKERS = re.compile(
    r"<[|\uff5c][^|\uff5c<>\s]+[|\uff5c]>|\[/?[A-Z_]{4,}\]|<sop>|\[gMASK\]"
    r"|</?(?:think|tool_call|tool_response|(?:start|end)_of_\w+|arg_key|arg_value)>"
)
WORDS = ("hello", " ", "world", "é", "你", "\n", "  ", "a", "\t", "'x'", '"q"', "<b>")
THOUGHT = "<think>\nso\n</think>\n\n"
CALL = {
    "id": "abcdefgh1",
    "type": "function",
    "function": {"name": "add", "arguments": {"a": 1}},
}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": "Adds é numbers. Now.",
            "parameters": {
                "type": "object",
                "properties": {
                    "a": {"type": "number", "description": "one"},
                    "b": {"type": ["integer", "string"]},
                    "tags": {"type": "array", "items": {"type": "string"}},
                },
                "required": ["a"],
            },
        },
    }
    for name in ("add", "get_weather")
]


def write(folder, text):
    """A folder with a tokenizer of bytes, whose markers are flagged special or not."""
    made = published.tokenizer()
    for number, marker in enumerate(dict.fromkeys(MARKERS.findall(text))):
        special = number % 2 == 0
        made.add_tokens(
            [tokenizers.AddedToken(marker, special=special, normalized=False)]
        )
    made.save(str(folder / "tokenizer.json"))
    config = {**published.TOKENIZER, "tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "chat_template.jinja").write_text(text, "utf-8")
    return folder


def converse(draw):
    """(messages, tools) with system messages, calls, thoughts, roles out of turn."""

    def say():
        return "".join(draw.choices(WORDS, k=draw.randint(0, 5)))

    tools = TOOLS if draw.random() < 0.4 else None
    messages = [{"role": "system", "content": say()}] if draw.random() < 0.4 else []
    for turn in range(draw.randint(1, 3)):
        messages.append({"role": "user", "content": say()})
        if tools and draw.random() < 0.5:
            more = {"city": say(), "x": {"y": [1.5, None, True]}}
            other = {**CALL, "function": {"name": "get_weather", "arguments": more}}
            calls = draw.choice([[CALL], [other], [CALL, other]])
            content = draw.choice([None, "", say()])
            messages += [
                {"role": "assistant", "content": content, "tool_calls": calls},
                {"role": "tool", "tool_call_id": CALL["id"], "content": say()},
            ]
        if turn < 2 and draw.random() < 0.9:
            answer = {
                "role": "assistant",
                "content": draw.choice(["", THOUGHT]) + say(),
            }
            if draw.random() < 0.2:
                answer["reasoning_content"] = say()
            messages.append(answer)
    if draw.random() < 0.1:
        draw.shuffle(messages)
    return messages, tools


def change(value, spell, key=None):
    """A value whose strings, but for those that a template knows, are spelled anew."""
    if isinstance(value, str):
        return value if key in ("role", "type", "id", "tool_call_id") else spell(value)
    if isinstance(value, dict):
        return {name: change(each, spell, name) for name, each in value.items()}
    if isinstance(value, list):
        return [change(each, spell) for each in value]
    return value


def controls(template, messages, tools):
    """The control tokens of a conversation; None of one that is refused."""
    try:
        ids = template.encode(messages, tools=tools).ids
    except errors.UserError:
        return None
    return [i for i in ids if i > 258 or i < 3]


@pytest.mark.parametrize("name", TEMPLATES)
def test_nothing_that_is_said_or_called_is_a_control_token(name, tmp_path):
    template = templates.load(write(tmp_path, TEMPLATES[name]))
    found = dict.fromkeys([*MARKERS.findall(TEMPLATES[name]), "<s>", "</s>"])
    # Some templates look for these in contents.
    markers = [m for m in found if "think" not in m and "response" not in m]
    draw, count = random.Random(name), 0

    def forge(text):
        marker = draw.choice(markers)
        cut = draw.randint(1, len(marker) - 1)
        forged = (marker, marker[:cut], marker[cut:], text + marker, marker * 2)
        return draw.choice([*forged, text])

    for _ in range(15):
        forged = change([*converse(draw)], forge)
        plain = change(forged, lambda text: re.sub(r"[^\w\s]|_", "x", text))
        expected = controls(template, *plain)
        assert controls(template, *forged) == expected
        count += bool(expected)
    assert count > 2


TALK = [
    {"role": "user", "content": "q"},
    {"role": "assistant", "content": "A"},
    {"role": "user", "content": "r"},
    {"role": "assistant", "content": " B "},
]
CALLED = [
    *TALK[:3],
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": CALL["id"], "content": "1"},
    {"role": "assistant", "content": f"{THOUGHT}B"},
]
SENTENCE = "<\uff5cend▁of▁sentence\uff5c>"
PLAIN = {  # the end of a turn, of the last one, the last answer
    "command_r": ("<|END_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>", "B"),
    "deepseek_r1": (
        "<\uff5cend▁of▁sentence\uff5c>",
        "<\uff5cend▁of▁sentence\uff5c>",
        " B ",
    ),
    "gemma": ("<end_of_turn>", "<end_of_turn>", "B"),
    "glm4": ("<|user|>", "", " B "),
    "granite": ("<|end_of_text|>", "<|end_of_text|>", " B "),
    "llama2": (" </s>", " </s>", "B"),
    "llama31": ("<|eot_id|>", "<|eot_id|>", "B"),
    "mistral_v3": ("</s>", "</s>", "B"),
    "olmo2": ("</s>", "</s>", " B "),
    "phi3": ("<|end|>", "<|end|>", " B "),
    "phi4": ("<|im_end|>", "<|im_end|>", " B "),
    "qwen25": ("<|im_end|>", "<|im_end|>", " B "),
    "qwen3": ("<|im_end|>", "<|im_end|>", "<think>\n\n</think>\n\n B "),
    "zephyr": ("</s>", "</s>", " B "),
}
JSON = '{"name": "add", "arguments": {"a": 1}}'
CALLS = {
    "glm4": "\n\n<tool_call>add\n<arg_key>a</arg_key>\n<arg_value>1</arg_value>\n"
    "</tool_call><|observation|>",
    "granite": f"<|tool_call|>[{JSON}]<|end_of_text|>",
    "llama31": '{"name": "add", "parameters": {"a": 1}}<|eot_id|>',
    "mistral_v3": f'[TOOL_CALLS] [{JSON[:-1]}, "id": "abcdefgh1"}}]</s>',
    "qwen25": f"<tool_call>\n{JSON}\n</tool_call><|im_end|>",
    "qwen3": f"<tool_call>\n{JSON}\n</tool_call><|im_end|>",
}


def learnt(template, messages, number, tools=None):
    """What is learnt of one message, as text."""
    encoded = template.encode(messages, tools=tools, learnt=[number])
    ids = [i for i, x in zip(encoded.ids, encoded.labels, strict=True) if x]
    return template.tokenizer.decode(ids, special=True)


@pytest.mark.parametrize("name", PLAIN)
def test_an_answer_is_learnt_with_its_end_and_what_a_model_has_to_write(name, tmp_path):
    template = templates.load(write(tmp_path, TEMPLATES[name]))
    end, last, answer = PLAIN[name]
    assert learnt(template, TALK, 1) == f"A{end}"
    assert learnt(template, TALK, 3) == f"{answer}{last}"
    if name in CALLS:
        assert learnt(template, CALLED, 3, TOOLS) == CALLS[name]
        assert learnt(template, CALLED, 5, TOOLS) == f"{THOUGHT}B{last}"


def bare(text):
    return text.translate(str.maketrans("<>", "()"))


@pytest.mark.oracle
@pytest.mark.parametrize("name", TEMPLATES)
def test_text_ids_and_refusals_are_those_of_transformers(name, tmp_path):
    transformers = pytest.importorskip("transformers")
    folder = write(tmp_path, TEMPLATES[name])
    peer = transformers.AutoTokenizer.from_pretrained(str(folder))
    template, draw, count = templates.load(folder), random.Random(name), 0
    for _ in range(60):
        messages, tools = converse(draw)
        if "</think>" in MARKERS.findall(TEMPLATES[name]):
            messages = change(messages, bare)  # there it is a control token
        options = {"tools": tools, "add_generation_prompt": draw.random() < 0.5}
        try:
            text = peer.apply_chat_template(messages, tokenize=False, **options)
        except Exception:
            with pytest.raises(errors.UserError):
                template.encode(messages, tools=tools)
            continue
        ids = peer.apply_chat_template(messages, return_dict=False, **options)
        options["generation_prompt"] = options.pop("add_generation_prompt")
        encoded = template.encode(messages, **options)
        assert (encoded.text, encoded.ids) == (text, ids)
        count += 1
        if "{% generation %}" in TEMPLATES[name]:
            masked = peer.apply_chat_template(
                messages, return_assistant_tokens_mask=True, return_dict=True,
                tools=tools,
            )  # fmt: skip
            labels = template.encode(messages, tools=tools).labels
            assert labels == [bool(x) for x in masked["assistant_masks"]]
    assert count > 20

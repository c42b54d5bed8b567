"""Fields of instruction data: what has content is read, refused, or named."""

import json
import tempfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlab.core import errors
from jaxlab.data.examples import chat, conversations
from jaxlab.data.tokenizers import sentence_pieces

USER = {"role": "user", "content": "Q"}
ANSWER = {"role": "assistant", "content": "A"}
OTHER = {"role": "assistant", "content": "B"}
ROWS = {
    "messages": {"messages": [USER, ANSWER]},
    "sharegpt": {"conversations": [{"from": "human", "value": "Q"},
                                   {"from": "gpt", "value": "A"}]},
    "alpaca": {"instruction": "Q", "input": "", "output": "A"},
    "completion": {"prompt": "Q", "completion": "A"},
    "turns": {"prompt": [USER], "completion": [ANSWER]},
}  # fmt: skip
PAIRS = {
    "texts": {"prompt": "Q", "chosen": "A", "rejected": "B"},
    "lists": {"chosen": [USER, ANSWER], "rejected": [USER, OTHER]},
    "answers": {"prompt": [USER], "chosen": [ANSWER], "rejected": [OTHER]},
    "preference": {"conversations": [{"from": "human", "value": "Q"}],
                   "chosen": {"from": "gpt", "value": "A"},
                   "rejected": {"from": "gpt", "value": "B"}},
}  # fmt: skip
# Fields of published data that hold a part of the conversation, and others.
TEXTS = (
    "system", "system_prompt", "system_message", "input", "context", "instruction",
    "prompt", "output", "completion", "response", "persona", "suffix", "knowledge",
    "question", "thinking", "functions", "history", "messages", "conversations",
)  # fmt: skip
LISTS = ("tools", "functions", "documents", "images", "history", "examples", "sources")
WORD = "THEWORD"


def read(row, pairs=False):
    with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as file:
        file.write(json.dumps(row) + "\n")
        file.flush()
        return (conversations.read_pairs if pairs else conversations.read)(file.name)[0]


def is_kept_or_refused(row, pairs):
    try:
        return WORD in str(read(row, pairs))
    except errors.UserError as error:
        return ".jsonl:1" in str(error) and "\n" not in str(error)


contents = st.sampled_from(
    [WORD, [WORD], [[WORD, WORD]], {"name": WORD}, [{"name": WORD}],
     [{"role": "user", "content": WORD}], [{"from": "human", "value": WORD}]]
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from([*ROWS.items(), *PAIRS.items()]),
    st.one_of(
        st.tuples(st.sampled_from(TEXTS), st.just(WORD)),
        st.tuples(st.sampled_from(LISTS), contents.filter(lambda x: x != WORD)),
        st.tuples(st.text(max_size=5).map("x_{}_x".format), contents),
    ),
)
def test_no_field_with_content_vanishes(layout, field):
    (name, row), (key, value) = layout, field
    if row.get(key):
        return
    if name in PAIRS and key in ("output", "completion", "response"):
        return  # another answer than the two: named in a warning
    assert is_kept_or_refused(row | {key: value}, name in PAIRS), (row, key, value)


@pytest.mark.parametrize("key", ["tool_calls", "function_call", "name", "x", "images"])
@pytest.mark.parametrize("value", [WORD, [WORD], {"function": {"name": WORD}}])
def test_no_field_of_a_message_vanishes(key, value):
    for side in (USER, ANSWER):
        turns = [(x | {key: value} if x is side else x) for x in (USER, ANSWER)]
        assert is_kept_or_refused({"messages": turns}, False)
        pair = {"chosen": turns, "rejected": [USER, OTHER]}
        assert is_kept_or_refused(pair, True)


def test_what_says_nothing_or_is_about_the_row_is_passed_by_and_named(caplog):
    row = ROWS["completion"] | {
        "system": "", "history": [], "tools": "[]", "input": None, "images": [None],
        "text": "Q A", "messages": [USER, ANSWER], "score_chosen": 8.5, "is_long": True,
        "dataset": "flan", "prompt_id": "7", "modelName": "m", "tags": ["a", "b"],
        "metadata": {"any": ["thing"]}, "label": True, "weight": 1.0,
        "is_safe": False, "streamed": False, "retries": 0,
    }  # fmt: skip
    assert [m.content for m in read(row).messages] == ["Q", "A"]
    named = (
        "dataset, is_long, is_safe, metadata, modelName, prompt_id, retries, "
        "score_chosen, streamed, tags, text"
    )
    assert caplog.messages[-1].endswith(f"not read: {named}")
    pair = read(PAIRS["texts"] | {"output": "C", "messages": [USER, ANSWER]}, True)
    assert [m.content for m in pair.chosen] == ["Q", "A"]
    assert caplog.messages[-1].endswith("not read: output")


def test_a_system_message_a_history_and_a_context_are_read():
    row = {"instruction": "Q", "context": "C", "response": "A", "system": "S",
           "history": [["q", "a"]]}  # fmt: skip
    said = [("system", "S"), ("user", "q"), ("assistant", "a"), ("user", "Q\n\nC")]
    assert [m[:2] for m in read(row).messages] == [*said, ("assistant", "A")]
    pair = {**row, "chosen": "A", "rejected": "B"}
    assert [m[:2] for m in read(pair, True).rejected] == [*said, ("assistant", "B")]
    system = {"role": "system", "content": "S"}
    once = read({"messages": [system, USER, ANSWER], "system": "S"}).messages
    assert [m.role for m in once] == ["system", "user", "assistant"]
    with pytest.raises(errors.UserError, match="system beside a system message"):
        read({"messages": [system, USER, ANSWER], "system": "T"})


turns = st.lists(st.sampled_from("abc"), min_size=1, max_size=3)


@settings(max_examples=60, deadline=None)
@given(turns, turns, st.booleans(), st.integers(0, 6))
def test_a_side_repeats_as_much_of_its_prompt_as_it_likes(
    asked, said, system, repeated
):
    """Prompt and sides may overlap: nothing is lost, and nothing is there twice."""
    roles = ("user", "assistant")
    whole = [{"role": roles[i % 2], "content": f"{x}{i}"}
             for i, x in enumerate((asked * 2)[: len(asked) * 2 - 1])]  # fmt: skip
    prompt = [{"role": "system", "content": "S"}] * system + whole
    rest = [{"role": roles[(i + 1) % 2], "content": f"{x}{i}'"}
            for i, x in enumerate((said * 2)[: len(said) * 2 - 1])]  # fmt: skip
    start = prompt[len(prompt) - min(repeated, len(prompt)) :]
    last = {"role": "assistant", "content": "other"}
    pair = {
        "prompt": prompt,
        "chosen": start + rest,
        "rejected": [*start, *rest[:-1], last],
    }
    wanted = [(m["role"], m["content"]) for m in prompt + rest]
    assert [m[:2] for m in read(pair, True).chosen] == wanted


def test_a_prompt_that_its_sides_do_not_follow_is_refused():
    pair = {"prompt": "P", "chosen": [USER, ANSWER], "rejected": [USER, OTHER]}
    with pytest.raises(errors.UserError, match="chosen repeats another prompt"):
        read(pair, True)


@pytest.mark.parametrize(
    "mark",
    [
        {"weight": 0}, {"train": False}, {"masked": True}, {"loss_weight": 0.0},
        {"is_masked": True}, {"shouldTrain": False}, {"requires_grad": False},
    ],
)  # fmt: skip
def test_an_answer_that_is_marked_is_read_and_not_learnt(mark):
    row = {
        "messages": [USER, ANSWER | mark, USER, {"role": "assistant", "content": "B"}]
    }
    tokenizer = sentence_pieces.train(["<|user|> <|assistant|> Q A B " * 20], 290)
    found = chat.encode(tokenizer, [read(row).messages])
    assert "A" in tokenizer.decode(found.tokens)
    assert tokenizer.decode(found.tokens[found.is_label]).split() == ["B"]
    with pytest.raises(errors.UserError, match="not to be learnt; remove the row"):
        read({"prompt": "Q", "chosen": [ANSWER | mark], "rejected": "B"}, True)
    with pytest.raises(errors.UserError, match="not to be learnt; remove the row"):
        read(ROWS["alpaca"] | mark)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (ROWS["alpaca"] | {"weight": 0.5}, "weight is 0.5; only 0 and 1"),
        (ROWS["alpaca"] | {"label": False}, "it says that it is not to be learnt"),
        (ROWS["alpaca"] | {"kto_tag": False}, "it says that it is not to be learnt"),
        (ROWS["alpaca"] | {"loss": False}, "it says that it is not to be learnt"),
        (ROWS["alpaca"] | {"label": "False"}, "it says that it is not to be learnt"),
        (ROWS["alpaca"] | {"is_good": False}, "it says that it is not to be learnt"),
        (ROWS["alpaca"] | {"deleted": True}, "it says that it is not to be learnt"),
        (ROWS["alpaca"] | {"sample_weight": 0.2}, "sample_weight is 0.2; only 0 and 1"),
        ({"messages": [USER, ANSWER | {"mask_loss": 1}]}, "does not say what 1 means"),
        ({"messages": [USER | {"weight": 1}, ANSWER]}, "only answers are"),
        ({"messages": [USER, ANSWER | {"weight": 1, "mask": True}]}, "contradict"),
        ({"system": "S", "output": "A"}, "has system, output; expected"),
        (ROWS["alpaca"] | {"history": [["q"]]}, r"no list of \[asked, answered\]"),
    ],
)
def test_marks_that_cannot_be_followed_are_refused(row, message):
    with pytest.raises(errors.UserError, match=message):
        read(row)


@pytest.mark.parametrize(
    "field", [{"avg_loss": 2.3}, {"train_split": 3}, {"no_robots": True}]
)
def test_what_is_called_like_a_mark_and_is_none_is_a_remark(field, caplog):
    assert [m.content for m in read(ROWS["alpaca"] | field).messages] == ["Q", "A"]
    assert caplog.messages[-1].endswith(f"not read: {next(iter(field))}")


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(["None", "null", "nan", "[]", "{}", " x"]))
def test_text_is_read_as_it_is_written(text):
    assert read(ROWS["alpaca"] | {"input": text}).messages[0].content == f"Q\n\n{text}"
    assert read(ROWS["alpaca"] | {"system": text}).messages[0].content == text


@pytest.mark.parametrize("value", [0, 1.5, False, ["x"], {"a": 1}])
def test_what_is_to_be_text_and_is_not_is_refused(value):
    for key in ("input", "system"):
        with pytest.raises(errors.UserError, match=f":1: {key} is not text"):
            read(ROWS["alpaca"] | {key: value})


def test_a_text_of_something_else_is_refused():
    whole = "### Instruction:\nQ\n### Input:\nC\n### Response:\nA"
    row = ROWS["alpaca"] | {"input": "C", "text": whole}
    assert read(row).messages[0].content == "Q\n\nC"
    with pytest.raises(errors.UserError, match="the field 'text' is not read"):
        read(row | {"text": "another"})


def test_messages_beside_a_pair_that_are_of_neither_side_are_refused():
    pair = {"messages": [USER, ANSWER], "chosen": [USER, ANSWER]}
    assert read(pair | {"rejected": [USER, OTHER]}, True).chosen[-1].content == "A"
    other = [{"role": "user", "content": "else"}, ANSWER]
    with pytest.raises(errors.UserError, match="neither a prompt nor one of chosen"):
        read(pair | {"rejected": [USER, OTHER], "messages": other}, True)


def test_hidden_files_of_a_folder_are_not_read_and_broken_links_are_named(
    tmp_path, caplog
):
    row = json.dumps(ROWS["alpaca"]) + "\n"
    for name in ("a.jsonl", "__MACOSX/._a.jsonl", ".cache/b.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(row)
    (tmp_path / "gone.jsonl").symlink_to("nowhere")
    assert len(conversations.read(str(tmp_path))) == 1
    assert caplog.messages[-1].endswith("gone.jsonl is not read: it is a broken link")


@pytest.mark.parametrize("speaker", [["human"], {"name": "human"}, None, 3, "chatgpt"])
def test_a_speaker_that_is_not_known_is_one_line(speaker):
    row = {
        "conversations": [{"from": speaker, "value": "Q"}, {"from": "gpt", "value": ""}]
    }
    with pytest.raises(errors.UserError, match="use system, user, assistant, or human"):
        read(row)


def test_a_speaker_may_be_an_assistant():
    row = {"conversations": [{"from": "user", "value": "Q"},
                             {"from": "assistant", "value": "A"}]}  # fmt: skip
    assert [m.role for m in read(row).messages] == ["user", "assistant"]

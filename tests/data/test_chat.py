"""Conversations: how they are read, written as tokens, masked, and put into batches."""

import gzip
import json

import numpy as np
import pytest

from jaxlab.core import errors
from jaxlab.data.examples import chat, conversation_rows, conversations
from jaxlab.data.tokenizers import sentence_pieces
from jaxlab.data.tokenizers import tokenizer as tokenizer_lib

TALK = [
    chat.Message("system", "Be kind. "),
    chat.Message("user", " Add 2 and 3.\n"),
    chat.Message("assistant", "5"),
    chat.Message("user", "And 4?"),
    chat.Message("assistant", "9 "),
]


@pytest.fixture(scope="module")
def tokenizer():
    text = "<|user|> <|assistant|> <|system|> Be kind. Add 2 and 3. Welcome back. Hi. "
    return sentence_pieces.train([text * 20], 300)


def spelled(tokenizer, examples, place=0):
    """(text, what is trained on, with gaps as |) of an example."""
    stop = examples.ends[place]
    start = stop - examples.sizes[place]
    ids, labels = examples.tokens[start:stop], examples.is_label[start:stop]
    whole, trained = tokenizer.decode(ids.tolist(), special=True), []
    for first in np.flatnonzero(np.diff(labels, prepend=False) & labels):
        last = first + np.argmin([*labels[first:], False])
        trained.append(tokenizer.decode(ids[first:last].tolist(), special=True))
    return whole, "|".join(trained)


WRITTEN = {
    "open_instruct": (
        "<|system|>\nBe kind.\n<|user|>\nAdd 2 and 3.\n<|assistant|>\n5</s>\n"
        "<|user|>\nAnd 4?\n<|assistant|>\n9</s>",
        "5</s>\n|9</s>",
    ),
    "template": (
        "<|system|>\nBe kind. \n<|user|>\n Add 2 and 3.\n\n<|assistant|>\n5</s>\n"
        "<|user|>\nAnd 4?\n<|assistant|>\n9 </s>",
        "5</s>|9 </s>",
    ),
    "olmo": (
        "<|system|>\nBe kind.\n<|user|>\nAdd 2 and 3.\n<|assistant|>\n5</s>\n"
        "<|user|>\nAnd 4?\n<|assistant|>\n9</s>\n",
        "5</s>|9</s>",
    ),
}


@pytest.mark.parametrize("style", [*chat.STYLES])
def test_each_style_writes_and_trains_on_what_its_program_does(tokenizer, style):
    examples = chat.encode(tokenizer, [TALK], style=style)
    assert spelled(tokenizer, examples) == WRITTEN[style]


def test_the_header_of_a_first_answer_is_a_label_but_in_olmo(tokenizer):
    talk = [chat.Message("assistant", "Hi."), chat.Message("user", "Add."), TALK[2]]
    trained = {
        style: spelled(tokenizer, chat.encode(tokenizer, [talk], style=style))[1]
        for style in chat.STYLES
    }
    assert trained == {
        "open_instruct": "<|assistant|>\nHi.</s>\n|5</s>",
        "template": "<|assistant|>\nHi.</s>|5</s>",
        "olmo": "Hi.</s>|5</s>",
    }


def test_the_last_answer_alone_can_be_trained_on_behind_a_token_in_front(tokenizer):
    examples = chat.encode(tokenizer, [TALK], last_only=True, begin=tokenizer.eos_id)
    whole, trained = spelled(tokenizer, examples)
    assert whole == "</s>" + WRITTEN["open_instruct"][0]
    assert trained == "9</s>"


def test_a_message_cannot_end_itself(tokenizer):
    talk = [chat.Message("user", "Say </s> twice."), chat.Message("assistant", "</s>")]
    examples = chat.encode(tokenizer, [talk])
    assert (examples.tokens == tokenizer.eos_id).sum() == 1
    assert examples.tokens[-1] == tokenizer.eos_id


def test_examples_are_cut_from_the_right_and_dropped_without_a_label(tokenizer):
    whole = chat.encode(tokenizer, [TALK, TALK[3:]])
    assert (whole.truncated, whole.dropped) == (0, 0)
    size = int(whole.sizes[1]) - 1  # the end of the second is lost, the first's answers
    cut = chat.encode(tokenizer, [TALK, TALK[3:]], length=size)
    assert (cut.number.tolist(), cut.truncated, cut.dropped) == ([1], 1, 1)
    assert spelled(tokenizer, cut)[1] == "9"
    fits = chat.encode(tokenizer, [TALK[3:]], length=size + 1)
    assert (fits.truncated, fits.dropped) == (0, 0)


@pytest.mark.parametrize("style", [*chat.STYLES])
def test_a_prompt_is_what_the_next_answer_followed_in_training(style, tokenizer):
    whole = chat.encode(tokenizer, [TALK], style=style, begin=tokenizer.eos_id)
    asked = chat.prompt(tokenizer, TALK[:-1], style=style, begin=tokenizer.eos_id)
    assert asked == whole.tokens[: len(asked)].tolist()
    assert tokenizer.decode(asked, special=True).endswith("?\n<|assistant|>\n")
    assert whole.is_label[len(asked) :][:2].all()
    assert not whole.is_label[len(asked) - 1]


def test_styles_that_do_not_exist_are_named(tokenizer):
    with pytest.raises(
        errors.UserError, match=r"style 'chatml'; use one of open_instr"
    ):
        chat.encode(tokenizer, [TALK], style="chatml")


def test_tokens_and_labels_are_those_of_the_published_programs(test_data):
    folder = test_data.parent / "vectors" / "olmo_tulu"
    if not folder.is_dir():
        pytest.skip("no reference values beside the test data")
    cases = json.loads((folder / "chat.json").read_text("utf-8"))
    olmo = test_data / "tokenizers" / "allenai_gpt-neox-olmo-dolma-v1_5.json.gz"
    tiny = tokenizer_lib.load(folder / "tokenizer.json")
    tokenizers = {
        "tiny": (tiny, None),
        "tiny_truncated_20": (tiny, 20),
        "olmo1": (tokenizer_lib.load(olmo), None),
    }
    compared = 0
    for name, (tokenizer, length) in tokenizers.items():
        bos = tokenizer.eos_id if tokenizer.bos_id is None else tokenizer.bos_id
        settings = {
            "open_instruct_2024": {},
            "easylm": {"begin": bos},
            "easylm_last_turn_only": {"begin": bos, "last_only": True},
            "open_instruct_2026_template": {"style": "template"},
            "olmo_memmap": {"style": "olmo", "begin": tokenizer.eos_id},
        }
        for case, published in cases[name].items():
            talk = [chat.Message(**turn) for turn in cases["conversations"][case]]
            for program, expected in published.items():
                given = settings[program]
                found = chat.encode(tokenizer, [talk], length=length, **given)
                labels = np.array(expected["labels"]) != -100
                if not labels[1:].any():
                    assert found.dropped == 1
                    continue
                assert found.tokens.tolist() == expected["input_ids"]
                assert found.is_label[1:].tolist() == labels[1:].tolist()
                compared += 1
    assert compared > 50


# ------------------------------------------------------------------ reading


def write(path, *rows):
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n", "utf-8")
    return str(path)


ASKED, SAID = chat.Message("user", "Q"), chat.Message("assistant", "A")


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [ASKED._asdict(), SAID._asdict()]},
        {"conversations": [{"from": "human", "value": "Q"},
                           {"from": "gpt", "value": "A"}]},
        {"instruction": "Q", "input": "", "output": "A"},
        {"prompt": "Q", "completion": "A"},
        {"prompt": [ASKED._asdict()], "response": "A"},
    ],
)  # fmt: skip
def test_published_layouts_are_read_alike(row, tmp_path):
    (found,) = conversations.read(write(tmp_path / "a.jsonl", row))
    assert found == ("a.jsonl:1", (ASKED, SAID))


def test_an_input_follows_its_instruction_and_lists_and_folders_are_read(tmp_path):
    rows = [{"id": 7, "instruction": "Q", "input": "x", "output": "A"}]
    (tmp_path / "b.json").write_text(json.dumps(rows), "utf-8")
    with gzip.open(tmp_path / "a.jsonl.gz", "wt") as file:
        file.write(json.dumps({"prompt": "Q", "completion": "A"}) + "\n")
    (tmp_path / "notes.txt").write_text("not read")
    first, second = conversations.read(str(tmp_path))
    assert first.id == "a.jsonl.gz:1"
    assert second == ("7", (chat.Message("user", "Q\n\nx"), SAID))
    assert conversations.read(f"{tmp_path / 'b.json'},{tmp_path / 'b.json'}") == [
        second,
        second,
    ]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Q", "chosen": "A", "rejected": "B"},
        {"prompt": "Q", "chosen": [ASKED._asdict(), SAID._asdict()],
         "rejected": [ASKED._asdict(), {"role": "assistant", "content": "B"}]},
        {"prompt": [ASKED._asdict()], "chosen": [SAID._asdict()],
         "rejected": [{"role": "assistant", "content": "B"}]},
        {"instruction": "Q", "input": "", "output": "A", "chosen": "A",
         "rejected": "B"},
    ],
)  # fmt: skip
def test_published_pairs_are_read_alike(row, tmp_path):
    (found,) = conversations.read_pairs(write(tmp_path / "a.jsonl", row))
    assert found.chosen == (ASKED, SAID)
    assert found.rejected == (ASKED, chat.Message("assistant", "B"))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([1], "a.jsonl:1 is not a JSON object"),
        ({"text": "x"}, 'a.jsonl:1 has text; expected "messages"'),
        ({"prompt": "Q", "completion": 3}, "a.jsonl:1: completion is not text"),
        ({"messages": []}, "a.jsonl:1 has no list of messages"),
        ({"messages": [{"role": "bot", "content": "x"}]}, "a message is 'bot'; use"),
        ({"messages": [ASKED._asdict()]}, "a.jsonl:1 has no answer"),
        ({"prompt": "Q", "completion": "\ud800"}, "half a surrogate pair"),
    ],
)
def test_a_row_that_is_no_conversation_is_named(row, message, tmp_path):
    with pytest.raises(errors.UserError, match=message):
        conversations.read(write(tmp_path / "a.jsonl", row))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "Q", "completion": "A"}, 'expected "chosen" and "rejected"'),
        ({"chosen": "A", "rejected": "B"}, "chosen is not a prompt with an answer"),
        ({"chosen": [ASKED._asdict(), SAID._asdict()],
          "rejected": [chat.Message("user", "R")._asdict(), SAID._asdict()]},
         "answer different prompts"),
    ],
)  # fmt: skip
def test_a_row_that_is_no_pair_is_named(row, message, tmp_path):
    with pytest.raises(errors.UserError, match=message):
        conversations.read_pairs(write(tmp_path / "a.jsonl", row))


def test_files_that_cannot_be_read_are_named(tmp_path):
    with pytest.raises(errors.UserError, match="does not exist"):
        conversations.read(str(tmp_path / "none.jsonl"))
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(errors.UserError, match=r"neither .jsonl nor .json"):
        conversations.read(str(tmp_path / "a.txt"))
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(errors.UserError, match="is not JSON"):
        conversations.read(str(tmp_path / "a.json"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(errors.UserError, match="no conversation in"):
        conversations.read(str(tmp_path / "empty"))


def test_real_data_is_read_in_its_layouts(test_data):
    alpaca = test_data / "llms_from_scratch"
    found = conversations.read(str(alpaca / "instruction-data.json"))
    assert len(found) == 1100
    pairs = alpaca / "instruction-data-with-preference.json"
    assert len(conversations.read_pairs(str(pairs))) == 1100
    oasst = test_data / "oasst_octopack" / "oasst_pairs.jsonl"
    assert len(conversations.read(str(oasst))) == 1178


# ------------------------------------------------------------------ batches


def examples(*sizes):
    """Examples whose tokens are 10 x their number and on; all but the first a label."""
    tokens = [10 * i + np.arange(size) for i, size in enumerate(sizes, start=1)]
    labels = [np.arange(size) > 0 for size in sizes]
    return chat.Examples(
        np.concatenate(tokens).astype(np.int32), np.concatenate(labels),
        np.cumsum(sizes), np.arange(len(sizes)), 0, 0,
    )  # fmt: skip


def test_packed_rows_keep_conversations_apart():
    rows = conversation_rows.Rows(examples(3, 2, 4), length=5, batch_size=2)
    assert rows.count == 2
    batch = rows.fill(np.arange(2))
    assert batch["tokens"].tolist() == [[30, 31, 32, 33, 0], [10, 11, 12, 20, 21]]
    assert batch["segment_ids"].tolist() == [[1, 1, 1, 1, 0], [1, 1, 1, 2, 2]]
    assert batch["positions"].tolist() == [[0, 1, 2, 3, 0], [0, 1, 2, 0, 1]]
    assert batch["loss_mask"].tolist() == [[0, 1, 1, 1, 0], [0, 1, 1, 0, 1]]


@pytest.mark.parametrize("packed", [False, True])
def test_every_row_comes_once_an_epoch_and_hosts_read_their_part(packed):
    some = examples(3, 2, 4, 5, 1)
    rows = conversation_rows.Rows(some, length=5, batch_size=2, seed=3, packed=packed)
    seen = np.concatenate([rows(step)["tokens"] for step in range(rows.count)])
    whole = np.concatenate([rows.fill(np.arange(rows.count))["tokens"]] * 2)
    assert sorted(seen.tolist()) == sorted(whole.tolist())
    part = rows(1, rows=slice(1, 2))
    assert all((part[name] == x[1:2]).all() for name, x in rows(1).items())


def test_pairs_come_with_what_the_reference_said():
    chosen, rejected = examples(3, 2), examples(2, 4)
    known = np.array([[1.0, 2], [3, 4]])
    rows = conversation_rows.PairRows(
        chosen, rejected, length=4, batch_size=2, reference=known
    )
    batch = rows.fill(np.array([1, 0]))
    assert batch["tokens"].tolist() == [
        [[20, 21, 0, 0], [20, 21, 22, 23]],
        [[10, 11, 12, 0], [10, 11, 0, 0]],
    ]
    assert batch["loss_mask"][0].tolist() == [[0, 1, 0, 0], [0, 1, 1, 1]]
    assert batch["reference_logps"].tolist() == [[3, 4], [1, 2]]


def test_pairs_without_a_label_on_one_side_are_left_out():
    chosen, rejected = examples(3, 2, 2), examples(2, 2)
    rejected = rejected._replace(number=np.array([0, 2]))
    both = conversation_rows.match_sides(chosen, rejected)
    assert [side.number.tolist() for side in both] == [[0, 2], [0, 2]]
    assert both[0].tokens.tolist() == [10, 11, 12, 30, 31]


def test_evaluation_sees_every_row_once_in_batches_of_one_shape():
    rows = conversation_rows.Rows(
        examples(3, 2, 4), length=4, batch_size=2, packed=False
    )
    first, last = conversation_rows.eval_batches(rows)
    assert first["tokens"].shape == last["tokens"].shape
    assert last["segment_ids"].tolist() == [[1, 1, 1, 1], [0, 0, 0, 0]]
    assert len([*conversation_rows.eval_batches(rows, most=1)]) == 1


def test_no_example_and_no_row_are_refused():
    with pytest.raises(errors.UserError, match="no example to train on"):
        conversation_rows.Rows(examples(3).take([]), length=4, batch_size=2)
    with pytest.raises(errors.UserError, match="batch_size 0 is too small"):
        conversation_rows.Rows(examples(3), length=4, batch_size=0)

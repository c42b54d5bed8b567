"""`jaxlab generate`."""

import argparse
import dataclasses

import pytest

from jaxlab.commands import generate
from jaxlab.data.tokenizers import sentence_pieces


def test_every_prompt_is_continued_n_times(said, workdir, tmp_path):
    (tmp_path / "prompts.txt").write_text("A witness\n\n    count =\n")
    argv = ["generate", workdir, "--prompt", "The court", "-n", "2"]
    argv += ["--prompts", tmp_path / "prompts.txt", "--max-new-tokens", "8"]
    texts = said(*argv).split("\n--------\n")
    starts = ["The court"] * 2 + ["A witness"] * 2 + ["    count ="] * 2
    assert len(texts) == 6
    for start, whole in zip(starts, texts, strict=True):
        assert whole.startswith(start)
        assert len(whole) > len(start)
    assert said(*argv).split("\n--------\n") == texts
    assert said(*argv, "--seed", "1").split("\n--------\n") != texts


@pytest.mark.slow
def test_greedy_text_is_the_same_on_a_mesh(said, workdir):
    argv = ["generate", workdir, "--prompt=The", "--temperature=0"]
    argv += ["--max-new-tokens=8"]
    assert said(*argv, "--mesh=fsdp=8") == said(*argv)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "give --prompt TEXT or --prompts FILE"),
        (["--prompts", "nowhere.txt"], "nowhere.txt does not exist; name another file"),
        (["--prompt", "The court shall " * 30], "exceed the model's length of 64"),
        (["--prompt", "a", "--top-p", "2"], "top_p 2.0; use a number above 0"),
        (["--prompt", "caf\udce9"], "--prompt 1 holds half a surrogate pair"),
        (["--prompt", "a", "-n", "0"], "-n and --batch-size must be 1 or more"),
    ],
)
def test_mistakes_in_generation_are_one_line(line, workdir, flags, message):
    assert message in line("generate", workdir, *flags)


@pytest.mark.parametrize("said", [True, False, None])
def test_a_text_begins_as_the_folder_says(said, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    settings = {} if said is None else {"add_bos_token": said}
    made = sentence_pieces.train(["some words "] * 20, 280)
    made = dataclasses.replace(
        made,
        special_tokens=made.special_tokens._replace(bos=(7, "<s>")),
        config=settings,
    )
    write = generate._text(argparse.Namespace(model=tmp_path, tokenizer=None))
    begin = [] if said is False else [7]
    assert write(made, "some") == [*begin, *made.encode("some")]
    assert write(made, "") == [7]


def test_as_many_tokens_as_there_is_room_for_where_none_are_asked(said, line, workdir):
    prompt = ["--prompt", "The court " * 2]
    assert said("generate", workdir, *prompt)
    wanted = "of 64; use at most "
    assert wanted in line("generate", workdir, *prompt, "--max-new-tokens", "99")

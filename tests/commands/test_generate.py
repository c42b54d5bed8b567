"""`jaxlab generate`."""

import pytest


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
        (["--prompt", "a", "-n", "0"], "-n and --batch-size must be 1 or more"),
    ],
)
def test_mistakes_in_generation_are_one_line(line, workdir, flags, message):
    assert message in line("generate", workdir, *flags)

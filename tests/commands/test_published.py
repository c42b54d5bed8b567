"""Published folders: what they say of ending and of chatting is followed and kept."""

import gzip
import json

import numpy as np
import pytest

from jaxlab import cli, load
from jaxlab.core import tokenizer_files
from jaxlab.data.examples import chat, chat_templates
from tests.support import published

STOPS = ("<|eot|>", "<|end|>")  # 259 and 260
A, B, C = (published.tokenizer().encode(text).ids[0] for text in "abc")


def greedy(said, folder, *flags):
    argv = ("--prompt=a", "--max-new-tokens=4", "--temperature=0")
    return said("generate", folder, *argv, *flags).strip()


# ------------------------------------------------------------------ the end of a text


@pytest.mark.parametrize(
    ("config", "generation"),
    [
        ({"eos_token_id": [260, 259]}, None),
        ({"eos_token_id": 260}, {"eos_token_id": [260, 259]}),
        ({"eos_token_id": 260}, {"eos_token_id": 259}),
        ({"eos_token_id": [259, 260]}, {"eos_token_id": 260, "temperature": 0.6}),
        ({"eos_token_id": ...}, {"eos_token_id": [259]}),
    ],
)
def test_every_end_of_text_that_a_folder_names_ends_a_text_and_is_kept(
    said, tmp_path, config, generation
):
    order = (A, B, 259, C)
    settings = {"eos_token": "<|end|>"}
    folder = published.write(
        tmp_path / "m", published.tensors(order), extra=STOPS, settings=settings,
        generation=generation, **config,
    )  # fmt: skip
    assert greedy(said, folder) == "ab"
    said("convert", folder, tmp_path / "out")
    assert greedy(said, tmp_path / "out") == "ab"
    kept = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert {k: v for k, v in (generation or {}).items() if "eos" not in k}.items() <= (
        kept.items()
    )
    argv = ("merge", folder, folder, "-o", tmp_path / "run", "--format=orbax")
    said(*argv)
    assert set(load.decoder(tmp_path / "run").eos_ids) == {259, 260}


def test_an_end_of_text_that_a_merge_loses_is_said(tmp_path, capsys):
    base = published.write(tmp_path / "base", extra=STOPS)
    tuned = published.write(
        tmp_path / "tuned", extra=STOPS, generation={"eos_token_id": [2, 259]}
    )
    argv = ["merge", str(base), str(tuned), "-o", str(tmp_path / "m")]
    assert cli.run(argv) == 0
    assert f"texts of {tuned} end with id 259 too" in capsys.readouterr().err


def test_a_model_whose_logits_are_nan_is_refused_with_a_line(line, tmp_path, capsys):
    values = published.tensors()
    values[published.HEAD][:] = np.nan
    folder = published.write(tmp_path / "m", values)
    assert cli.run(["convert", str(folder), str(tmp_path / "out")]) == 0
    assert f"NaN or infinite values: {published.HEAD}" in capsys.readouterr().err
    argv = ("generate", folder, "--prompt=a", "--max-new-tokens=1")
    assert "logits are not finite in float32" in line(*argv)


# ------------------------------------------------------------------ conversations


@pytest.mark.parametrize("place", ["settings", "named", "file", "json", "additional"])
def test_another_chat_template_is_never_tulus(line, said, tmp_path, place):
    settings = {"chat_template": published.TEMPLATE} if place == "settings" else {}
    if place == "named":
        named = {"name": "default", "template": published.TEMPLATE}
        settings = {"chat_template": [named]}
    folder = published.write(tmp_path / "m", settings=settings)
    if place == "file":
        (folder / "chat_template.jinja").write_text(published.TEMPLATE)
    if place == "json":
        said_there = json.dumps({"chat_template": published.TEMPLATE})
        (folder / "chat_template.json").write_text(said_there)
    if place == "additional":
        (folder / "additional_chat_templates").mkdir()
        file = folder / "additional_chat_templates" / "tool_use.jinja"
        file.write_text(published.TEMPLATE)
    asking = ("generate", folder, "--chat", "--prompt=hi", "--max-new-tokens=1")
    if place == "additional":
        assert "none that is called default" in line(*asking)
    else:
        assert "[user:hi]" in said(*asking)
    for argv in (("convert", folder), ("merge", folder, folder, "-o")):
        out = tmp_path / argv[0]
        said(*argv, out)
        assert tokenizer_files.chat_templates(out) == (
            tokenizer_files.chat_templates(folder)
        )


def test_a_model_that_says_nothing_is_asked_with_a_warning(tmp_path, capsys):
    folder = published.write(tmp_path / "m")
    argv = ["generate", str(folder), "--chat", "--prompt=hi", "--max-new-tokens=1"]
    assert cli.run(argv) == 0
    warning = capsys.readouterr().err
    assert "does not say how conversations are written; --chat asks" in warning


@pytest.mark.parametrize("begin", ["bos", "eos", "none"])
@pytest.mark.parametrize("style", chat.STYLES)
def test_a_template_of_ours_is_followed(said, tmp_path, style, begin):
    template = chat_templates.of_style(style, begin)
    folder = published.write(tmp_path / "m", settings={"chat_template": template})
    assert load.chat_format(folder) == (style, begin)


# ------------------------------------------------------------------ what goes along


def test_a_packed_tokenizer_is_unpacked(said, tmp_path):
    folder = published.write(tmp_path / "m")
    data = (folder / "tokenizer.json").read_bytes()
    (folder / "tokenizer.json.gz").write_bytes(gzip.compress(data))
    (folder / "tokenizer.json").unlink()
    for argv in (("convert", folder), ("merge", folder, folder, "-o")):
        said(*argv, tmp_path / argv[0])
        assert (tmp_path / argv[0] / "tokenizer.json").read_bytes() == data


@pytest.mark.parametrize("as_file", [False, True])
def test_the_tokenizer_that_is_asked_for_is_written(said, tmp_path, as_file):
    folder = published.write(tmp_path / "m")
    other = published.write(tmp_path / "other", extra=("<|mine|>",))
    given = other / "tokenizer.json" if as_file else other
    said("convert", folder, tmp_path / "out", "--tokenizer", given)
    assert "<|mine|>" in (tmp_path / "out" / "tokenizer.json").read_text()


def test_a_tied_model_that_kept_only_its_head_becomes_a_run(said, tmp_path):
    values = published.tensors((A, B, 2))
    values[published.HEAD] = values.pop(published.EMBED)
    folder = published.write(tmp_path / "m", values, tie_word_embeddings=True)
    argv = ("merge", folder, folder, "-o", tmp_path / "run", "--format=orbax")
    said(*argv)
    run, start = load.decoder(tmp_path / "run"), load.decoder(folder)
    np.testing.assert_array_equal(
        run.params["embed"]["embedding"], start.params["embed"]["embedding"]
    )


def test_a_cut_packed_tokenizer_is_one_line(line, tmp_path):
    folder = published.write(tmp_path / "m")
    data = gzip.compress((folder / "tokenizer.json").read_bytes())
    (folder / "tokenizer.json.gz").write_bytes(data[:-20])
    (folder / "tokenizer.json").unlink()
    message = line("merge", folder, folder, "-o", tmp_path / "out")
    assert "tokenizer.json.gz is damaged or cut short" in message
    line("convert", folder, tmp_path / "out")

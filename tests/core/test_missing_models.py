"""A path that is no model: the line says what it is and how to get one."""

import pytest

from jaxlab.core import errors, folders, missing_models, runs


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "name",
    ["allenai/OLMo-1B-hf", "https://huggingface.co/allenai/OLMo-1B-hf/tree/main",
     "hf://allenai/OLMo-1B-hf", "allenai/OLMo-1B-hf@main"],
)  # fmt: skip
def test_a_name_of_the_hub_says_how_to_download_it(here, name):
    with pytest.raises(errors.UserError) as caught:
        runs.find(name)
    wanted = "`hf download allenai/OLMo-1B-hf --local-dir OLMo-1B-hf`, then give"
    assert wanted in str(caught.value)
    assert "\n" not in str(caught.value)


def test_one_word_may_be_a_name_of_the_hub_and_a_path_is_none(here):
    assert "hf download OWNER/all-MiniLM-L6-v2" in str(
        missing_models.explain("all-MiniLM-L6-v2")
    )
    (here / "runs" / "tiny").mkdir(parents=True)
    for path in ("/data/model", "./model", "~/model", "runs/other", "a/b/c"):
        assert "hf download" not in str(missing_models.explain(path)), path
    assert "did you mean runs/tiny?" in str(missing_models.explain("runs/tny"))


def test_text_and_tokenizers_that_are_not_there_say_how_to_get_them(here):
    (here / "text").mkdir()
    assert "no data at txt; give a folder or a file; did you mean text?" in str(
        missing_models.explain_data("txt")
    )
    assert "is an address; download it" in str(
        missing_models.explain_data("https://a.b/c.txt")
    )
    assert "`hf download allenai/OLMo-1B --local-dir OLMo-1B`" in str(
        missing_models.explain_tokenizer("allenai/OLMo-1B")
    )


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("README.md", "README.md is a file and not a model; give a run directory"),
        ("m/model.safetensors", "is a file of weights; give the folder that it is in"),
        ("m.gguf", "m.gguf is a GGUF file; `jaxlab convert FILE OUT`"),
        ("pytorch_model.bin", "is a file of PyTorch, which is not read"),
        ("m/adapter_config.json", "m is an adapter and not a model; merge it into"),
        ("m/inner/config.json", "m has no config.json; did you mean m/inner?"),
        ("m/snapshots/0a/config.json", "cache of a model; did you mean m/snapshots/0a"),
        ("m/consolidated.00.pth", "Meta's own format are not read; download the -hf"),
        ("m/readme.txt", "m has no config.json; give a run directory or a Hugging"),
    ],
)
def test_what_is_there_is_said(here, file, message):
    path = here / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("x")
    is_file = file.endswith((".md", ".safetensors", ".gguf", ".bin"))
    with pytest.raises(errors.UserError) as caught:
        runs.find(file if is_file else file.split("/")[0])
    assert message in str(caught.value)


def test_an_empty_folder_behind_a_link_is_filled(here):
    (here / "empty").mkdir()
    for name, target in (("link", "empty"), ("dangling", "later")):
        (here / name).symlink_to(target)
        with folders.new_folder(name) as part:
            (part / "x").write_text("x")
        assert (here / name / "x").read_text() == "x"
        assert (here / target / "x").is_file()

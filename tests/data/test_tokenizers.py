"""Tokenizers: round trips, special tokens of the published families, training."""

import gzip
import io
import json
import unicodedata

import hypothesis
import hypothesis.strategies as st
import pytest
import sentencepiece

from jaxlab.core import errors, tokenizer_files
from jaxlab.data.tokenizers import sentence_pieces, tokenizer
from jaxlab.models import sections

TEXTS = [
    "def f(x):\n    return {'a': x[0:10]}  # comment\n\n\nclass C:\n\tpass\n",
    "The licence covers 1999 copies, ok? \u201cYes\u201d, she said.\r\n",
] * 20
ANY_TEXT = st.text(st.characters(codec="utf-8"), max_size=60)


@pytest.fixture(scope="module", params=["bpe", "unigram"])
def trained(request):
    return sentence_pieces.train(TEXTS, 305, model_type=request.param)


@pytest.fixture(scope="module")
def olmo(test_data):
    return tokenizer.load(
        test_data / "tokenizers" / "allenai_gpt-neox-olmo-dolma-v1_5.json.gz"
    )


def byte_bpe(*, words, added=()):
    """A tiny tokenizer.json; `added` lists (text, id, special)."""
    return {
        "version": "1.0",
        "added_tokens": [
            {
                "id": number,
                "content": text,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": special,
            }
            for text, number, special in added
        ],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "ByteLevel",
            "add_prefix_space": False,
            "use_regex": True,
            "trim_offsets": True,
        },
        "post_processor": None,
        "decoder": {
            "type": "ByteLevel",
            "add_prefix_space": False,
            "use_regex": True,
            "trim_offsets": True,
        },
        "model": {"type": "BPE", "vocab": words, "merges": [], "byte_fallback": False},
    }


@hypothesis.settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)
@hypothesis.given(text=ANY_TEXT)
@hypothesis.example(text="\u2581 a\u2581\u2581b \u2585")
@hypothesis.example(text="</s><pad><0x41>\x00 \n\n\t  x  ")
def test_a_trained_tokenizer_gives_any_text_back(trained, text):
    ids = trained.encode(text)
    assert trained.decode(ids) == text
    assert not {trained.eos_id, trained.pad_id, 0} & set(ids)
    assert trained.encode_batch([text, "a"]) == [ids, trained.encode("a")]


@hypothesis.settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)
@hypothesis.given(text=ANY_TEXT)
@hypothesis.example(text="<|endoftext|>|||IP_ADDRESS|||     x\n\n")
def test_olmos_tokenizer_gives_nfc_text_back(olmo, text):
    ids = olmo.encode(text)
    assert olmo.decode(ids) == unicodedata.normalize("NFC", text)
    assert olmo.eos_id not in ids
    assert olmo.encode_batch([text]) == [ids]


def test_olmo_1_has_its_published_special_ids(olmo):
    assert (olmo.eos_id, olmo.pad_id, olmo.bos_id) == (50279, 1, None)
    assert olmo.vocab_size == 50280
    assert olmo.encode("Hello world") == [12092, 1533]  # GPT-NeoX ids
    assert olmo.encode("a<|endoftext|>", special=True)[-1] == 50279
    assert olmo.decode([66, 50279], special=True) == "a<|endoftext|>"
    assert olmo.decode([66, 50279, 50300]) == "a"  # padded rows decode to nothing


def test_the_pii_tokenizer_is_refused_and_the_right_file_named(tmp_path, caplog):
    added = [("<|endoftext|>", 0, True), ("|||IP_ADDRESS|||", 50279, False)]
    model = byte_bpe(words={"<|endoftext|>": 0, "|||IP_ADDRESS|||": 50279}, added=added)
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(model))
    with pytest.raises(errors.UserError, match="allenai_gpt-neox-olmo-dolma-v1_5"):
        tokenizer.load(path)
    config = {"eos_token": "|||IP_ADDRESS|||"}  # what the 0424 checkpoints say
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert tokenizer.load(tmp_path).eos_id == 50279
    assert "PII tokenizer" in caplog.text


@pytest.mark.parametrize(
    ("added", "config", "expected"),
    [
        ([("<|endoftext|>", 7, True), ("<|pad|>", 9, True)], {}, (None, 7, 9)),
        ([("<s>", 1, True), ("</s>", 2, True), ("<unk>", 0, True)], {}, (1, 2, 0)),
        ([("[CLS]", 3, True), ("[SEP]", 4, True), ("[PAD]", 0, True)], {}, (3, 4, 0)),
        ([("<|endoftext|>", 0, True)], {}, (None, 0, 0)),
        (
            [("<|endoftext|>", 0, True), ("<|im_end|>", 2, True)],
            {"eos_token": {"content": "<|im_end|>"}, "bos_token": None},
            (None, 2, 2),
        ),
    ],
    ids=["olmo2", "llama2", "bert", "gpt2", "configured"],
)
def test_special_ids_follow_the_family_or_the_configuration(
    tmp_path, added, config, expected
):
    words = {text: number for text, number, _ in added} | {"a": 20}
    model = byte_bpe(words=words, added=added)
    (tmp_path / "tokenizer.json").write_text(json.dumps(model))
    if config:
        (tmp_path / "special_tokens_map.json").write_text(json.dumps(config))
    loaded = tokenizer.load(tmp_path)
    assert (loaded.bos_id, loaded.eos_id, loaded.pad_id) == expected


def test_saving_and_loading_gives_the_same_tokenizer(trained, olmo, tmp_path):
    olmo.save(tmp_path)
    trained.save(tmp_path)  # replaces the other
    loaded = tokenizer.load(tmp_path)
    assert loaded.fingerprint == trained.fingerprint
    assert loaded.special_tokens == trained.special_tokens
    assert loaded.encode(TEXTS[0]) == trained.encode(TEXTS[0])
    olmo.save(tmp_path)
    loaded = tokenizer.load(tmp_path)
    assert (loaded.eos_id, loaded.pad_id, loaded.bos_id) == (50279, 1, None)
    assert loaded.fingerprint == olmo.fingerprint


def test_training_is_deterministic_and_says_what_fits():
    first, again = (sentence_pieces.train(TEXTS, 305) for _ in range(2))
    assert first.fingerprint == again.fingerprint
    assert first.vocab_size == 305
    assert (first.bos_id, first.eos_id, first.pad_id) == (None, 2, 1)
    with pytest.raises(
        errors.UserError, match="too large for this text: give more text"
    ):
        sentence_pieces.train(TEXTS, 50_000)
    with pytest.raises(errors.UserError, match=r"too small; use at least \d+"):
        sentence_pieces.train(TEXTS, 100)
    with pytest.raises(errors.UserError, match="no text to train"):
        sentence_pieces.train([], 300)


def test_tokens_added_beyond_a_sentencepiece_model_are_read(trained, tmp_path):
    trained.save(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    config["pad_token"] = "<extra>"  # as the pad token of TULU's Llama
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<extra>": 305}))
    loaded = tokenizer.load(tmp_path)
    assert (loaded.pad_id, loaded.vocab_size) == (305, 306)
    assert loaded.encode("a<extra></s>", special=True)[-2:] == [305, 2]
    assert loaded.decode([*loaded.encode("a"), 305, 2], special=True) == "a<extra></s>"
    assert loaded.decode([*loaded.encode("a"), 305, 2, 999]) == "a"


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A function: a folder like Llama's, with settings -> its tokenizer."""
    made = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["hello world", "x y z"] * 40), model_writer=made,
        vocab_size=290, model_type="bpe", byte_fallback=True, minloglevel=2,
        normalization_rule_name="identity", remove_extra_whitespaces=False,
    )  # fmt: skip

    def load(settings, **files):
        folder = tmp_path_factory.mktemp("published")
        (folder / "tokenizer.model").write_bytes(made.getvalue())
        files |= {"tokenizer_config": {"tokenizer_class": "LlamaTokenizer"} | settings}
        for name, content in files.items():
            (folder / f"{name}.json").write_text(json.dumps(content))
        return tokenizer.load(folder)

    return load


def added(*tokens):
    names = ("content", "special", "lstrip", "rstrip", "single_word")
    entries = [dict(zip(names, token, strict=False)) for token in tokens]
    return {"added_tokens_decoder": {str(300 + i): e for i, e in enumerate(entries)}}


@pytest.mark.parametrize("prefix", [True, False, None])
def test_a_space_in_front_follows_the_folder(published, prefix, tmp_path):
    loaded = published({"add_prefix_space": prefix})
    first = loaded.processor.id_to_piece(loaded.encode("hello")[0])
    assert first.startswith("\u2581") == (prefix is not False)
    assert loaded.decode(loaded.encode("hello world")) == "hello world"
    loaded.save(tmp_path)
    assert tokenizer.load(tmp_path).encode("hello") == loaded.encode("hello")


def test_added_tokens_are_one_token_in_a_text_unless_they_are_special(published):
    loaded = published(
        added(("<tool>", False), ("<end>", True), ("<l>", False, True, True),
              ("<w>", False, False, False, True)),
    )  # fmt: skip
    plain = loaded.encode("hello")
    assert loaded.encode("hello<tool>x") == [*plain, 300, *loaded.encode("x")]
    assert loaded.encode("hello <l>  x") == [*plain, 302, *loaded.encode("x")]
    assert 303 in loaded.encode("x <w> y")
    assert 303 not in loaded.encode("x<w>y")
    assert 301 not in loaded.encode("hello<end>")
    assert loaded.encode("hello<end>", special=True) == [*plain, 301]
    assert loaded.encode_batch(["hello<tool>"]) == [[*plain, 300]]
    assert loaded.decode([*plain, 300, 301]) == "hello<tool>"
    assert loaded.vocab_size == 304


def test_tokens_of_a_bare_list_are_special_where_a_field_names_them(published):
    named = {"pad_token": "<pad>", "additional_special_tokens": ["<turn>"]}
    loaded = published(named, added_tokens={"<pad>": 300, "<turn>": 301, "<tool>": 302})
    ids = loaded.encode("x<pad><turn><tool>")
    assert [i for i in ids if i >= 300] == [302]


def test_behind_a_token_there_is_a_space_only_in_legacy_models(published):
    tool = added(("<tool>", False))
    pieces = [
        loaded.processor.id_to_piece(loaded.encode("x<tool>hello")[2:])[0]
        for loaded in (published(tool), published(tool | {"legacy": False}))
    ]
    assert [piece.startswith("\u2581") for piece in pieces] == [True, False]


@pytest.mark.parametrize(
    ("settings", "files"),
    [
        ({"added_tokens_decoder": None, "additional_special_tokens": None}, {}),
        ({}, {"special_tokens_map": None, "added_tokens": None}),
        (
            {
                "eos_token": {"content": "</s>"},
                "pad_token": None,
                "chat_template": None,
            },
            {},
        ),
    ],
)
def test_what_says_null_says_nothing(published, settings, files):
    assert published(settings, **files).eos_id == 2


@pytest.mark.parametrize(
    ("settings", "files", "message"),
    [
        ({"added_tokens_decoder": []}, {}, None),
        ({"added_tokens_decoder": ["x"]}, {}, "is not an object of tokens by id"),
        ({"added_tokens_decoder": {"300": None}}, {}, "300 is None, which is no token"),
        ({"added_tokens_decoder": {"a": {"content": "x"}}}, {}, "no id of a token"),
        ({"added_tokens_decoder": {"9": {"content": 5}}}, {}, "which is no token"),
        ({"eos_token": 5}, {}, "eos_token is 5, which is no token"),
        ({"add_prefix_space": "no"}, {}, "is 'no'; write true or false"),
        ({"add_bos_token": [0]}, {}, "write true or false"),
        ({"additional_special_tokens": "x"}, {}, "is not a list"),
        ({}, {"added_tokens": {"x": None}}, "no id of a token"),
        ({}, {"added_tokens": [1]}, "is not a JSON object"),
        ({}, {"special_tokens_map": "x"}, "is not a JSON object"),
    ],
)
def test_tables_of_another_shape_are_one_line(published, settings, files, message):
    if message is None:
        assert published(settings, **files).vocab_size == 290
        return
    with pytest.raises(errors.UserError, match=message) as error:
        published(settings, **files)
    assert "\n" not in str(error.value)


def test_a_tokenizer_json_follows_the_files_beside_it(tmp_path):
    words = {"<s>": 0, "</s>": 1, "a": 2, "\u0120": 3}
    (tmp_path / "tokenizer.json").write_text(json.dumps(byte_bpe(words=words)))
    settings = {"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": True}
    settings |= {"added_tokens_decoder": {"4": {"content": "<tool>", "special": False}}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    loaded = tokenizer.load(tmp_path)
    assert loaded.encode("a<tool>") == [3, 2, 4]
    assert (loaded.vocab_size, loaded.decode([2, 4])) == (5, "a<tool>")
    settings["added_tokens_decoder"] = {"9": {"content": "<tool>"}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(errors.UserError, match="the id 4, the files beside it 9"):
        tokenizer.load(tmp_path)


@pytest.mark.parametrize("said", [True, False, None])
def test_a_token_in_front_stays_as_the_folder_has_it(published, said, tmp_path):
    loaded = published({} if said is None else {"add_bos_token": said})
    assert (loaded.bos_id, loaded.adds_bos) == (1, said is not False)
    loaded.save(tmp_path)
    kept = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert kept.get("add_bos_token") == said


def test_unusable_tokenizers_are_refused(tmp_path, trained):
    with pytest.raises(errors.UserError, match="does not exist"):
        tokenizer.load(tmp_path / "no.json")
    with pytest.raises(errors.UserError, match="holds none of"):
        tokenizer.load(tmp_path)
    for name, data in (
        ("a.json", b"{}"),
        ("a.model", b"garbage"),
        ("a.json.gz", b"not gzip"),
        ("b.json.gz", gzip.compress(b"[", mtime=0)),
    ):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(errors.UserError, match="is not a tokenizer"):
            tokenizer.load(tmp_path / name)
    (tmp_path / "c.json").write_text(json.dumps(byte_bpe(words={"a": 0})))
    with pytest.raises(errors.UserError, match="no end-of-text token"):
        tokenizer.load(tmp_path / "c.json")
    with pytest.raises(errors.UserError, match="set vocab_size to at least 305"):
        sections.check_vocab(trained, 300)
    sections.check_vocab(trained, 305)


@pytest.mark.oracle
def test_transformers_reads_what_is_saved(olmo, tmp_path):
    import transformers

    olmo.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert (theirs.eos_token_id, theirs.pad_token_id) == (50279, 1)
    for text in TEXTS[:2]:
        assert theirs.encode(text, add_special_tokens=False) == olmo.encode(text)


def test_a_packed_tokenizer_that_would_fill_the_memory_is_refused(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(tokenizer_files, "_MOST_BYTES", 1000)
    path = tmp_path / "tokenizer.json.gz"
    path.write_bytes(gzip.compress(bytes(100_000)))
    with pytest.raises(errors.UserError, match="more than 1,000 bytes, which no token"):
        tokenizer.load(path)
    with pytest.raises(errors.UserError, match="more than 1,000 bytes"):
        tokenizer_files.copy(tmp_path, tmp_path)


def test_links_out_of_a_models_folder_are_not_copied(tmp_path):
    hub = tmp_path / "models--a--b"
    snapshot, blobs = hub / "snapshots" / "1", hub / "blobs"
    for folder in (snapshot, blobs, tmp_path / "out"):
        folder.mkdir(parents=True)
    (blobs / "abc").write_text("{}")
    (snapshot / "tokenizer.json").symlink_to("../../blobs/abc")
    tokenizer_files.copy(snapshot, tmp_path / "out")
    assert (tmp_path / "out" / "tokenizer.json").read_text() == "{}"
    (tmp_path / "key").write_text("secret")
    (snapshot / "chat_template.jinja").symlink_to(tmp_path / "key")
    with pytest.raises(errors.UserError, match=r"outside of .*1; put a"):
        tokenizer_files.copy(snapshot, tmp_path / "out")

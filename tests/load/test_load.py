"""Models by their path: runs and Hugging Face folders give one `Loaded`."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers

from jaxlab import load, models
from jaxlab.core import checkpoint, errors, runs, tree
from jaxlab.core import mesh as mesh_lib
from jaxlab.data.tokenizers import byte_pairs
from jaxlab.models import sections

DECODER = models.TransformerConfig(
    vocab=32, embed=16, layers=1, heads=2, mlp=32, length=16, eos_id=3
)
BERT = models.BertConfig(vocab=32, embed=16, layers=1, heads=2, mlp=32)


def tokenizer(words=6):
    """A few words, with BERT's special tokens and an end of text."""
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "<|endoftext|>"]
    names += [f"w{i}" for i in range(words)]
    vocab = {name: i for i, name in enumerate(names)}
    made = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocab, unk_token="[UNK]"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.add_special_tokens(names[:5])
    return byte_pairs.BytePairs.from_bytes(made.to_str().encode(), {}, "toy")


def fresh(model, *rows):
    params = jax.jit(model.init)(jax.random.key(0), *rows)["params"]
    return mesh_lib.unbox(params)


def saved(folder, config, params, tokenizer_folder):
    """A run directory with one checkpoint."""
    with checkpoint.Checkpointer(runs.checkpoints(folder)) as saver:
        saver.save(1, {"params": params})
    runs.write_config(folder, config)
    tokenizer().save(tokenizer_folder)
    return folder


@pytest.fixture(scope="module")
def decoder_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("decoder") / "run"
    params = fresh(models.Decoder(DECODER), jnp.zeros((1, 4), jnp.int32))
    section = sections.section(DECODER) | {"vocab": 0}  # its tokenizer's, padded
    data = {"files": (), "folder": "", "source": ""}
    config = {"system": "olmo.pretrain", "model": section, "data": data}
    return saved(folder, config, params, runs.tokenizer_folder(folder))


@pytest.fixture(scope="module")
def bert_runs(tmp_path_factory):
    """A bi-encoder and a cross-encoder."""
    folders, rows = [], (np.zeros((1, 4), np.int32), np.ones((1, 4), bool))
    for system, kind, head in (
        ("encoders.embed", models.BertEncoder, "none"),
        ("encoders.rerank", models.BertScorer, "score"),
    ):
        folder = tmp_path_factory.mktemp(head) / "run"
        bert = dataclasses.replace(BERT, head=head)
        config = {"system": system, "encoder": sections.encoder_section(bert)}
        place = runs.encoder_tokenizer_folder(folder)
        folders.append(saved(folder, config, fresh(kind(bert), *rows), place))
    return folders


def equal(a, b):
    for x, y in zip(*(tree.flatten(t).values() for t in (a, b)), strict=True):
        np.testing.assert_array_equal(x, y)


def test_a_run_and_the_folder_that_is_saved_of_it_are_one_model(decoder_run, tmp_path):
    run = load.decoder(decoder_run)
    assert run.config.vocab == 32  # the rows that were trained, not the tokenizer's 11
    assert run.model == models.Decoder(run.config)
    load.save(tmp_path / "hf", run, decoder_run)
    folder = load.decoder(tmp_path / "hf")
    equal(run.params, folder.params)
    assert folder.tokenizer.fingerprint == run.tokenizer.fingerprint
    assert run.template is None
    both = load.alike([decoder_run, tmp_path / "hf"])
    equal(both[0].params, both[1].params)
    equal(load.params(decoder_run), load.params(tmp_path / "hf"))


def test_an_architecture_is_the_model_without_its_parameters(decoder_run):
    described = load.architecture(decoder_run, vocab=32)
    assert described.params is None
    assert described.config == load.decoder(decoder_run).config


def test_encoders_and_scorers_are_told_apart(bert_runs, tmp_path):
    encoder, scorer = bert_runs
    assert isinstance(load.encoder(encoder).model, models.BertEncoder)
    assert isinstance(load.scorer(scorer).model, models.BertScorer)
    with pytest.raises(errors.UserError, match="scores pairs, it has no vectors"):
        load.encoder(scorer)
    with pytest.raises(errors.UserError, match="does not score pairs"):
        load.scorer(encoder)
    load.save(tmp_path / "hf", load.bert(scorer), scorer)
    again = load.scorer(tmp_path / "hf")
    equal(again.params, load.scorer(scorer).params)


def test_another_kind_of_model_is_one_line(decoder_run, bert_runs, tmp_path):
    with pytest.raises(errors.UserError, match=r"of encoders\.embed; this needs a lan"):
        load.decoder(bert_runs[0])
    with pytest.raises(errors.UserError, match=r"olmo\.pretrain; this needs an enc"):
        load.encoder(decoder_run)
    load.save(tmp_path / "bert", load.bert(bert_runs[0]), bert_runs[0])
    with pytest.raises(errors.UserError, match="is an encoder; this needs a language"):
        load.decoder(tmp_path / "bert")
    load.save(tmp_path / "lm", load.decoder(decoder_run), decoder_run)
    with pytest.raises(errors.UserError, match="is a language model; this needs an"):
        load.encoder(tmp_path / "lm")


@pytest.mark.parametrize(
    ("section", "change", "message"),
    [
        ("model", {"tied": {}}, r"model\.tied is \{\}, it must be true or false"),
        ("model", {"clip_qkv": [1]}, r"model\.clip_qkv is \[1\], it must be a number"),
        ("model", {"rope": ["x"]}, "config.json is damaged"),
        ("model", {"rope": {"theta": "x"}}, r"rope\.theta is 'x', it must be a number"),
        ("model", {"more": 1}, "config.json is damaged"),
        ("data", {"folder": True}, r"data\.folder is True, it must be a text"),
    ],
)
def test_a_runs_config_of_other_types_is_one_line(
    decoder_run, tmp_path, section, change, message
):
    folder = tmp_path / "run"
    shutil.copytree(decoder_run, folder)
    config = json.loads((folder / "config.json").read_text())
    config[section] |= change
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(errors.UserError, match=message):
        load.decoder(folder)


def test_an_experiment_of_somebodys_own_gives_its_parameters_alone(tmp_path):
    with checkpoint.Checkpointer(runs.checkpoints(tmp_path)) as saver:
        saver.save(1, {"params": {"w": jnp.ones(3)}})
    runs.write_config(tmp_path, {"steps": 3})
    equal(load.params(tmp_path), {"w": jnp.ones(3)})
    with pytest.raises(errors.UserError, match="is a run of fit; this needs a lang"):
        load.decoder(tmp_path)


def test_another_tokenizer_or_a_step_of_a_folder_is_one_line(decoder_run, tmp_path):
    tokenizer(words=7).save(tmp_path / "other")
    with pytest.raises(errors.UserError, match="leave out --tokenizer"):
        load.decoder(decoder_run, tokenizer=tmp_path / "other")
    load.save(tmp_path / "hf", load.decoder(decoder_run), decoder_run)
    with pytest.raises(errors.UserError, match="is a Hugging Face folder, it has no"):
        load.decoder(tmp_path / "hf", step=1)


def test_models_that_cannot_be_averaged_name_their_differences(decoder_run, tmp_path):
    loaded = load.decoder(decoder_run)
    free = dataclasses.replace(loaded.config, length=8)
    load.save(tmp_path / "free", loaded._replace(config=free), decoder_run)
    load.alike([decoder_run, tmp_path / "free"])
    other = dataclasses.replace(loaded.config, norm_epsilon=1e-3)
    load.save(tmp_path / "other", loaded._replace(config=other), decoder_run)
    with pytest.raises(errors.UserError, match=r"differ: norm_epsilon 1e-05 and 0\.00"):
        load.alike([decoder_run, tmp_path / "other"])


def test_a_tokenizer_is_kept_until_there_are_weights_of_it(decoder_run, tmp_path):
    load.save_tokenizer(tmp_path, tokenizer())
    load.save_tokenizer(tmp_path, tokenizer(words=7))
    own = runs.tokenizer_folder(tmp_path)
    assert (own / "tokenizer.json").exists()
    before = load.decoder(decoder_run).tokenizer.fingerprint
    load.save_tokenizer(decoder_run, tokenizer(words=7))  # has a checkpoint
    assert load.decoder(decoder_run).tokenizer.fingerprint == before


def test_fields_that_are_free_are_fields():
    for config in (DECODER, BERT):
        names = {field.name for field in dataclasses.fields(config)}
        assert {*config.FREE} <= names
    assert {*DECODER.FREE} < {*DECODER.UNTIED}

"""What sentence-transformers writes beside the weights is followed, or refused."""

import dataclasses
import json

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies

from jaxlab.core import errors
from jaxlab.models import BertConfig, BertEncoder, hf, sections
from jaxlab.models.bert import encoder as encoder_lib
from jaxlab.models.bert import sentence_files
from tests.support import peers
from tests.support.bert_values import loaded

SIZES = BertConfig(vocab=32, embed=16, layers=1, heads=2, mlp=32)
SETTINGS = sentence_files.SETTINGS


@hypothesis.given(
    strategies.builds(
        dataclasses.replace,
        strategies.just(SIZES),
        query_prefix=strategies.text(strategies.characters(codec="utf-8"), max_size=9),
        document_prefix=strategies.sampled_from(["", "passage: "]),
        lower_case=strategies.booleans(),
        similarity=strategies.sampled_from(["dot", "cosine", "manhattan"]),
        truncate=strategies.none() | strategies.integers(1, 15),
        normalize=strategies.booleans(),
        pooling=strategies.sampled_from(["mean", "cls"]),
    )
)
@hypothesis.settings(max_examples=20)
def test_what_is_written_is_read_again(tmp_path_factory, config):
    folder = tmp_path_factory.mktemp("folder")
    sentence_files.write_settings(config, folder)
    again = sentence_files.with_settings(SIZES, folder)
    if config.normalize and config.truncate is None and config.similarity != "dot":
        config = dataclasses.replace(config, similarity="dot")  # of unit vectors alike
    assert again == config


@pytest.mark.parametrize(
    ("settings", "query", "document"),
    [
        ({"prompts": {"query": "q: ", "passage": "p: "}}, "q: x", "p: x"),
        (
            {"prompts": {"query": "q: ", "document": "d: ", "corpus": ""}},
            "q: x",
            "d: x",
        ),
        ({"prompts": {"all": "a: "}, "default_prompt_name": "all"}, "a: x", "a: x"),
        (
            {"prompts": {"a": "a: ", "query": "q: "}, "default_prompt_name": "a"},
            "q: x",
            "a: x",
        ),
        ({"prompts": {"clustering": "c: "}}, "x", "x"),
        ({"prompts": None, "default_prompt_name": None}, "x", "x"),
    ],
)
def test_prompts_go_before_the_texts_that_they_are_named_for(
    tmp_path, caplog, settings, query, document
):
    (tmp_path / SETTINGS).write_text(json.dumps(settings))
    config = sentence_files.with_settings(SIZES, tmp_path)
    assert (config.query("x"), config.document("x")) == (query, document)
    assert ("--query-prefix" in caplog.text) == ("clustering" in str(settings))


def test_lower_case_is_of_the_prompt_too_and_in_the_files_of_older_versions(tmp_path):
    (tmp_path / "modules.json").write_text("[]")
    name = "sentence_xlm-roberta_config.json"
    (tmp_path / name).write_text('{"max_seq_length": 9, "do_lower_case": true}')
    (tmp_path / SETTINGS).write_text('{"prompts": {"query": "Q "}}')
    config = sentence_files.with_settings(SIZES, tmp_path)
    assert (config.row_length, config.query("A")) == (9, "q a")


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        (SETTINGS, {"similarity_fn_name": "maxsim"}, "'maxsim'; supported are dot"),
        (SETTINGS, {"truncate_dim": 0}, "truncate_dim 0"),
        (SETTINGS, {"truncate_dim": "8"}, "truncate_dim '8'"),
        (SETTINGS, {"default_prompt_name": "a"}, "'a' is not among its prompts"),
        (SETTINGS, {"prompts": ["a"]}, "not an object of texts"),
        (SETTINGS, {"prompts": {"query": 1}}, "not an object of texts"),
        (SETTINGS, [], "is not a JSON object"),
        (SETTINGS, "[" * 99_999, "is nested too deep"),
        ("sentence_bert_config.json", {"max_seq_length": "12"}, "'12' is not a number"),
        ("sentence_bert_config.json", {"do_lower_case": "no"}, "true or false"),
        ("modules.json", {}, "is not a JSON list"),
        ("modules.json", [{"path": "x"}], "is not a module"),
        ("modules.json", [{"type": "a.Dense", "path": "2_Dense"}], "a Dense module"),
        ("modules.json", [{"type": "a.Transformer", "path": "0_X"}], "is in 0_X/"),
        (
            "modules.json",
            [
                {"type": f"a.{kind}", "path": ""}
                for kind in ("Normalize", "Transformer")
            ],
            "has Normalize, Transformer; .* in this order",
        ),
        ("modules.json", [{"type": "me/x--own.Transformer"}], "the model's own code"),
        ("1_Pooling/config.json", {"pooling_mode_max_tokens": True}, "pools by max"),
        (
            "1_Pooling/config.json",
            {"pooling_mode": "cls", "include_prompt": False},
            "leaves prompts out",
        ),
    ],
)
def test_what_cannot_be_followed_is_one_line_with_its_file(
    tmp_path, file, content, message
):
    folder = peers.copy("bert/bert", tmp_path / "m")
    (folder / SETTINGS).write_text('{"prompts": {"query": "q: "}}')
    text = content if isinstance(content, str) else json.dumps(content)
    (folder / file).write_text(text)
    with pytest.raises(errors.UserError, match=message) as refused:
        hf.read_config(folder)
    assert file in str(refused.value)
    assert len(str(refused.value).splitlines()) == 1


@pytest.mark.parametrize("similarity", ["euclidean", "manhattan"])
def test_vectors_that_are_compared_by_a_distance_are_not_searched(tmp_path, similarity):
    with pytest.raises(errors.ArgumentError, match=f"{similarity} distance"):
        _ = dataclasses.replace(SIZES, similarity=similarity).for_search


def test_inner_products_of_compared_vectors_are_the_similarity():
    config, params = loaded("bert")
    config = dataclasses.replace(config, normalize=False)
    tokens = jnp.arange(12).reshape(3, 4)
    rows = (tokens, jnp.ones_like(tokens, bool))

    def vectors(**changes):
        one = dataclasses.replace(config, **changes).for_search
        return np.asarray(jax.jit(BertEncoder(one).apply)({"params": params}, *rows))

    plain = vectors()
    for cut in (None, 5):
        given = plain[:, :cut]
        np.testing.assert_array_equal(vectors(truncate=cut), given)
        cosine = vectors(truncate=cut, similarity="cosine")
        lengths = np.linalg.norm(given, axis=1, keepdims=True)
        np.testing.assert_allclose(cosine, given / lengths, rtol=1e-5, atol=1e-6)


def test_a_scorer_and_a_run_of_before_know_nothing_of_texts():
    config, params = loaded("bert")
    asking = dataclasses.replace(config, query_prefix="q: ", lower_case=True)
    scorer, _ = encoder_lib.as_scorer(asking, params, jax.random.key(0))
    assert not scorer.of_texts
    assert not {*sections.encoder_section(config)} & {*config.OF_TEXTS}
    section = sections.encoder_section(asking)
    assert BertConfig(**section) == asking

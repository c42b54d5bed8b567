"""Classification: the system, its head, its runs and its mistakes."""

import json
import pathlib
import shutil

import jax
import numpy as np
import pytest

from jaxlab import objectives, train
from jaxlab.core import checkpoint, errors, runs
from jaxlab.core import config as config_lib
from jaxlab.core import mesh as mesh_lib
from jaxlab.data.examples import labelled
from jaxlab.data.tokenizers import tokenizer as tokenizer_lib
from jaxlab.evals import accuracy
from jaxlab.systems import trust_methods
from jaxlab.systems.olmo import pretraining
from jaxlab.systems.tram import classification
from tests.support import devices, sib, steps

CONFIGS = pathlib.Path(__file__).parents[3] / "configs"

WORDS = {  # a toy world: two languages, two topics
    "aa": (("goal ball team", "match score run"), ("vote law state", "party rule tax")),
    "bb": (("gol bola tim", "laga skor lari"), ("suara hukum negara", "partai pajak")),
}

TOPICS = ("sports", "politics")


def toy_rows(language, seed, count):
    """Sentences of three words; the words of a topic are its own."""
    random = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        topic = number % 2
        words = " ".join(WORDS[language][topic]).split()
        text = " ".join(random.choice(words, 4))
        rows.append((f"{seed}{number}", TOPICS[topic], text))
    return rows


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """A folder of labelled toy texts."""
    folder = tmp_path_factory.mktemp("toy")
    sib.write(folder, "aa", "train", toy_rows("aa", 1, 30))
    for seed, language in enumerate(WORDS, start=2):
        sib.write(folder, language, "test", toy_rows(language, seed, 11))
    return folder


@pytest.fixture(scope="module")
def decoder_run(toy, tmp_path_factory):
    """A tiny decoder that was pre-trained on the toy languages for two steps."""
    folder = tmp_path_factory.mktemp("pretrained")
    text = folder / "text"
    for seed, language in enumerate(WORDS, start=5):
        (text / language).mkdir(parents=True)
        rows = toy_rows(language, seed, 60)
        for part in range(6):
            lines = "\n".join(row[2] for row in rows[part::6])
            (text / language / f"{part}.txt").write_text(lines, "utf-8")
    config = config_lib.load(f"{CONFIGS / 'olmo.py'}:tiny")
    config.steps = 2
    config.optim.warmup_steps = 0
    config.eval_batches = 0
    config.model.update({"embed": 32, "layers": 2, "heads": 2, "mlp": 64, "length": 16})
    config.data.update(
        {
            "source": str(text), "vocab_size": 300, "length": 16, "batch_size": 8,
            "max_bytes_per_domain": 0, "held_out_fraction": 0.2,
        }
    )  # fmt: skip
    run = folder / "run"
    mesh = devices.one()
    with mesh_lib.use(mesh):
        train.fit(pretraining.pretrain(config, run, mesh), run, mesh=mesh)
    return run


@pytest.fixture
def mesh():
    return devices.one()


def config_of(decoder_run, toy, variant="adam", **changes):
    config = config_lib.load(f"{CONFIGS / 'languages.py'}:{variant}")
    config.init_from = str(decoder_run)
    config.data.update(
        {"source": str(toy), "train_language": "aa", "length": 16, "batch_size": 8}
    )
    config.optim.warmup_steps = 0
    config.steps = 2
    config.update_from_flattened_dict(changes)
    return config


def experiment_of(config, mesh, workdir=None):
    with mesh_lib.use(mesh):
        return classification.classify(config, workdir or pathlib.Path("unused"), mesh)


def test_long_texts_are_cut_and_counted(decoder_run):
    tokenizer = tokenizer_lib.load(runs.read(decoder_run).tokenizer())
    whole = tokenizer.encode("goal ball team")
    examples = labelled.Labelled(
        ("goal ball team", "goal"), np.array([1, 0], np.int32), ("1", "2")
    )
    rows = labelled.encode(tokenizer, examples, len(whole) - 1)
    assert rows.truncated == 1
    assert rows.tokens[0].tolist() == whole[:-1]
    assert rows.mask[0].all()
    size = len(tokenizer.encode("goal"))
    assert rows.mask[1].sum() == size
    assert (rows.tokens[1, size:] == tokenizer.pad_id).all()
    assert labelled.encode(tokenizer, examples, len(whole)).truncated == 0


@pytest.mark.slow
def test_the_rows_that_fill_up_a_batch_change_no_accuracy(decoder_run, toy, mesh):
    experiment = experiment_of(config_of(decoder_run, toy), mesh)
    tests = labelled.read(toy)[0]["bb"]["test"]
    tokenizer = tokenizer_lib.load(runs.read(decoder_run).tokenizer())
    rows = labelled.encode(tokenizer, tests, 16)
    apply, params = experiment.model.apply, experiment.init_from
    found = [
        accuracy.evaluate(apply, params, labelled.eval_batches(rows, size))
        for size in (1, 4, 11)
    ]
    logits = np.asarray(apply({"params": params}, rows.tokens, rows.mask))
    right = (logits.argmax(-1) == rows.labels).mean()
    for each in found:
        assert each["examples"] == 11
        assert each["accuracy"] == pytest.approx(right)
        assert each["loss"] == pytest.approx(found[0]["loss"], rel=1e-5)


# ------------------------------------------------------------------ the system


def test_the_trunk_is_that_of_the_run_it_starts_from(decoder_run, toy, mesh):
    experiment = experiment_of(config_of(decoder_run, toy), mesh)
    params, decoder = experiment.init_from, checkpoint.load_params(decoder_run)
    assert {*params} == {*decoder} | {"classify"} - {"lm_head"}
    for name in {*params} - {"classify"}:
        jax.tree.map(np.testing.assert_array_equal, params[name], decoder[name])
    assert params["classify"]["kernel"].shape == (32, 2)
    saved = experiment.config
    assert saved["labels"] == ["politics", "sports"]
    tokenizer = tokenizer_lib.load(runs.read(decoder_run).tokenizer())
    sets, _ = labelled.read(toy)
    used = {"train": sets["aa"]["train"], "aa": sets["aa"]["test"]}
    used["bb"] = sets["bb"]["test"]
    assert saved["truncated"] == {
        name: sum(len(tokenizer.encode(text)) > 16 for text in examples.texts)
        for name, examples in used.items()
    }
    other = experiment_of(config_of(decoder_run, toy, seed=1), mesh).init_from
    assert (other["classify"]["kernel"] != params["classify"]["kernel"]).any()
    assert not experiment.model.config.is_causal


@pytest.mark.slow
def test_a_toy_task_is_learnt_and_resumes_bit_for_bit(decoder_run, toy, tmp_path, mesh):
    changes = {"steps": 20, "optim.learning_rate": 5e-3, "optim.schedule": "constant"}
    config = config_of(decoder_run, toy, "tram_theta", **changes)
    experiment = experiment_of(config, mesh)
    whole = train.fit(experiment, tmp_path / "whole", mesh=mesh, save_every=11)
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    shutil.rmtree(tmp_path / "cut" / "checkpoints" / "20")
    cut = train.fit(experiment, tmp_path / "cut", mesh=mesh)
    jax.tree.map(np.testing.assert_array_equal, whole.state.params, cut.state.params)
    written = [tmp_path / run / "metrics.jsonl" for run in ("whole", "cut")]
    assert steps_and_losses(written[0]) == steps_and_losses(written[1])
    assert len(steps_and_losses(written[0])) == 20
    rows = (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()
    figures = {}
    for row in rows:
        figures |= json.loads(row)
    assert figures["eval/aa/accuracy"] > 0.8
    assert figures["eval/aa/examples"] == figures["eval/bb/examples"] == 11


def steps_and_losses(file):
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    return [(row["step"], row["loss"]) for row in rows if "loss" in row]


@pytest.mark.parametrize(
    "method",
    [
        m if m == "plain" else pytest.param(m, marks=pytest.mark.slow)
        for m in trust_methods.methods()
    ],
)
def test_every_trust_region_trains_the_classifier(decoder_run, toy, mesh, method):
    config = config_of(decoder_run, toy, {"plain": "adam"}.get(method, method))
    assert config.trust.method == method
    experiment = experiment_of(config, mesh)
    params, rows = steps.steps_of(experiment, 2, mesh)
    for metrics in rows:
        assert np.isfinite(metrics["loss"])
        assert not metrics["skipped"]
    before = experiment.init_from["classify"]["kernel"]
    assert (before != params["classify"]["kernel"]).any()


def test_r4f_is_evaluated_with_its_normalised_head(decoder_run, toy, mesh):
    plain, r4f = (
        experiment_of(config_of(decoder_run, toy, variant), mesh)
        for variant in ("adam", "r4f")
    )
    params = plain.init_from
    kernel = objectives.divide_by_norm(params["classify"]["kernel"])
    divided = {**params, "classify": {"kernel": kernel}}
    assert r4f.evals["bb"](params) == plain.evals["bb"](divided)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"init_from": ""}, "set --config.init_from"),
        ({"data.source": ""}, "set --config.data.source"),
        ({"data.train_language": "cc"}, "no cc train; there are aa test, aa train"),
        ({"data.eval_split": "train"}, "eval_split is data.train_split"),
        ({"data.eval_split": "dev"}, "no dev split of aa, bb"),
        ({"data.languages": ("aa", "dd")}, "no test split of dd"),
        ({"data.length": 17}, "beyond the model's 16 tokens"),
        ({"trust.method": "tram"}, "use one of"),
    ],
)
def test_configs_that_cannot_work_are_refused(decoder_run, toy, mesh, changes, message):
    config = config_of(decoder_run, toy)
    config.update_from_flattened_dict(changes)
    with pytest.raises(errors.UserError, match=message):
        experiment_of(config, mesh)


def test_a_label_that_is_only_tested_is_refused(decoder_run, toy, tmp_path, mesh):
    sib.write(tmp_path / "set", "aa", "train", toy_rows("aa", 1, 8))
    sib.write(tmp_path / "set", "bb", "test", [("1", "travel", "gol")])
    config = config_of(decoder_run, tmp_path / "set")
    config.data.languages = ("bb",)
    with pytest.raises(
        errors.UserError, match="no aa train example is labelled travel"
    ):
        experiment_of(config, mesh)


@pytest.mark.slow
def test_a_classifier_does_not_start_a_classifier(decoder_run, toy, tmp_path, mesh):
    config = config_of(decoder_run, toy)
    train.fit(experiment_of(config, mesh), tmp_path, mesh=mesh)
    config.init_from = str(tmp_path)
    with pytest.raises(errors.UserError, match="is not a run of a decoder"):
        experiment_of(config, mesh)


def test_every_variant_of_the_config_is_that_of_tram():
    for variant in ("sgd", "tiny", *trust_methods.methods()[1:]):
        ours, theirs = (
            config_lib.load(f"{CONFIGS / name}.py:{variant}")
            for name in ("languages", "tram")
        )
        assert ours.trust == theirs.trust
        assert ours.optim.optimizer == theirs.optim.optimizer

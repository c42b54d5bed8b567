"""Reward models: learnt from pairs, resumed, exported as transformers reads them."""

import json
import pathlib
import shutil

import numpy as np
import pytest

from jaxlab import cli, load, models, systems, train
from jaxlab.core import checkpoint, errors, tree
from jaxlab.core import config as config_lib
from jaxlab.core import mesh as mesh_lib
from jaxlab.data.examples import conversation_rows, conversations
from tests.support import devices, published
from tests.support.runs import losses

CONFIGS = pathlib.Path(__file__).parents[3] / "configs"


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    path = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    rows = [
        {
            "prompt": f"Say {i}.", "chosen": f"{i}, gladly.", "rejected": "No.",
            "margin": 0.5 * (i % 2), "subset": "even" if i % 2 == 0 else "odd",
        }
        for i in range(30)
    ]  # fmt: skip
    rows += [{**rows[0], "chosen": "too long " * 20}]
    path.write_text("\n".join(map(json.dumps, rows)), "utf-8")
    return str(path)


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    return published.write(tmp_path_factory.mktemp("start") / "llama")


def config_of(start, pairs, **changes):
    config = config_lib.load(f"{CONFIGS / 'tulu.py'}:tiny_reward")
    config.init_from = str(start)
    config.data.update({"source": pairs, "length": 64, "held_out_fraction": 0.2})
    config.steps, config.optim.learning_rate = 8, 1e-2
    config.update_from_flattened_dict(changes)
    return config


def run(config, workdir, mesh=None, **settings):
    mesh = devices.one() if mesh is None else mesh
    system = systems.resolve(systems.entry(config.system).experiment)
    with mesh_lib.use(mesh):
        experiment = system(config, workdir, mesh)
        train.fit(experiment, workdir, mesh=mesh, **settings)
    return experiment


@pytest.fixture(scope="module")
def learnt(start, pairs, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("reward") / "run"
    config = config_of(start, pairs, **{"reward.center": 0.01})
    run(config, workdir, save_every=4, eval_every=4, keep=9)
    return workdir


def scores_of(loaded, texts):
    end = loaded.tokenizer.eos_id
    rows = [[*loaded.tokenizer.encode(text), end] for text in texts]
    lengths = np.array([len(row) for row in rows], np.int32)
    tokens = np.zeros((len(rows), max(lengths)), np.int32)
    for row, ids in zip(tokens, rows, strict=True):
        row[: len(ids)] = ids
    apply = loaded.model.apply
    return rows, np.asarray(apply({"params": loaded.params}, tokens, lengths))


TEXTS = [
    "<|user|>\nSay 3.\n<|assistant|>\n3, gladly.",
    "No",
    "A longer text than both.",
]


def test_a_reward_model_learns_which_answer_wins_by_subset(learnt):
    rows = [json.loads(x) for x in (learnt / "metrics.jsonl").read_text().splitlines()]
    held_out = [row for row in rows if "eval/held_out/accuracy" in row]
    assert losses(learnt)[-1] < 0.5 * losses(learnt)[0]
    assert held_out[-1]["eval/held_out/accuracy"] == 1
    assert held_out[-1]["eval/held_out/accuracy/odd"] == 1
    assert held_out[-1]["eval/held_out/accuracy/even"] == 1
    assert held_out[-1]["eval/held_out/pairs"] == 6
    saved = json.loads((learnt / "config.json").read_text())
    assert (saved["dropped"], saved["truncated"]) == (1, 1)
    assert saved["model"]["head"] == "score"


def test_the_pairs_of_a_step_are_shown(learnt, capsys):
    assert cli.run(["data", "inspect", f"--workdir={learnt}", "--step=3"]) == 0
    assert capsys.readouterr().out.count(" rejected, ") == 4


def test_a_killed_run_continues_bit_for_bit(learnt, pairs, start, tmp_path):
    resumed = shutil.copytree(learnt, tmp_path / "resumed")
    shutil.rmtree(resumed / "checkpoints" / "8")
    config = config_of(start, pairs, **{"reward.center": 0.01})
    run(config, resumed, eval_every=4)
    assert losses(resumed) == losses(learnt)
    whole, again = (tree.flatten(checkpoint.load_params(x)) for x in (learnt, resumed))
    for name, leaf in whole.items():
        np.testing.assert_array_equal(leaf, again[name])


def test_its_trunk_is_that_of_the_start_and_its_margins_those_of_the_data(
    start, pairs, tmp_path
):
    mesh = devices.one()
    system = systems.resolve(systems.entry("tulu.reward").experiment)
    with mesh_lib.use(mesh):
        made = system(config_of(start, pairs), tmp_path / "run", mesh)
    decoder = load.decoder(start).params
    assert {*made.init_from} == {*decoder} - {"lm_head"} | {"score"}
    np.testing.assert_array_equal(
        made.init_from["blocks"]["mlp"]["up"]["kernel"],
        decoder["blocks"]["mlp"]["up"]["kernel"],
    )
    batch = made.batches(0)
    assert {*batch["margin"].tolist()} <= {0.0, 0.5}
    ends = np.take_along_axis(batch["tokens"], batch["lengths"][..., None] - 1, axis=2)
    assert (ends == 2).all()  # </s>
    spec = conversation_rows.pair_spec(4, 64, margins=True)
    assert spec == {name: (x.shape, x.dtype.type) for name, x in batch.items()}


@pytest.fixture(scope="module")
def exported(learnt, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "hf"
    assert cli.run(["convert", str(learnt), str(out)]) == 0
    return out


def test_an_exported_reward_model_scores_as_the_run_does(learnt, exported):
    raw = json.loads((exported / "config.json").read_text())
    assert raw["architectures"] == ["LlamaForSequenceClassification"]
    assert raw["id2label"] == {"0": "LABEL_0"}
    assert raw["pad_token_id"] == 0  # <unk>: with </s> the last token would be skipped
    said = json.loads((exported / "tokenizer_config.json").read_text())
    assert said["pad_token"] == "<unk>"
    ours, theirs = load.scorer(learnt), load.scorer(exported)
    assert isinstance(ours.model, models.Scorer)
    np.testing.assert_array_equal(
        scores_of(ours, TEXTS)[1], scores_of(theirs, TEXTS)[1]
    )
    for path in (learnt, exported):
        assert load.is_reward(path)
        with pytest.raises(errors.UserError, match="this needs a language model"):
            load.decoder(path)


@pytest.mark.oracle
def test_transformers_scores_alike(exported):
    import torch
    import transformers

    peer = transformers.AutoModelForSequenceClassification.from_pretrained(exported)
    tokenizer = transformers.AutoTokenizer.from_pretrained(exported)
    rows, ours = scores_of(load.scorer(exported), TEXTS)
    padded = tokenizer.pad({"input_ids": rows}, return_tensors="pt")
    with torch.no_grad():
        theirs = peer(**padded).logits[:, 0].numpy()
    assert type(peer).__name__ == "LlamaForSequenceClassification"
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_evaluate_says_how_often_the_right_answer_wins(
    learnt, exported, pairs, start, tmp_path, capsys
):
    def ask(model, *flags):
        out = tmp_path / "out.json"
        asked = ["evaluate", str(model), f"--rewards={pairs}", f"--json={out}", *flags]
        assert cli.run(asked) == 0, capsys.readouterr().err
        return json.loads(out.read_text())["subsets"]

    one, two = ask(learnt), ask(exported)
    assert {name: x["count"] for name, x in one.items()} == {
        "even": 16, "odd": 15, "overall": 31,
    }  # fmt: skip
    assert one["odd"]["value"] == 1
    assert one["even"]["value"] == 15 / 16  # an answer does not fit
    assert one == two
    said = capsys.readouterr().out
    assert "even       0.9375  0.7167  0.9889    16" in said
    # A policy that is its own reference prefers nothing; without one, short answers.
    same = ask(start, f"--reference={start}")
    assert same["overall"]["value"] == 0
    assert ask(start, "--reference=none")["overall"]["value"] == 0
    text = pathlib.Path(pairs).read_text().replace("rejected", "-")
    pathlib.Path(tmp_path / "turned.jsonl").write_text(
        text.replace("chosen", "rejected").replace('"-"', '"chosen"')
    )
    turned = f"--rewards={tmp_path / 'turned.jsonl'}"
    assert ask(start, "--reference=none", turned)["overall"]["value"] == 1
    for flags, message in (
        ([str(start)], "does not say what it was tuned from; give --reference"),
        ([str(learnt), "--reference=none"], "is a reward model, it has no reference"),
        ([str(learnt), "--data=x"], "--data is not for --rewards; leave it out"),
    ):
        assert cli.run(["evaluate", *flags, f"--rewards={pairs}"]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.slow
def test_a_mesh_and_microbatches_change_nothing_but_rounding(start, pairs, tmp_path):
    more = {"data.batch_size": 8, "steps": 3}
    run(config_of(start, pairs, **more), tmp_path / "one")
    mesh = mesh_lib.make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    config = config_of(start, pairs, micro_batches=2, **more)
    run(config, tmp_path / "many", mesh)
    assert losses(tmp_path / "many") == pytest.approx(
        losses(tmp_path / "one"), rel=1e-4
    )


def test_margins_that_are_no_numbers_are_refused_with_their_row(tmp_path):
    row = {"prompt": "a", "chosen": "b", "rejected": "c", "margin": -1}
    file = tmp_path / "a.jsonl"
    file.write_text(json.dumps(row), "utf-8")
    with pytest.raises(errors.UserError, match=r"a.jsonl:1: margin is -1; write a num"):
        conversations.read_pairs(str(file), of_rewards=True)
    (found,) = conversations.read_pairs(str(file))
    assert (found.margin, found.subset) == (0.0, "")

"""KTO: answers that are good or bad, in batches that are put together once."""

import json
import pathlib
import shutil

import numpy as np
import pytest

from jaxlab import cli, systems, train
from jaxlab.core import config as config_lib
from jaxlab.core import errors
from jaxlab.core import mesh as mesh_lib
from jaxlab.data.examples import chat, conversation_rows, conversations, judged_rows
from jaxlab.systems import checks
from tests.support import devices, published
from tests.support.runs import losses

CONFIGS = pathlib.Path(__file__).parents[3] / "configs"


def rows(count=7, batch_size=3, length=12):
    """Prompts 100 + i of i % 3 + 1 tokens; answers 200 + i of two, then an end."""
    tokens = [[100 + i] * (i % 3 + 1) + [200 + i] * 2 + [2] for i in range(count)]
    labels = [[False] * (i % 3 + 1) + [True] * 3 for i in range(count)]
    examples = chat.Examples(
        tokens=np.concatenate(tokens).astype(np.int32),
        is_label=np.concatenate(labels),
        ends=np.cumsum([len(x) for x in tokens]),
        number=np.arange(count),
        truncated=0,
        dropped=0,
    )
    is_good = np.arange(count) % 2 == 0
    return judged_rows.JudgedRows(
        examples, is_good, length=length, batch_size=batch_size, seed=1
    )


def test_a_row_has_its_own_answer_and_that_of_the_row_before_in_its_batch():
    made, seen = rows(), []
    for step in range(3):
        batch = made(step)
        tokens, mask = batch["tokens"], batch["loss_mask"]
        there = mask[:, 0].sum(1) > 0
        own = [int(row[0]) - 100 for row in tokens[there, 0]]
        seen += own
        for i, number in enumerate(own):
            size = number % 3 + 1
            wanted = [100 + number] * size + [200 + number] * 2 + [2]
            assert tokens[i, 0, : size + 3].tolist() == wanted
            assert mask[i, 0].nonzero()[0].tolist() == [*range(size, size + 3)]
            assert batch["is_desirable"][i] == (number % 2 == 0)
            other = own[i - 1]
            if len(own) == 1:
                assert mask[i, 1].sum() == 0  # there is no other answer
            else:
                assert tokens[i, 1, size : size + 3].tolist() == [200 + other] * 2 + [2]
                assert tokens[i, 1, :size].tolist() == [100 + number] * size
    assert sorted(seen) == [*range(7)]
    parts = [made(1, slice(i, i + 1)) for i in range(3)]
    for name, whole in made(1).items():
        np.testing.assert_array_equal(np.concatenate([x[name] for x in parts]), whole)
    assert judged_rows.spec(3, 12) == {
        name: (x.shape, x.dtype.type) for name, x in made(0).items()
    }
    held = list(conversation_rows.eval_batches(made))
    assert sum(int((x["loss_mask"][:, 0].sum(1) > 0).sum()) for x in held) == 7


def test_answers_that_do_not_fit_behind_another_prompt_are_cut():
    batch = rows(length=5)(0)
    assert batch["tokens"].shape == (3, 2, 5)
    assert (batch["loss_mask"].sum(2) > 0).all()


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    path = tmp_path_factory.mktemp("judged") / "judged.jsonl"
    found = [
        {"prompt": f"Say {i}.", "completion": f"{i}." if i % 2 else "No.", "label": x}
        for i in range(26)
        for x in (bool(i % 2),)
    ]
    found += [{"prompt": "Say 7.", "chosen": "7.", "rejected": "No."}]
    path.write_text("\n".join(map(json.dumps, found)), "utf-8")
    return str(path)


def test_rows_are_labelled_answers_or_pairs(judged, tmp_path):
    found = conversations.read_judged(judged)
    assert len(found) == 28
    assert [x.is_good for x in found[-3:]] == [True, True, False]
    assert found[-1].messages[-1].content == "No."
    for row, message in (
        ({"prompt": "a", "completion": "b"}, "a.jsonl:1 has no label; expected"),
        ({"prompt": "a", "completion": "b", "label": "so"}, "has label 'so'; expected"),
        (
            {"messages": [{"role": "user", "content": "a"}], "label": True},
            "has no answer of an assistant",
        ),
    ):
        file = tmp_path / "a.jsonl"
        file.write_text(json.dumps(row), "utf-8")
        with pytest.raises(errors.UserError, match=message):
            conversations.read_judged(str(file))


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    return published.write(tmp_path_factory.mktemp("start") / "llama")


def config_of(start, judged, **changes):
    config = config_lib.load(f"{CONFIGS / 'tulu.py'}:tiny_kto")
    config.init_from = str(start)
    config.data.update({"source": judged, "length": 64, "held_out_fraction": 0.2})
    config.preference.cache = str(pathlib.Path(judged).parent / "kept")
    config.steps, config.optim.learning_rate = 8, 3e-3
    config.update_from_flattened_dict(changes)
    return config


def run(config, workdir, mesh=None, **settings):
    mesh = devices.one() if mesh is None else mesh
    system = systems.resolve(systems.entry(config.system).experiment)
    with mesh_lib.use(mesh):
        train.fit(system(config, workdir, mesh), workdir, mesh=mesh, **settings)


def test_judged_answers_are_learnt_and_a_killed_run_continues(
    start, judged, tmp_path, capsys
):
    config = config_of(start, judged)
    run(config, tmp_path / "whole", save_every=4, eval_every=4, keep=9)
    found = losses(tmp_path / "whole")
    assert found[0] == pytest.approx(0.5, abs=1e-6)  # p = q
    assert found[-1] < 0.45
    shown = ["data", "inspect", f"--workdir={tmp_path / 'whole'}", "--step=3"]
    assert cli.run(shown) == 0
    said = capsys.readouterr().out
    assert said.count("step 3 row") == 4
    assert " good, " in said or " bad, " in said
    resumed = shutil.copytree(tmp_path / "whole", tmp_path / "resumed")
    shutil.rmtree(resumed / "checkpoints" / "8")
    run(config_of(start, judged, **{"preference.cache": ""}), resumed, eval_every=4)
    assert losses(resumed) == found


@pytest.mark.slow
@pytest.mark.parametrize("asked", ["before", "step"])
def test_a_mesh_and_chunks_change_nothing_but_rounding(asked, start, judged, tmp_path):
    more = {"data.batch_size": 8, "steps": 3, "preference.reference": asked}
    run(config_of(start, judged, **more), tmp_path / "one")
    mesh = mesh_lib.make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    config = config_of(start, judged, **{"preference.chunks": 2}, **more)
    run(config, tmp_path / "many", mesh)
    one, many = losses(tmp_path / "one"), losses(tmp_path / "many")
    assert many == pytest.approx(one, rel=1e-4)


def test_microbatches_of_a_batch_with_one_kl_are_refused(start, judged):
    with pytest.raises(errors.UserError, match=r"change the loss kto.*chunks=2"):
        checks.check(config_of(start, judged, micro_batches=2))
    other = {"preference.loss": "apo_zero_unpaired"}
    checks.check(config_of(start, judged, micro_batches=2, **other))

"""Instruction tuning and preference optimisation: runs, resumed runs, mistakes."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab import cli, load, systems, train
from jaxlab.core import checkpoint, errors, tree
from jaxlab.core import config as config_lib
from jaxlab.core import mesh as mesh_lib
from jaxlab.models import sections as sections_lib
from jaxlab.systems import checks
from jaxlab.systems.olmo import pretraining
from jaxlab.systems.planning import shapes
from jaxlab.systems.tulu import instruction_tuning
from tests.support import compiling, devices
from tests.support.runs import hosts, losses

CONFIGS = pathlib.Path(__file__).parents[3] / "configs"
COLOURS = ["red", "green", "blue", "black", "white", "brown"]


def rows(count):
    """Questions with a right answer and a wrong one."""
    for number in range(count):
        right, wrong = COLOURS[number % 6], COLOURS[(number + 1) % 6]
        yield {
            "prompt": f"Which colour has number {number % 6}?",
            "completion": f"It is {right}.",
            "chosen": f"It is {right}.",
            "rejected": f"Not {wrong}, or maybe {wrong}.",
        }


@pytest.fixture(scope="module")
def talk(tmp_path_factory):
    path = tmp_path_factory.mktemp("talk") / "talk.jsonl"
    path.write_text("\n".join(map(json.dumps, rows(48))) + "\n", "utf-8")
    return str(path)


@pytest.fixture(scope="module")
def start(talk, tmp_path_factory):
    """A decoder that was pre-trained for two steps."""
    folder = tmp_path_factory.mktemp("start")
    (folder / "text").mkdir()
    for part in range(6):
        lines = "\n".join(f"{r['prompt']} {r['chosen']}" for r in rows(40))
        (folder / "text" / f"{part}.txt").write_text(lines, "utf-8")
    config = config_lib.load(f"{CONFIGS / 'olmo.py'}:tiny")
    config.steps, config.eval_batches, config.optim.warmup_steps = 2, 0, 0
    config.model.update({"embed": 32, "layers": 2, "heads": 2, "mlp": 64, "length": 64})
    config.data.update(
        {
            "source": str(folder), "vocab_size": 300, "length": 32, "batch_size": 8,
            "max_bytes_per_domain": 0, "held_out_fraction": 0.2,
        }
    )  # fmt: skip
    run, mesh = folder / "run", devices.one()
    with mesh_lib.use(mesh):
        train.fit(pretraining.pretrain(config, run, mesh), run, mesh=mesh)
    return run


def config_of(variant, start, talk, **changes):
    config = config_lib.load(f"{CONFIGS / 'tulu.py'}:{variant}")
    config.init_from = str(start)
    config.data.update({"source": talk, "length": 64, "held_out_fraction": 0.2})
    if "preference" in config:  # not the user's, which older tests have filled
        config.preference.cache = str(pathlib.Path(talk).parent / "kept")
    config.optim.learning_rate = 1e-2
    config.steps = 6
    config.update_from_flattened_dict(changes)
    return config


def run(config, workdir, mesh=None, **settings):
    mesh = devices.one() if mesh is None else mesh
    system = systems.resolve(systems.entry(config.system).experiment)
    with mesh_lib.use(mesh):
        experiment = system(config, workdir, mesh)
        train.fit(experiment, workdir, mesh=mesh, **settings)
    return experiment


def evaluations(workdir, name):
    found = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [
        row[f"eval/held_out/{name}"] for row in found if f"eval/held_out/{name}" in row
    ]


def equal(a, b):
    return all(jax.tree.leaves(jax.tree.map(lambda x, y: bool((x == y).all()), a, b)))


def killed_after(whole, target, last):
    """A copy of a run as if it had been killed after saving `last`."""
    shutil.copytree(whole, target)
    for found in checkpoint.steps(target / "checkpoints"):
        if found > last:
            shutil.rmtree(target / "checkpoints" / str(found))
    return target


@pytest.fixture(scope="module")
def tuned(start, talk, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("sft") / "run"
    config = config_of("tiny", start, talk, steps=0, epochs=4.0)
    run(config, workdir, save_every=5, eval_every=5, keep=9)
    return workdir


@pytest.fixture(scope="module")
def preferred(tuned, talk, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("dpo") / "run"
    config = config_of("tiny_dpo", tuned, talk, **{"optim.learning_rate": 1e-3})
    run(config, workdir, save_every=2, eval_every=2, keep=9)
    return workdir


def test_tuning_lowers_the_loss_of_held_out_answers(tuned):
    found = evaluations(tuned, "loss")
    assert found[-1] < 0.5 * found[0]
    saved = json.loads((tuned / "config.json").read_text())
    assert saved["steps"] == 20  # 39 of 48 rows, 8 a batch, 4 epochs
    assert saved["optim"]["warmup_steps"] == 1
    assert (saved["dropped"], saved["data_order"]["examples"]) == (0, 39)


def test_a_tuned_run_opens_with_its_own_tokenizer(tuned, start):
    opened, before = load.decoder(tuned), load.decoder(start)
    assert opened.tokenizer.fingerprint == before.tokenizer.fingerprint
    logits = opened.model.apply({"params": opened.params}, jnp.ones((1, 8), int))
    assert logits.shape == (1, 8, before.config.vocab)
    assert load.held_out(tuned) == {}


def test_a_tuned_model_answers_in_chat(tuned, capsys):
    asked = ["generate", str(tuned), "--chat", "--prompt=Which colour has number 2?"]
    assert cli.run([*asked, "--temperature=0", "--max-new-tokens=16"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("<|user|>\nWhich colour has number 2?\n<|assistant|>\nIt is")


@pytest.mark.parametrize(
    "out_format", [pytest.param("hf", marks=pytest.mark.slow), "orbax"]
)
def test_a_tuned_model_is_merged_with_its_start(
    out_format, tuned, preferred, start, tmp_path
):
    recipe = {
        "merge_method": "task_arithmetic",
        "base_model": str(start),
        "models": [
            {"model": str(run), "parameters": {"weight": 0.5}}
            for run in (tuned, preferred)
        ],
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    out = tmp_path / "merged"
    asked = ["merge", str(tmp_path / "recipe.yaml"), f"--out={out}"]
    assert cli.run([*asked, f"--format={out_format}"]) == 0
    base, one, two = map(checkpoint.load_params, (start, tuned, preferred))
    merged = load.decoder(out)
    for path, leaf in tree.flatten(merged.params).items():
        a, b, c = (tree.flatten(x)[path] for x in (base, one, two))
        np.testing.assert_allclose(leaf, a + (b - a) / 2 + (c - a) / 2, atol=1e-6)
    whole = load.decoder(tuned).tokenizer.fingerprint
    assert merged.tokenizer.fingerprint == whole
    # The tokenizer has no token to begin with, which a template says as it is.
    begin = "bos" if out_format == "orbax" else "none"
    assert load.chat_format(out) == ("open_instruct", begin)


@pytest.mark.parametrize(("name", "last"), [("tuned", 10), ("preferred", 2)])
def test_a_killed_run_continues_bit_for_bit_without_its_start(
    name, last, request, talk, start, tuned, tmp_path
):
    whole = request.getfixturevalue(name)
    resumed = killed_after(whole, tmp_path / "resumed", last)
    config = config_of("tiny", start, talk, steps=0, epochs=4.0)
    if name == "preferred":
        config = config_of("tiny_dpo", tuned, talk, **{"optim.learning_rate": 1e-3})
    run(config, resumed, eval_every=5)
    assert losses(resumed) == losses(whole)
    a, b = checkpoint.load_params(whole), checkpoint.load_params(resumed)
    assert equal(a, b)


def test_preferences_begin_at_log_two_and_are_learnt(preferred):
    assert losses(preferred)[0] == pytest.approx(np.log(2), abs=1e-6)
    assert losses(preferred)[-1] < 0.6
    assert evaluations(preferred, "accuracy")[-1] == 1
    assert evaluations(preferred, "pairs") == [9, 9, 9]
    margins = evaluations(preferred, "margin")
    assert margins[-1] > margins[0] > 0


@pytest.mark.slow
def test_a_reference_asked_in_the_step_or_before_it_gives_one_loss(
    preferred, tuned, talk, tmp_path
):
    more = {"optim.learning_rate": 1e-3, "preference.reference": "step", "steps": 3}
    run(config_of("tiny_dpo", tuned, talk, **more), tmp_path / "step")
    kept = json.loads((tmp_path / "step" / "reference.json").read_text())
    assert {*kept} == {"init_from", "sha256"}
    first = losses(tmp_path / "step")
    # Of another length, schedules differ from the second step on.
    assert first[0] == pytest.approx(losses(preferred)[0], abs=1e-6)
    config = config_of(
        "tiny_dpo", tuned, talk, **{**more, "preference.reference": "before"}
    )
    run(config, tmp_path / "before")
    assert first == pytest.approx(losses(tmp_path / "before"), abs=1e-5)


@pytest.mark.slow
def test_a_reference_that_was_replaced_is_refused_by_the_resumed_run(
    tuned, talk, tmp_path
):
    start = shutil.copytree(tuned, tmp_path / "start")
    more = {"preference.reference": "step", "steps": 2}
    config = config_of("tiny_dpo", start, talk, **more)
    run(config, tmp_path / "whole", save_every=1)
    resumed = killed_after(tmp_path / "whole", tmp_path / "resumed", 1)
    step = max(checkpoint.steps(start / "checkpoints"))
    target = start / "checkpoints" / str(step)
    params = checkpoint.load_params(start, step)
    moved = jax.tree.map(lambda leaf: leaf + 1e-3, params)
    shutil.rmtree(target)
    with checkpoint.Checkpointer(start / "checkpoints") as saver:
        saver.save(step, {"params": moved})
    with pytest.raises(errors.UserError, match=r"start is not the model that .* began"):
        run(config, resumed)
    shutil.rmtree(target)
    with checkpoint.Checkpointer(start / "checkpoints") as saver:  # the same weights
        saver.save(step, {"params": params})
    run(config, resumed)
    assert losses(resumed) == losses(tmp_path / "whole")


def test_a_resumed_run_refuses_a_reference_of_other_pairs(
    preferred, tuned, talk, tmp_path
):
    resumed = killed_after(preferred, tmp_path / "resumed", 2)
    config = config_of("tiny_dpo", tuned, talk, **{"optim.learning_rate": 1e-3})
    kept = json.loads((resumed / "reference.json").read_text())
    kept["pairs"][0]["sha256"] = "0"
    (resumed / "reference.json").write_text(json.dumps(kept))
    with pytest.raises(
        errors.UserError, match=r"reference.json is missing or is of oth"
    ):
        run(config, resumed)
    (resumed / "reference.json").unlink()
    with pytest.raises(
        errors.UserError, match=r"reference.json is missing or is of oth"
    ):
        run(config, resumed)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variant", "parts", "changes"),
    [
        ("tiny", "micro_batches", {}),
        ("tiny_dpo", "micro_batches", {}),
        ("tiny_dpo", "preference.chunks", {"preference.loss": "aot + sft"}),
    ],
)
def test_a_mesh_and_microbatches_change_nothing_but_rounding(
    variant, parts, changes, tuned, talk, tmp_path
):
    more = {"data.batch_size": 8, "steps": 3, "optim.learning_rate": 1e-3, **changes}
    run(config_of(variant, tuned, talk, **more), tmp_path / "one")
    mesh = mesh_lib.make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    config = config_of(variant, tuned, talk, **{parts: 2}, **more)
    run(config, tmp_path / "many", mesh)
    one, many = losses(tmp_path / "one"), losses(tmp_path / "many")
    assert many == pytest.approx(one, rel=1e-4)


@pytest.mark.slow
def test_two_hosts_learn_preferences_as_one_does(preferred, tuned, talk, tmp_path):
    flags = {
        "init_from": tuned, "data.source": talk, "data.length": 64, "steps": 6,
        "data.held_out_fraction": 0.2, "optim.learning_rate": 1e-3, "mesh.fsdp": 2,
    }  # fmt: skip
    command = [sys.executable, "-m", "jaxlab.train", f"--workdir={tmp_path}"]
    command += [f"--config={CONFIGS / 'tulu.py'}:tiny_dpo"]
    command += [f"--config.{name}={value}" for name, value in flags.items()]
    shared = compiling.quickly(dict(os.environ))
    shared |= {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(CONFIGS.parent)}
    found = [
        subprocess.Popen(
            command, env=shared | variables, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True,
        )
        for variables in hosts(2)
    ]  # fmt: skip
    outputs = [host.communicate(timeout=300)[0] for host in found]
    assert [host.returncode for host in found] == [0, 0], outputs
    assert losses(tmp_path) == pytest.approx(losses(preferred), abs=1e-5)
    kept = json.loads((tmp_path / "reference.json").read_text())
    one = json.loads((preferred / "reference.json").read_text())
    assert kept["pairs"] == one["pairs"]


def test_a_packed_row_has_the_loss_of_its_conversations(start, talk, tmp_path):
    totals = []
    for packed in (False, True):
        more = {"data.packed": packed, "data.held_out_fraction": 0.0}
        config = config_of("tiny", start, talk, **more, **{"data.length": 128})
        mesh = devices.one()
        with mesh_lib.use(mesh):
            experiment = instruction_tuning.sft(config, tmp_path / str(packed), mesh)
        batches = experiment.batches
        assert batches.count <= 24 if packed else batches.count == 48
        batch = batches.fill(np.arange(batches.count))
        loss = experiment.objective(
            experiment.init_from, batch, key=jax.random.key(0), frozen=None
        )
        totals.append((float(loss.total), float(loss.weight)))
    assert totals[0] == pytest.approx(totals[1], rel=1e-5)


@pytest.mark.slow
def test_a_trust_region_tunes_as_well(start, talk, tmp_path):
    config = config_of("tiny", start, talk, **{"trust.method": "tram_theta"})
    run(config, tmp_path / "run")
    assert losses(tmp_path / "run")[-1] < losses(tmp_path / "run")[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"init_from": ""}, "set --config.init_from to the model to tune"),
        ({"data.source": ""}, "set --config.data.source to .jsonl files"),
        ({"data.begin": "cls"}, "begin 'cls'; use one of bos, eos, none"),
        ({"data.length": 8}, "no example to train on: add some, or raise data.length"),
        ({"data.held_out_fraction": 1.0}, "held_out_fraction 1.0; use 0 to below 1"),
        ({"model.embed": 48, "model.layers": 2, "model.heads": 2, "model.mlp": 64},
         r"differ: embed 48 and 32; .*Set --config.model.embed=0"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_that_names_the_fix(
    changes, message, start, talk, tmp_path
):
    with pytest.raises(errors.UserError, match=message):
        run(config_of("tiny", start, talk, **changes), tmp_path)


def test_an_unknown_loss_or_reference_is_refused(tuned, talk, tmp_path):
    config = config_of("tiny_dpo", tuned, talk, **{"preference.reference": "never"})
    with pytest.raises(errors.UserError, match=r"'never'; use before or step"):
        run(config, tmp_path)
    config = config_of("tiny_dpo", tuned, talk, **{"preference.loss": "ppo"})
    with pytest.raises(ValueError, match=r"loss 'ppo'; use one of sigmoid"):
        run(config, tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss": "aot"}, r"micro_batches 2 would change the loss aot.*chunks=2"),
        ({"loss": "cpo"}, r"micro_batches 2 would change the loss cpo.*chunks=2"),
        ({"loss": "apo_zero", "temperature": 1.0}, "apo_zero has no temperature"),
        ({"chunks": 3}, "preference.chunks 3 does not divide 2 rows; set it to a div"),
    ],
)
def test_a_loss_and_a_setting_that_do_not_go_together_are_refused(
    changes, message, tuned, talk, tmp_path
):
    given = {f"preference.{name}": value for name, value in changes.items()}
    config = config_of("tiny_dpo", tuned, talk, micro_batches=2, **given)
    with pytest.raises(errors.UserError, match=message):
        checks.check(config)


def test_a_loss_without_a_reference_asks_for_none_and_is_cut_into_chunks(
    preferred, tuned, talk, tmp_path
):
    changes = {"preference.loss": "orpo", "steps": 3, "optim.learning_rate": 1e-3}
    for chunks in (1, 2):
        more = {"preference.chunks": chunks, **changes}
        run(config_of("tiny_dpo", tuned, talk, **more), tmp_path / str(chunks))
    assert not (tmp_path / "1" / "reference.json").exists()
    one, two = losses(tmp_path / "1"), losses(tmp_path / "2")
    assert one == pytest.approx(two, rel=1e-5)
    saved = json.loads((tmp_path / "1" / "config.json").read_text())["preference"]
    old = json.loads((preferred / "config.json").read_text())["preference"]
    # As runs from before there was a choice: they go on.
    assert {*saved} == {*old} == {
        "loss", "beta", "label_smoothing", "target_margin", "reference",
    }  # fmt: skip


def test_the_published_sizes_are_checked_against_the_start(start, talk, tmp_path):
    config = config_lib.load(f"{CONFIGS / 'tulu.py'}:sft_7b")
    config.init_from, config.data.source = str(start), talk
    with pytest.raises(errors.UserError, match=r"embed 4096 and 32"):
        run(config, tmp_path)


@pytest.mark.parametrize("variant", ["tulu1_7b", "sft_7b", "sft_13b", "dpo_70b"])
def test_the_published_variants_are_llamas(variant):
    config = config_lib.load(f"{CONFIGS / 'tulu.py'}:{variant}")
    made = sections_lib.transformer_config(config.model, None)
    sizes = {"7b": 6_738_415_616, "13b": 13_015_864_320, "70b": 68_976_648_192}
    assert shapes.shape(config).params == sizes[variant.split("_")[1]]
    assert made.norm == "rmsnorm"

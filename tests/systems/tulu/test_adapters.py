"""Runs that tune an adapter: they begin as their base, resume, and open as models."""

import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab import cli, load, models, systems, train
from jaxlab.core import checkpoint, errors, tree
from jaxlab.core import config as config_lib
from jaxlab.core import mesh as mesh_lib
from jaxlab.models import lora, nf4
from tests.support import devices, published
from tests.support.runs import losses

CONFIGS = pathlib.Path(__file__).parents[3] / "configs"
DECODER = models.TransformerConfig(
    vocab=320, embed=64, layers=2, heads=2, mlp=128, length=96, eos_id=2, bos_id=1
)


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """A published llama whose matrices nf4 can pack."""
    home = tmp_path_factory.mktemp("start")
    tokenizer = published.write(home / "tokenizer")
    tokens = jnp.zeros((1, 4), jnp.int32)
    made = jax.jit(models.Decoder(DECODER).init)(jax.random.key(3), tokens)["params"]
    models.hf.save(
        home / "base", DECODER, mesh_lib.unbox(made), tokenizer_folder=tokenizer
    )
    return home / "base"


@pytest.fixture(scope="module")
def talk(tmp_path_factory):
    words = ["red", "green", "blue", "black"]
    rows = [
        {
            "prompt": f"Colour {n % 4}?",
            "completion": f"It is {words[n % 4]}.",
            "chosen": f"It is {words[n % 4]}.",
            "rejected": f"Not {words[(n + 1) % 4]}.",
        }
        for n in range(24)
    ]
    file = tmp_path_factory.mktemp("talk") / "talk.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)) + "\n", "utf-8")
    return str(file)


def config_of(variant, start, talk, **changes):
    config = config_lib.load(f"{CONFIGS / 'tulu.py'}:{variant}")
    config.init_from = str(start)
    config.data.update({"source": talk, "length": 64, "held_out_fraction": 0.2})
    config.optim.update({"learning_rate": 1e-2, "warmup_steps": 1})
    config.adapter.update({"rank": 4, "alpha": 8.0})
    config.steps = 6
    config.update_from_flattened_dict(changes)
    return config


def run(config, workdir, mesh=None, **settings):
    mesh = devices.one() if mesh is None else mesh
    system = systems.resolve(systems.entry(config.system).experiment)
    with mesh_lib.use(mesh):
        train.fit(system(config, workdir, mesh), workdir, mesh=mesh, **settings)
    return workdir


@pytest.fixture(scope="module")
def tuned(start, talk, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("lora") / "run"
    config = config_of("tiny", start, talk, **{"adapter.dropout": 0.1})
    return run(config, workdir, save_every=3, eval_every=3, keep=9)


def flat(params):
    return {path: np.asarray(value) for path, value in tree.flatten(params).items()}


def test_a_run_saves_the_adapter_alone_and_opens_as_a_whole_model(tuned, start):
    saved = flat(checkpoint.load_params(tuned))
    assert {path.rpartition("/")[2] for path in saved} == {"a", "b"}
    assert losses(tuned)[-1] < losses(tuned)[0]
    opened, base = flat(load.decoder(tuned).params), flat(load.decoder(start).params)
    assert opened.keys() == base.keys()
    moved = {path for path in base if (opened[path] != base[path]).any()}
    assert moved == {path for path in base if path.endswith("kernel")} - {
        "lm_head/kernel"
    }
    rows = [json.loads(row) for row in (tuned / "metrics.jsonl").open()]
    held_out = [row for row in rows if "eval/held_out/loss" in row]
    assert held_out[-1]["eval/held_out/loss"] < held_out[0]["eval/held_out/loss"]


def test_a_killed_run_continues_bit_for_bit(tuned, start, talk, tmp_path):
    resumed = shutil.copytree(tuned, tmp_path / "resumed")
    shutil.rmtree(resumed / "checkpoints" / "6")
    run(config_of("tiny", start, talk, **{"adapter.dropout": 0.1}), resumed)
    assert losses(resumed) == losses(tuned)
    a, b = (flat(checkpoint.load_params(folder)) for folder in (tuned, resumed))
    assert all((a[path] == b[path]).all() for path in a)


def test_another_base_is_refused_when_resumed_and_when_opened(tuned, start, tmp_path):
    copy = shutil.copytree(tuned, tmp_path / "run")
    config, weights = models.hf.load(start)
    weights["final_norm"]["scale"] += 1e-3
    other = tmp_path / "other"
    models.hf.save(other, config, weights, tokenizer_folder=start)
    said = json.loads((copy / "config.json").read_text())
    said["base"]["path"] = str(other)
    (copy / "config.json").write_text(json.dumps(said))
    with pytest.raises(errors.UserError, match=r"other is not the model that .*run is"):
        load.decoder(copy)
    shutil.rmtree(other)
    with pytest.raises(errors.UserError, match="other does not exist"):
        load.decoder(copy)


@pytest.mark.slow
def test_a_resumed_run_refuses_other_weights_at_its_base(start, talk, tmp_path):
    base = shutil.copytree(start, tmp_path / "base")
    config = config_of("tiny", base, talk, steps=2)
    run(config, tmp_path / "run", save_every=1)
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "2")
    made, weights = models.hf.load(start)
    weights["final_norm"]["scale"] += 1e-3
    shutil.rmtree(base)
    models.hf.save(base, made, weights, tokenizer_folder=start)
    with pytest.raises(errors.UserError, match=r"another config: base\.sha256"):
        run(config, tmp_path / "run")


@pytest.mark.slow
def test_preferences_begin_at_log_two_with_the_adapter_off(start, talk, tmp_path):
    first = {}
    for asks in ("before", "step"):
        more = {"preference.reference": asks, "steps": 2, "optim.learning_rate": 1e-3}
        config = config_of("tiny_dpo", start, talk, **more)
        first[asks] = losses(run(config, tmp_path / asks))
    assert first["step"][0] == pytest.approx(np.log(2), abs=1e-6)
    assert first["step"] == pytest.approx(first["before"], abs=1e-5)


@pytest.mark.slow
def test_another_run_goes_on_from_an_adapter(tuned, start, talk, tmp_path):
    with pytest.raises(errors.UserError, match=r"give --config\.adapter its values"):
        run(config_of("tiny", tuned, talk, **{"adapter.rank": 8}), tmp_path / "wide")
    more = {"adapter.dropout": 0.1, "steps": 2, "optim.learning_rate": 1e-4}
    second = run(config_of("tiny", tuned, talk, **more), tmp_path / "second")
    assert losses(second)[0] < losses(tuned)[0]
    said = json.loads((second / "config.json").read_text())
    assert said["base"]["path"] == str(start)
    base = load.adapter(second).base
    assert base == str(start)


@pytest.mark.slow
def test_peft_folders_are_written_opened_and_gone_on_from(
    tuned, start, talk, tmp_path, capsys
):
    out = tmp_path / "peft"
    assert cli.run(["convert", str(tuned), str(out), "--adapter"]) == 0
    found, wanted = flat(load.decoder(out).params), flat(load.decoder(tuned).params)
    for path, value in wanted.items():
        np.testing.assert_allclose(found[path], value, atol=1e-7)
    assert cli.run(["convert", str(out), str(tmp_path / "whole")]) == 0
    whole = flat(load.decoder(tmp_path / "whole").params)
    assert all((whole[path] == found[path]).all() for path in whole)
    more = {"adapter.dropout": 0.1, "steps": 1}
    again = run(config_of("tiny", out, talk, **more), tmp_path / "again")
    assert losses(again)[0] < losses(tuned)[0]
    asked = ["convert", str(start), str(tmp_path / "none"), "--adapter"]
    assert cli.run(asked) == 2
    assert "has no adapter" in capsys.readouterr().err


def test_a_base_in_four_bits_is_tuned_and_merged(start, talk, tmp_path):
    config = config_of("tiny", start, talk, **{"adapter.base": "nf4"})
    workdir = run(config, tmp_path / "run")
    assert losses(workdir)[-1] < losses(workdir)[0]
    opened, base = flat(load.decoder(workdir).params), flat(load.decoder(start).params)
    made = flat(checkpoint.load_params(workdir))
    name = "blocks/mlp/up"
    rounded = nf4.unpack(nf4.pack(base[f"{name}/kernel"][1]))
    added = 2.0 * made[f"{name}/a"][1] @ made[f"{name}/b"][1]
    found = opened[f"{name}/kernel"][1]
    np.testing.assert_allclose(found, rounded + added, atol=1e-6)
    np.testing.assert_array_equal(opened["lm_head/kernel"], base["lm_head/kernel"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variant", "kept_in"), [("tiny", "nf4"), ("tiny_dpo", "compute")]
)
def test_a_mesh_and_microbatches_change_nothing_but_rounding(
    variant, kept_in, start, talk, tmp_path
):
    more = {"data.batch_size": 8, "steps": 3, "adapter.base": kept_in}
    run(config_of(variant, start, talk, **more), tmp_path / "one")
    mesh = mesh_lib.make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    config = config_of(variant, start, talk, micro_batches=2, **more)
    run(config, tmp_path / "many", mesh)
    one, many = losses(tmp_path / "one"), losses(tmp_path / "many")
    assert many == pytest.approx(one, rel=1e-4)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--config.adapter.rank=-1"], "rank"),
        (["--config.adapter.targets=('q','z')"], "use some of q, k, v, o, gate, up"),
        (["--config.adapter.base=int8"], "adapter.base 'int8'; use one of compute"),
        (["--config.adapter.dropout=1.5"], "dropout"),
        (["--config.trust.method=sam"], "set adapter.rank to 0"),
    ],
)
def test_a_setting_that_means_nothing_is_one_line(
    flags, message, start, talk, tmp_path, capsys
):
    asked = ["train", f"--config={CONFIGS / 'tulu.py'}:tiny", "--dry-run"]
    asked += [f"--config.init_from={start}", f"--config.data.source={talk}"]
    asked += ["--config.adapter.rank=4", f"--workdir={tmp_path / 'run'}", *flags]
    assert cli.run(asked) == 2
    said = capsys.readouterr().err.strip()
    assert message in said
    assert "\n" not in said


def test_float32_and_compute_are_one_run_where_it_computes_in_float32(
    start, talk, tmp_path
):
    frozen = [
        lora.freeze(models.Decoder(DECODER), load.decoder(start).params, kept_in)
        for kept_in in ("compute", "float32")
    ]
    a, b = map(flat, frozen)
    assert all((a[path] == b[path]).all() for path in a)

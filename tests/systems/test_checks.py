"""The check of a config that `train` and `plan` share, and schedules of short runs."""

import json
import pathlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlab import cli, optim
from jaxlab.core import accelerators, config, errors
from jaxlab.systems import checks, short_runs

CONFIGS = pathlib.Path(__file__).with_name("configs.json")
OLMO = "configs/olmo.py:tiny"
CHIPS = ["--topology=v5e:2x4", "--mesh=data=8"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("steps=-5", "steps -5; use 0 to 2^31"),
        ("seed=-1", "seed -1; use 0 to 2^62"),
        ("micro_batches=0", "micro_batches 0; use 1 or more"),
        ("micro_batches=3", "set --config.micro_batches to a divisor"),
        ("eval_batches=-2", "eval_batches -2; use 0 or more"),
        ("z_loss=-1.0", "z_loss -1.0; use 0 or more"),
        ("loss_denominator=x", "use labels or olmo"),
        ("run.save_every=-1", "run.save_every -1; use 0 or more"),
        ("data.length=0", "data.length 0; use 2 or more"),
        ("data.length=256", "data.length 256 is longer than model.length 128"),
        ("data.batch_size=0", "data.batch_size 0; use 1 or more"),
        ("data.layout=rows", "data.layout 'rows'; use one of chunks, packed"),
        ("data.held_out_fraction=1.5", "held_out_fraction 1.5; use 0 to below 1"),
        ("data.files_dtype=uint17", "data.files_dtype 'uint17'; use one of"),
        ("model.kv_heads=3", "4 heads do not share 3 kv_heads evenly"),
        ("model.norm=batchnorm", "norm 'batchnorm'; use one of"),
        ("model.norm_position=mid", "norm_position 'mid'; use one of"),
        ("model.initializer=zeros", "initializer 'zeros'; use one of"),
        ("model.attention=flash", "attention 'flash'; use one of"),
        ("model.full_layers=(0,)", "full_layers without a window"),
        ("model.rope.theta=0.0", "rope theta 0.0 must be above 1"),
        ("optim.optimizer=lion", "optim.optimizer 'lion'; use one of adamw, sgd"),
        ("optim.schedule=step", "optim.schedule 'step'; use one of constant"),
        ("optim.warmup_steps=500", "lower --config.optim.warmup_steps or"),
        ("optim.no_decay=('nix',)", "optim.no_decay: pattern 'nix' matches no param"),
        ("trust.method=sma", "sma"),
        ("mesh.data=0", "mesh.data 0; use 1 or more"),
        ("model.kv_heads=-1", "model.kv_heads -1; use 0 or more"),
        ("model.norm_epsilon=nan", "model.norm_epsilon nan; use 0 or more"),
        ("model.initializer_std=-1.0", "initializer_std -1.0; use 0 or more"),
        ("model.clip_qkv=-1.0", "clip_qkv -1.0; use a number above 0"),
        ("data.weights.law=-1.0", "data.weights.law -1.0; use 0 or more"),
        ("seed=99999999999999999999", "use 0 to 2^62"),
        ("steps=99999999999", "use 0 to 2^31 - 1"),
        ("mesh.fsdp=-1", "mesh.fsdp -1; use 1 or more, or -1 on one axis"),
    ],
)
def test_plan_and_train_refuse_the_same_configs_in_the_same_words(
    tmp_path, monkeypatch, capsys, override, message
):
    monkeypatch.setattr(accelerators, "check", lambda: pytest.fail("asks for devices"))
    flag = f"--config.{override}"
    assert cli.run(["train", f"--config={OLMO}", f"--workdir={tmp_path}/w", flag]) == 2
    train = capsys.readouterr().err
    vocab = "--config.model.vocab=512"
    assert cli.run(["plan", f"--config={OLMO}", vocab, flag, *CHIPS]) == 2
    plan = capsys.readouterr().err
    assert message in train
    assert plan == train.replace("jaxlab train: ", "jaxlab plan: ", 1)
    assert plan.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_every_shipped_variant_passes_the_check():
    names = json.loads(CONFIGS.read_text("utf-8"))["sha256"]
    assert len(names) > 20
    for name in names:
        file, variant = name.split(":")
        checks.check(config.load(f"configs/{file}.py:{variant}"))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("preference.loss=dop", "dop"),
        ("data.style=chatml2", "data.style 'chatml2'; use one of"),
        ("data.begin=cls", "data.begin 'cls'; use one of bos, eos, none"),
        ("data.allowed=<think>", "set --config.data.style=own"),
        ("epochs=-1.0", "epochs -1.0; use 0 or more"),
    ],
)
def test_configs_of_tuning_are_checked_before_their_start_is_opened(override, message):
    flags = ["--config=configs/tulu.py:dpo_7b", f"--config.{override}", "--workdir=w"]
    with pytest.raises(errors.UserError, match=message):
        checks.check(config.parse(flags)[0])


@pytest.mark.parametrize(
    ("name", "override", "message"),
    [
        ("tulu:tiny_dpo", "preference.beta=-1.0", "beta -1.0; use a number above 0"),
        ("tulu:tiny_dpo", "preference.label_smoothing=0.5", "use 0 to below 0.5"),
        ("tulu:tiny_dpo", "preference.reference=after", "after"),
        ("tulu:tiny", "trust.method=sma", "sma"),
        ("refit:bi_encoder", "contrastive.temperature=0.0", "use a number above 0"),
        ("refit:bi_encoder", "data.query_length=0", "query_length 0; use 2 or more"),
        ("refit:bi_encoder", "mine.depth=0", "mine.depth 0; use 1 or more"),
        ("refit:cross_encoder", "data.candidates=1", "candidates 1; use 2 or more"),
        ("refit:cross_encoder", "prior=nan", "prior nan; use 0 or more"),
        ("refit:cross_encoder", "objective=pairs", "use one of listwise, pointwise"),
        ("refit:cross_encoder", "model.dtype=f12", "dtype 'f12'; use one of"),
        ("refit:bi_encoder", "micro_batches=2", "would leave out negatives: use 1"),
        ("refit:bi_encoder", "contrastive.chunks=3", "does not divide a batch of 32"),
        ("refit:bi_encoder", "model.attention=flash", "'flash'; use one of"),
        ("languages:adam", "trust.method=sma", "trust.method 'sma'; use one of"),
        ("languages:adam", "trust.anchor_decay=2.0", "use 0 to 1"),
        ("languages:adam", "data.eval_split=train", "use another split"),
        ("languages:adam", "model.remat=half", "remat 'half'; use one of"),
    ],
)
def test_what_has_its_sizes_from_its_start_is_checked_too(name, override, message):
    flags = [f"--config={name}", f"--config.{override}", "--workdir=w"]
    with pytest.raises(errors.UserError, match=message):
        checks.check(config.parse(flags)[0])


def test_rows_that_context_shards_do_not_divide_are_planned_as_they_are_trained(capsys):
    flags = [f"--config={OLMO}", "--config.data.length=127", "--config.model.vocab=512"]
    assert cli.run(["plan", *flags, CHIPS[0], "--mesh=data=4,context=2"]) == 0
    assert "8 x 127 tokens" in capsys.readouterr().out


# ------------------------------------------------------------------ short runs


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 400),
    st.integers(0, 400),
    st.integers(0, 400),
    st.integers(1, 4),
    st.integers(0, 399),
    st.sampled_from(["constant", "linear", "cosine", "wsd"]),
)
def test_a_schedule_that_fits_fits_into_every_shorter_run(
    steps, warmup, decay, cycles, less, schedule
):
    stated = config.load(OLMO)
    stated.steps = steps
    stated.optim.update(
        {
            "warmup_steps": warmup, "decay_steps": decay, "cycles": cycles,
            "schedule": schedule,
        }
    )  # fmt: skip

    def build(one):
        optim.build(optim.OptimConfig(**one.optim.to_dict()), one.steps)

    try:
        build(stated)
    except errors.UserError:
        return
    short = stated.copy_and_resolve_references()
    short.steps = min(less, steps)
    short_runs.shorten_schedule(short, stated)
    build(short)
    assert short.optim.warmup_steps <= warmup


def test_a_short_run_says_what_became_of_its_warm_up(caplog):
    flags = [f"--config={OLMO}", "--workdir=w", "--config.steps=10"]
    parsed, _ = config.parse(flags, short_runs.shorten_schedule)
    assert parsed.optim.warmup_steps == 1
    said = "10 steps instead of 200: optim.warmup_steps 20 -> 1, in proportion"
    assert said in caplog.text


@pytest.mark.parametrize("flag", ["steps=20", "optim.warmup_steps=15"])
def test_a_warm_up_that_fits_or_was_asked_for_stays(flag):
    flags = [f"--config={OLMO}", "--workdir=w", "--config.steps=20", f"--config.{flag}"]
    plain, settled = (
        config.parse(flags),
        config.parse(flags, short_runs.shorten_schedule),
    )
    assert plain[0].to_dict() == settled[0].to_dict()

"""Trust regions in the training loop: every row of TRAM's tables, by config alone."""

import dataclasses
import functools
import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxlab import models, objectives, optim, train
from jaxlab.core import checkpoint, errors, factored_logits, mesh, step, types
from jaxlab.systems import sections, trust_methods, trust_regions
from tests.support import climbs, devices, peers, runs
from tests.support.steps import check_what_is_said, furthest, steps_of

MODEL = dataclasses.replace(runs.CONFIG, scan=True)


def experiment(method, *, model=MODEL, **changes):
    settings = {k: changes.pop(k) for k in list(changes) if k in _FIELDS}
    config = trust_methods.TrustConfig(method, **settings)
    base = runs.experiment(model_config=model, **changes)
    task = objectives.language_model(base.model.apply)
    precise = None
    if config.second_pass:
        wide = dataclasses.replace(model, dtype=config.second_pass)
        precise = objectives.language_model(models.Decoder(wide).apply)
    return trust_regions.with_trust(base, task, config, precise=precise)


_FIELDS = {field.name for field in dataclasses.fields(trust_methods.TrustConfig)}


def apart(a, b):
    """Relative distance; of single numbers Adam moves tiny gradients either way."""
    flat = [np.concatenate([np.ravel(x) for x in jax.tree.leaves(t)]) for t in (a, b)]
    return np.linalg.norm(flat[0] - flat[1]) / np.linalg.norm(flat[0])


@pytest.fixture(scope="module")
def plain():
    return steps_of(experiment("plain"))


# Every row of the tables, with the oracles: test_experiments.py.
@pytest.mark.parametrize("method", ["plain", "asam"])
def test_every_method_steps_and_says_what_it_did(method, plain):
    found = plain if method == "plain" else steps_of(experiment(method))
    check_what_is_said(method, *found, plain[0])


@pytest.mark.slow
def test_the_radius_in_the_metrics_is_the_divergence_from_the_start():
    run = experiment("tram_theta0")
    params, rows = steps_of(run, 3)
    start, _ = steps_of(run, 0)
    before, _ = steps_of(run, 2)
    apply, batch = run.model.apply, run.batches(2)
    logits = [apply({"params": p}, batch["tokens"])[:, :-1] for p in (start, before)]
    expected = optim.kl_divergence(*logits)
    assert rows[2]["radius"] == pytest.approx(float(expected), rel=1e-4)
    assert furthest(params, before) > 0


def climbing(method, **changes):
    """An experiment whose radius is not lost in rounding."""
    # No noise for the Fisher information: every part would draw its own.
    sigma = 0.0 if method == "tram_fisher" else 0.01
    return experiment(method, radius_scale=10.0, sigma=sigma, **changes)


@functools.cache
def alone(method):
    """Its steps on one device, the whole batch at once."""
    return steps_of(climbing(method))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["tram_theta", "tram_x", "asam", "tram_fisher"])
def test_microbatches_change_nothing_but_rounding(method):
    whole, rows = alone(method)
    parts, rows_in_parts = steps_of(climbing(method, micro_batches=4))
    assert apart(whole, parts) < 1e-4
    for one, other in zip(rows, rows_in_parts, strict=True):
        assert one["radius"] == pytest.approx(other["radius"], rel=1e-3, abs=1e-9)


@pytest.mark.slow
def test_blocks_of_the_vocabulary_change_nothing_but_rounding():
    blocked = dataclasses.replace(MODEL, loss_block_bytes=64 * 5 * 4 * 8)
    whole = steps_of(experiment("r3f"))[0]
    blocks = steps_of(experiment("r3f", model=blocked))[0]
    assert furthest(whole, blocks) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("method", ["tram_theta", "tram_x", "asam", "mesa"])
def test_a_mesh_changes_nothing_but_rounding(method):
    shape = mesh.make_mesh({"fsdp": 4, "tensor": 2})
    one, eight = alone(method), steps_of(climbing(method), at=shape)
    for a, b in zip(one[1], eight[1], strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=2e-5)
    assert apart(one[0], eight[0]) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("method", ["tram_ema", "trpo"])
def test_a_run_killed_between_steps_continues_bit_for_bit(method, tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    run = experiment(method, steps=6)
    train.fit(run, whole, mesh=devices.one(), save_every=3)
    shutil.copytree(whole, cut)
    shutil.rmtree(cut / "checkpoints" / "6")
    train.fit(run, cut, mesh=devices.one())
    a, b = (checkpoint.load_params(folder, 6) for folder in (whole, cut))
    assert furthest(a, b) == 0.0
    rows = [json.loads(x) for x in (cut / "metrics.jsonl").read_text().splitlines()]
    again = [json.loads(x) for x in (whole / "metrics.jsonl").read_text().splitlines()]
    pick = lambda rows: [(r["loss"], r.get("radius")) for r in rows if "loss" in r]  # noqa: E731
    assert pick(rows) == pick(again)


@pytest.mark.slow
def test_the_second_pass_in_float32_sees_what_bf16_does_not():
    narrow = dataclasses.replace(MODEL, dtype="bfloat16")
    settings = {"method": "asam", "rho": 1e-3, "model": narrow}
    blind = steps_of(experiment(**settings), 1)
    sharp = steps_of(experiment(**settings, second_pass="float32"), 1)
    assert furthest(blind[0], sharp[0]) > 0
    assert all(np.isfinite(row["loss"]) for row in sharp[1])


def test_a_loss_that_explodes_at_the_perturbed_point_skips_the_step():
    run = experiment("asam", rho=1e30)
    start, _ = steps_of(run, 0)
    params, rows = steps_of(run, 1)
    assert rows[0]["skipped"] == 1
    assert np.isfinite(rows[0]["loss"])
    assert furthest(start, params) == 0.0


def test_r4f_is_evaluated_with_the_head_it_is_trained_with():
    seen = []
    run = experiment("r4f", evals={"own": lambda params: seen.append(params) or {}})
    params = steps_of(run, 0)[0]
    run.evals["own"](params)
    head = np.asarray(seen[0]["lm_head"]["kernel"])
    assert np.linalg.norm(head, 2) == pytest.approx(1, rel=0.02)
    assert seen[0]["embed"] is params["embed"]
    with pytest.raises(errors.UserError, match="untie"):
        trust_regions.normalize_head({"embed": 1}, trust_methods.TrustConfig("r4f"))


def test_a_section_asks_for_its_second_pass_in_the_same_model_of_another_dtype():
    base, dtypes = runs.experiment(), []

    def task(apply):
        dtypes.append(apply.__self__.config.dtype)
        return objectives.language_model(apply)

    section = sections.trust(method="asam", second_pass="bfloat16")
    run = trust_regions.from_section(base, section, task)
    assert run.update_args is not None
    assert dtypes == ["bfloat16", base.model.config.dtype]
    assert trust_regions.from_section(base, sections.trust(), task) is base


def test_an_unknown_method_is_refused():
    with pytest.raises(errors.UserError, match="tram_theta"):
        trust_methods.TrustConfig("tram")


# ---- penalties against the shared values


def toy_task():
    """The shared problem as a Task: its bias is one more hidden feature."""

    def answer(params, batch, noise=None):
        rows = params["embed"][batch["tokens"]]
        if noise is not None:
            rows = jax.lax.stop_gradient(rows) + noise
        hidden = jnp.tanh(
            jnp.mean(jnp.tanh(rows), axis=1) @ params["w1"] + params["b1"][None]
        )
        hidden = jnp.concatenate([hidden, jnp.ones((len(hidden), 1))], axis=1)
        return factored_logits.Factored(hidden, kernel(params))

    def kernel(params):
        return jnp.concatenate([params["w2"], params["b2"][None]])

    def loss(answer, batch):
        logps, _ = factored_logits.target_logps(answer, batch["labels"])
        return types.Loss(-jnp.sum(logps), jnp.float64(len(logps)), {})

    return objectives.Task(
        answer, kernel, loss, lambda batch: jnp.ones(len(batch["labels"]))
    )


@pytest.mark.parametrize("name", ["trpo", "mesa", "r3f"])
def test_shared_values_of_the_penalties(name, test_data, monkeypatch):
    values = peers.shared(test_data, "tram_refit")
    data = values(f"reg_{name}_sgd")
    with jax.enable_x64(True):
        params, far, ids, labels = climbs.shared_problem(values)
        task = toy_task()
        tx = optax.sgd(0.5)
        if name == "r3f":
            objective = objectives.r3f(task, 0.1)
        else:
            objective = objectives.near_anchor(task, 0.1)
            anchor = "ema" if name == "mesa" else "previous"
            tx = optax.chain(tx, optim.keep_anchor(anchor, decay=0.9))
        once = step.mean_and_grad(objective)
        opt_state = tx.init(params)
        if name == "mesa":
            opt_state = (opt_state[0], optim.AnchorState(far))
        for i in range(len(ids)):
            noise = jnp.asarray(data["noise"][i])
            monkeypatch.setattr(
                objectives.penalties, "input_noise", lambda *_, z=noise: z
            )
            batch = {"tokens": ids[i], "labels": labels[i]}
            frozen = None if name == "r3f" else optim.anchor_of(opt_state)
            loss, grads = once(params, batch, jax.random.key(0), frozen)
            updates, opt_state = tx.update(grads, opt_state, params)
            params = optax.apply_updates(params, updates)
            np.testing.assert_allclose(
                climbs.flat(params), data["params"][i], atol=1e-12
            )
            assert float(loss.metrics["penalty"]) == pytest.approx(
                float(data["penalty"][i]), abs=1e-12
            )


def test_the_config_of_every_row_of_the_tables_builds(tmp_path):
    names = (
        "sgd adam sam asam fsam trpo r3f r4f mesa tram_theta tram_theta0 tram_ema "
        "tram_x tram_fisher tiny"
    )
    from jaxlab.core import config as config_lib

    file = pathlib.Path(__file__).parents[2] / "configs" / "tram.py"
    for name in names.split():
        config = config_lib.load(f"{file}:{name}")
        settings = trust_methods.TrustConfig(**config.trust.to_dict())
        assert settings.method in trust_methods.methods()
        optim.build(optim.OptimConfig(**config.optim.to_dict()), config.steps)

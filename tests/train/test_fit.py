"""The loop: resume, meshes, guards, signals, bad input."""

import dataclasses
import json
import shutil
import signal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from jaxlab import cli, optim, train
from jaxlab.core import checkpoint, errors, mesh, step, tree, types
from tests.support import devices, runs
from tests.support.runs import launch, losses, wait_for_rows


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run on one device: 12 steps, saved at 4, 8 and 12."""
    workdir = tmp_path_factory.mktemp("whole")
    train.fit(runs.experiment(), workdir, mesh=devices.one(), save_every=4, keep=3)
    return workdir


def copy_upto(whole, target, last):
    """A copy of a run as if it had been killed after saving `last`."""
    shutil.copytree(whole, target, dirs_exist_ok=True)
    for found in checkpoint.steps(target / "checkpoints"):
        if found > last:
            shutil.rmtree(target / "checkpoints" / str(found))
    return target


def test_the_loss_falls_and_every_step_has_a_row(whole):
    values = losses(whole)
    assert len(values) == 12
    assert values[-1] < values[0] - 0.5
    rows = [json.loads(line) for line in (whole / "metrics.jsonl").open()]
    assert [row["step"] for row in rows] == list(range(1, 13))
    assert rows[0]["learning_rate"] == pytest.approx(5e-3)  # rate(1) of 2 warm-up steps
    assert all(row["mfu"] > 0 for row in rows)


def test_a_resumed_run_continues_bit_for_bit(whole, tmp_path):
    resumed = copy_upto(whole, tmp_path, 4)
    result = train.fit(runs.experiment(), resumed, mesh=devices.one())
    assert result.finished
    assert losses(resumed) == losses(whole)
    a = checkpoint.load_params(whole, 12)
    b = checkpoint.load_params(resumed, 12)
    assert all(jax.tree.leaves(jax.tree.map(lambda x, y: bool((x == y).all()), a, b)))


@pytest.mark.parametrize(
    "shape",
    [
        {"fsdp": 4, "tensor": 2},
        pytest.param({"data": 8}, marks=pytest.mark.slow),
        pytest.param({"data": 4, "context": 2}, marks=pytest.mark.slow),
    ],
)
def test_a_mesh_changes_nothing_but_rounding(whole, tmp_path, shape):
    train.fit(runs.experiment(), tmp_path, mesh=mesh.make_mesh(shape))
    np.testing.assert_allclose(losses(tmp_path), losses(whole), rtol=2e-5)


def test_a_run_saved_on_one_device_continues_on_a_mesh(whole, tmp_path):
    resumed = copy_upto(whole, tmp_path, 4)
    other = mesh.make_mesh({"fsdp": 4, "tensor": 2})
    state = train.fit(runs.experiment(), resumed, mesh=other, profile=1).state
    assert [*resumed.glob("profile/plugins/profile/*/*.xplane.pb")]
    kernel = state.params["blocks"]["mlp"]["up"]["kernel"]
    assert kernel.sharding.spec == jax.P(None, ("fsdp", "context"), "tensor")
    moment = state.opt_state[1].mu["blocks"]["mlp"]["up"]["kernel"]
    assert moment.sharding == kernel.sharding
    np.testing.assert_allclose(losses(resumed), losses(whole), rtol=2e-5)


@pytest.mark.slow
def test_microbatches_weigh_tokens_not_batches(tmp_path, whole):
    def uneven(step, rows=slice(None)):
        batch = runs.batches(step)
        mask = np.ones((8, 16), np.float32)
        mask[::2, 4:] = 0.0  # even rows have 3 labels, odd rows 15
        return {**batch, "loss_mask": mask}

    for count in (1, 4):
        changed = runs.experiment(3, batches=uneven, micro_batches=count)
        train.fit(changed, tmp_path / str(count), mesh=devices.one())
    np.testing.assert_allclose(
        losses(tmp_path / "1"), losses(tmp_path / "4"), rtol=1e-5
    )


def test_a_non_finite_step_changes_nothing_and_is_counted(tmp_path):
    experiment = runs.experiment(5)

    def objective(params, batch, *, key, frozen):
        loss = experiment.objective(params, batch, key=key, frozen=frozen)
        bad = batch["tokens"][0, 0] == batches(2)["tokens"][0, 0]
        return loss._replace(total=jnp.where(bad, jnp.nan, loss.total))

    def batches(step, rows=slice(None)):
        return runs.batches(step)

    changed = dataclasses.replace(experiment, objective=objective)
    state = train.fit(changed, tmp_path, mesh=devices.one()).state
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").open()]
    assert [row["skipped"] for row in rows] == [0, 0, 1, 0, 0]
    assert rows[2]["loss"] is None  # JSON has no NaN
    rates = [experiment.learning_rate(n) for n in (1, 2, 2, 3, 4)]  # used, not planned
    assert [row["learning_rate"] for row in rows] == pytest.approx(rates)
    assert "updates" not in rows[0]
    assert int(state.step) == 5
    assert int(state.opt_state[1].count) == 4  # the optimizer saw four steps
    assert all(bool(jnp.isfinite(x).all()) for x in jax.tree.leaves(state.params))


def test_too_many_bad_steps_stop_the_run_with_the_good_weights_on_disk(tmp_path):
    experiment = runs.experiment(12)

    def objective(params, batch, *, key, frozen):
        loss = experiment.objective(params, batch, key=key, frozen=frozen)
        return loss._replace(total=loss.total * jnp.where(frozen > 0, 1.0, jnp.nan))

    good = dataclasses.replace(experiment, objective=objective, frozen=jnp.ones(()))
    train.fit(dataclasses.replace(good, steps=4), tmp_path, mesh=devices.one())
    bad = dataclasses.replace(good, frozen=jnp.zeros(()))
    with pytest.raises(
        errors.UserError, match=r"3 steps in a row.*weights are.*step 4"
    ):
        train.fit(bad, tmp_path, mesh=devices.one(), max_skipped=3)
    params = checkpoint.load_params(tmp_path)
    assert all(bool(jnp.isfinite(x).all()) for x in jax.tree.leaves(params))


def divide_by_the_gradient():
    """A transform whose update is 0/0 wherever the gradient is 0."""

    def update(updates, state, params=None):
        return jax.tree.map(lambda g: -1e-3 * g / g, updates), state

    return optax.GradientTransformation(lambda params: (), update)


def overflow():
    """A finite update that the parameters cannot hold."""

    def update(updates, state, params=None):
        return jax.tree.map(lambda g: jnp.full_like(g, 3.4e38), updates), state

    return optax.chain(
        optax.GradientTransformation(lambda params: (), update), optax.trace(0.9)
    )


@pytest.mark.parametrize("transform", [divide_by_the_gradient, overflow])
def test_parameters_that_would_not_be_finite_are_never_written(tmp_path, transform):
    experiment = runs.experiment(4, tx=transform())
    with pytest.raises(errors.UserError, match=r"update was not finite in .* steps"):
        train.fit(experiment, tmp_path, mesh=devices.one(), save_every=1, max_skipped=3)
    assert checkpoint.steps(tmp_path / "checkpoints")
    params = checkpoint.load_params(tmp_path)
    assert all(bool(jnp.isfinite(x).all()) for x in jax.tree.leaves(params))


def test_a_run_in_which_every_step_was_skipped_does_not_end_well(tmp_path):
    experiment = runs.experiment(2, tx=divide_by_the_gradient())
    with pytest.raises(errors.UserError, match="2 steps in a row"):
        train.fit(experiment, tmp_path, mesh=devices.one())


def test_a_checkpoint_that_is_not_finite_is_not_called_good(tmp_path, whole, capsys):
    run = copy_upto(whole, tmp_path / "run", 4)
    state = train.fit(runs.experiment(4), run, mesh=devices.one()).state
    kernel = state.params["lm_head"]["kernel"].at[1, 2].set(jnp.nan)
    state.params["lm_head"]["kernel"] = kernel
    with checkpoint.Checkpointer(run / "checkpoints") as saver:
        saver.save(5, state)
    capsys.readouterr()
    assert cli.run(["checkpoint", "verify", str(run)]) == 1
    said = capsys.readouterr().out
    assert "step 5: not finite, 1 of" in said
    assert "params/lm_head/kernel (NaN or infinity)" in said
    assert cli.run(["checkpoint", "verify", str(run), "--step=4"]) == 0
    with pytest.raises(errors.UserError, match=r"5 holds NaN .* 1 of .*lm_head/kernel"):
        checkpoint.load_params(run)
    checkpoint.load_params(run, 4)
    with pytest.raises(errors.UserError, match=r"checkpoints/5, first lm_head/kernel"):
        train.fit(runs.experiment(), run, mesh=devices.one())
    shutil.rmtree(run / "checkpoints" / "5")  # as it says
    train.fit(runs.experiment(), run, mesh=devices.one())
    assert losses(run) == losses(whole)


def test_init_from_is_copied_and_must_fit(tmp_path, whole):
    start = checkpoint.load_params(whole)
    kernel = np.asarray(start["lm_head"]["kernel"]).copy()
    train.fit(runs.experiment(1, init_from=start), tmp_path, mesh=devices.one())
    np.testing.assert_array_equal(start["lm_head"]["kernel"], kernel)  # not donated
    lacking = {k: v for k, v in start.items() if k != "lm_head"}
    changed = runs.experiment(1, init_from=lacking)
    with pytest.raises(errors.UserError, match="lm_head/kernel"):
        train.fit(changed, tmp_path / "b", mesh=devices.one())


def test_nan_in_the_starting_weights_is_named(tmp_path, whole):
    start = checkpoint.load_params(whole)
    start["embed"]["embedding"] = start["embed"]["embedding"].at[3, 4].set(jnp.nan)
    changed = runs.experiment(1, init_from=start)
    with pytest.raises(errors.UserError, match=r"NaN.*embed/embedding"):
        train.fit(changed, tmp_path, mesh=devices.one())


def test_a_changed_config_is_refused_with_the_differing_keys(whole):
    changed = {"optim": {"learning_rate": 2e-2}, "mesh": {"data": 8}}
    with pytest.raises(errors.UserError) as raised:
        train.fit(runs.experiment(config=changed), whole, mesh=devices.one())
    assert "optim.learning_rate: 0.01 -> 0.02" in str(raised.value)
    assert "mesh" not in str(raised.value)  # where it runs may change


def test_data_that_vanishes_mid_run_loses_nothing(tmp_path, whole):
    def vanishing(step, rows=slice(None)):
        if step == 6:
            raise errors.UserError("tokens.npy was removed; put it back")
        return runs.batches(step)

    with pytest.raises(errors.UserError, match="put it back"):
        train.fit(runs.experiment(batches=vanishing), tmp_path, mesh=devices.one())
    assert checkpoint.steps(tmp_path / "checkpoints") == [6]
    train.fit(runs.experiment(), tmp_path, mesh=devices.one())
    assert losses(tmp_path) == losses(whole)


def test_rows_that_the_mesh_does_not_divide_are_refused(tmp_path):
    def six(step, rows=slice(None)):
        return {"tokens": runs.batches(step)["tokens"][:6]}

    with pytest.raises(errors.UserError, match="6 rows are not divisible by 8"):
        train.fit(runs.experiment(batches=six), tmp_path, mesh=mesh.make_mesh())


def test_ema_follows_the_parameters(tmp_path):
    state = train.fit(runs.experiment(1), tmp_path, mesh=devices.one()).state
    start = train.fit(runs.experiment(0), tmp_path / "b", mesh=devices.one()).state
    average = optim.ema_of(state.opt_state)["lm_head"]["kernel"]
    old, new = (s.params["lm_head"]["kernel"] for s in (start, state))
    np.testing.assert_allclose(average, 0.9 * old + 0.1 * new, atol=1e-6)


@pytest.fixture(scope="module")
def averaged(tmp_path_factory):
    """A run of three steps that keeps an average, and its last state."""
    workdir = tmp_path_factory.mktemp("averaged")
    run = train.fit(
        runs.experiment(3), workdir, mesh=devices.one(), save_every=1, keep=3
    )
    return workdir, run.state


def test_the_average_of_a_run_is_read_back_from_its_checkpoint(averaged):
    workdir, state = averaged
    average = checkpoint.load_params(workdir, average=True)
    assert tree.differences([checkpoint.load_params(workdir), average]) == []
    jax.tree.map(np.testing.assert_array_equal, average, optim.ema_of(state.opt_state))
    sharded = checkpoint.load_params(workdir, average=True, mesh=mesh.make_mesh())
    jax.tree.map(np.testing.assert_array_equal, average, sharded)
    narrow = checkpoint.load_params(workdir, average=True, dtype=jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(narrow)} == {jnp.dtype(jnp.bfloat16)}


def test_the_average_of_a_run_has_the_closed_form(averaged):
    workdir, _ = averaged
    second, third = (checkpoint.load_params(workdir, step) for step in (2, 3))
    first = checkpoint.load_params(workdir, 1, average=True)
    average = checkpoint.load_params(workdir, 3, average=True)
    wanted = jax.tree.map(
        lambda a, p, q: 0.9**2 * a + 0.9 * 0.1 * p + 0.1 * q, first, second, third
    )
    jax.tree.map(
        lambda got, to: np.testing.assert_allclose(got, to, atol=1e-6), average, wanted
    )


def test_a_run_without_an_average_is_named(tmp_path):
    train.fit(runs.experiment(1, tx=optax.sgd(0.1)), tmp_path, mesh=devices.one())
    with pytest.raises(errors.UserError, match=r"has no average .* --config.optim.ema"):
        checkpoint.load_params(tmp_path, average=True)


@pytest.mark.slow
def test_an_optimizer_that_asks_for_gradients_elsewhere_gets_them():
    seen = {}

    def update(updates, state, params, *, grad_fn, value, **extra):
        seen["same"] = jax.tree.map(jnp.subtract, grad_fn(params), updates)
        seen["extra"] = extra
        return jax.tree.map(lambda x: -0.1 * x + 0 * value, updates), state

    tx = optax.GradientTransformationExtraArgs(lambda params: (), update)
    experiment = runs.experiment(
        tx=tx, update_args=lambda params, batch, key, frozen: {"anchor": frozen}
    )
    params = experiment.model.init(jax.random.key(0), *experiment.example)["params"]
    state = types.TrainState(
        jnp.zeros((), jnp.int32), nn.unbox(params), (), jax.random.key(1)
    )
    new, metrics = step.make_step(experiment)(state, runs.batches(0), jnp.ones(()))
    assert set(seen["extra"]) == {"anchor"}
    assert float(metrics["skipped"]) == 0
    assert int(new.step) == 1


@pytest.mark.slow
def test_killed_runs_resume_bit_for_bit(tmp_path):
    """kill -9 around saves (every 2nd step) and between them; then to the end."""
    uninterrupted = launch(tmp_path / "whole")
    for rows in (2, 5, 8):
        process = launch(tmp_path / "killed")
        wait_for_rows(tmp_path / "killed", rows, process)
        process.kill()
        process.wait()
    process = launch(tmp_path / "killed")
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    assert uninterrupted.wait(timeout=120) == 0
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")


def test_sigterm_saves_and_exits_cleanly(tmp_path):
    process = launch(tmp_path, steps=100_000, save_every=100_000)
    wait_for_rows(tmp_path, 3, process)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    (saved,) = checkpoint.steps(tmp_path / "checkpoints")
    assert len(losses(tmp_path)) == saved
    assert f"stopped at step {saved}, saved" in output


@pytest.mark.slow
def test_a_second_run_in_the_same_folder_is_refused_at_once(tmp_path):
    process = launch(tmp_path, steps=100_000, save_every=100_000)
    wait_for_rows(tmp_path, 1, process)
    before = (tmp_path / "config.json").read_bytes()
    changed = runs.experiment(config={"optim": {"learning_rate": 1e-6}})
    with pytest.raises(errors.UserError, match=rf"pid {process.pid} on .* is writing"):
        train.fit(changed, tmp_path, mesh=devices.one())
    process.kill()
    process.wait()
    assert (tmp_path / "config.json").read_bytes() == before
    assert train.fit(changed, tmp_path, mesh=devices.one()).finished


@pytest.mark.parametrize("name", ["save_every", "eval_every", "keep", "log_seconds"])
def test_how_often_is_never_negative(tmp_path, name):
    with pytest.raises(errors.UserError, match=rf"^run\.{name} -1; use 0 or more"):
        train.fit(runs.experiment(), tmp_path / "run", **{name: -1})
    assert not (tmp_path / "run").exists()

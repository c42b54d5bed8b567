"""Rates and strengths are arguments of a compiled step, not part of the program."""

import dataclasses

import jax
import numpy as np
import optax
import pytest

from jaxlab import models, train
from jaxlab.core import mesh as mesh_lib
from jaxlab.core import shares
from jaxlab.core import state as state_lib
from jaxlab.core import step as step_lib
from jaxlab.systems import trust_methods
from jaxlab.systems.olmo import config as olmo_config
from jaxlab.systems.olmo import pretraining
from jaxlab.systems.tulu import config as tulu_config
from jaxlab.systems.tulu import preference_tuning
from tests.support import devices, runs, steps

SETTINGS = ((1.0, 1.0), (2.0, 3.0))
# One of each kind is tried always, the others with the oracles.
ROWS = [
    row if row in ("adam", "tram_theta") else pytest.param(row, marks=pytest.mark.slow)
    for row in trust_methods.ROWS
]
# Of every way in which a number gets into a step, one row.
COMPILED_IN = ("adam", "asam", "mesa", "r4f", "tram_x", "tram_ema")


def experiment(row, rate=1.0, strength=1.0, seed=0):
    config = olmo_config.pretraining()
    config.steps, config.seed, config.data.length = 4, seed, 16
    config.optim.learning_rate = 1e-3 * rate
    trust_methods.choose(config, row, strength=strength)
    model = models.Decoder(runs.CONFIG)
    return pretraining.experiment(config, model, batches=runs.batches)


def with_other_numbers(share):
    """An experiment whose optimizer and loss have other numbers than another's."""
    config = olmo_config.pretraining()
    config.steps, config.data.length, config.z_loss = 4, 16, 1e-5 * share
    for name in ("learning_rate", "weight_decay", "epsilon", "clip_norm", "ema"):
        config.optim[name] = 0.1 * share
    for name in ("beta1", "beta2", "warmup_start", "final"):
        config.optim[name] = 0.9 * share
    return pretraining.experiment(
        config, models.Decoder(runs.CONFIG), batches=runs.batches
    )


def lowered(made):
    with mesh_lib.use(devices.one()):
        target, _ = state_lib.abstract(made, devices.one())
        take = step_lib.make_step(made, target)
        return take.lower(target, runs.batches(0), None, made.traced).as_text()


@pytest.mark.parametrize("row", ROWS)
def test_another_rate_or_strength_is_no_other_program(row):
    programs = [
        lowered(experiment(row, rate, strength, seed))
        for seed, (rate, strength) in enumerate(SETTINGS)
    ]
    assert len({*programs}) == 1


def test_another_number_of_an_optimizer_or_a_loss_is_no_other_program():
    assert lowered(with_other_numbers(0.5)) == lowered(with_other_numbers(0.75))


@pytest.mark.parametrize(
    ("loss", "is_compiled_in"),
    [("sigmoid", set()), ("ipo", {"beta"}), ("robust", {"label_smoothing"})],
)
def test_numbers_of_a_preference_are_arguments_where_no_bit_changes(
    loss, is_compiled_in
):
    config = tulu_config.preferences()
    config.steps, config.preference.loss = 4, loss
    made = preference_tuning.dpo_experiment(
        config, models.Decoder(runs.CONFIG), batches=None
    )
    names = {"beta", "label_smoothing", "target_margin"}
    traced = {name for name in names if f"preference.{name}" in made.traced}
    assert traced == names - is_compiled_in


def test_one_minus_a_decay_is_taken_before_it_is_rounded():
    made = with_other_numbers(0.5)
    assert made.traced["1 - optim.beta1"] == 1 - made.traced["optim.beta1"]
    decay = shares.Share(0.999, 1 - 0.999)
    assert jax.jit(lambda x: 1 - x)(decay) == np.float32(1 - 0.999)
    assert jax.jit(lambda x: 1 - x.value)(decay) != np.float32(1 - 0.999)


@pytest.fixture(scope="module")
def adam():
    made = experiment("adam", 2.0, 3.0)
    return steps.steps_of(made, numbers=made.traced)


@pytest.mark.slow
@pytest.mark.parametrize("row", trust_methods.ROWS)
def test_a_row_says_what_it_did_and_a_number_does_what_it_did_compiled_in(row, adam):
    made, method = experiment(row, 2.0, 3.0), trust_methods.ROWS[row].method
    given = adam if row == "adam" else steps.steps_of(made, numbers=made.traced)
    steps.check_what_is_said(method, *given, adam[0])
    if row in COMPILED_IN:
        losses = [
            [row["loss"] for row in rows] for _, rows in (given, steps.steps_of(made))
        ]
        np.testing.assert_allclose(*losses, rtol=1e-6)


def test_an_experiment_whose_parts_were_replaced_trains_what_they_say(tmp_path):
    made = experiment("adam")
    still = dataclasses.replace(made, tx=optax.set_to_zero())
    assert made.traced
    assert still.traced == {}
    assert dataclasses.replace(made, steps=2, evals={}).traced == made.traced
    state = train.fit(still, tmp_path, mesh=devices.one()).state
    target, _ = state_lib.abstract(made, devices.one())
    start = state_lib.initial(made, target).params
    jax.tree.map(np.testing.assert_array_equal, state.params, start)


@pytest.mark.slow
def test_runs_of_a_study_share_one_program_and_keep_their_own_numbers(tmp_path):
    shared, alone = {}, tmp_path / "alone"
    for rate, strength in SETTINGS:
        made = experiment("adam", rate, strength)
        folder = tmp_path / f"{rate}"
        train.fit(made, folder, mesh=devices.one(), programs=shared)
    assert len(shared) == 1
    train.fit(experiment("adam", *SETTINGS[1]), alone, mesh=devices.one())
    assert runs.losses(alone) == runs.losses(tmp_path / "2.0")
    assert runs.losses(alone) != runs.losses(tmp_path / "1.0")

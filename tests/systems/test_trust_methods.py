"""The table of TRAM's optimizers: one row is all that an optimizer needs."""

import dataclasses
import pathlib

import jax
import pytest

from jaxlab import objectives, optim
from jaxlab.core import config as config_lib
from jaxlab.core import errors, mesh, state, step
from jaxlab.optim import sharpness_aware
from jaxlab.plan import shape as shapes
from jaxlab.systems import trust_methods, trust_regions
from jaxlab.systems.planning import shapes as planning
from jaxlab.systems.tram import study
from tests.support import runs

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"
TOY = trust_methods.Row(
    "Toy",
    "nobody",
    method="toy",
    settings={"rho": 0.25},
    strength="rho",
    transform=f"{__name__}:toy",
    arguments=("rho",),
    constants={"twice": True},
    passes=shapes.Passes(trained=2, copies=3),
)


def toy(optimizer, rho, *, twice, **options):
    """The optax transform of TOY: SAM of twice the radius."""
    return sharpness_aware.sam(optimizer, rho * (1 + twice), **options)


@pytest.fixture
def table(monkeypatch):
    """The table with one row more, and nothing else."""
    monkeypatch.setitem(trust_methods.ROWS, "toy", TOY)


def trust(method):
    return trust_methods.TrustConfig(method, rho=0.25)


def test_a_new_row_is_a_variant_of_both_configs(table):
    for file in ("tram", "languages"):
        config = config_lib.load(f"{CONFIGS / file}.py:toy")
        assert (config.trust.method, config.trust.rho) == ("toy", 0.25)


def test_a_new_row_is_compared_by_the_study_and_tuned_by_its_strength(table):
    assert study.Study().rows[-1] == "toy"
    assert study.Study().grid("toy") == (study.RATES, study.STRENGTHS)
    study.check(study.Study(rows=("adam", "toy")))
    config = config_lib.load(f"{CONFIGS / 'tram'}.py:adam")
    config = study.configure(config, study.Setting("toy", 2.0, 3.0), seed=0)
    assert config.trust.rho == pytest.approx(0.75)
    assert config.optim.learning_rate == pytest.approx(2e-3)


def test_a_new_row_is_planned_with_its_passes(table):
    flags = ["--config.model.vocab=256", "--workdir=."]
    config, _ = config_lib.parse([f"--config={CONFIGS / 'tram'}.py:toy", *flags])
    assert planning.shape(config).passes == TOY.passes


@pytest.mark.slow
def test_a_new_row_trains(table):
    base = runs.experiment()
    task = objectives.language_model(base.model.apply)
    run = trust_regions.with_trust(base, task, trust("toy"))
    at = mesh.make_mesh({"data": 1}, jax.devices()[:1])
    with mesh.use(at):
        target, _ = state.abstract(run, at)
        _, metrics = step.make_step(run, target)(
            state.initial(run, target), mesh.global_batch(run.batches, 0, at), None
        )
    assert float(metrics["radius"]) == pytest.approx(0.5)
    assert not metrics["skipped"]


def test_without_its_row_it_is_refused_everywhere():
    with pytest.raises(errors.UserError, match="'toy'; use one of plain, sam"):
        trust("toy")
    with pytest.raises(errors.UserError, match="no optimizer toy; use sgd, adam"):
        study.check(study.Study(rows=("toy",)))
    with pytest.raises(errors.UserError, match="variant 'toy'; use one of sgd"):
        config_lib.load(f"{CONFIGS / 'tram'}.py:toy")


def test_every_row_sets_what_there_is_and_is_tuned_by_what_it_reads():
    fields = {field.name for field in dataclasses.fields(trust_methods.TrustConfig)}
    for name, row in trust_methods.ROWS.items():
        assert {*row.settings, *row.arguments} <= fields, name
        if row.strength:
            reads = {*row.arguments} | ({"weight"} if row.penalty else set())
            assert row.strength in reads, name


def test_rows_that_share_a_method_share_how_it_trains():
    free = {"label": "", "reference": "", "optim": {}, "rate_scale": 1.0}
    free |= {"is_compared": True, "settings": {}}
    for row in trust_methods.ROWS.values():
        first = trust_methods.of(row.method)
        assert dataclasses.replace(row, **free) == dataclasses.replace(first, **free)


@pytest.mark.parametrize(
    ("row", "copies"),
    [("tram_theta", 0.5), ("trpo", 0.5), ("tram_ema", 1.0), ("mesa", 1.0)],
)
def test_a_narrow_anchor_is_half_a_copy_but_for_averages(row, copies):
    config = config_lib.load(f"{CONFIGS / 'tram'}.py:{row}")
    config.trust.anchor_dtype = "bfloat16"
    assert trust_methods.passes(config.trust).copies == copies
    base = runs.experiment()
    task = objectives.language_model(base.model.apply)
    settings = trust_methods.TrustConfig(**config.trust.to_dict())
    tx = trust_regions.with_trust(base, task, settings).tx
    params = {"w": jax.numpy.ones(2)}
    anchor = optim.anchor_of(jax.eval_shape(tx.init, params))["w"]
    assert anchor.dtype.itemsize == 4 * copies


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rho": -0.1}, "trust.rho -0.1; use 0 or more"),
        ({"gamma": float("nan")}, "trust.gamma nan; use 0 or more"),
        ({"weight": float("inf")}, "trust.weight inf; use 0 or more"),
        ({"anchor_decay": 1.5}, "trust.anchor_decay 1.5; use 0 to 1"),
        ({"anchor_dtype": "bf16"}, "trust.anchor_dtype 'bf16'; use one of '', float32"),
        ({"second_pass": "half"}, "trust.second_pass 'half'; use one of"),
        ({"direction": "back"}, "trust.direction 'back'; use one of forward"),
        ({"noise": "gauss"}, "trust.noise 'gauss'; use one of normal, uniform"),
    ],
)
def test_settings_out_of_range_are_refused_with_their_key(changes, message):
    with pytest.raises(errors.UserError, match=message):
        trust_methods.TrustConfig("asam", **changes)

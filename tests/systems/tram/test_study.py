"""The comparison of optimizers: what is tuned on what, what is kept, what is said."""

import dataclasses
import fcntl
import json
import pathlib
import shutil
import types

import jax
import numpy as np
import pytest

from jaxlab import cli, models, objectives, optim
from jaxlab.commands import arguments
from jaxlab.core import errors, mesh, state
from jaxlab.evals import perplexity, sharpness
from jaxlab.systems import branches, trust_methods, trust_regions
from jaxlab.systems.olmo import config as olmo_config
from jaxlab.systems.olmo import pretraining
from jaxlab.systems.tram import domains, report
from jaxlab.systems.tram import study as study_lib
from tests.support import devices
from tests.support import runs as runs_lib


@pytest.fixture(scope="module")
def protocol():
    config = olmo_config.pretraining()
    config.steps = 4
    config.optim.update({"learning_rate": 1e-2, "schedule": "constant"})
    model = models.Decoder(runs_lib.CONFIG)
    task = objectives.language_model(model.apply)

    def evaluate(first):
        batches = [runs_lib.batches(first)]
        return lambda params: perplexity.evaluate(model.apply, params, batches)

    def system(config, workdir, mesh):
        del workdir, mesh
        tx, _ = optim.build(optim.OptimConfig(**config.optim.to_dict()), config.steps)
        base = dataclasses.replace(
            runs_lib.experiment(config.steps),
            tx=tx,
            seed=0,  # of the parameters; the data order is the seed of the study
            batches=shifted(config.data.seed),
            evals={"own": evaluate(10**6), "far": evaluate(10**7)},
            config=config.to_dict(),
        )
        return trust_regions.with_trust(
            base, task, trust_methods.TrustConfig(**config.trust.to_dict())
        )

    experiment = system(config, None, None)
    at = devices.one()
    with mesh.use(at):
        target, _ = state.abstract(experiment, at)
        start = state.initial(experiment, target).params
    return study_lib.Protocol(
        config=config, system=system, task=task, metric="perplexity",
        higher_is_better=False, tuned_on="own", source="own", targets=("far",),
        surface=[runs_lib.batches(0)], probes={"far": [runs_lib.batches(10**7)]},
        start=start,
    )  # fmt: skip


def shifted(seed):
    def batches(step, rows=slice(None)):
        return runs_lib.batches(step + 100 * seed, rows)

    batches.rows = 8
    return batches


@pytest.fixture(scope="module")
def done(protocol, tmp_path_factory):
    # One folder for all processes of the tests: who comes second finds finished runs.
    workdir = tmp_path_factory.getbasetemp().parent / "tram_study"
    workdir.mkdir(exist_ok=True)
    study = study_lib.Study(rows=("adam", "tram_theta"), seeds=2, rates=(1.0,))
    seen = []
    with (workdir / "lock").open("w") as lock, pytest.MonkeyPatch.context() as patch:
        fcntl.flock(lock, fcntl.LOCK_EX)
        patch.setattr(study_lib, "RADIUS_SCALES", (1.0, 10.0))
        runs = study_lib.run(
            study, protocol, workdir, done=lambda *news: seen.append(news)
        )
    return workdir, study, runs, seen


@pytest.mark.slow
def test_every_optimizer_is_tuned_on_the_source_alone_and_then_run_by_seed(done):
    workdir, _, runs, seen = done
    assert [count for _, count, _ in seen] == list(range(1, 2 + 4 + 1))
    assert {total for *_, total in seen} == {6}
    tried = sorted(workdir.glob("runs/tram_theta/*/tuning/result.json"))
    assert len(tried) == 2
    scores = []
    for file in tried:
        content = json.loads(file.read_text())
        assert list(content["evals"]) == ["own"]  # nothing of the target is seen
        scores.append((content["evals"]["own"]["perplexity"], file.parent.parent))
    assert min(scores)[1].name == runs["tram_theta"][0].setting.name.split("/")[1]
    assert not list(workdir.glob("runs/adam/*/tuning"))  # one setting, no choice
    for row, some in runs.items():
        assert [run.seed for run in some] == [0, 1]
        assert {run.setting.row for run in some} == {row}
        for run in some:
            assert np.isfinite([run.eigenvalue, run.sharpness, run.drift]).all()
            assert 0 < run.drift < 1
            assert run.sharpness > 0
        assert some[0].evals["far"] != some[1].evals["far"]


def test_the_rate_is_tuned_at_the_papers_strength_and_then_the_strength(
    protocol, tmp_path, monkeypatch
):
    tried = []

    def train(protocol, setting, seed, folder, is_tuning):
        tried.append((setting.rate, setting.strength, is_tuning))
        score = abs(setting.rate - 2.0) + abs(setting.strength - 0.3)
        return study_lib.Run(setting, seed, {"own": {"perplexity": score}}, 1.0)

    monkeypatch.setattr(study_lib, "_train", train)
    seen = []
    study = study_lib.Study(rows=("asam", "adam"), seeds=2)
    runs = study_lib.run(
        study, protocol, tmp_path, done=lambda *news: seen.append(news)
    )
    rates = [(0.5, 1.0), (1.0, 1.0), (2.0, 1.0)]
    chosen = [setting[:2] for setting in tried if setting[2]]
    assert chosen == [*rates, (2.0, 0.3), (2.0, 3.0), *rates]
    assert runs["asam"][0].setting == study_lib.Setting("asam", 2.0, 0.3)
    assert runs["adam"][0].setting == study_lib.Setting("adam", 2.0, 1.0)
    assert seen[-1][1:] == (12, 12)


@pytest.mark.slow
def test_a_study_of_rates_and_strengths_compiles_one_step_per_optimizer(
    protocol, tmp_path, monkeypatch
):
    flat = types.SimpleNamespace(value=1.0)
    monkeypatch.setattr(sharpness, "top_eigenvalue", lambda *args, **kwargs: flat)
    monkeypatch.setattr(sharpness, "epsilon_sharpness", lambda *args, **kwargs: 1.0)
    model = models.Decoder(runs_lib.CONFIG)

    def system(config, workdir, mesh):
        del workdir, mesh
        evals = {"own": lambda params: {"perplexity": 1.0}}
        return dataclasses.replace(
            pretraining.experiment(config, model, batches=shifted(config.data.seed)),
            evals=evals | {"far": evals["own"]},
        )

    config = olmo_config.pretraining()
    config.steps, config.data.length = 2, 16
    counted = dataclasses.replace(protocol, config=config, system=system)
    compiled = []

    def listen(event, seconds, **said):
        if event.endswith("backend_compile_duration"):
            compiled.append(said["fun_name"])

    jax.monitoring.register_event_duration_secs_listener(listen)
    study = study_lib.Study(rows=("adam", "tram_theta"), seeds=2, rates=(0.5, 1, 2))
    try:
        runs = study_lib.run(study, counted, tmp_path)
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert {row: len(some) for row, some in runs.items()} == dict.fromkeys(runs, 2)
    tried = {row: len([*tmp_path.glob(f"runs/{row}/*/tuning")]) for row in study.rows}
    assert tried == {"adam": 3, "tram_theta": 5}
    assert compiled.count("jit(step)") == len(study.rows)


def test_seeds_are_matched_between_optimizers(protocol):
    configs = [
        study_lib.configure(protocol.config, study_lib.Setting(row, 0.5, 3.0), seed=4)
        for row in ("adam", "tram_x", "sam")
    ]
    assert {config.data.seed for config in configs} == {1004}
    assert {config.optim.learning_rate for config in configs} == {5e-3}
    assert configs[1].trust.radius_scale == 3.0
    assert configs[2].trust.rho == pytest.approx(0.15)
    assert protocol.config.optim.learning_rate == 1e-2  # not changed


@pytest.mark.slow
def test_a_finished_run_is_not_repeated_and_weights_are_not_kept(
    done, protocol, monkeypatch
):
    workdir, study, runs, _ = done
    monkeypatch.setattr(study_lib, "RADIUS_SCALES", (1.0, 10.0))
    assert not list(workdir.glob("runs/**/checkpoints"))
    again = dataclasses.replace(protocol, system=None)  # would fail if it were called
    assert study_lib.run(study, again, workdir) == runs


@pytest.mark.slow
def test_the_report_has_the_numbers_of_the_runs(done, protocol):
    workdir, _, runs, _ = done
    table = report.write(workdir, runs, protocol, "Which is best?", 1.0)
    numbers = json.loads((workdir / "report.json").read_text())
    page = (workdir / "report.html").read_text()
    assert "Which is best?" in page
    assert "Does the paper" in page
    first = page.split("</h1>")[1].split("</p>")[0]
    assert f"{table[0].row} has the best mean perplexity" in first
    assert "too few for any test" in first
    assert "the setting that was best on own" in first
    report.write(workdir, runs, protocol, "Which is best?", 1.0, tuned=False)
    page = (workdir / "report.html").read_text()
    assert "setting that was best" not in page  # it was not looked for
    by_row = {row["row"]: row for row in numbers["table"]}
    far = [run.evals["far"]["perplexity"] for run in runs["tram_theta"]]
    ours = by_row["tram_theta"]
    assert ours["zero_shot"][0] == pytest.approx(np.mean(far))
    gap = np.subtract(far, [run.evals["far"]["perplexity"] for run in runs["adam"]])
    assert ours["against"]["adam"]["mean"] == pytest.approx(gap.mean())
    assert [row.zero_shot[0] for row in table] == sorted(r.zero_shot[0] for r in table)
    (said,) = numbers["verdicts"]
    found = table[[row.row for row in table].index("tram_theta")].against["adam"]
    word = "better" if found.mean < 0 else "worse"
    is_one = (found.low > 0 or found.high < 0) and found.p_value < 0.05
    said_so = f"{word} than" if is_one else "not different from"
    assert f"tram_theta is {said_so} adam" in said


def test_mistakes_end_in_one_line(protocol, tmp_path):
    with pytest.raises(errors.UserError, match="no optimizer tramm; use sgd, adam"):
        study_lib.run(study_lib.Study(rows=("tramm",)), protocol, tmp_path)
    with pytest.raises(errors.UserError, match="1 is too few seeds"):
        study_lib.run(study_lib.Study(seeds=1), protocol, tmp_path)
    code = pathlib.Path(study_lib.__file__).parent
    for name, folder in (("a", code), ("b", code.parent / "data_ablation")):
        (tmp_path / "text" / name).mkdir(parents=True)
        for file in folder.glob("*.py"):
            shutil.copy(file, tmp_path / "text" / name / f"{file.stem}.txt")
    with pytest.raises(errors.UserError, match=r"no domain law in .*; there are a, b$"):
        domains.protocol(str(tmp_path / "text"), "law", tmp_path / "w", size="quick")
    for wrong, message in (
        ({"targets": ("b", "law")}, "no held-out text of law; there is a, b"),
        ({"pretrained_on": ("law",)}, "no domain law in"),
        ({"targets": ("a",)}, "a is what is fine-tuned on"),
    ):
        with pytest.raises(errors.UserError, match=message):
            domains.protocol(str(tmp_path / "text"), "a", tmp_path / "w", **wrong)
    assert not (tmp_path / "w").exists()  # names are looked at before the text is


def test_the_command_line_knows_both_protocols():
    args = cli.parse(
        "tram", ["domains", "W", "--data", "embedded", "--source", "legal"]
    )
    assert (args.action, args.seeds, args.optimizers) == ("domains", 6, ())
    args = cli.parse(
        "tram",
        ["languages", "W", "--data", "D", "--model", "M", "--optimizers", "adam,asam"],
    )
    assert args.optimizers == ("adam", "asam")
    with pytest.raises(arguments.UsageError, match="--source"):
        cli.parse("tram", ["domains", "W", "--data", "embedded"])


@pytest.mark.parametrize(("own", "batches"), [(0, 8), (3, 3)])
def test_a_start_that_was_trained_without_evaluations_is_evaluated(
    tmp_path, own, batches
):
    recipe = branches.recipe_at_size("quick", "embedded", tmp_path)
    recipe.base.eval_batches = own
    config = domains.fine_tuning(recipe, tmp_path / "start", "law")
    assert config.eval_batches == batches
    assert config.init_from == str(tmp_path / "start")

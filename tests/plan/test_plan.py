"""`jaxlab plan`: arithmetic against published runs and against the compiler."""

import dataclasses
import json
import pathlib
import statistics

import pytest

from jaxlab import cli, models, plan
from jaxlab.core import config as config_lib
from jaxlab.core import errors
from jaxlab.core import mesh as mesh_lib
from jaxlab.merge.files.recipe import methods
from jaxlab.plan import merging, topology
from jaxlab.plan import shape as shapes
from jaxlab.systems.planning import shapes as shapes_lib
from tests.support import plan_rows, runs

ROOT = pathlib.Path(__file__).parents[2]
GIB = 2**30
OLMO_7B = ["plan", f"--config={ROOT}/configs/olmo.py:7b"]
V5E = "--topology=v5e:16x16"


def config(name="olmo.py:7b", *flags):
    path = f"--config={ROOT}/configs/{name}"
    return config_lib.parse([path, "--workdir=.", *flags])[0]


def shape_7b(**changes):
    return dataclasses.replace(shapes_lib.shape(config()), **changes)


# ---- against measurements


@pytest.mark.parametrize("row", plan_rows.PEAKS, ids=lambda row: row.topology)
def test_memory_is_within_12_percent_of_the_compilers(row):
    memory = row.plan().memory
    assert memory.total / GIB == pytest.approx(row.peak, rel=0.12)
    assert memory.state / GIB == pytest.approx(row.state, rel=1e-3, abs=0.01)


@pytest.mark.parametrize("row", plan_rows.TRUE_PEAKS, ids=lambda row: row.name)
def test_the_true_step_fits_where_the_compiler_says_so_and_within_12_percent(row):
    shape = shapes_lib.shape(config(row.config, f"--config.data.batch_size={row.rows}"))
    found = plan.estimate(shape, plan.parse(row.topology, row.slices), row.mesh)
    assert found.fits == (row.peak is not None)
    if row.peak is not None:
        assert found.memory.total / GIB == pytest.approx(row.peak, rel=0.12)


def test_no_published_run_is_above_its_bound_and_12_of_13_are_in_the_range():
    inside = []
    for row in plan_rows.SPEEDS:
        found = row.plan().utilisation("dense")
        assert row.reached / 100 < found["bound"], row.name
        inside.append(found["low"] <= row.reached / 100 <= found["high"])
    assert len(inside) == 13
    assert sum(inside) >= 12


def test_a_published_run_left_out_is_predicted_by_the_others_within_7_percent():
    groups = {}
    for row in plan_rows.SPEEDS:
        reached = row.reached / 100 / row.plan().utilisation("dense")["bound"]
        groups.setdefault(row.topology.startswith("v6e"), []).append(reached)
    misses = [
        abs(statistics.mean(ratios[:i] + ratios[i + 1 :]) / ratios[i] - 1)
        for ratios in groups.values()
        for i in range(len(ratios))
    ]
    assert statistics.mean(misses) <= 0.07


def test_the_7b_on_256_v5e_is_as_worked_out_by_hand():
    found = plan.estimate(shape_7b(), plan.parse("v5e:16x16"), config().mesh.to_dict())
    assert found.mesh == {"slice": 1, "data": 16, "fsdp": 16, "context": 1, "tensor": 1}
    assert found.shape.params == 6_888_095_744
    assert found.times.compute == pytest.approx(4.37, abs=0.01)
    # 15/16 of two gathers and a reduction of all weights and the head, over 90 GB/s.
    weights, head = 32 * (4 * 4096**2 + 3 * 4096 * 11_008), 4096 * 50_304
    assert found.times.fsdp == pytest.approx(
        15 / 16 * 6 * (weights + head) / 90e9, rel=1e-9
    )
    assert found.utilisation("dense")["bound"] == pytest.approx(0.82, abs=0.005)
    assert found.utilisation("dense")["likely"] == pytest.approx(0.58, abs=0.005)
    assert found.times.likely == pytest.approx(6.2, abs=0.06)
    assert found.fits
    assert found.days(2e12)[1] == pytest.approx(34.5, abs=0.2)


# ---- FLOPs


def test_useful_flops_are_those_that_the_model_reports_in_both_conventions():
    shape = shape_7b()
    found = planned_flops(shape)
    model = models.TransformerConfig(
        vocab=50_304, embed=4096, layers=32, heads=32, mlp=11_008
    )
    for name, causal in (("dense", False), ("causal", True)):
        expected = model.flops_per_token(2048, causal=causal) * shape.step_tokens
        assert getattr(found, name) == pytest.approx(expected, rel=1e-12)


def test_every_remat_policy_of_the_models_is_known_and_costs_what_it_repeats():
    computed = [
        planned_flops(shape_7b(remat=name)).recomputed
        for name in ("none", "dots", "qkvo", "full")
    ]
    assert set(models.config.REMAT) <= set(shapes.RECOMPUTED)
    assert computed[0] == 0
    assert computed == sorted(computed)
    gate_up = 2 * 2 * 32 * 4096 * 11_008 * shape_7b().step_tokens
    assert computed[2] - computed[1] == pytest.approx(gate_up)


def test_a_window_leaves_the_keys_that_it_shows():
    plain, near = shape_7b(), shape_7b(window=512, full_layers=8)
    keys = (8 * 1024 + 24 * (512 - 512**2 / 4096)) / (32 * 1024)
    attention = planned_flops(near).attention / planned_flops(plain).attention
    assert attention == pytest.approx(keys)


def planned_flops(shape):
    return plan.estimate(shape, plan.parse("v5e:16x16"), {"data": 16, "fsdp": 16}).flops


# ---- meshes and wires


def test_the_axes_of_plans_are_those_of_meshes():
    assert topology.AXES == mesh_lib.MESH_AXES


@pytest.mark.parametrize(
    ("name", "sizes", "fsdp"),
    [
        ("v5e:16x16", {"data": 16, "fsdp": 16}, [(16, True)]),
        ("v5e:16x16", {"data": 32, "fsdp": 8}, [(8, False)]),
        ("v5e:8x8", {"fsdp": 64}, [(8, False), (8, False)]),
        ("v5p:4x8x8", {"data": 4, "fsdp": 64}, [(8, True), (8, True)]),
        ("v5e:16x16", {"data": 4, "fsdp": 64}, [(16, True), (4, False)]),
    ],
)
def test_an_axis_gets_whole_dimensions_where_it_can_and_rings_only_then(
    name, sizes, fsdp
):
    where = plan.parse(name)
    found = topology.shares(where, topology.mesh(where, sizes))["fsdp"]
    assert sorted(share[:2] for share in found) == sorted(fsdp)


def test_a_whole_slice_as_one_axis_reduces_by_all_reduce_and_says_so():
    where = plan.parse("v5e:16x16")
    whole = plan.estimate(shape_7b(), where, {"fsdp": 256})
    part = plan.estimate(shape_7b(), where, {"fsdp": 16, "data": 16})
    assert whole.bytes.reductions > 1.9 * part.bytes.reductions
    assert any("all-reduce" in line for line in plan.warnings(whole))
    assert not any("all-reduce" in line for line in plan.warnings(part))
    oblong = plan.parse("v5e:4x8")
    assert not topology.reduces_all(oblong, topology.mesh(oblong, {"fsdp": 32}))


def test_context_shards_share_state_and_tokens_and_warn_of_the_last_part():
    where, shape = plan.parse("v5e:16x16"), shape_7b()
    rows = {"data": 16, "fsdp": 16}
    parts = topology.mesh(where, {"data": 8, "fsdp": 16, "context": 2})
    short, long = (plan.estimate(shape, where, sizes) for sizes in (rows, parts))
    assert long.memory.state == pytest.approx(short.memory.state / 2)
    assert long.memory.activations == pytest.approx(short.memory.activations)
    assert long.bytes.context > 0 == short.bytes.context
    assert any("last part of a row" in line for line in plan.warnings(long))


def test_gpus_share_their_nodes_links_and_come_in_nodes_of_eight():
    where = plan.parse("h100:4x8")
    shares = topology.shares(where, topology.mesh(where, {"data": 2, "fsdp": 16}))
    # Two nodes: each GPU sends an eighth of what its node must hear.
    assert topology.rate(where, shares["fsdp"]) == min(360e9, 8 * 40e9)
    assert topology.rate(where, shares["data"]) == 40e9
    inside = topology.shares(where, topology.mesh(where, {"data": 4, "fsdp": 8}))
    assert topology.rate(where, inside["fsdp"]) == 360e9
    assert not topology.reduces_all(where, {"fsdp": 32})
    with pytest.raises(errors.UserError, match="h100:NODESx8"):
        plan.parse("h100:8x16")
    found = plan.estimate(shape_7b(), plan.parse("h100:8x8"), {"fsdp": 64})
    assert found.memory.state == pytest.approx(12 * found.shape.params / 64)
    assert "no published runs" in plan.warnings(found)[-1]


def test_slices_exchange_gradients_over_the_network():
    one = plan.estimate(shape_7b(), plan.parse("v5e:16x16"), {"data": -1, "fsdp": 16})
    two = plan.estimate(
        shape_7b(), plan.parse("v5e:16x16", 2), {"data": -1, "fsdp": 16}
    )
    assert two.mesh == {"slice": 2, "data": 16, "fsdp": 16, "context": 1, "tensor": 1}
    assert one.times.dcn == 0
    # Each of 256 chips sends its part of the bf16 gradients, and gets it back.
    weights, head = 32 * (4 * 4096**2 + 3 * 4096 * 11_008), 4096 * 50_304
    assert two.bytes.dcn == pytest.approx(2 * 2 * (weights + head) / 256 / 2)
    assert two.times.dcn == pytest.approx(two.bytes.dcn / 3.125e9)
    # In bf16, scattered over the 16 data shards of a slice.
    assert two.memory.exchange == two.memory.gradients / 2 / 16


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--topology=v9:4x4"], "no chip 'v9'; use v4, v5e, v5p, v6e"),
        (["--topology=v5p:4x4"], "v5p comes in grids of 3 dimensions, e.g. v5p:4x4x8"),
        (["--topology=v5e:16x32"], "at most 16x16; use --slices"),
        ([V5E, "--mesh=fsdp=3"], "must multiply to 256"),
        ([V5E, "--mesh=fdsp=16"], "unknown mesh axis fdsp"),
        ([V5E, "--slices=3"], "use a multiple of 768"),
        ([V5E, "--config.model.embed=0"], "set --config.model.embed"),
        ([V5E, "--config.model.embed=4100"], "embed 4100 is not divisible by fsdp=16"),
        ([V5E, "--config.model.remat=some"], "remat 'some'; use one of"),
        ([V5E, "--config.optim.lr=1"], "unknown config key 'optim.lr'"),
        ([V5E, "--pric=1"], "did you mean --price?"),
        ([V5E, "--tokens=nan"], "--tokens nan; use 0 or more"),
        ([V5E, "--plot=bars.xyz"], "end it in .png"),
        ([V5E, "--merge=tise"], "--merge tise: use one of linear, slerp"),
        ([V5E, "--merge=slerp", "--models=3"], "slerp takes 2"),
        ([V5E, "--merge=ties", "--models=0"], "ties takes at least 1"),
        ([V5E, "--merge=ties", "--price=1"], "--price is of a training step"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_fix(flags, message, capsys):
    assert cli.run([*OLMO_7B, *flags]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert not captured.out


# ---- configs


def test_a_config_becomes_the_model_that_training_would_build():
    shape = shapes_lib.shape(config("olmo.py:olmo2_7b"))
    assert shape.params == 7_298_617_344
    assert (shape.rows, shape.length, shape.remat) == (1024, 4096, "full")
    assert shapes_lib.shape(config("olmo.py:1b")).params == 1_176_764_416
    assert shapes_lib.shape(config("olmo.py:tiny")).vocab == 1024
    defaults = models.TransformerConfig(vocab=1, embed=2, layers=1, heads=1, mlp=1)
    assert shape.loss_block_bytes == defaults.loss_block_bytes


@pytest.mark.parametrize(
    ("variant", "params", "where"),
    [
        ("llama_70b", 68_976_648_192, "v5p:4x8x8"),
        ("llama_405b", 405_853_388_800, "v5p:8x16x16"),
    ],
)
def test_llamas_are_as_large_as_published_and_fit_where_they_say(
    variant, params, where
):
    described = config(f"scale.py:{variant}")
    shape = shapes_lib.shape(described)
    assert shape.params == params
    assert plan.estimate(shape, plan.parse(where), described.mesh.to_dict()).fits_surely


def test_a_trust_region_adds_its_passes_and_copies():
    where, mesh = plan.parse("v5e:16x16"), {"data": 8, "fsdp": 32}
    plain = plan.estimate(shapes_lib.shape(config()), where, mesh)
    found = plan.estimate(
        shapes_lib.shape(config("olmo.py:7b", "--config.trust.method=tram_theta")),
        where,
        mesh,
    )
    # Three forward and two backward passes: 7/3 of the FLOPs where nothing is repeated.
    once = plan.estimate(dataclasses.replace(plain.shape, remat="none"), where, mesh)
    tram = plan.estimate(dataclasses.replace(found.shape, remat="none"), where, mesh)
    ratio = tram.flops.hardware / once.flops.hardware
    assert ratio == pytest.approx(7 / 3, rel=0.01)
    assert found.memory.state / plain.memory.state == pytest.approx(4 / 3)
    assert found.times.fsdp > 2 * plain.times.fsdp
    half = config(
        "olmo.py:7b",
        "--config.trust.method=tram_theta",
        "--config.trust.anchor_dtype=bfloat16",
    )
    assert shapes_lib.shape(half).passes.copies == 0.5


def test_tuning_and_preferences_are_planned_with_their_rows_and_passes():
    tuned = shapes_lib.shape(config("tulu.py:sft_7b"))
    assert (tuned.rows, tuned.length, tuned.params) == (128, 8192, 6_738_415_616)
    before = shapes_lib.shape(config("tulu.py:dpo_7b"))
    assert (before.rows, before.passes) == (64, plan.Shape.passes)  # 32 pairs
    step = shapes_lib.shape(
        config("tulu.py:dpo_7b", "--config.preference.reference=step")
    )
    assert (step.passes.forward, step.passes.copies) == (1, 1)
    for loss, forward in (("orpo", 0), ("0.5*ipo + sft", 1)):
        flags = [f"--config.preference.{x}" for x in (f"loss={loss}", "reference=step")]
        planned = shapes_lib.shape(config("tulu.py:dpo_7b", *flags))
        assert planned.passes.forward == forward
    chunked = shapes_lib.shape(config("tulu.py:dpo_7b", "--config.preference.chunks=4"))
    assert (chunked.passes.forward, chunked.micro_batches) == (1, 4)
    # Both answers of a pair are on one device: 32 pairs are for 32 shards, not for 64.
    where = plan.parse("v5p:4x4x4")
    with pytest.raises(errors.UserError, match=r"32 pairs .* by 64 .*batch_size=64"):
        plan.estimate(before, where, {"data": 4, "fsdp": 16})
    assert plan.estimate(before, where, {"data": 2, "fsdp": 16, "tensor": 2}).fits
    assert plan.best(before, plan.parse("v5e:4x8"))[0].mesh["tensor"] == 1
    with pytest.raises(errors.UserError, match=r"set --config.model.embed"):
        shapes_lib.shape(config("tulu.py:tiny"))


def test_other_systems_and_open_sizes_are_refused():
    with pytest.raises(errors.UserError, match=r"languages.classify.*not planned"):
        shapes_lib.shape(config("languages.py:adam"))
    with pytest.raises(errors.UserError, match=r"set --config.model.vocab"):
        shapes_lib.shape(config("olmo.py:tiny", "--config.data.tokenizer=x.json"))


# ---- search


def test_the_search_finds_the_smallest_fsdp_that_fits_the_7b():
    best = plan.best(shape_7b(), plan.parse("v5e:16x16"))
    assert best[0].mesh == {
        "slice": 1,
        "data": 16,
        "fsdp": 16,
        "context": 1,
        "tensor": 1,
    }
    assert all(found.fits_surely for found in best)
    smaller = plan.estimate(best[0].shape, best[0].topology, {"data": 32, "fsdp": 8})
    assert not smaller.fits


def test_what_a_search_chose_is_what_is_compiled():
    described = config("olmo.py:7b", "--config.micro_batches=2")
    found = plan.best(shapes_lib.shape(described), plan.parse("v5e:8x16"))[0]
    again = shapes_lib.change(described, found)
    assert shapes_lib.shape(again) == found.shape
    assert again.mesh.to_dict().items() <= found.mesh.items()
    assert described.micro_batches == 2


def test_what_does_not_fit_says_what_would():
    where = plan.parse("v5e:16x16")
    narrow = plan.estimate(shape_7b(), where, {"data": 32, "fsdp": 8})
    assert plan.remedies(narrow)[0] == "--mesh data=16,fsdp=16"
    kept = plan.estimate(shape_7b(remat="dots"), where, {"data": 4, "fsdp": 64})
    assert not kept.fits
    assert plan.remedies(kept) == [
        "--config.model.remat=full",
        "--config.micro_batches=4",
        "--config.data.batch_size=512",
    ]


def test_nothing_is_found_where_nothing_fits():
    shape = shapes_lib.shape(config("scale.py:llama_405b"))
    assert plan.best(shape, plan.parse("v5e:4x4")) == []


# ---- the command


def test_the_command_prints_and_writes_a_plan_that_fits(tmp_path, capsys):
    json_path, picture = tmp_path / "plan.json", tmp_path / "plan.png"
    extra = [f"--json={json_path}", f"--plot={picture}", "--price=1.2"]
    assert cli.run([*OLMO_7B, V5E, *extra]) == 0
    shown = capsys.readouterr().out
    assert "data=16 fsdp=16" in shown
    assert "34.5 days" in shown
    written = json.loads(json_path.read_text())
    assert written["fits"] is True
    assert written["hbm_bytes"]["total"] / GIB == pytest.approx(13.87, abs=0.01)
    cost = written["run"]["days"]["likely"] * 24 * 256 * 1.2
    assert written["run"]["cost"]["likely"] == pytest.approx(cost)
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_the_exit_code_is_1_where_the_step_does_not_fit(capsys):
    assert cli.run([*OLMO_7B, V5E, "--mesh=data=32,fsdp=8"]) == 1
    shown = capsys.readouterr().out
    assert "GiB per chip too many; one of these fits: --mesh data=16,fsdp=16" in shown
    hopeless = [f"--config={ROOT}/configs/scale.py:llama_405b", "--topology=v5e:4x4"]
    assert cli.run(["plan", *hopeless, "--mesh=fsdp=16"]) == 1
    assert "use more chips" in capsys.readouterr().out


def test_a_merge_holds_its_models_its_base_and_its_result(tmp_path, capsys):
    path, where = tmp_path / "merge.json", ["--topology=v5e:4x4"]
    ties = ["--merge=ties", "--models=3", f"--json={path}"]
    # A row does not have to be there for every chip: nothing is trained.
    one_row = "--config.data.batch_size=1"
    assert cli.run([*OLMO_7B, *where, "--mesh=fsdp=8,tensor=2", one_row, *ties]) == 0
    found = json.loads(path.read_text())
    tree = 4 * shape_7b().params / 16
    assert found["memory_bytes"] == pytest.approx(5 * tree)
    assert found["seconds"] == pytest.approx(5 * tree / 820e9)
    assert cli.run([*OLMO_7B, *where, "--mesh=data=8,fsdp=2", *ties]) == 1
    assert "jaxlab merge RECIPE" in capsys.readouterr().out


def test_merges_that_are_planned_take_what_recipes_take():
    for name, (limits, has_base) in merging.METHODS.items():
        method = methods.METHODS[name]
        # A recipe's slerp has one of its two models as the base.
        own = name == "slerp"
        assert has_base == (method.base == "required" and not own), name
        if not own and name != "karcher":
            assert limits == (method.least, method.most), name


def test_the_search_is_printed_and_planned(capsys):
    assert cli.run([*OLMO_7B, V5E, "--search"]) == 0
    table, _, planned_part = capsys.readouterr().out.partition("\n\n")
    assert table.splitlines()[1].startswith("data=16 fsdp=16")
    assert "data=16 fsdp=16" in planned_part


def test_arithmetic_imports_neither_jax_nor_numpy():
    script = (
        "import sys; from jaxlab import cli; code = cli.run(sys.argv[1:]);"
        "print(code, *sorted(sys.modules), file=sys.stderr)"
    )
    done = runs.python(script, *OLMO_7B, V5E, "--search")
    code, *modules = done.stderr.split()
    assert code == "0"
    assert not {"jax", "numpy", "flax", "matplotlib", "libtpu"} & {*modules}

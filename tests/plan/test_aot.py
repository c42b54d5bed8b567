"""`jaxlab plan --aot`: what is read from traced and compiled programs.

Compiling for a TPU needs libtpu (the extra `plan`) and takes minutes on a busy machine:
those tests are slow ones. What reads the compiler's answers is tested on texts.
"""

import importlib.metadata
import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from jaxlab import cli, plan
from jaxlab.core import config as config_lib
from jaxlab.core import errors, factored_logits, installation
from jaxlab.core import mesh as mesh_lib
from jaxlab.merge.sparse import select_on_device
from jaxlab.plan import comparison, compiled, environment, flops, hlo, merging, traced
from jaxlab.plan import topology as topologies
from jaxlab.systems.planning import merges, shapes, steps
from tests.support import runs

ROOT = pathlib.Path(__file__).parents[2]
GIB = 2**30
MESH = {"slice": 1, "data": 2, "fsdp": 4, "context": 1, "tensor": 1}
# A loop of five: an overlapped gather in two pieces, and a reduce-scatter as TPUs have
# it, over groups of neighbours (fsdp), and one that a SparseCore runs; outside, an
# all-reduce of every fourth (data).
HLO = """\
HloModule step, is_scheduled=true

%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%a, %b)
}

%all-reduce-scatter.1 (p: bf16[64,8]) -> bf16[16,8] {
  %r = bf16[64,8]{1,0:T(8,128)} all-reduce(%p), channel_id=3, replica_groups=[2,4]<=[8], to_apply=%add
  ROOT %s = bf16[16,8] dynamic-slice(%r, %i), dynamic_slice_sizes={16,8}
}

%gather_start (p: bf16[16,8]) -> bf16[64,8] {
  %g.1 = bf16[64,8]{1,0} all-gather(%p), channel_id=2, replica_groups=mesh['a'=2,'b'=4] {'b'}, dimensions={0}
  ROOT %c.1 = (bf16[16,8], bf16[64,8]) custom-call(%g.1), custom_call_target="AsyncCollectiveStart"
}

%gather_done (p: bf16[16,8]) -> bf16[64,8] {
  %g.2 = bf16[64,8]{1,0} all-gather(%p), channel_id=2, replica_groups=mesh['a'=2,'b'=4] {'b'}, dimensions={0}
  ROOT %c.2 = bf16[64,8] custom-call(%g.2), custom_call_target="AsyncCollectiveDone"
}

%body (s: (s32[], bf16[16,8])) -> (s32[], bf16[16,8]) {
  %x.1 = bf16[64,8] fusion(%w), kind=kCustom, calls=%gather_start
}} is how a kernel's metadata may begin a line
  %x.2 = bf16[64,8] fusion(%w), kind=kCustom, calls=%gather_done
  %x.3 = bf16[16,8] fusion(%x.2), kind=kCustom, calls=%all-reduce-scatter.1
  %x.4 = ((bf16[64], token[]), bf16[16]) call-start(%x.3), async_execution_thread="sparsecore", to_apply=%apart
}

%apart (p: bf16[64], t: token[]) -> bf16[16] {
  ROOT %v = bf16[16]{0} reduce-scatter(%p), channel_id=4, replica_groups={{0,1,2,3},{4,5,6,7}}, dimensions={0}, to_apply=%add
}, execution_thread="sparsecore"

%condition (s: (s32[], bf16[16,8])) -> pred[] {
  %five = s32[]{:T(128)} constant(5)
  ROOT %less = pred[] compare(%i, %five), direction=LT
}

ENTRY %main (x: bf16[16,8]) -> f32[16] {
  %loop = (s32[], bf16[16,8]) while(%t), condition=%condition, body=%body
  ROOT %all = f32[16]{0} all-reduce(%y), channel_id=9, replica_groups={{0,4},{1,5},{2,6},{3,7}}, to_apply=%add
}
"""  # noqa: E501


def config(name, *flags):
    path = f"--config={ROOT}/configs/{name}"
    return config_lib.parse([path, "--workdir=.", *flags])[0]


# ---- collectives


def test_collectives_are_counted_by_trips_axes_and_kind():
    scatter, gather, apart, reduce = hlo.collectives(HLO, MESH)
    assert gather == hlo.Collective("all-gather", "fsdp", 4, "bf16", True, 5, 5 * 1024)
    assert scatter[:4] == ("reduce-scatter", "fsdp", 4, "bf16")
    assert (scatter.is_async, scatter.count, scatter.bytes) == (False, 5, 5 * 1024)
    assert reduce == hlo.Collective("all-reduce", "data", 2, "f32", False, 1, 64)
    assert apart == hlo.Collective(
        "reduce-scatter", "fsdp", 4, "bf16", True, 5, 5 * 128
    )
    assert gather.sent_bytes == 5 * 1024 * 3 / 4
    assert reduce.sent_bytes == 2 * 64 / 2


def test_a_peeled_iteration_and_the_loop_it_left_count_together():
    # Reductions that run one iteration late: four in the loop, from 1, and the last
    # outside, of one channel; so are permutes, of which all share a channel.
    peeled = """\
  %one = s32[]{:T(128)} constant(1)
  %begin = s32[]{:T(128)} copy(%one)
  %t = (bf16[16,8], s32[]) tuple(%w, /*index=1*/%begin)
  %last = bf16[16,8] fusion(%w), kind=kCustom, calls=%all-reduce-scatter.1
  %near = bf16[4]{0} collective-permute(%w), channel_id=1, source_target_pairs={{0,1}}
  %far = bf16[4]{0} collective-permute(%w), channel_id=1, source_target_pairs={{0,1}}
"""
    text = HLO.replace("  %loop =", peeled + "  %loop =").replace(
        "  %five =", "  %i = s32[] get-tuple-element(%s), index=1\n  %five ="
    )
    found = {one.kind: one for one in hlo.collectives(text, MESH) if not one.is_async}
    assert found["reduce-scatter"].count == 5
    assert found["collective-permute"].count == 2
    gather = next(c for c in hlo.collectives(text, MESH) if c.kind == "all-gather")
    assert (gather.count, gather.is_async) == (4, True)


@pytest.mark.parametrize(
    ("groups", "axes", "size"),
    [
        ("replica_groups={{0,1,2,3},{4,5,6,7}}", "fsdp", 4),
        ("replica_groups=[4,2]<=[2,4]T(1,0)", "data", 2),
        ("replica_groups=[1,8]<=[8]", "data+fsdp", 8),
        ("replica_groups=mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'b'}", "data", 2),
        ("source_target_pairs={{0,1},{1,2},{2,3},{3,0}}", "fsdp", 4),
    ],
)
def test_groups_are_read_in_every_notation(groups, axes, size):
    kind = "collective-permute" if "pairs" in groups else "all-gather"
    text = (
        f"ENTRY %main (x: s8[4]) -> s8[8] {{\n  %g = s8[8] {kind}(%x), {groups}\n}}\n"
    )
    (found,) = hlo.collectives(text, MESH)
    assert (found.axes, found.devices, found.bytes) == (axes, size, 8)


def test_a_program_compiled_here_shows_its_own_collectives():
    mesh = mesh_lib.make_mesh({"data": 2, "fsdp": 4})
    spread = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("fsdp"))
    x = jax.ShapeDtypeStruct((8, 16), jnp.float32, sharding=spread)
    whole = mesh_lib.replicated_sharding(mesh)
    program = jax.jit(lambda x: x * 2, out_shardings=whole).lower(x).compile()
    (found,) = hlo.collectives(program.as_text(), MESH)
    assert (found.kind, found.axes, found.bytes) == ("all-gather", "fsdp", 512)


@pytest.mark.parametrize("blocks", [1, 4])
def test_a_divergence_gathers_each_kernel_once_however_many_blocks(blocks):
    mesh = mesh_lib.make_mesh({"data": 2, "fsdp": 4})
    B, L, D, V = 8, 32, 16, 64
    rows, cut = mesh_lib.batch_sharding(mesh), jax.sharding.PartitionSpec("fsdp")
    hidden = jax.ShapeDtypeStruct((B, L, D), jnp.float32, sharding=rows)
    cut = jax.sharding.NamedSharding(mesh, cut)
    kernel = jax.ShapeDtypeStruct((D, V), jnp.float32, sharding=cut)
    size = B * L * V * 4 * 2 // 8 // blocks  # both models' logits, of 8 devices

    def distance(kernels, hiddens):
        one, other = (
            factored_logits.Factored(*both, block_bytes=size)
            for both in zip(hiddens, kernels, strict=True)
        )
        return factored_logits.kl_divergence(one, other)

    for function, times in ((distance, 2), (jax.grad(distance), 4)):
        with mesh_lib.use(mesh):
            program = jax.jit(function).lower([kernel] * 2, [hidden] * 2).compile()
        found = hlo.collectives(program.as_text(), MESH)
        gathers = [x for x in found if x.kind == "all-gather" and x.bytes >= D * V * 4]
        assert sum(x.bytes for x in gathers) <= times * D * V * 4


# ---- FLOPs of the true step, traced for a TPU


@pytest.mark.parametrize(
    ("name", "flags"),
    [
        ("olmo.py:7b", []),
        ("olmo.py:7b", ["--config.model.remat=none"]),
        ("olmo.py:7b", ["--config.model.remat=dots"]),
        ("olmo.py:olmo2_7b", ["--config.model.remat=qkvo"]),
        ("olmo.py:7b", ["--config.micro_batches=4"]),
        ("scale.py:llama_70b", []),
        ("olmo.py:7b", ["--config.trust.method=tram_theta"]),
        ("tulu.py:sft_7b", []),
        ("tulu.py:dpo_7b", []),
        ("tulu.py:dpo_7b", ["--config.preference.reference=step"]),
        ("tulu.py:kto_7b", ["--config.preference.chunks=4"]),
        ("tulu.py:sft_7b", ["--config.adapter.rank=64"]),
        (
            "tulu.py:dpo_7b",
            [
                "--config.adapter.rank=64",
                "--config.adapter.base=nf4",
                "--config.preference.reference=step",
            ],
        ),
    ],
)
def test_the_true_step_has_the_flops_of_the_formula(name, flags):
    described = config(name, *flags, "--config.data.batch_size=64")
    mesh = mesh_lib.make_mesh({"data": 2, "fsdp": 4})
    program, _ = steps.trace(described, mesh)
    shape = shapes.shape(described)
    found = traced.matmul_flops(program.jaxpr, flops.block_share(shape))
    more = flops.overheads(shape, dict(mesh.shape))
    expected = flops.count(shape).hardware + sum(more.values())
    assert found == pytest.approx(expected, rel=0.005)


@pytest.mark.parametrize(
    ("name", "flags"),
    [
        ("olmo.py:7b", []),
        ("tulu.py:sft_7b", ["--config.adapter.rank=64"]),
        ("tulu.py:sft_7b", ["--config.adapter.rank=64", "--config.adapter.base=nf4"]),
    ],
)
def test_the_state_of_the_true_step_has_the_arithmetics_bytes(name, flags):
    described = config(name, *flags, "--config.data.batch_size=64")
    mesh = mesh_lib.make_mesh({"data": 2, "fsdp": 4})
    _, (state, _, frozen) = steps.trace(described, mesh)
    held = sum(map(compiled.held_bytes, jax.tree.leaves((state, frozen))))
    where = plan.parse("v5e:2x4")
    found = plan.estimate(shapes.shape(described), where, {"data": 2, "fsdp": 4})
    # What the arithmetic leaves out: maxima of NF4's blocks are not split over fsdp.
    shape = shapes.shape(described)
    across = sum(shape.matrices[name] for name in ("q", "k", "v", "gate", "up"))
    left_out = 0.75 * shape.layers * across / 64 if "nf4" in str(flags) else 0
    assert held == pytest.approx(found.memory.state + left_out, rel=2e-3)


@pytest.mark.parametrize("method", [*merging.METHODS])
def test_every_merge_that_is_planned_is_traced_and_keeps_the_shardings(method):
    described = config("olmo.py:7b", "--config.model.layers=2")
    sizes = {"data": 2, "fsdp": 2, "tensor": 2}
    mesh, where = mesh_lib.make_mesh(sizes), plan.parse("v5e:2x4")
    merge = merging.estimate(method, 2, shapes.shape(described), where, sizes)
    program, (base, models) = merges.trace(described, merge, mesh)
    held = sum(map(compiled.held_bytes, jax.tree.leaves((base, models))))
    assert held == pytest.approx(merge.trees * merge.tree_bytes)
    wanted = [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(models[0])]
    assert [(x.shape, x.dtype) for x in jax.tree.leaves(program.out_info)] == wanted


def test_a_merge_that_refuses_a_leaf_ends_in_a_line(monkeypatch):
    monkeypatch.setattr(select_on_device, "LIMIT", 1000)
    described = config("scale.py:llama_70b")
    sizes, where = {"fsdp": 8}, plan.parse("v5e:2x4")
    merge = merging.estimate("ties", 2, shapes.shape(described), where, sizes)
    with pytest.raises(errors.UserError, match=r"--merge ties: .* reshape it"):
        merges.trace(described, merge, mesh_lib.make_mesh(sizes))


# ---- what the compiler answers


def test_out_of_memory_is_read_from_both_of_the_compilers_messages():
    short = (
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for "
        "HLO temporaries (39.35G) exceeds available HBM (15.75G)."
    )
    assert compiled.parse_out_of_memory(short) == (39.35 * GIB, 15.75 * GIB)
    long = "Ran out of memory in memory space hbm. Used 20.51G of 15.75G hbm."
    assert compiled.parse_out_of_memory(long) == (20.51 * GIB, 15.75 * GIB)
    assert (
        compiled.parse_out_of_memory("INVALID_ARGUMENT: No such compile option") is None
    )


def test_without_the_compiler_the_fix_is_named(monkeypatch, capsys):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    flags = [f"--config={ROOT}/configs/olmo.py:7b", "--topology=v5e:16x16"]
    assert cli.run(["plan", *flags, "--aot"]) == 2
    assert installation.how_to_add("plan") in capsys.readouterr().err


def test_a_comparison_says_why_bytes_differ():
    shape = shapes.shape(config("olmo.py:7b"))
    where = plan.parse("v5e:16x16")
    found = plan.estimate(shape, where, {"data": 16, "fsdp": 16})
    late = hlo.Collective("all-gather", "fsdp", 16, "bf16", False, 14, 60e9)
    whole = hlo.Collective("all-reduce", "fsdp", 16, "bf16", False, 7, 3e9)
    answer = compiled.Compiled(
        14e9, 5e9, 16e9, True, found.flops.hardware, [late, whole], 60.0
    )
    rows = {row.name: row for row in comparison.rows(found, answer)}
    assert rows["gathers"].compiled == pytest.approx(60e9 * 15 / 16)
    assert rows["reductions"].compiled == pytest.approx(2 * 3e9 * 15 / 16)
    first, second = comparison.remarks(found, answer)
    assert "do not overlap with matmuls take 0.69 s, beside 4.37 s" in first
    assert "reduce-scatter would send half" in second
    assert comparison.seconds(late, found) == pytest.approx(60e9 * 15 / 16 / 90e9)


# ---- the compiler itself


@pytest.fixture(scope="module")
def libtpu():
    """Reported where it is absent."""
    try:
        environment.prepare("tpu")
    except errors.UserError as error:
        pytest.skip(str(error))


@pytest.mark.slow
def test_plans_at_one_time_do_not_fight_and_are_silent(libtpu):
    script = (
        "from jaxlab.plan import environment; environment.prepare('tpu');"
        "from jaxlab import plan; from jaxlab.plan import compiled;"
        "where = plan.parse('v5p:4x4x4', 2);"
        "sizes = {'slice': 2, 'data': 4, 'fsdp': 16, 'context': 1, 'tensor': 1};"
        "print(compiled.device_mesh(where, sizes).shape)"
    )
    running = [
        subprocess.Popen(
            [sys.executable, "-c", script],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        for _ in range(2)
    ]
    for process in running:
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0
        assert "('fsdp', 16)" in out
        assert err == ""


@pytest.mark.slow
def test_a_step_of_four_layers_reduces_by_reduce_scatter(libtpu):
    described = config(
        "olmo.py:7b",
        "--config.model.layers=4",
        "--config.model.vocab=8192",
        "--config.data.batch_size=16",
    )
    where = plan.parse("v5e:4x4")
    sizes = topologies.mesh(where, {"data": 4, "fsdp": 4})
    found = steps.compile_config(described, where, sizes)
    expected = plan.estimate(shapes.shape(described), where, sizes)
    assert found.fits
    assert found.argument_bytes == pytest.approx(expected.memory.state, rel=1e-3)
    assert found.peak_bytes < expected.memory.total
    layers = 2 * expected.shape.layer_params
    scattered = sum(
        one.bytes for one in found.collectives if one.kind == "reduce-scatter"
    )
    assert layers <= scattered <= 1.15 * layers + 6 * expected.shape.head_params
    gathered = sum(
        one.bytes
        for one in found.collectives
        if one.kind == "all-gather" and one.axes == "fsdp" and one.is_async
    )
    assert gathered >= 1.5 * layers
    # Nor is a gradient summed whole over what splits it, the embedding's neither.
    summed = [one for one in found.collectives if one.kind == "all-reduce"]
    assert not any("fsdp" in one.axes for one in summed if one.bytes > 1e6)


def two_layers(mesh, *changes):
    """A step of two layers on 16 chips: compiled, and by arithmetic."""
    small = {"layers": 2, "embed": 2048, "heads": 16, "mlp": 8192, "vocab": 8192}
    changes = (*(f"model.{name}={size}" for name, size in small.items()), *changes)
    described = config("olmo.py:7b", *(f"--config.{change}" for change in changes))
    where = plan.parse("v5e:4x4")
    sizes = topologies.mesh(where, mesh)
    found = steps.compile_config(described, where, sizes)
    return found, plan.estimate(shapes.shape(described), where, sizes)


@pytest.mark.slow
def test_tensor_shards_split_tokens_and_gather_no_more_than_they_must(libtpu):
    found, expected = two_layers({"fsdp": 4, "tensor": 4}, "data.batch_size=16")
    assert found.peak_bytes == pytest.approx(expected.memory.total, rel=0.15)
    rows = {row.name: row for row in comparison.rows(expected, found)}
    for name in ("gathers", "reductions"):
        assert rows[name].compiled == pytest.approx(rows[name].arithmetic, rel=0.1)
    # All but the gradients of the norms' scales, which are small.
    kinds = {(one.kind, one.axes) for one in found.collectives if one.bytes > 1e6}
    assert {("reduce-scatter", "tensor"), ("reduce-scatter", "fsdp")} <= kinds
    assert ("all-reduce", "tensor") not in kinds


@pytest.mark.slow
def test_context_shards_compile_and_move_no_more_than_planned(libtpu):
    long = ("model.length=8192", "data.length=8192", "data.batch_size=4")
    found, expected = two_layers({"fsdp": 4, "context": 4}, "model.kv_heads=4", *long)
    assert found.peak_bytes < 1.15 * expected.memory.total
    # The compiler makes rings of gathers and products: kinds cannot be told apart.
    moved = ("gathers", "reductions", "other")
    rows = [row for row in comparison.rows(expected, found) if row.name in moved]
    assert 0 < sum(row.compiled for row in rows) < sum(row.arithmetic for row in rows)
    assert any(
        c.kind == "all-gather" and c.axes == "context" for c in found.collectives
    )


@pytest.mark.slow
@pytest.mark.parametrize("method", [*merging.METHODS])
def test_a_merge_of_shards_holds_its_trees_and_moves_sums_and_counts(method, libtpu):
    described = config("olmo.py:7b", "--config.model.layers=4")
    where, sizes = plan.parse("v5e:2x4"), {"fsdp": 4, "tensor": 2}
    count = 2 if method == "slerp" else 3
    merge = merging.estimate(method, count, shapes.shape(described), where, sizes)
    found = merges.compile_merge(described, merge)
    assert found.fits
    assert found.peak_bytes == pytest.approx(merge.memory, rel=0.12)
    moved = sum(one.sent_bytes for one in found.collectives)
    # DELLA sorts rows that lie on several chips.
    assert method == "della" or moved < 1e-3 * merge.memory


@pytest.mark.slow
def test_a_step_that_does_not_fit_exits_with_1(libtpu, capsys):
    flags = [f"--config={ROOT}/configs/olmo.py:7b", "--topology=v5e:2x2", "--aot"]
    sizes = ["--mesh=fsdp=4", "--config.data.batch_size=32"]
    assert cli.run(["plan", *flags, *sizes]) == 1
    assert "the compiler says that it does not fit" in capsys.readouterr().out


# ---- GPUs


@pytest.mark.slow
def test_a_step_compiles_for_gpus_and_has_the_arithmetics_state(tmp_path):
    if not importlib.util.find_spec("jax_cuda12_plugin"):
        pytest.skip(f"no jax-cuda12-plugin: {installation.how_to_add('plan-gpu')}")
    script = "import sys; from jaxlab import cli; sys.exit(cli.run(sys.argv[1:]))"
    flags = [f"--config={ROOT}/configs/olmo.py:7b", "--topology=h100:2x8", "--aot"]
    flags += ["--mesh=data=2,fsdp=8", "--config.model.layers=4"]
    flags += ["--config.data.batch_size=32", f"--json={tmp_path}/plan.json"]
    # A process of its own: the plugin is read when jax loads, and writes to stderr.
    done = runs.python(script, "plan", *flags, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads((tmp_path / "plan.json").read_text())
    held, state = found["compiled"]["argument_bytes"], found["hbm_bytes"]["state"]
    assert held == pytest.approx(state, rel=1e-3)
    kinds = {(one["kind"], one["axes"]) for one in found["compiled"]["collectives"]}
    assert {("all-gather", "fsdp"), ("reduce-scatter", "fsdp")} <= kinds

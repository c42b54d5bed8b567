"""The core: meshes, trees, reports, peak speed. Checkpoints: test_checkpoint.py."""

import io
import json
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxlab.core import errors, peak_flops, report, runs, tree
from jaxlab.core import mesh as mesh_lib

# ---- mesh


def test_a_mesh_takes_all_devices_on_data_unless_told_otherwise():
    assert dict(mesh_lib.make_mesh().shape) == {
        "slice": 1,
        "data": 8,
        "fsdp": 1,
        "context": 1,
        "tensor": 1,
    }


def test_minus_one_takes_the_devices_that_remain():
    mesh = mesh_lib.make_mesh({"data": -1, "fsdp": 2, "tensor": 2})
    assert mesh.shape["data"] == 2
    assert mesh_lib.batch_shards(mesh) == 4


@pytest.mark.parametrize(
    "shape",
    [
        {"data": 3},
        {"data": 16},
        {"data": 4},
        {"data": -1, "fsdp": 3},
        {"data": -1, "fsdp": -1},
        {"data": -1, "fsdp": 0},
        {"data": 0},
        {"data": -2, "fsdp": -4},
    ],
)
def test_sizes_that_do_not_fit_the_devices_are_refused(shape):
    with pytest.raises(errors.UserError, match="must multiply to 8"):
        mesh_lib.make_mesh(shape)


def test_an_unknown_mesh_axis_is_refused():
    with pytest.raises(errors.UserError, match="unknown mesh axis model; use slice"):
        mesh_lib.make_mesh({"model": 8})


def test_logical_axes_that_rules_do_not_know_are_refused():
    with pytest.raises(ValueError, match="unknown logical axis 'embde'"):
        mesh_lib.logical(nn.initializers.zeros, "embde", "mlp")
    with pytest.raises(ValueError, match="unknown logical axis 'head'"):
        mesh_lib.constrain(jnp.zeros((2, 2)), "batch", "head")


def test_one_mesh_axis_cannot_split_two_axes_of_an_array():
    with pytest.raises(ValueError, match="use a mesh axis twice"):
        mesh_lib.logical(nn.initializers.zeros, "mlp", "heads")


class Dense(nn.Module):
    rows: int
    columns: int

    @nn.compact
    def __call__(self, x):
        kernel = mesh_lib.logical(nn.initializers.normal(), "embed", "mlp")
        return x @ self.param("kernel", kernel, (self.rows, self.columns))


def _shardings(rows, columns, shape):
    boxed = jax.eval_shape(
        lambda: Dense(rows, columns).init(jax.random.key(0), jnp.zeros((1, rows)))
    )["params"]
    return mesh_lib.param_shardings(boxed, mesh_lib.make_mesh(shape))


def test_parameters_are_split_by_their_logical_axes():
    shardings = _shardings(8, 4, {"data": 1, "fsdp": 4, "tensor": 2})
    assert shardings["kernel"].shard_shape((8, 4)) == (2, 2)


def test_a_parameter_that_its_shards_do_not_divide_is_named():
    with pytest.raises(
        errors.UserError, match=r"^kernel: size 6 is not divisible by 4"
    ):
        _shardings(6, 4, {"data": 2, "fsdp": 4})


def test_rows_of_a_batch_must_be_divisible_by_the_data_shards():
    mesh = mesh_lib.make_mesh()
    rows = {"tokens": np.zeros((12, 4), np.int32)}
    with pytest.raises(errors.UserError, match="12 rows are not divisible by 8 data"):
        mesh_lib.global_batch(lambda step: rows, 0, mesh)


def test_a_global_batch_is_split_by_rows():
    mesh = mesh_lib.make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    rows = np.arange(32, dtype=np.int32).reshape(8, 4)
    tokens = mesh_lib.global_batch(lambda step: {"tokens": rows + step}, 3, mesh)[
        "tokens"
    ]
    np.testing.assert_array_equal(tokens, rows + 3)
    assert tokens.sharding.shard_shape(tokens.shape) == (2, 4)


def test_constrain_is_a_no_op_without_a_mesh_and_pins_with_one():
    x = jnp.zeros((8, 4))
    assert mesh_lib.constrain(x, "batch", "activation").shape == (8, 4)
    mesh = mesh_lib.make_mesh()
    with mesh_lib.use(mesh):
        y = jax.jit(lambda x: mesh_lib.constrain(x + 1, "batch", "activation"))(x)
    assert y.sharding.shard_shape(y.shape) == (1, 4)


def test_the_vocabulary_is_padded_for_the_tensor_shards_and_said_so(caplog):
    mesh = mesh_lib.make_mesh({"tensor": 8})
    with caplog.at_level("INFO"):
        assert mesh_lib.padded_vocab(50_257, mesh) == 50_264
    assert "padded from 50257 to 50264 rows" in caplog.text
    assert mesh_lib.padded_vocab(64, mesh) == 64
    assert mesh_lib.padded_vocab(100, mesh, multiple=12) == 120  # lcm(8, 12) = 24


# ---- tree


def test_a_pattern_that_matches_no_path_is_refused():
    params = {"blocks": {"norm": {"scale": 1}}}
    with pytest.raises(ValueError, match=r"'nrom' matches no parameter.*blocks/norm"):
        tree.mask(params, ["norm", "nrom"])


def test_differences_list_everything_at_once():
    a = {"w": jnp.zeros(2), "x": jnp.zeros((2, 3)), "y": jnp.zeros(1)}
    b = {"w": jnp.zeros(2, jnp.bfloat16), "x": jnp.zeros((3, 2)), "z": jnp.zeros(1)}
    assert tree.differences([a, b]) == [
        "tree 1 adds z",
        "tree 1 lacks y",
        "w: float32[2] in tree 0 vs bfloat16[2] in tree 1",
        "x: float32[2,3] in tree 0 vs float32[3,2] in tree 1",
    ]
    assert tree.differences([a, a, a]) == []
    # Without dtypes the first is no difference.
    assert len(tree.differences([a, b], dtypes=False)) == 3
    with pytest.raises(ValueError, match="models differ in 4 places: tree 1 adds z"):
        tree.same_structure([a, b], what="models")


def test_a_third_tree_is_compared_with_the_first():
    a, b = {"w": jnp.zeros(2)}, {"w": jnp.zeros(3)}
    assert tree.differences([a, a, b]) == [
        "w: float32[2] in tree 0 vs float32[3] in tree 2"
    ]


def test_leaves_that_are_not_finite_are_named_and_integers_are_not_asked():
    params = {
        "bad": jnp.array([1.0, jnp.nan]),
        "ids": jnp.arange(3),
        "worse": jnp.array([-jnp.inf], jnp.bfloat16),
        "good": jnp.zeros(2),
    }
    assert tree.non_finite(params) == ["bad", "worse"]


def test_a_fingerprint_does_not_depend_on_how_a_leaf_is_sharded():
    value = jax.random.normal(jax.random.key(0), (16, 8))
    mesh = mesh_lib.make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    placements = [P(), P("data"), P("fsdp", "tensor"), P(("data", "fsdp"), "tensor")]
    prints = [
        tree.fingerprint({"w": jax.device_put(value, NamedSharding(mesh, spec))})
        for spec in placements
    ]
    assert prints == [tree.fingerprint({"w": np.asarray(value)})] * len(placements)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ([1.0, 2.0, 3.0], [1.0, 3.0, 2.0]),
        ([1.0, -1.0], [-1.0, 1.0]),  # only the sign bits change places
        ([0.0, 1.0], [0.0, -1.0]),
        ([0.0], [-0.0]),
        ([2.0, *[1.0] * 511], [*[1.0] * 256, 2.0, *[1.0] * 255]),
    ],
)
def test_a_fingerprint_sees_values_that_moved_or_changed(before, after):
    for dtype in (jnp.float32, jnp.bfloat16):
        first, second = jnp.array(before, dtype), jnp.array(after, dtype)
        assert tree.fingerprint([first]) != tree.fingerprint([second])


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 99), st.integers(0, 31), st.integers(0, 2**32 - 1))
def test_a_fingerprint_sees_any_single_flipped_bit(index, bit, seed):
    bits = np.random.default_rng(seed).integers(0, 2**32, 100, np.uint32)
    flipped = bits.copy()
    flipped[index] ^= np.uint32(1 << bit)
    assert tree.fingerprint({"w": bits}) != tree.fingerprint({"w": flipped})


def test_a_fingerprint_takes_every_dtype_of_a_state():
    state = {
        "bool": jnp.array([True, False]),
        "f16": jnp.ones(2, jnp.float16),
        "f32": np.ones(2, np.float32),
        "i8": jnp.ones(2, jnp.int8),
        "key": jax.random.key(0),
        "step": jnp.zeros((), jnp.int32),
    }
    assert list(tree.fingerprint(state)) == list(tree.flatten(state))
    other = {**state, "key": jax.random.key(1)}
    assert tree.fingerprint(state)["key"] != tree.fingerprint(other)["key"]


# ---- report


def _rows(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").open()]


_LOSSES = st.floats(width=32, allow_nan=False, allow_infinity=False)


@settings(max_examples=10, deadline=None)
@given(st.lists(_LOSSES, min_size=1, max_size=20))
def test_losses_are_written_and_read_bit_for_bit(tmp_path_factory, losses):
    folder = tmp_path_factory.mktemp("run")
    with report.Reporter(folder, len(losses), out=io.StringIO()) as rows:
        for step, loss in enumerate(losses, start=1):
            rows.train(step, {"loss": np.float32(loss)}, tokens=8)
    read = np.array([row["loss"] for row in _rows(folder)], np.float32)
    np.testing.assert_array_equal(read.view(np.uint32), _bits(losses))


def _bits(values):
    return np.array(values, np.float32).view(np.uint32)


def test_rows_after_the_resumed_step_and_a_torn_line_are_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    good = [f'{{"step": {step}, "loss": 0.1}}\n' for step in (1, 2, 3, 4)]
    path.write_text("".join(good) + '{"step": 5, "lo')
    with report.Reporter(tmp_path, 9, first=2, out=io.StringIO()) as rows:
        rows.train(3, {"loss": np.float32(0.5), "skipped": np.int32(0)}, tokens=8)
    assert path.read_text().startswith("".join(good[:2]))
    assert [row["step"] for row in _rows(tmp_path)] == [1, 2, 3]
    assert _rows(tmp_path)[-1]["skipped"] == 0


def test_values_that_json_does_not_have_are_null(tmp_path):
    with report.Reporter(tmp_path, 1, out=io.StringIO()) as rows:
        rows.train(1, {"loss": jnp.nan, "norm": jnp.inf}, tokens=8)
    text = (tmp_path / "metrics.jsonl").read_text()
    assert "NaN" not in text
    assert _rows(tmp_path)[0]["loss"] is _rows(tmp_path)[0]["norm"] is None


def test_rows_go_to_stdout_with_their_speed_and_what_is_left():
    out = io.StringIO()
    with report.Reporter(None, 3, name="web", seconds=0.0, out=out) as rows:
        for step in (1, 2):
            rows.train(step, {"loss": 2.5}, tokens=8, flops_per_token=6.0)
        rows.evaluation(2, "books", {"perplexity": 12345.6})
    first, second, third = out.getvalue().splitlines()
    assert first.startswith("[web] first step, compilation included: ")
    assert second.startswith("[web] step 2/3 loss 2.5 tokens_per_second ")
    assert " mfu " in second
    assert " eta " in second
    assert third.startswith("[web] step 2/3 ")
    assert "perplexity 12,346" in third
    assert "books" in third


@pytest.mark.skipif(not pathlib.Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_ends_in_one_line_and_closing_does_not_hide_it(
    tmp_path, monkeypatch
):
    def run():
        with report.Reporter(tmp_path, 1, out=io.StringIO()) as rows:
            monkeypatch.setattr(rows, "_file", pathlib.Path("/dev/full").open("a"))  # noqa: SIM115
            rows.train(1, {"loss": 1.0}, tokens=8)

    with pytest.raises(errors.UserError, match=r"No space left on device.*free some"):
        run()


def test_another_config_is_refused_with_every_old_and_new_value(tmp_path):
    old = {"lr": 1e-3, "model": {"width": 8, "remat": "none"}, "mesh": {"data": 1}}
    report.write_json(tmp_path / "config.json", old)
    runs.check_config(tmp_path, old)
    new = {"lr": 2e-3, "model": {"width": 9, "remat": "full"}, "mesh": {"data": 8}}
    with pytest.raises(errors.UserError) as caught:
        runs.check_config(tmp_path, new, free=("mesh", "model.remat"))
    message = str(caught.value)
    assert "lr: 0.001 -> 0.002; model.width: 8 -> 9." in message
    assert "mesh" not in message
    assert "remat" not in message
    assert "\n" not in message


def test_a_free_prefix_is_a_whole_key(tmp_path):
    report.write_json(tmp_path / "config.json", {"mesh_size": 1})
    with pytest.raises(errors.UserError, match="mesh_size: 1 -> 2"):
        runs.check_config(tmp_path, {"mesh_size": 2}, free=("mesh",))


def test_added_and_removed_keys_are_differences(tmp_path):
    report.write_json(tmp_path / "config.json", {"a": 1})
    with pytest.raises(errors.UserError, match="a: 1 -> None; b: None -> 2"):
        runs.check_config(tmp_path, {"b": 2})


def test_tuples_and_numpy_numbers_equal_what_json_made_of_them(tmp_path):
    config = {"files": ("a", "b"), "rate": np.float64(0.5), "steps": np.int32(3)}
    report.write_json(tmp_path / "config.json", config)
    runs.check_config(tmp_path, config)


def test_json_is_replaced_whole(tmp_path):
    path = tmp_path / "config.json"
    report.write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="Circular"):
        report.write_json(path, _circular())
    assert json.loads(path.read_text()) == {"a": 1}


def _circular():
    value = {}
    value["self"] = value
    return value


# ---- peak


def test_the_measured_peak_is_positive_and_said_to_be_measured():
    assert 0 < peak_flops.measure(size=64, repeats=1) < math.inf
    flops, source = peak_flops.flops_per_second()
    assert flops > 1e8
    assert source == "measured f32 matmul"

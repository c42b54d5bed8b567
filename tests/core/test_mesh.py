"""Meshes: axes, shards, batches, the padded vocabulary."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jaxlab.core import errors
from jaxlab.core import mesh as mesh_lib


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

"""Checkpoints: moved between meshes and dtypes, and broken in every way."""

import json
import shutil
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxlab import cli
from jaxlab.core import checkpoint, checkpoint_files, errors, tree, types
from jaxlab.core import mesh as mesh_lib
from tests.support import runs

# What orbax leaves behind in its event loop when a read fails.
pytestmark = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)

AXES = {"blocks/kernel": ["embed", "mlp"], "bias": ["mlp"]}


def _state(seed=0):
    """A TrainState with every kind of leaf: floats, counters, a PRNG key."""
    keys = jax.random.split(jax.random.key(seed))
    params = {
        "blocks": {"kernel": jax.random.normal(keys[0], (16, 8))},
        "bias": jax.random.normal(keys[1], (8,)),
    }
    opt_state = optax.adamw(1e-3).init(params)
    return types.TrainState(jnp.asarray(seed, jnp.int32), params, opt_state, keys[0])


def _abstract(state, mesh, dtype=None):
    """What `state` looks like on a mesh, kernels split by their logical axes."""

    def leaf(path, x):
        is_kernel = tree.path_name(path).endswith("kernel")
        spec = P("fsdp", "tensor") if is_kernel else P()
        kind = dtype if dtype and jnp.issubdtype(x.dtype, jnp.floating) else x.dtype
        return jax.ShapeDtypeStruct(x.shape, kind, sharding=NamedSharding(mesh, spec))

    return jax.tree_util.tree_map_with_path(leaf, state)


def _save(folder, *numbers, **options):
    with checkpoint.Checkpointer(folder, axes=AXES, **options) as saver:
        for step in numbers:
            saver.save(step, _state(step))


def _equal(a, b):
    assert tree.fingerprint(a) == tree.fingerprint(b)


def _largest(folder):
    files = [file for file in folder.rglob("*") if file.is_file()]
    return max(files, key=lambda file: file.stat().st_size)


def _flip_the_largest(folder):
    _flip(_largest(folder))


def _flip(file):
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 0x10
    file.write_bytes(data)


def _truncate(folder):
    file = _largest(folder)
    file.write_bytes(file.read_bytes()[:-100])


def _lose_the_arrays(folder):
    for file in list(folder.rglob("*")):
        if file.is_file() and not file.name.startswith("_"):
            file.unlink()


MESHES = [{"data": 1}, {"data": 1, "fsdp": 8}, {"fsdp": 4, "tensor": 2}]


def _mesh(shape):
    count = int(np.prod(list(shape.values())))
    return mesh_lib.make_mesh(shape, jax.devices()[:count])


@pytest.mark.parametrize("saved", MESHES, ids=str)
def test_a_state_saved_on_one_mesh_is_restored_on_every_other(tmp_path, saved):
    state = _state(3)
    placed = jax.tree.map(
        lambda x, to: jax.device_put(x, to.sharding),
        state,
        _abstract(state, _mesh(saved)),
    )
    with checkpoint.Checkpointer(tmp_path) as saver:
        saver.save(3, placed)
    for shape in MESHES:
        target = _abstract(state, _mesh(shape))
        step, restored = checkpoint.restore(tmp_path, target)
        assert step == 3
        _equal(restored, state)
        placed_as = jax.tree.map(lambda leaf: leaf.sharding.spec, restored.params)
        assert placed_as == jax.tree.map(lambda leaf: leaf.sharding.spec, target.params)
    assert restored.params["blocks"]["kernel"].sharding.shard_shape((16, 8)) == (4, 4)


def test_a_state_is_restored_in_another_dtype_rounded_once(tmp_path):
    _save(tmp_path, 1)
    target = _abstract(_state(), _mesh({"data": 1}), jnp.bfloat16)
    _, restored = checkpoint.restore(tmp_path, target)
    saved = _state(1)
    _equal(restored.params, jax.tree.map(lambda x: x.astype("bfloat16"), saved.params))
    assert restored.step.dtype == jnp.int32


def test_only_the_last_checkpoints_and_the_marked_ones_stay(tmp_path):
    _save(tmp_path / "a", 1, 2, 3, 4, 5, keep=3)
    assert checkpoint.steps(tmp_path / "a") == [5, 4, 3]
    _save(tmp_path / "b", 1, 2, 3, 4, 5, keep=1, keep_every=3)
    assert checkpoint.steps(tmp_path / "b") == [5, 4, 3]
    _save(tmp_path / "b", 6, 7, 8, keep=1, keep_every=3)
    assert checkpoint.steps(tmp_path / "b") == [8, 7, 6, 3]


def test_an_empty_or_missing_folder_has_no_checkpoint(tmp_path):
    target = _abstract(_state(), _mesh({"data": 1}))
    assert checkpoint.restore(tmp_path / "none", target) is None
    assert checkpoint.steps(tmp_path) == []
    with pytest.raises(errors.UserError, match="has no checkpoint; give a run"):
        checkpoint.load_params(tmp_path)


def test_parameters_are_loaded_without_the_optimizer(tmp_path):
    _save(tmp_path / "checkpoints", 1, 2)
    _equal(checkpoint.load_params(tmp_path), _state(2).params)
    _equal(checkpoint.load_params(tmp_path / "checkpoints", 1), _state(1).params)
    mesh = _mesh({"fsdp": 4, "tensor": 2})
    params = checkpoint.load_params(tmp_path, mesh=mesh, dtype=jnp.bfloat16)
    kernel = params["blocks"]["kernel"]
    assert kernel.dtype == jnp.bfloat16
    assert kernel.sharding.shard_shape(kernel.shape) == (4, 4)
    with pytest.raises(errors.UserError, match="of step 7; it has steps 2, 1"):
        checkpoint.load_params(tmp_path, 7)


def test_a_relative_folder_is_as_good_as_an_absolute_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _save("run/checkpoints", 1)
    _equal(checkpoint.load_params("run"), _state(1).params)
    target = _abstract(_state(), _mesh({"data": 1}))
    assert checkpoint.restore("run/checkpoints", target)[0] == 1


@pytest.mark.parametrize("harm", [_flip_the_largest, _truncate, _lose_the_arrays])
def test_a_corrupt_checkpoint_is_named_moved_and_replaced_by_the_one_before(
    tmp_path, caplog, harm
):
    folder = tmp_path / "checkpoints"
    _save(folder, 1, 2)
    harm(folder / "2")
    target = _abstract(_state(), _mesh({"data": 1}))

    step, restored = checkpoint.restore(folder, target)

    assert step == 1
    _equal(restored, _state(1))
    assert f"checkpoint {folder / '2'}" in caplog.text
    assert "using checkpoint 1" in caplog.text
    assert (tmp_path / "corrupt" / "2").is_dir()
    assert checkpoint.steps(folder) == [1]
    _save(folder, 2)  # the run comes to step 2 again
    assert checkpoint.restore(folder, target)[0] == 2


def test_no_flipped_bit_in_any_file_changes_what_is_restored(tmp_path):
    _save(tmp_path / "good", 1, 2)
    target = _abstract(_state(), _mesh({"data": 1}))
    files = [file for file in (tmp_path / "good" / "2").rglob("*") if file.is_file()]
    restored = []
    for number, file in enumerate(files):
        folder = tmp_path / str(number) / "checkpoints"
        shutil.copytree(tmp_path / "good", folder)
        _flip(folder / file.relative_to(tmp_path / "good"))
        step, state = checkpoint.restore(folder, target)
        _equal(state, _state(step))
        restored.append(step)
    assert {1, 2} >= {*restored}
    assert restored.count(1) >= 4  # two files are empty words, two are unused copies


def test_a_folder_without_metadata_is_no_checkpoint_and_can_be_saved_again(tmp_path):
    folder = tmp_path / "checkpoints"
    _save(folder, 1, 2)
    (folder / "2" / "_CHECKPOINT_METADATA").unlink()
    target = _abstract(_state(), _mesh({"data": 1}))
    assert checkpoint.restore(folder, target)[0] == 1
    _save(folder, 2)
    step, restored = checkpoint.restore(folder, target)
    assert step == 2
    _equal(restored, _state(2))


def test_parameters_of_a_corrupt_checkpoint_are_never_returned(tmp_path, caplog):
    _save(tmp_path, 1, 2)
    _flip_kernels(tmp_path / "2")
    _equal(checkpoint.load_params(tmp_path), _state(1).params)
    assert "trying the one before" in caplog.text
    with pytest.raises(checkpoint_files.CorruptError, match="corrupt"):
        checkpoint.load_params(tmp_path, 2)


def _flip_kernels(folder):
    """Flips one bit in every file that is large enough to hold a kernel."""
    for file in folder.rglob("*"):
        if file.is_file() and not file.name.startswith("_"):
            data = bytearray(file.read_bytes())
            if len(data) > 400:
                data[len(data) // 2] ^= 1
                file.write_bytes(data)


def test_when_all_are_corrupt_the_user_is_told_and_nothing_is_moved(tmp_path):
    folder = tmp_path / "checkpoints"
    _save(folder, 1, 2)
    for step in (1, 2):
        _flip_the_largest(folder / str(step))
    target = _abstract(_state(), _mesh({"data": 1}))
    with pytest.raises(errors.UserError, match=r"every checkpoint .* corrupt \(2, 1\)"):
        checkpoint.restore(folder, target)
    assert checkpoint.steps(folder) == [2, 1]
    with pytest.raises(errors.UserError, match="every checkpoint"):
        checkpoint.load_params(tmp_path)


def test_another_structure_is_refused_with_every_difference(tmp_path):
    _save(tmp_path, 1)
    other = _state()
    params = {"blocks": {"kernel": jnp.zeros((16, 9))}, "scale": jnp.zeros(8)}
    target = _abstract(other.replace(params=params), _mesh({"data": 1}))
    with pytest.raises(errors.UserError) as caught:
        checkpoint.restore(tmp_path, target)
    message = str(caught.value)
    assert "(3 differences)" in message
    assert "params/bias is only in the checkpoint" in message
    assert "params/scale is not in the checkpoint" in message
    assert "params/blocks/kernel: saved (16, 8), wanted (16, 9)" in message
    assert "\n" not in message
    # It is no corruption: nothing was moved away.
    assert checkpoint.steps(tmp_path) == [1]


FULL_DISK = """
    import os, pathlib, resource, signal, sys
    os.environ["JAX_PLATFORMS"] = "cpu"
    import jax.numpy as jnp
    from jaxlab.core import checkpoint, errors

    folder = pathlib.Path(sys.argv[1])
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # the write then fails instead
    with checkpoint.Checkpointer(folder) as saver:
        saver.save(1, {"w": jnp.ones(8)})
    try:
        with checkpoint.Checkpointer(folder) as saver:
            resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, resource.RLIM_INFINITY))
            saver.save(2, {"w": jnp.ones(100_000)})
    except errors.UserError as error:
        print(error)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits the size of files")
def test_a_save_that_fails_is_one_line_and_leaves_the_one_before(tmp_path):
    script = textwrap.dedent(FULL_DISK)
    done = runs.python(script, tmp_path)
    (line,) = done.stdout.splitlines()
    assert line.startswith(
        f"saving step 2 to {tmp_path} failed; step 1 is the last good"
    )
    assert "free some disk space" in line
    assert checkpoint.steps(tmp_path) == [1]
    assert checkpoint_files.load(tmp_path / "1", _shape(8))["w"].tolist() == [1.0] * 8
    # Once there is space, the same command goes on.
    with checkpoint.Checkpointer(tmp_path) as saver:
        saver.save(2, {"w": jnp.ones(100_000)})
    assert checkpoint.steps(tmp_path) == [2, 1]


def _shape(size):
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return {"w": jax.ShapeDtypeStruct((size,), jnp.float32, sharding=place)}


def test_a_step_that_is_saved_already_is_left_as_it_is(tmp_path):
    _save(tmp_path, 1)
    before = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*")}
    _save(tmp_path, 1)
    assert {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*")} == before


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "checkpoints").write_text("a file")
    with pytest.raises(errors.UserError, match="cannot open"):
        checkpoint.Checkpointer(tmp_path / "checkpoints")


def test_every_leaf_is_verified_without_the_model_and_the_wrong_one_named(
    tmp_path, capsys
):
    folder = tmp_path / "checkpoints"
    # Smaller leaves would be compressed, together.
    kernel = jax.random.normal(jax.random.key(0), (16, 100))
    state = _state().replace(params={"blocks": {"kernel": kernel}, "bias": kernel[0]})
    with checkpoint.Checkpointer(folder) as saver:
        saver.save(1, state)
        saver.save(2, state)
    assert checkpoint_files.verify(folder / "2") == dict.fromkeys(
        tree.flatten(state), ""
    )
    _flip_leaf(folder / "2", kernel)
    wrong = {
        name: text
        for name, text in checkpoint_files.verify(folder / "2").items()
        if text
    }
    assert wrong == {"params/blocks/kernel": "another checksum"}

    assert cli.run(["checkpoint", "verify", str(tmp_path), "--step=1"]) == 0
    assert capsys.readouterr().out == "step 1: ok, 9 leaves have their checksums\n"
    assert cli.run(["checkpoint", "verify", str(tmp_path)]) == 1
    line = "step 2: corrupt, 1 of 9 leaves: params/blocks/kernel (another checksum)\n"
    assert capsys.readouterr().out == line
    assert cli.run(["checkpoint", "verify", str(tmp_path), "--all"]) == 1
    assert len(capsys.readouterr().out.splitlines()) == 2


def _flip_leaf(folder, leaf):
    """Flips a bit of a leaf where it is on disk."""
    bits = np.asarray(leaf).tobytes()
    (file,) = [f for f in folder.rglob("*") if f.is_file() and bits in f.read_bytes()]
    data = bytearray(file.read_bytes())
    data[data.index(bits)] ^= 1
    file.write_bytes(data)


def test_a_leaf_that_cannot_be_read_is_told_from_those_that_can(tmp_path, monkeypatch):
    _save(tmp_path, 1)
    from orbax.checkpoint import v1 as ocp

    load = ocp.load

    def load_all_but_the_bias(path, abstract):
        wanted = [x for x in jax.tree.leaves(abstract) if x is not ocp.PLACEHOLDER]
        if any(leaf.shape == (8,) for leaf in wanted):
            raise ValueError("the file ends")
        return load(path, abstract)

    monkeypatch.setattr(ocp, "load", load_all_but_the_bias)
    faults = checkpoint_files.verify(tmp_path / "1")
    wrong = {name for name, text in faults.items() if text}
    assert wrong == {name for name in faults if name.endswith("bias")}
    assert faults["params/bias"] == "cannot be read: the file ends"


@pytest.mark.parametrize("harm", [_truncate, _lose_the_arrays])
def test_files_that_are_damaged_fail_verification(tmp_path, capsys, harm):
    _save(tmp_path, 1)
    harm(tmp_path / "1")
    assert cli.run(["checkpoint", "verify", str(tmp_path)]) == 1
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("step 1: ")
    assert "corrupt" in line or "cannot be read" in line


def test_checkpoints_are_listed_newest_first(tmp_path, capsys):
    folder = tmp_path / "checkpoints"
    _save(folder, 10, 15, 20)
    (folder / "20" / checkpoint.METADATA).unlink()
    (folder / "25.orbax-checkpoint-tmp").mkdir()
    (tmp_path / "config.json").write_text(json.dumps({"run": {"keep_every": 10}}))
    assert cli.run(["checkpoint", "ls", str(tmp_path)]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert rows[0] == ["step", "MB", "age", "kept", "state"]
    assert rows[1] == ["25", "0.00", "-", "the", "last", "unfinished"]
    assert [row[0] for row in rows[2:]] == ["20", "15"]
    assert rows[2][2:] == ["-", "for", "good", "unfinished"]
    assert rows[3][3:] == ["the", "last", "ok"]
    assert rows[3][2].endswith("s")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["ls", "{none}"], "none does not exist; give a run directory"),
        (["verify", "{none}"], "none does not exist"),
        (["verify", "{run}", "--step=7"], "has no checkpoint of step 7; use one of 1"),
        (["export", "{run}", "{out}"], "has no config.json"),
        (["export", "{run}", "gs://bucket/out"], "no local folder; export, then copy"),
        (["ls", "s3://bucket/run"], "local folders and gs:// only"),
    ],
)
def test_a_misused_action_on_checkpoints_is_one_line(tmp_path, capsys, argv, message):
    _save(tmp_path / "run" / "checkpoints", 1)
    places = {name: tmp_path / name for name in ("run", "none", "out")}
    assert cli.run(["checkpoint", *(part.format(**places) for part in argv)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line

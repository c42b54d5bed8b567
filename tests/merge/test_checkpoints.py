"""Merges of run directories and of other Orbax checkpoints."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab import merge
from jaxlab.core import checkpoint, errors, safetensors
from jaxlab.merge.files.write import orbax_folder
from jaxlab.merge.spheres import merges
from tests.support.models_on_disk import (
    assert_close,
    floats,
    save,
    tensors,
)


def run_folder(path, seed, layers=3):
    draw = np.random.default_rng([2, seed])
    leaves = {
        "embed/embedding": draw.standard_normal((20, 8)),
        "blocks/mlp/up/kernel": draw.standard_normal((layers, 8, 50)),
        "blocks/norm/scale": draw.standard_normal((layers, 8)),
    }
    leaves = {name: jnp.asarray(leaf, jnp.float32) for name, leaf in leaves.items()}
    orbax_folder.write(path, leaves, {"model": {"embed": 8}, "data": {}}, {})
    return str(path)


@pytest.fixture
def runs(tmp_path):
    paths = [tmp_path / f"run{seed}" for seed in range(3)]
    for seed, path in enumerate(paths):
        path.mkdir()
        run_folder(path, seed)
    return [str(path) for path in paths]


@pytest.mark.parametrize("method", ["linear", "model_stock"])
def test_runs_are_merged_to_a_run(runs, tmp_path, method):
    is_based = method == "model_stock"
    merge.merge_files(
        runs[is_based:], tmp_path / "m", method, base=runs[0] if is_based else None,
        format="orbax", layer_axis="^blocks/", chunk_bytes=4096,
    )  # fmt: skip
    base, *tuned = [checkpoint.load_params(path) for path in runs]
    if is_based:
        expected = merges.model_stock(base, tuned)
        one = functools.partial(merges.model_stock)
        by_layer = jax.vmap(lambda b, x, y: one(b, [x, y]))
        expected["blocks"] = by_layer(*(tree["blocks"] for tree in (base, *tuned)))
    else:
        expected = merge.average([base, *tuned])
    found = checkpoint.load_params(tmp_path / "m")
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-6)


def test_a_list_runs_over_the_layers_of_a_stacked_leaf(runs, tmp_path):
    merge.merge_files(
        runs[:2], tmp_path / "m", "interpolate", t=[0, 1], format="orbax",
        layer_axis="^blocks/",
    )  # fmt: skip
    a, b, found = (checkpoint.load_params(p) for p in (*runs[:2], tmp_path / "m"))
    x, y, merged = (tree["blocks"]["mlp"]["up"]["kernel"] for tree in (a, b, found))
    np.testing.assert_array_equal(merged[0], x[0])
    np.testing.assert_allclose(merged[1], (x[1] + y[1]) / 2, atol=1e-6)
    np.testing.assert_array_equal(merged[2], y[2])
    np.testing.assert_array_equal(found["embed"]["embedding"], a["embed"]["embedding"])


def test_a_flipped_bit_of_a_run_is_found(runs, tmp_path):
    step = pathlib.Path(runs[1]) / "checkpoints" / "0"
    [values] = [f for f in step.rglob("d/*") if f.stat().st_size > 4000]
    content = bytearray(values.read_bytes())
    content[1000] ^= 4
    values.write_bytes(content)
    with pytest.raises(errors.UserError, match=r"step 0 of .* is corrupt: "):
        merge.merge_files(runs, tmp_path / "m", format="orbax")
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize("axis", [0, 1])
def test_leaves_stored_in_pieces_are_read(tmp_path, axis):
    mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = [None, None]
    spec[axis] = "x"
    place = jax.NamedSharding(mesh, jax.P(*spec))
    whole = np.random.default_rng(0).standard_normal((64, 40)).astype(np.float32)
    for number in range(2):
        folder = tmp_path / f"{number}"
        folder.mkdir()
        leaves = {"w": jax.device_put(whole * (1 + number), place)}
        orbax_folder.write(folder, leaves, {}, {})
    paths = [tmp_path / "0", tmp_path / "1"]
    merge.merge_files(paths, tmp_path / "m", format="orbax", chunk_bytes=4096)
    found = checkpoint.load_params(tmp_path / "m")["w"]
    np.testing.assert_allclose(found, 1.5 * whole, rtol=1e-6)


def test_folders_become_a_checkpoint_under_their_own_names(folders, tmp_path):
    with pytest.raises(ValueError, match=r"model\.empty is empty, which Orbax"):
        merge.merge_files(folders[1:3], tmp_path / "m", format="orbax")
    values = [floats(tensors(seed)) for seed in (1, 2)]
    for value in values:
        del value["model.empty"]
    paths = [save(tmp_path / n, v) for n, v in zip("ab", values, strict=True)]
    merge.merge_files(paths, tmp_path / "m", format="orbax")
    assert_close(checkpoint.load_params(tmp_path / "m"), merge.average(values))


def test_runs_and_folders_do_not_mix(runs, folders, tmp_path):
    with pytest.raises(ValueError, match="is a run and not a folder"):
        merge.merge_files([folders[0], runs[0]], tmp_path / "m")
    with pytest.raises(ValueError, match="checkpoints are merged to format orbax"):
        merge.merge_files(runs, tmp_path / "m", format="hf")


def test_single_files_of_any_name_are_merged(tmp_path):
    files = []
    for seed in (1, 2):
        save(tmp_path / f"m{seed}", values := tensors(seed))
        files.append(tmp_path / f"m{seed}" / "weights.safetensors")
        (tmp_path / f"m{seed}" / "model.safetensors").rename(files[-1])
    expected = merge.average([tensors(1), tensors(2)])
    merge.merge_files(files, tmp_path / "of_files")
    merge.merge_files([file.parent for file in files], tmp_path / "of_folders")
    for name in ("of_files", "of_folders"):
        found = safetensors.read_folder(tmp_path / name)
        assert_close(floats(found), floats(expected))
        assert found.keys() == values.keys()


@pytest.mark.parametrize("method", ["linear", "slerp"])
def test_checkpoints_of_other_projects_keep_their_structure(tmp_path, method):
    from orbax.checkpoint import v1 as ocp

    draw = np.random.default_rng(0)
    trees = [
        {
            "layers": [
                {"w": draw.standard_normal((6, 4)).astype(np.float32)} for _ in range(2)
            ],
            "step": np.int32(7),
        }
        for _ in range(2)
    ]
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder, tree in zip(folders, trees, strict=True):
        ocp.save(folder, jax.tree.map(jnp.asarray, tree))
    options = {"base": folders[0], "t": 0.3} if method == "slerp" else {}
    merge.merge_files(folders, tmp_path / "out", method, **options)
    found = ocp.load(tmp_path / "out")
    expected = merge.slerp(*trees, 0.3) if options else merge.average(trees)
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)

"""Merges of files: the same numbers as in memory."""

import json

import jax
import numpy as np
import pytest

from jaxlab import merge
from jaxlab.core import safetensors
from jaxlab.merge.files.recipe import methods
from jaxlab.merge.sparse import at_random, by_size
from jaxlab.merge.spheres import merges
from tests.support.models_on_disk import BF16, assert_close, floats, save, tensors

IN_MEMORY = {
    "linear": lambda base, tuned: merge.average(tuned, [3, 1, -1]),
    "task_arithmetic": lambda base, tuned: merge.apply_task_vectors(
        base, [merge.task_vector(tree, base) for tree in tuned], [3, 1, -1], lam=0.5
    ),
    "nuslerp": lambda base, tuned: merges.nuslerp(*tuned[:2], [3, 1], base=base),
    "multislerp": lambda base, tuned: merges.multislerp(tuned, [3, 1, -1], base=base),
    "karcher": lambda base, tuned: merges.karcher(tuned, [3, 1, 1]),
    "model_stock": lambda base, tuned: merges.model_stock(base, tuned),
    "ties": lambda base, tuned: by_size.ties(
        base, tuned, [3, 1, -1], [0.3, 0.5, 1], lam=0.5
    ),
    "breadcrumbs": lambda base, tuned: by_size.breadcrumbs(
        base, tuned, [3, 1, 1], 0.5, 0.1, rescale="l1"
    ),
    "breadcrumbs_ties": lambda base, tuned: by_size.breadcrumbs(
        base, tuned, [3, 1, 1], 0.5, 0.1, consensus=True, normalize=True, rescale=None
    ),
    "dare_linear": lambda base, tuned: at_random.dare(
        base, tuned, [3, 1, 1], [0.3, 0.5, 1], key=jax.random.key(7)
    ),
    "dare_ties": lambda base, tuned: at_random.dare(
        base,
        tuned,
        [3, 1, 1],
        0.5,
        key=jax.random.key(7),
        consensus=True,
        rescale="expectation",
    ),
    "della": lambda base, tuned: at_random.della(
        base, tuned, [3, 1, 1], 0.5, 0.2, key=jax.random.key(7)
    ),
    "sce": lambda base, tuned: by_size.sce(base, tuned, select_topk=0.4),
}
ARGUMENTS = {
    "linear": {"weights": [3, 1, -1]},
    "task_arithmetic": {"weights": [3, 1, -1], "lam": 0.5},
    "nuslerp": {"weights": [3, 1]},
    "multislerp": {"weights": [3, 1, -1]},
    "karcher": {"weights": [3, 1, 1]},
    "model_stock": {},
    "ties": {"weights": [3, 1, -1], "density": [0.3, 0.5, 1], "lam": 0.5},
    "breadcrumbs": {
        "weights": [3, 1, 1], "density": 0.5, "gamma": 0.1, "rescale": True,
    },
    "breadcrumbs_ties": {
        "weights": [3, 1, 1], "density": 0.5, "gamma": 0.1, "normalize": True,
        "rescale": None,
    },
    "dare_linear": {"weights": [3, 1, 1], "density": [0.3, 0.5, 1], "seed": 7},
    "dare_ties": {
        "weights": [3, 1, 1], "density": 0.5, "seed": 7, "rescale": "expectation",
    },
    "della": {"weights": [3, 1, 1], "density": 0.5, "epsilon": 0.2, "seed": 7},
    "sce": {"select_topk": 0.4},
}  # fmt: skip


@pytest.mark.parametrize("chunk_bytes", [1 << 12, 4 << 20])
@pytest.mark.parametrize(
    "method",
    # Karcher's bound is on sums in the order of programs compiled with all passes.
    [
        pytest.param(m, marks=pytest.mark.slow) if m == "karcher" else m
        for m in IN_MEMORY
    ],
)
def test_streamed_and_in_memory_merges_are_equal(
    folders, tmp_path, method, chunk_bytes
):
    base, *tuned = [floats(tensors(seed)) for seed in range(4)]
    expected = IN_MEMORY[method](base, tuned)
    inputs = folders[1:3] if method == "nuslerp" else folders[1:]
    is_based = methods.METHODS[method].base != "none"
    merge.merge_files(
        inputs, tmp_path / "out", method, base=folders[0] if is_based else None,
        chunk_bytes=chunk_bytes, **ARGUMENTS[method],
    )  # fmt: skip
    found = safetensors.read_folder(tmp_path / "out")
    np.testing.assert_array_equal(found.pop("model.position_ids"), np.arange(12)[None])
    # A norm of a whole leaf is rounded otherwise than the sum of those of its blocks.
    has_norms = method.startswith(("dare", "della", "breadcrumbs"))
    assert_close(found, expected, 2**-20 if has_norms else 2**-22)


@pytest.mark.parametrize("t", [0.0, 0.3, 1.0])
def test_slerp_is_that_of_memory_and_exact_at_its_ends(folders, tmp_path, t):
    a, b = (floats(tensors(seed)) for seed in (0, 2))
    merge.merge_files(
        [folders[2]], tmp_path / "out", "slerp", base=folders[0], t=t, chunk_bytes=4096
    )
    found = floats(safetensors.read_folder(tmp_path / "out"))
    assert_close(found, merges.slerp(a, b, t))
    if t in (0, 1):
        for name, value in (a, b)[int(t)].items():
            np.testing.assert_array_equal(found[name], value)


@pytest.mark.parametrize("along", ["row", "column"])
def test_slices_with_coefficients_of_their_own_stream_too(folders, tmp_path, along):
    base, a, b, c = (floats(tensors(seed)) for seed in range(4))
    merge.merge_files(
        folders[1:3], tmp_path / "out", "nuslerp", base=folders[0], weights=[1, 3],
        nuslerp_flatten=False, nuslerp_row_wise=along == "column", chunk_bytes=4096,
    )  # fmt: skip
    found = floats(safetensors.read_folder(tmp_path / "out"))
    assert_close(found, merges.nuslerp(a, b, [1, 3], base=base, along=along), 2**-20)
    if along == "row":
        merge.merge_files(
            folders[1:], tmp_path / "stock", "model_stock", base=folders[0],
            filter_wise=True, chunk_bytes=4096,
        )  # fmt: skip
        found = floats(safetensors.read_folder(tmp_path / "stock"))
        expected = merges.model_stock(base, [a, b, c], filter_wise=True)
        assert_close(found, expected, 2**-20)


# ------------------------------------------------------------------ exactness


@pytest.mark.parametrize("dtype", [np.float32, np.float16, BF16])
@pytest.mark.parametrize("method", ["linear", "task_arithmetic", "slerp", "ties"])
def test_a_merge_of_equal_models_is_the_model_bit_for_bit(tmp_path, method, dtype):
    values = tensors(1, dtype)
    values["model.norm.weight"] = np.array([0.0, -0.0, 1e-7, -3, 65504, 1 / 3]).astype(
        dtype
    )
    paths = [save(tmp_path / name, values) for name in "abc"]
    options = {"t": 0.3} if method == "slerp" else {"weights": 1 / 3}
    count = 2 if method == "slerp" else 3
    is_based = method != "linear"
    merge.merge_files(
        paths[is_based:count], tmp_path / "m", method,
        base=paths[0] if is_based else None, **options,
    )  # fmt: skip
    for name, found in safetensors.read_folder(tmp_path / "m").items():
        assert found.dtype == values[name].dtype
        assert found.tobytes() == values[name].tobytes(), name


def test_an_endpoint_is_exact_and_its_dtype_may_change(folders, tmp_path):
    merge.merge_files(
        folders[1:3], tmp_path / "m", "interpolate", t=1.0, dtype="bfloat16"
    )
    found = safetensors.read_folder(tmp_path / "m")
    for name, value in floats(tensors(2)).items():
        np.testing.assert_array_equal(found[name], value.astype(BF16))
    assert json.loads((tmp_path / "m/config.json").read_text())["torch_dtype"] == (
        "bfloat16"
    )


def test_infinities_and_nans_are_those_of_memory(tmp_path):
    rows = np.float32(
        [[np.inf, 1, np.inf, np.nan, -np.inf, 2], [np.inf, np.inf, 1, 1, np.inf, 4]]
    )
    paths = [save(tmp_path / n, {"w": row}) for n, row in zip("ab", rows, strict=True)]
    merge.merge_files(paths, tmp_path / "m", weights=[3, 1])
    found = safetensors.read_folder(tmp_path / "m")["w"]
    expected = merge.average([{"w": row} for row in rows], [3, 1])["w"]
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("dtype", [BF16, np.float16, np.float64])
def test_other_dtypes_are_rounded_once(tmp_path, dtype):
    values = [floats(tensors(seed, dtype)) for seed in (1, 2)]
    paths = [save(tmp_path / n, v) for n, v in zip("ab", values, strict=True)]
    merge.merge_files(paths, tmp_path / "m", weights=[1, 3])
    for name, found in safetensors.read_folder(tmp_path / "m").items():
        a, b = (v[name].astype(np.float64) for v in values)
        exact = 0.25 * a + 0.75 * b
        spacing = np.abs(np.spacing(found)).astype(np.float64)
        wide = np.finfo(np.float32).eps if dtype != np.float64 else 2.0**-52
        assert (np.abs(found - exact) <= spacing / 2 + wide * 2).all()

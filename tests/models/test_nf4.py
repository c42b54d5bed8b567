"""NF4 packs as bitsandbytes does, and unpacks a layer at a time."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.core import errors
from jaxlab.models import nf4


@pytest.fixture(scope="module")
def vectors(test_data):
    folder = test_data.parent / "vectors" / "nf4"
    if not folder.is_dir():
        pytest.skip("the values of bitsandbytes, vectors/nf4, are not there")
    with np.load(folder / "nf4.npz") as values:
        return dict(values), json.loads((folder / "nf4.json").read_text())


def test_the_tables_are_those_of_bitsandbytes(vectors):
    np.testing.assert_array_equal(nf4.TABLE, vectors[0]["table"])
    # Theirs is computed in f32: a last bit may differ.
    given = vectors[0]["absmax_table"]
    np.testing.assert_array_almost_equal_nulp(nf4.outer_table(), given, nulp=1)


def test_codes_and_maxima_are_those_of_bitsandbytes(vectors):
    values, _ = vectors
    names = {key.split("/")[0] for key in values if key.endswith("/input")}
    assert len(names) == 3
    for name in names:
        matrix = values[f"{name}/input"]
        plain = nf4.quantize(matrix, double=False)
        given = {key: values[f"{name}/plain/{key}"] for key in ("packed", "absmax")}
        codes = np.asarray(plain["codes"])
        half = codes.size - matrix.size % 2  # an odd last value leaves a half unused
        np.testing.assert_array_equal(codes[:half], given["packed"].ravel()[:half])
        np.testing.assert_array_equal(plain["absmax"], given["absmax"])
        expected = values[f"{name}/plain/dequantised"]
        found = nf4.dequantize(plain, matrix.shape)
        np.testing.assert_allclose(found, expected, atol=1e-6 * np.abs(matrix).max())


def test_the_second_level_is_that_of_bitsandbytes(vectors):
    values, _ = vectors
    for name in {key.split("/")[0] for key in values if key.endswith("/input")}:
        matrix, stem = values[f"{name}/input"], f"{name}/nested"
        packed = nf4.quantize(matrix)
        np.testing.assert_allclose(packed["offset"], values[f"{stem}/absmax_offset"])
        np.testing.assert_allclose(packed["scale"], values[f"{stem}/absmax_absmax"])
        theirs = {
            "absmax": values[f"{stem}/absmax_codes"].ravel(),
            "scale": values[f"{stem}/absmax_absmax"].ravel(),
            "offset": values[f"{stem}/absmax_offset"],
        }
        most = float(np.max(packed["scale"]))
        ours, theirs = nf4._absmax(packed), nf4._absmax(theirs)
        np.testing.assert_allclose(ours, theirs, atol=2e-5 * most)
        found = nf4.dequantize(packed, matrix.shape)
        expected = values[f"{name}/nested/dequantised"]
        np.testing.assert_allclose(found, expected, atol=2e-5 * np.abs(matrix).max())


def test_an_entry_of_the_table_is_kept_exactly():
    matrix = np.tile(nf4.TABLE, 8)[None] * 3
    packed = nf4.quantize(matrix, double=False)
    np.testing.assert_array_equal(nf4.dequantize(packed, matrix.shape), matrix)


def test_a_packed_kernel_is_the_transposed_matrix():
    kernel = np.random.default_rng(0).normal(size=(128, 6)).astype(np.float32)
    packed = nf4.pack(jnp.asarray(kernel))
    assert packed["codes"].shape == (6, 64)
    assert packed["absmax"].shape == (6, 2)
    flat = nf4.dequantize(nf4.quantize(kernel.T), (6, 128)).T
    np.testing.assert_array_equal(nf4.unpack(packed), flat)
    assert np.abs(nf4.unpack(packed) - kernel).max() < 0.3 * np.abs(kernel).max()


def test_blocks_that_cross_rows_are_refused():
    with pytest.raises(errors.ArgumentError, match="multiple of 64, not 96"):
        nf4.pack(jnp.zeros((96, 2)))


@pytest.mark.oracle
def test_bitsandbytes_packs_alike():
    torch = pytest.importorskip("torch")
    functional = pytest.importorskip("bitsandbytes.functional")
    matrix = np.random.default_rng(1).standard_t(3, size=(48, 128)).astype(np.float32)
    codes, _ = functional.quantize_4bit(
        torch.tensor(matrix), blocksize=64, quant_type="nf4"
    )
    ours = nf4.quantize(matrix, double=False)["codes"]
    differ = np.asarray(ours) != codes.numpy().ravel()
    assert differ.mean() < 1e-3  # x / absmax is rounded in another way at a midpoint

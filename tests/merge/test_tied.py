"""Embeddings and heads that are one matrix stay one; what is not finite is said."""

import numpy as np
import pytest

from jaxlab import merge
from jaxlab.core import errors, safetensors
from tests.support.models_on_disk import CONFIG, save

EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"
TIED = CONFIG | {"tie_word_embeddings": True}


def model(folder, seed, names=(EMBED, HEAD), config=TIED):
    """A tied model whose file holds the matrix under these names."""
    draw = np.random.default_rng(seed)
    matrix = draw.normal(size=(40, 12)).astype(np.float32)
    values = {"model.norm.weight": draw.normal(size=12).astype(np.float32)}
    return save(folder, values | dict.fromkeys(names, matrix), config=config)


FILTERED = [{"filter": "lm_head", "value": 0.2}, {"value": 1}]


@pytest.mark.parametrize(
    ("method", "parameters"),
    [
        ("dare_linear", {"density": 0.5}),
        ("dare_ties", {"density": 0.5}),
        ("della", {"density": 0.5, "epsilon": 0.2}),
        ("task_arithmetic", {"weight": [FILTERED] * 2}),
        ("ties", {"density": [[{"filter": "embed", "value": 0.3}, {"value": 1}]] * 2}),
    ],
)
def test_a_tied_pair_is_one_matrix_after_every_method(tmp_path, method, parameters):
    base, *tuned = [model(tmp_path / str(seed), seed) for seed in range(3)]
    merge.merge_files(tuned, tmp_path / "m", method, base=base, **parameters)
    found = safetensors.read_folder(tmp_path / "m")
    np.testing.assert_array_equal(found[EMBED], found[HEAD])


@pytest.mark.parametrize("names", [(EMBED,), (HEAD,)])
def test_files_that_hold_a_tied_matrix_once_and_twice_are_merged(tmp_path, names):
    a, b = model(tmp_path / "a", 0), model(tmp_path / "b", 1, names)
    merge.merge_files([a, b], tmp_path / "m")
    found = safetensors.read_folder(tmp_path / "m")
    assert found.keys() == {"model.norm.weight", EMBED}
    one, two = (safetensors.read_folder(path)[names[0]] for path in (a, b))
    np.testing.assert_allclose(found[EMBED], (one + two) / 2, atol=1e-6)


def test_heads_of_their_own_are_merged_on_their_own(tmp_path):
    paths = []
    for seed in range(3):
        draw = np.random.default_rng(seed)
        values = {n: draw.normal(size=(40, 12)).astype("f") for n in (EMBED, HEAD)}
        paths.append(save(tmp_path / str(seed), values))
    merge.merge_files(
        paths[1:],
        tmp_path / "m",
        "task_arithmetic",
        base=paths[0],
        weight=[FILTERED] * 2,
    )
    found, inputs = tmp_path / "m", [safetensors.read_folder(path) for path in paths]
    found = safetensors.read_folder(found)
    for name, weight in ((EMBED, 1), (HEAD, 0.2)):
        base, a, b = (values[name] for values in inputs)
        want = base + weight * (a - base) + weight * (b - base)
        np.testing.assert_allclose(found[name], want, atol=1e-5)
    tied = save(tmp_path / "tied", inputs[0], config=TIED)
    with pytest.raises(errors.UserError, match=r"true, but lm_head\.weight differs"):
        merge.merge_files([tied, tied], tmp_path / "n")


@pytest.mark.parametrize("method", ["linear", "slerp", "ties", "karcher"])
def test_what_is_not_finite_is_named_with_its_input(tmp_path, method):
    values = [{"w": np.ones(9, np.float32), "x": np.ones(3, np.float32)} for _ in "ab"]
    values[1]["w"][4] = np.nan
    a, b = (save(tmp_path / n, v) for n, v in zip("ab", values, strict=True))
    base = {"base": a} if method in ("slerp", "ties") else {}
    more = {"t": 0.5} if method == "slerp" else {}
    inputs = [b] if base else [a, b]
    report = merge.merge_files(inputs, tmp_path / "m", method, **base, **more)
    (note,) = report["notes"]
    assert note.startswith("w holds ")
    assert f"NaN or infinite values; those of {b} do" in note

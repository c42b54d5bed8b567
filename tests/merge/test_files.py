"""Merges of files: the same numbers as in memory, in little memory, or nothing."""

import functools
import hashlib
import itertools
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import zlib

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlab import merge
from jaxlab.core import checkpoint, errors, safetensors
from jaxlab.merge.files.passes import blocks
from jaxlab.merge.files.passes import run as run_lib
from jaxlab.merge.files.read import digests
from jaxlab.merge.files.recipe import methods
from jaxlab.merge.files.write import orbax_folder
from jaxlab.merge.sparse import at_random, by_size
from jaxlab.merge.spheres import merges

ROOT = pathlib.Path(__file__).parents[2]
BF16 = np.dtype(ml_dtypes.bfloat16)
SHAPES = {
    "model.embed_tokens.weight": (40, 12),
    "model.layers.0.mlp.weight": (12, 30),
    "model.layers.1.mlp.weight": (12, 30),
    "model.layers.0.conv.weight": (6, 5, 4),
    "model.norm.weight": (12,),
    "model.scale": (),
    "model.empty": (0, 3),
}
CONFIG = {"model_type": "llama", "hidden_size": 12, "torch_dtype": "float32"}


def tensors(seed, dtype=np.float32, spread=0.1):
    """A model near a common base; seed 0 is the base."""
    draw, own = np.random.default_rng(1), np.random.default_rng([1, seed])
    found = {}
    for name, shape in SHAPES.items():
        base = draw.standard_normal(shape)
        moved = own.standard_normal(shape) * spread * (seed > 0)
        found[name] = np.asarray(base + moved, np.float32).astype(dtype)
    return found | {"model.position_ids": np.arange(12)[None]}


def save(folder, values, shard_bytes=10**9, config=CONFIG):
    folder.mkdir(parents=True)
    specs = {name: (value.shape, value.dtype) for name, value in values.items()}
    safetensors.write_folder(folder, specs, values.get, shard_bytes=shard_bytes)
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


@pytest.fixture
def folders(tmp_path):
    """Four models, each in other shards; the first is the base."""
    return [
        save(tmp_path / f"m{seed}", tensors(seed), 900 * (seed + 1))
        for seed in range(4)
    ]


def floats(values):
    return {k: v for k, v in values.items() if v.dtype != np.int64}


def assert_close(found, expected, rounding=2**-22):
    """Within one rounding of the largest number of each tensor."""
    assert found.keys() == {*expected}
    for name, value in expected.items():
        a, b = (np.asarray(x, np.float64) for x in (found[name], value))
        assert a.shape == b.shape, name
        limit = rounding * max(np.abs(b).max(initial=0), 1e-3)
        np.testing.assert_allclose(a, b, rtol=0, atol=limit, err_msg=name)


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


@settings(deadline=None, max_examples=25)
@given(data=st.data())
def test_pieces_in_any_order_give_the_checksum_of_the_file(scratch, data):
    content = data.draw(st.binary(max_size=300))
    cuts = data.draw(st.lists(st.integers(0, len(content)), max_size=6))
    pieces = list(itertools.pairwise(sorted({0, len(content), *cuts})))
    chosen = data.draw(st.permutations(pieces))[: data.draw(st.integers(0, 6))]
    scratch.write_bytes(content)
    ledger = digests.Ledger("crc32")
    for start, stop in chosen:
        ledger.add(str(scratch), start, memoryview(content)[start:stop])
    found = ledger.digest(str(scratch), memoryview(bytearray(7)))
    assert found == f"{zlib.crc32(content):08x}"


@pytest.fixture(scope="session")
def scratch(tmp_path_factory):
    return tmp_path_factory.mktemp("scratch") / "file"


# ------------------------------------------------------------------ provenance


@pytest.mark.parametrize("kind", ["crc32", "sha256"])
def test_the_record_has_the_digests_of_whole_files(folders, tmp_path, kind):
    report = merge.merge_files(
        folders[1:], tmp_path / "m", "karcher", digest=kind, chunk_bytes=4096
    )
    assert json.loads((tmp_path / "m" / "merge.json").read_text()) == report
    tools = {
        "crc32": lambda content: f"{zlib.crc32(content):08x}",
        "sha256": lambda content: hashlib.sha256(content).hexdigest(),
    }
    for folder, entry in zip(folders[1:], report["inputs"], strict=True):
        assert entry["path"] == folder
        files = {file.name for file in pathlib.Path(folder).glob("*.safetensors")}
        assert {file["name"] for file in entry["files"]} == files
        for file in entry["files"]:
            content = (pathlib.Path(folder) / file["name"]).read_bytes()
            assert file[kind] == tools[kind](content)
            assert file["size"] == len(content)
    with open(tmp_path / "m" / "model.safetensors", "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    assert json.loads(header["__metadata__"]["merge"]) == report
    assert header["__metadata__"]["format"] == "pt"


# ------------------------------------------------------------------ refusals


def test_all_differences_are_one_error_before_any_work(folders, tmp_path):
    values = tensors(4)
    del values["model.norm.weight"]
    values["more"] = np.zeros(2, np.float32)
    values["model.scale"] = np.zeros(3, np.float32)
    values["model.layers.0.conv.weight"] = values["model.layers.0.conv.weight"].astype(
        np.float16
    )
    other = save(tmp_path / "other", values, config=CONFIG | {"rope_theta": 5})
    with pytest.raises(errors.ArgumentError) as caught:
        merge.merge_files([folders[1], other], tmp_path / "m")
    message = str(caught.value)
    assert isinstance(caught.value, ValueError)
    for part in (
        "5 problems", f"{other} lacks model.norm.weight", f"{other} adds more",
        f"model.scale in {other}, unlike {folders[1]}, is [3] and not []",
        "is float16 and not float32; give the dtype of the result",
        "rope_theta None and 5",
    ):  # fmt: skip
        assert part in message
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "m0", "m1", "m2", "m3", "other",
    ]  # fmt: skip


def test_mixed_dtypes_are_merged_when_the_result_has_one(tmp_path):
    a, b = floats(tensors(1)), floats(tensors(2, BF16))
    paths = [save(tmp_path / "a", a), save(tmp_path / "b", b)]
    merge.merge_files(paths, tmp_path / "m", dtype="float32")
    wide = {name: value.astype(np.float32) for name, value in b.items()}
    assert_close(safetensors.read_folder(tmp_path / "m"), merge.average([a, wide]))


def test_integers_that_differ_are_refused(folders, tmp_path):
    values = tensors(1) | {"model.position_ids": np.arange(1, 13)[None]}
    other = save(tmp_path / "other", values)
    with pytest.raises(errors.UserError, match=r"model\.position_ids holds integers"):
        merge.merge_files([folders[0], other], tmp_path / "m")
    assert not (tmp_path / "m").exists()
    assert not (tmp_path / "m.part").exists()


def test_what_float16_cannot_hold_is_named(tmp_path):
    paths = [save(tmp_path / n, {"w": np.float32([1, 7e4])}) for n in "ab"]
    with pytest.raises(errors.UserError, match="w has values beyond float16's 65504"):
        merge.merge_files(paths, tmp_path / "m", dtype="float16")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "linaer"}, "'linaer' is not supported; did you mean linear?"),
        ({"wieghts": 1}, "parameter 'wieghts' of linear is not supported"),
        ({"weights": [1, 2]}, "2 weights for 3 models; give one each"),
        ({"weights": [1, -1, 0]}, "sum to 0"),
        ({"weights": [1, float("nan"), 0]}, "nan is no finite number"),
        ({"method": "ties"}, "ties needs base_model"),
        ({"dtype": "int8"}, "dtype 'int8' is not supported; use float32"),
        ({"format": "gguf"}, "format 'gguf'; use one of hf, orbax"),
        ({"chunk_bytes": 3}, "chunk_bytes 3 is below 4096"),
        ({"digest": "md5"}, "digest 'md5'; use one of crc32, sha256"),
        ({"method": "slerp", "t": 0.5}, "slerp takes 1 models besides the base"),
    ],
)
def test_wrong_arguments_are_named(folders, tmp_path, arguments, message):
    if arguments.get("method") == "slerp":
        arguments = {**arguments, "base": folders[0]}
    with pytest.raises(ValueError, match=message.replace("?", r"\?")):
        merge.merge_files(folders[1:], tmp_path / "m", **arguments)
    assert not (tmp_path / "m").exists()


def test_a_row_larger_than_a_chunk_is_refused(tmp_path):
    paths = [save(tmp_path / n, {"w": np.ones((2, 700), np.float32)}) for n in "ab"]
    with pytest.raises(ValueError, match=r"rows of w, .* must have 22400 bytes"):
        merge.merge_files(
            paths, tmp_path / "m", "nuslerp", nuslerp_flatten=False, chunk_bytes=4096
        )


# ------------------------------------------------------------------ safety


def test_damaged_and_missing_inputs_are_one_line_each(folders, tmp_path):
    cut = next(pathlib.Path(folders[1]).glob("*.safetensors"))
    cut.write_bytes(cut.read_bytes()[:-5])
    with pytest.raises(errors.UserError) as caught:
        merge.merge_files([*folders, "nowhere"], tmp_path / "m")
    assert "it is damaged or cut short" in str(caught.value)
    assert "model nowhere does not exist" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_existing_folder_is_refused_before_anything_is_read(tmp_path):
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "mine").touch()
    with pytest.raises(errors.UserError, match="m exists; remove it or choose"):
        merge.merge_files(["nowhere", "nowhere"], tmp_path / "m")
    shutil.rmtree(tmp_path / "m")
    (tmp_path / "m.part").mkdir()
    paths = [save(tmp_path / n, {"w": np.ones(3, np.float32)}) for n in "ab"]
    with pytest.raises(errors.UserError, match=r"m\.part is in the way"):
        merge.merge_files(paths, tmp_path / "m")


def test_a_disk_without_room_is_found_before_the_work(folders, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=100))
    with pytest.raises(errors.UserError, match=r"the merge needs 0\.0 GB and the disk"):
        merge.merge_files(folders, tmp_path / "m")
    assert not (tmp_path / "m.part").exists()


def test_a_disk_that_fills_up_is_one_line(folders, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(errors.UserError, match=r"m \(No space left on device\); free"):
        merge.merge_files(folders, tmp_path / "m")
    assert not (tmp_path / "m.part").exists()


KILLED = """
import os, signal, sys
from jaxlab import merge
from jaxlab.merge.files.write import outputs

def stop(self, *args, write=outputs.Output.write, count=[0]):
    write(self, *args)
    count[0] += 1
    if count[0] == 5:
        os.kill(os.getpid(), signal.SIGKILL)

outputs.Output.write = stop
merge.merge_files(sys.argv[2:], sys.argv[1], "linear")
"""


def test_a_killed_merge_leaves_nothing_that_loads(folders, tmp_path):
    out = tmp_path / "m"
    done = run(KILLED, out, *folders)
    assert done.returncode == -signal.SIGKILL
    assert not out.exists()
    left = list((tmp_path / "m.part").iterdir())
    assert [file for file in left if file.suffix == ".safetensors"]
    for file in left:
        if file.suffix == ".safetensors":
            with pytest.raises(errors.UserError, match="header cannot be read"):
                safetensors.read(file)
    with pytest.raises(errors.UserError):
        safetensors.read_folder(tmp_path / "m.part")
    merge.merge_files(folders, out)  # and the next one cleans up
    assert safetensors.read_folder(out)
    assert not (tmp_path / "m.part").exists()


def test_two_merges_to_one_folder_do_not_mix(folders, tmp_path):
    def again(done, total):
        with pytest.raises(errors.UserError, match="another merge is writing"):
            merge.merge_files(folders, tmp_path / "m")

    merge.merge_files(folders, tmp_path / "m", progress=again)
    assert safetensors.read_folder(tmp_path / "m")


# ------------------------------------------------------------------ memory

MEASURED = """
import os, re, sys, threading
from jaxlab.merge.files import stream
method, chunk, out, *paths = sys.argv[1:]
chunk = int(chunk)
if method not in ("linear", "task_arithmetic"):
    import jax.numpy as jnp
    from jaxlab.merge.files.passes import sparse, spheres
    jnp.ones(3).sum().block_until_ready()  # its threads and arenas

def anonymous():
    with open("/proc/self/status") as status:
        return int(re.search(r"RssAnon:\\s+(\\d+)", status.read())[1]) * 1024

before, peak, stop = anonymous(), [0], threading.Event()
def watch():
    while not stop.wait(0.002):
        peak[0] = max(peak[0], anonymous())
thread = threading.Thread(target=watch)
thread.start()
base = {"base": paths.pop(0)} if method not in ("linear",) else {}
options = {"ties": {"density": 0.3}, "slerp": {"t": 0.3}}.get(method, {})
stream.merge_files(paths, out, method, **base, **options, chunk_bytes=chunk)
stop.set()
thread.join()
print(peak[0] - before, "jax" in sys.modules)
"""


def run(code, *argv):
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, argv)],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
    )


@pytest.fixture(scope="session")
def large(tmp_path_factory):
    """Three models of 48 MB, nearly all of it one tensor."""
    folder, draw = tmp_path_factory.mktemp("large"), np.random.default_rng(0)
    base = draw.standard_normal((3000, 4000), np.float32)
    small = np.ones(5, np.float32)
    return [
        save(folder / str(k), {"w": base + k * np.roll(base, k, 1), "b": small})
        for k in range(3)
    ]


# Compiling takes some megabytes, whatever the chunks: they are larger where it is done.
@pytest.mark.parametrize(
    ("method", "chunk_bytes"),
    [
        ("linear", 1 << 20),
        ("slerp", 2 << 20),
        ("model_stock", 2 << 20),
        ("ties", 2 << 20),
    ],
)
def test_memory_stays_within_sixteen_chunks(large, tmp_path, method, chunk_bytes):
    count = 2 if method == "slerp" else 3
    done = run(MEASURED, method, chunk_bytes, tmp_path / "m", *large[:count])
    assert done.returncode == 0, done.stderr
    grown, has_jax = done.stdout.split()
    assert int(grown) <= 16 * chunk_bytes < 48 << 20
    assert has_jax == str(method != "linear")


# ------------------------------------------------------------------ run directories


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
    with pytest.raises(ValueError, match="is a run and no folder"):
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


def test_a_block_is_what_the_threads_hold():
    """Six buffers for each of two threads fit in sixteen chunks of the default."""
    assert run_lib.THREADS * blocks.BUFFERS * blocks.BLOCK_BYTES <= 16 * (4 << 20)

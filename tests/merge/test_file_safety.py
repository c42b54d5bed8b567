"""Merges of files: refused before any work, whole or not at all, in little memory."""

import os
import pathlib
import shutil
import signal

import numpy as np
import pytest

from jaxlab import merge
from jaxlab.core import errors, safetensors
from jaxlab.merge.files.passes import blocks
from jaxlab.merge.files.passes import run as run_lib
from tests.support import runs as runs_lib
from tests.support.models_on_disk import (
    BF16,
    CONFIG,
    assert_close,
    floats,
    save,
    tensors,
)

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
        "rope_theta None and 5; if that changes nothing, free_keys=['rope_theta']",
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
        ({"digest": "md5"}, "digest 'md5'; use one of xxh3, crc32, sha256"),
        ({"method": "slerp", "t": 0.5}, "slerp takes 1 models besides the base"),
    ],
)
def test_wrong_arguments_are_named(folders, tmp_path, arguments, message):
    if arguments.get("method") == "slerp":
        arguments = {**arguments, "base": folders[0]}
    with pytest.raises(ValueError, match=message.replace("?", r"\?")):
        merge.merge_files(folders[1:], tmp_path / "m", **arguments)
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize(
    ("file", "names", "message"),
    [
        ("model-00002-of-00003.safetensors", ("w",), "is one of 3 files of a model"),
        ("model.safetensors", ("x.layers.0.w", "x.layers.2.w"), "lacks layer 1 of the"),
        ("adapter_model.safetensors", ("x.lora_A.weight",), "is an adapter"),
        ("model.safetensors", ("x.q_proj.lora_magnitude_vector",), "is an adapter"),
        ("model.safetensors", ("lora_te_x.lora_down.weight",), "is an adapter"),
        ("model.safetensors", ("x.hada_w1_a",), "is an adapter"),
    ],
)
def test_what_is_not_a_whole_model_is_refused(tmp_path, file, names, message):
    tensors = {name: np.ones(3, np.float32) for name in names}
    config = CONFIG | {"num_hidden_layers": 3}
    paths = [save(tmp_path / n, tensors, config=config) for n in "ab"]
    for path in paths:
        pathlib.Path(path, "model.safetensors").rename(pathlib.Path(path, file))
    with pytest.raises(errors.UserError, match=message):
        merge.merge_files(paths, tmp_path / "m")
    if "lacks" not in message:  # given as files alike
        with pytest.raises(errors.UserError, match=message):
            merge.merge_files([f"{p}/{file}" for p in paths], tmp_path / "m")


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
    with pytest.raises(
        errors.UserError, match=r"the merge needs 0\.\d MB and the disk"
    ):
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
    done = runs_lib.python(KILLED, out, *folders, check=False)
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
        pytest.param("slerp", 2 << 20, marks=pytest.mark.slow),
        pytest.param("model_stock", 2 << 20, marks=pytest.mark.slow),
        ("ties", 2 << 20),
    ],
)
def test_memory_stays_within_sixteen_chunks(large, tmp_path, method, chunk_bytes):
    count = 2 if method == "slerp" else 3
    done = runs_lib.python(
        MEASURED, method, chunk_bytes, tmp_path / "m", *large[:count], check=False
    )
    assert done.returncode == 0, done.stderr
    grown, has_jax = done.stdout.split()
    assert int(grown) <= 16 * chunk_bytes < 48 << 20
    assert has_jax == str(method != "linear")


def test_a_block_is_what_the_threads_hold():
    """Six buffers for each of two threads fit in sixteen chunks of the default."""
    assert run_lib.THREADS * blocks.BUFFERS * blocks.BLOCK_BYTES <= 16 * (4 << 20)

"""The record of a merge: checksums of what was merged, and the merge once more."""

import hashlib
import itertools
import json
import pathlib
import shutil
import zlib

import numpy as np
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlab import merge
from jaxlab.core import errors, safetensors
from jaxlab.merge.files import stream
from jaxlab.merge.files.read import digests
from jaxlab.merge.files.recipe import recipe
from tests.support import models_on_disk

# ------------------------------------------------------------------ checksums


@settings(deadline=None, max_examples=30)
@given(data=st.data())
def test_pieces_of_any_size_in_any_order_give_one_checksum(data):
    size = data.draw(st.sampled_from([0, 5, digests.CELL, 3 * digests.CELL + 77]))
    content = memoryview(np.random.default_rng(size).bytes(size))
    cuts = data.draw(st.lists(st.integers(0, size), max_size=6))
    pieces = list(itertools.pairwise(sorted({0, size, *cuts})))
    chosen = data.draw(st.permutations(pieces))[: data.draw(st.integers(0, 7))]
    sums = digests.TensorSums({"w": ("w float32", size)})
    for start, stop in chosen:
        sums.add("w", start, content[start:stop])

    def read(start, buffer):
        buffer[:] = content[start : start + len(buffer)]

    seed = xxhash.xxh3_64_intdigest(b"w float32")
    expected = sum(
        xxhash.xxh3_64_intdigest(
            content[cell * digests.CELL : (cell + 1) * digests.CELL],
            (seed + cell) % 2**64,
        )
        for cell in range(-(-size // digests.CELL))
    )
    assert sums.total("w", read) == expected


def test_the_checksum_is_of_the_numbers_however_they_are_stored_and_merged(
    folders, tmp_path
):
    other = models_on_disk.save(tmp_path / "other", models_on_disk.tensors(1))
    found = set()
    for number, (model, options) in enumerate(
        [
            (folders[1], {"method": "linear"}),
            (other, {"method": "linear", "chunk_bytes": 4096}),
            (other, {"method": "linear", "weights": [0, 1]}),  # it is not read at all
            (other, {"method": "interpolate", "t": 1.0}),
            (other, {"method": "karcher", "chunk_bytes": 4096}),
        ]
    ):
        report = merge.merge_files(
            [model, folders[2]], tmp_path / str(number), **options
        )
        found.add(report["inputs"][0]["xxh3"])
    assert len(found) == 1
    values = models_on_disk.tensors(1)
    names = list(values)
    rows = values[names[0]]
    rows[[0, 1]] = rows[[1, 0]]
    swapped = models_on_disk.save(tmp_path / "swapped", values)
    report = merge.merge_files([swapped, folders[2]], tmp_path / "m")
    assert report["inputs"][0]["xxh3"] not in found


# ------------------------------------------------------------------ the merge again


@pytest.mark.parametrize("kind", ["xxh3", "crc32", None])
def test_a_record_makes_the_same_bytes_again_or_refuses(folders, tmp_path, kind):
    report = merge.merge_files(folders[1:], tmp_path / "m", digest=kind)
    for entry in report["inputs"]:
        is_of_files = kind == "crc32"  # as all merges had it before there was xxh3
        assert (kind in entry) == (kind == "xxh3")
        assert all((kind in file) == is_of_files for file in entry["files"])
    plan = recipe.read(tmp_path / "m" / "merge.json")
    assert stream.merge_recipe(plan, tmp_path / "again") == report
    for file in (tmp_path / "m").iterdir():
        assert (tmp_path / "again" / file.name).read_bytes() == file.read_bytes()
    shard = pathlib.Path(folders[2], "model-00001-of-00003.safetensors")
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    if kind is None:
        return
    with pytest.raises(errors.UserError, match="are not those of the merge to be"):
        stream.merge_recipe(plan, tmp_path / "changed")
    assert not (tmp_path / "changed").exists()
    shard.write_bytes(content[:-1])
    with pytest.raises(errors.UserError):
        stream.merge_recipe(plan, tmp_path / "changed")


def test_a_record_of_single_files_is_repeated(folders, tmp_path):
    files = []
    for number in (1, 2):
        whole = models_on_disk.save(tmp_path / f"{number}", models_on_disk.tensors(1))
        files.append(tmp_path / f"{number}.safetensors")
        shutil.move(f"{whole}/model.safetensors", files[-1])
    merge.merge_files(files, tmp_path / "m", digest="crc32")
    plan = recipe.read(tmp_path / "m" / "merge.json")
    stream.merge_recipe(plan, tmp_path / "again")
    assert safetensors.read_folder(tmp_path / "again")


# ------------------------------------------------------------------ what it says


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

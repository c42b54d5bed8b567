"""Folders of safetensors: the index says which file a tensor is read from."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlab.core import errors, safetensors

NAMES = ("a", "b", "c", "d")
FILES = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


def write(file, tensors):
    specs = {name: (value.shape, value.dtype) for name, value in tensors.items()}
    safetensors.write(file, specs, tensors.__getitem__)


def shards(folder, owners, copies=()):
    """Shards in which `copies`, of all tensors that others own, hold sevens."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, file in enumerate(FILES):
        tensors = {
            name: np.full(3, NAMES.index(name), np.float32)
            for name in NAMES
            if owners[name] == number
        }
        if number in copies:
            tensors |= {n: np.full(3, 7, np.float32) for n in NAMES if n not in tensors}
        write(folder / file, tensors)
    weight_map = {name: FILES[number] for name, number in owners.items()}
    text = json.dumps({"weight_map": weight_map})
    (folder / safetensors.INDEX).write_text(text)


@settings(deadline=None, max_examples=30)
@given(
    owners=st.fixed_dictionaries({name: st.integers(0, 1) for name in NAMES}).filter(
        lambda owners: len(set(owners.values())) == 2
    ),
    copies=st.sets(st.integers(0, 1)),
)
def test_a_tensor_is_read_from_the_file_that_the_index_names(
    tmp_path_factory, owners, copies
):
    folder = tmp_path_factory.mktemp("m")
    shards(folder, owners, copies)
    found = safetensors.read_folder(folder)
    assert found.keys() == {*NAMES}
    for number, name in enumerate(NAMES):
        np.testing.assert_array_equal(found[name], np.full(3, number))


def test_an_index_that_is_not_true_is_one_line(tmp_path):
    owners = {"a": 0, "b": 0, "c": 1, "d": 1}
    shards(tmp_path, owners)
    file = tmp_path / safetensors.INDEX
    moved = {name: FILES[1 - number] for name, number in owners.items()}
    file.write_text(json.dumps({"weight_map": moved}))
    with pytest.raises(errors.UserError, match=r"lacks c, which model.* says is there"):
        safetensors.read_folder(tmp_path)
    shards(tmp_path, owners, copies=(0,))
    partial = {name: FILES[number] for name, number in owners.items() if name != "d"}
    file.write_text(json.dumps({"weight_map": partial}))
    with pytest.raises(errors.UserError, match="both hold d, and"):
        safetensors.read_folder(tmp_path)
    for weight_map in (None, [], {}, {"a": 1}, {"a": None}, "x"):
        file.write_text(json.dumps({"weight_map": weight_map}))
        with pytest.raises(errors.UserError, match="has no weight_map"):
            safetensors.read_folder(tmp_path)
    file.unlink()
    with pytest.raises(errors.UserError, match="has 2 of the 2 files of a model and"):
        safetensors.read_folder(tmp_path)


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": None, "data_offsets": [0, 4]},
        {"dtype": [], "shape": [1], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": ["1"], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [1], "data_offsets": ["0", 4]},
        {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]},
    ],
)
def test_a_header_of_other_types_is_one_line(tmp_path, entry):
    text = json.dumps({"a": entry}).encode()
    (tmp_path / "x").write_bytes(len(text).to_bytes(8, "little") + text + bytes(4))
    with pytest.raises(errors.UserError, match="header cannot be read"):
        safetensors.read(tmp_path / "x")


@pytest.mark.parametrize(
    ("places", "message"),
    [
        ({"a": [0, 4], "b": [0, 4]}, "b shares bytes with another"),
        ({"a": [0, 4], "b": [2, 6]}, "b shares bytes with another"),
        ({"a": [0, 4], "b": [8, 12]}, "b follows a hole"),
        ({"a": [4, 8]}, "a follows a hole"),
    ],
)
def test_tensors_that_share_bytes_or_leave_holes_are_refused(tmp_path, places, message):
    header = {
        name: {"dtype": "U8", "shape": [stop - start], "data_offsets": [start, stop]}
        for name, (start, stop) in places.items()
    }
    text = json.dumps(header).encode()
    stop = max(stop for _, stop in places.values())
    (tmp_path / "x").write_bytes(len(text).to_bytes(8, "little") + text + bytes(stop))
    with pytest.raises(errors.UserError, match=message):
        safetensors.read(tmp_path / "x")


def test_a_name_twice_and_a_header_beyond_any_model_are_refused(tmp_path):
    entry = '{"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}'
    text = f'{{"a": {entry}, "a": {entry}}}'.encode()
    (tmp_path / "x").write_bytes(len(text).to_bytes(8, "little") + text + bytes(1))
    with pytest.raises(errors.UserError, match="header cannot be read"):
        safetensors.read(tmp_path / "x")
    with open(tmp_path / "y", "wb") as file:
        file.write((1 << 32).to_bytes(8, "little"))
        file.truncate((1 << 32) + 8)  # sparse
    with pytest.raises(errors.UserError, match="its header has 4,294,967,296 bytes"):
        safetensors.read(tmp_path / "y")


@pytest.mark.parametrize("name", ["../x.safetensors", "/x.safetensors", "a/../../x"])
def test_an_index_that_names_files_elsewhere_is_refused(tmp_path, name):
    (tmp_path / "m").mkdir()
    (tmp_path / "x.safetensors").write_bytes(b"theirs")
    index = json.dumps({"weight_map": {"a": name}})
    (tmp_path / "m" / safetensors.INDEX).write_text(index)
    with pytest.raises(errors.UserError, match="which is not inside of"):
        safetensors.read_folder(tmp_path / "m")

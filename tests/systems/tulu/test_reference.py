"""Reference log-probabilities that are kept: asked once, never of something else."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from jaxlab import load, models
from jaxlab.core import mesh as mesh_lib
from jaxlab.data.examples import chat, conversation_rows
from jaxlab.systems.tulu import reference
from tests.support import devices, runs


def examples(seed, count=10):
    draw = np.random.default_rng(seed)
    sizes = draw.integers(3, 9, count)
    return chat.Examples(
        tokens=draw.integers(0, runs.CONFIG.vocab, sizes.sum(), np.int32),
        is_label=np.concatenate([np.arange(size) > 0 for size in sizes]),
        ends=np.cumsum(sizes),
        number=np.arange(count),
        truncated=0,
        dropped=0,
    )


def pairs(seed=0, length=12):
    sides = examples(seed), examples(seed + 1)
    return conversation_rows.PairRows(*sides, length=length, batch_size=4)


def policy(seed=0, **changes):
    config = dataclasses.replace(runs.CONFIG, **changes)
    model = models.Decoder(config)
    params = model.init(jax.random.key(seed), np.zeros((1, 4), np.int32))["params"]
    return load.Loaded(config, model, mesh_lib.unbox(params), None)


@pytest.fixture
def asked(monkeypatch):
    """How many rows each batch asked of the policy."""
    counts, scorer = [], reference._scorer

    def count(apply, tail_weight=1.0):
        score = scorer(apply, tail_weight)

        def scored(params, batch):
            counts.append(int((batch["loss_mask"].sum((1, 2)) > 0).sum()))
            return score(params, batch)

        return scored

    monkeypatch.setattr(reference, "_scorer", count)
    return counts


def attach(part, loaded, folder, name="a", **options):
    options = {"folder": str(folder / "kept"), "style": "tulu bos", **options}
    with mesh_lib.use(devices.one()):
        reference.attach_reference_logps(
            [part], loaded, folder / name, "start", **options
        )
    return part.reference


def test_a_second_run_asks_nothing_and_other_pairs_ask_for_themselves(asked, tmp_path):
    first = attach(pairs(), policy(), tmp_path)
    assert asked == [4, 4, 2]
    again = attach(pairs(), policy(), tmp_path, "b")
    np.testing.assert_array_equal(first, again)
    more = conversation_rows.PairRows(
        *(side.take(np.arange(3)) for side in pairs().sides), length=12, batch_size=4
    )
    np.testing.assert_array_equal(attach(more, policy(), tmp_path, "c"), first[:3])
    assert asked == [4, 4, 2]
    attach(pairs(seed=5), policy(), tmp_path, "d")
    assert asked[3:] == [4, 4, 2]


@pytest.mark.parametrize(
    "changes",
    [
        {"loaded": policy(seed=1)},
        {"loaded": policy(norm_epsilon=1e-3)},
        {"loaded": policy(dtype="bfloat16")},
        {"part": pairs(length=16)},
        {"style": "oi26 bos"},
        {"tail_weight": 0.5},
    ],
    ids=["weights", "config", "dtype", "length", "style", "tail_weight"],
)
def test_what_another_reference_said_is_not_used(changes, asked, tmp_path):
    attach(pairs(), policy(), tmp_path)
    options = {"part": pairs(), "loaded": policy(), "name": "b", **changes}
    attach(folder=tmp_path, **options)
    assert asked[3:] == [4, 4, 2]
    with open(tmp_path / "b" / "reference.json") as file:
        said = json.load(file)["logps"][0]
    assert np.array(said).shape == (10, 2)


@pytest.mark.parametrize("damage", ["cut", "changed", "empty", "moved"])
def test_a_damaged_file_is_told_and_asked_again(damage, asked, tmp_path, caplog):
    first = attach(pairs(), policy(), tmp_path)
    (file,) = (tmp_path / "kept").glob("*/*.json")
    if damage == "moved":  # into the folder of another policy
        attach(pairs(), policy(seed=1), tmp_path, "b")
        (other,) = (x for x in (tmp_path / "kept").glob("*/*.json") if x != file)
        file.rename(other.parent / file.name)
        asked.clear()
        attach(pairs(), policy(seed=1), tmp_path, "c")
        assert asked == []
        assert "is of another reference, and is not used" in caplog.text
        return
    text = file.read_text()
    changed = {"cut": text[:-9], "changed": text.replace("1", "2", 1), "empty": ""}
    file.write_text(changed[damage])
    np.testing.assert_array_equal(attach(pairs(), policy(), tmp_path, "b"), first)
    assert asked == [4, 4, 2] * 2
    assert f"{file} is damaged; its pairs are asked again" in caplog.text


def test_a_killed_run_goes_on_behind_its_last_part(asked, tmp_path, monkeypatch):
    monkeypatch.setattr(reference, "_PART_SECONDS", 0.0)
    whole = attach(pairs(), policy(), tmp_path / "whole")
    fill, part = conversation_rows.PairRows.fill, pairs()

    def die(self, rows):
        if len(asked) == 5:
            raise KeyboardInterrupt
        return fill(self, rows)

    monkeypatch.setattr(conversation_rows.PairRows, "fill", die)
    with pytest.raises(KeyboardInterrupt):
        attach(part, policy(), tmp_path)
    assert asked[3:] == [4, 4]
    assert not (tmp_path / "a").exists()
    monkeypatch.setattr(conversation_rows.PairRows, "fill", fill)
    asked.clear()
    np.testing.assert_array_equal(attach(pairs(), policy(), tmp_path, "b"), whole)
    assert asked in ([2], [4, 2])  # the interrupt came before or after a part


def test_a_disk_that_takes_nothing_costs_a_line_and_not_the_run(tmp_path, caplog):
    (tmp_path / "kept").write_text("a file")
    assert attach(pairs(), policy(), tmp_path).shape == (10, 2)
    assert caplog.text.count("the reference is not kept for other runs") == 1

"""A pool as a directory: round trip, tampering, kills and wrong units."""

import dataclasses
import json
import os
from concurrent import futures

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab import ablation
from jaxlab.ablation import pool_folder
from jaxlab.core import checkpoint, errors

BRANCH = pool_folder.Branch("fresh", "constant", 1e-3, warmup_steps=0, unit_tokens=1000)


def params(seed):
    keys = jax.random.split(jax.random.key(seed))
    return {"w": jax.random.normal(keys[0], (3, 2)), "b": {"x": jnp.arange(2.0) + seed}}


def save(path, value):
    with checkpoint.Checkpointer(path / "checkpoints") as saver:
        saver.save(1, {"params": value})


def unit(name, value, **changes):
    record = pool_folder.Unit(
        name, f"runs/{name}", pool_folder.fingerprint(value),
        pool_folder.fingerprint(params(0)), tokens_trained=1000, partition_tokens=400,
        steps=10, data_sha256="d" * 64,
    )  # fmt: skip
    return dataclasses.replace(record, **changes)


@pytest.fixture
def pool(tmp_path):
    place = tmp_path / "pool"
    save(place / "runs/seed", params(0))
    pool_folder.create(place, "runs/seed", pool_folder.fingerprint(params(0)), BRANCH)
    for seed, name in enumerate(["web", "code"], start=1):
        save(place / "runs" / name, params(seed))
        pool_folder.add(place, unit(name, params(seed)))
    return place


def test_a_pool_comes_back_as_it_was_put_in(pool):
    source = unit("math", params(3), source="papers", units=2, tokens_trained=2010)
    save(pool / "runs/math", params(3))
    pool_folder.add(pool, source)
    pool_folder.add(pool, source)  # the same record twice is added once
    opened = pool_folder.open(pool)
    assert opened.names == ("web", "code", "math")
    assert opened.units == (1, 1, 2)
    assert opened.tokens == (400, 400, 400)
    assert opened.sources == ("web", "code", "papers")
    chex.assert_trees_all_equal(opened.seed, params(0))
    chex.assert_trees_all_equal(opened.expert("math"), params(3))
    assert [member.name for member in pool_folder.members(pool)] == list(opened.names)
    assert pool_folder.members(pool)[0].repeats == 2.5
    found = pool_folder.read(pool)
    assert found.branch == BRANCH
    assert found.units["math"] == source
    written = json.loads((pool / "pool.json").read_text())
    assert written["units"][0]["repeats"] == 2.5
    assert written["branch"]["optimizer_state"] == "fresh"


def test_an_expert_that_was_trained_over_is_named(pool):
    report_before = pool_folder.read(pool)
    for path in (pool / "runs/code/checkpoints", pool / "runs/seed/checkpoints"):
        for entry in path.iterdir():
            entry.rename(path.parent / "old")
    save(pool / "runs/code", params(7))
    with pytest.raises(errors.UserError) as error:
        pool_folder.open(pool)
    assert "unit code in runs/code has changed" in str(error.value)
    assert "the seed cannot be loaded" in str(error.value)
    assert "web" not in str(error.value).replace(str(pool), "")
    assert "\n" not in str(error.value)
    assert pool_folder.read(pool) == report_before


def test_a_fingerprint_sees_every_bit_and_every_name():
    base = {"a": np.float32([1, 2]), "b": np.float32([3])}
    others = [
        {"a": np.float32([1, np.nextafter(np.float32(2), 3)]), "b": base["b"]},
        {"a": np.float32([2, 1]), "b": base["b"]},
        {"a": base["a"], "c": base["b"]},
        {"a": base["a"][None], "b": base["b"]},
        {"a": base["a"]},
    ]
    found = [pool_folder.fingerprint(each) for each in (base, *others)]
    assert len(set(found)) == len(found)
    assert pool_folder.fingerprint(jax.tree.map(jnp.asarray, base)) == found[0]


def test_a_killed_add_leaves_a_pool_that_opens_without_the_unit(pool, monkeypatch):
    save(pool / "runs/math", params(3))  # trained, not yet added

    def killed(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        pool_folder.add(pool, unit("math", params(3)))
    monkeypatch.undo()
    assert pool_folder.open(pool).names == ("web", "code")
    pool_folder.add(pool, unit("math", params(3)))
    assert pool_folder.open(pool).names == ("web", "code", "math")


def test_units_that_are_added_at_once_are_all_kept(pool):
    records = [unit(f"u{i}", params(1)) for i in range(8)]
    with futures.ThreadPoolExecutor(8) as workers:
        list(workers.map(lambda record: pool_folder.add(pool, record), records))
    names = {member.name for member in pool_folder.members(pool)}
    assert names == {"web", "code", *(record.name for record in records)}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "web"}, "has a unit web already"),
        ({"seed_fingerprint": "other"}, "branched from another seed model"),
        ({"tokens_trained": 1011}, "on 1,011 tokens; the pool's budget for 1 units"),
        ({"units": 2}, "budget for 2 units is 2,000, within 1 %"),
        ({"partition_tokens": 0}, "partition_tokens must be 1 or more"),
        ({"path": "../math"}, "is not inside the pool"),
        ({"path": "/math"}, "is not inside the pool"),
    ],
)
def test_units_that_do_not_belong_are_refused(pool, changes, message):
    before = (pool / "pool.json").read_bytes()
    with pytest.raises(errors.UserError, match=message):
        pool_folder.add(pool, dataclasses.replace(unit("math", params(3)), **changes))
    assert (pool / "pool.json").read_bytes() == before


def test_a_pool_is_made_once(pool, tmp_path):
    before = (pool / "pool.json").read_bytes()
    seed = pool_folder.fingerprint(params(0))
    pool_folder.create(
        pool, "runs/seed", seed, BRANCH
    )  # the same again changes nothing
    assert (pool / "pool.json").read_bytes() == before
    carried = dataclasses.replace(BRANCH, optimizer_state="carried")
    for other in ((seed, carried), ("another", BRANCH)):
        with pytest.raises(errors.UserError, match="a pool of another seed or branch"):
            pool_folder.create(pool, "runs/seed", *other)
    with pytest.raises(errors.UserError, match=r"is not a pool: it has no pool\.json"):
        pool_folder.open(tmp_path)
    with pytest.raises(errors.UserError, match="is not a pool"):
        pool_folder.add(tmp_path / "nowhere", unit("a", params(1)))
    pool_folder.create(tmp_path / "new", "seed", seed, BRANCH)
    with pytest.raises(errors.UserError, match="has no units yet"):
        pool_folder.open(tmp_path / "new")
    (tmp_path / "new" / "pool.json").write_text('{"version": 1, "units": []}')
    with pytest.raises(errors.UserError, match="cannot be understood"):
        pool_folder.read(tmp_path / "new")
    assert ablation.pool_folder is pool_folder


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        (("units", 0, "name"), -1), (("units", 0, "name"), "../web"),
        (("units", 0, "name"), "a\x1b[2J"), (("units", 0, "name"), "code"),
        (("units", 0, "units"), 1e300), (("units", 0, "units"), "2"),
        (("units", 0, "partition_tokens"), float("nan")), (("units", 0), None),
        (("units", 0, "path"), 3), (("units", 0, "path"), "a/../../b"),
        (("units",), {"a": 1}), (("seed",), []), (("seed", "path"), None),
        (("branch", "learning_rate"), "x"), (("branch",), 7), (("version",), "1"),
    ],
)  # fmt: skip
def test_a_pool_of_somebody_is_refused_in_one_line(pool, keys, value):
    content = json.loads((pool / "pool.json").read_text())
    *above, last = keys
    place = content
    for key in above:
        place = place[key]
    place[last] = value
    (pool / "pool.json").write_text(json.dumps(content))
    with pytest.raises(errors.UserError) as caught:
        pool_folder.read(pool)
    assert str(pool) in str(caught.value)
    assert "\n" not in str(caught.value)

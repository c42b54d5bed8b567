"""The table of systems: it is light, whole, and plans what training has."""

import pathlib
import subprocess
import sys

import numpy as np
import pytest

from jaxlab import systems
from jaxlab.core import config as config_lib
from jaxlab.core import errors
from jaxlab.core import mesh as mesh_lib
from jaxlab.data.examples import chat, conversation_rows
from jaxlab.systems.planning import shapes, steps

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"
SIZES = ("embed=64", "layers=2", "heads=4", "mlp=128", "vocab=256")


def test_the_table_of_systems_and_the_configs_import_nothing_heavy():
    program = (
        "import sys; from jaxlab import systems; "
        "from jaxlab.systems import sections, trust_methods; "
        "from jaxlab.systems.planning import shapes; "
        "[systems.resolve(e.shape) for e in systems.SYSTEMS.values() if e.shape]; "
        "assert not {'jax', 'flax', 'numpy'} & sys.modules.keys(), sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_everything_that_the_table_names_is_there():
    for entry in systems.SYSTEMS.values():
        assert bool(entry.shape) == bool(entry.step)
        for target in filter(None, entry):
            assert callable(systems.resolve(target))


def test_an_unknown_system_is_refused_with_those_that_there_are():
    with pytest.raises(errors.UserError, match=r"use one of olmo.pretrain, tulu.sft"):
        systems.entry("olmo.train")


# ---- what planning is told


def config(name, *flags):
    sizes = [f"--config.model.{size}" for size in SIZES]
    flags = [f"--config={CONFIGS / name}", *sizes, "--workdir=.", *flags]
    return config_lib.parse(flags)[0]


def examples(count=8):
    return chat.Examples(
        np.ones(4 * count, np.int32), np.ones(4 * count, bool),
        np.arange(4, 4 * count + 1, 4), np.arange(count), 0, 0,
    )  # fmt: skip


def rows_of(batches):
    return {name: (array.shape, array.dtype) for name, array in batches(0).items()}


@pytest.mark.parametrize(
    ("name", "batches"),
    [
        ("tulu.py:tiny", lambda **size: conversation_rows.Rows(examples(), **size)),
        (
            "tulu.py:tiny_dpo",
            lambda **size: conversation_rows.PairRows(
                examples(), examples(), reference=np.zeros((8, 2)), **size
            ),
        ),
    ],
)
def test_a_planned_batch_has_the_arrays_of_a_real_one(name, batches):
    described = config(name)
    mesh = mesh_lib.make_mesh(described.mesh.to_dict())
    with mesh_lib.use(mesh):
        built = steps.untrained(described, mesh, "cpu")
    data = described.data
    real = rows_of(batches(length=data.length, batch_size=data.batch_size))
    assert built.batch == real
    assert built.experiment.batches is None
    assert shapes.shape(described).rows == np.prod(real["tokens"][0][:-1])


def test_a_reference_that_is_asked_in_every_step_is_the_start_and_no_array():
    described = config("tulu.py:tiny_dpo", "--config.preference.reference=step")
    mesh = mesh_lib.make_mesh(described.mesh.to_dict())
    with mesh_lib.use(mesh):
        built = steps.untrained(described, mesh, "cpu")
    assert built.frozen_is_start
    assert set(built.batch) == {"tokens", "loss_mask"}


@pytest.mark.parametrize("system", ["languages.classify", "encoders.embed"])
def test_a_system_without_sizes_is_not_planned(system):
    described = config("olmo.py:tiny")
    described.system = system
    with pytest.raises(errors.UserError, match=r"plan olmo\.pretrain with those sizes"):
        shapes.shape(described)

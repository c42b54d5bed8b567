"""Test setup: 8 fake CPU devices, strict rank promotion, a persistent compile cache."""

import os
import pathlib

from tests.support import compiling

# Before jax is imported. Without JAX_PLATFORMS=cpu an installed libtpu is probed for.
os.environ["JAX_PLATFORMS"] = "cpu"
_CACHE = pathlib.Path(__file__).parents[1] / ".cache" / "jax-tests"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_CACHE))
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
# What is kept for later runs is that of the tests, not the user's.
os.environ["XDG_CACHE_HOME"] = str(_CACHE.with_name("xdg"))
# launch/test.sh --oracles sets JAXLAB_TEST_OPTIMIZED=1, to compile as users do.
if os.environ.get("JAXLAB_TEST_OPTIMIZED") != "1":
    os.environ.update(compiling.quickly(dict(os.environ)))

import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(scope="session")
def test_data() -> pathlib.Path:
    """The folder of real test data, from JAXLAB_TEST_DATA; reported when absent."""
    folder = os.environ.get("JAXLAB_TEST_DATA")
    if not folder or not pathlib.Path(folder).is_dir():
        pytest.skip("JAXLAB_TEST_DATA does not name a folder of test data")
    return pathlib.Path(folder)


@pytest.fixture(scope="module", autouse=True)
def programs_of_a_module():
    """Drops compiled programs module by module: all of them take gigabytes."""
    yield
    jax.clear_caches()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """With `--dist loadfile`, a process also gets the whole room of the verbs.

    Its files share a run and a pool, which take longer to make than most of them.
    """
    from xdist import scheduler

    class Together(scheduler.LoadFileScheduling):
        def _split_scope(self, nodeid):
            room = "tests/commands/"
            return room if nodeid.startswith(room) else super()._split_scope(nodeid)

    return Together(config, log) if config.option.dist == "loadfile" else None

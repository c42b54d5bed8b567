"""The process before its first computation."""

import os
import sys

import pytest

from tests.support import runs

FAULTS = """
import resource
from jaxlab.core import host_memory
kept = host_memory.keep_freed_memory()
import numpy as np
for _ in range(2):
    np.ones(25_000_000).sum()  # 200 MB, freed at once
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
np.ones(25_000_000).sum()
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def words(code, **environment):
    """What a process of its own prints."""
    return runs.python(code, **environment).stdout.split()


def has_glibc():
    return sys.platform == "linux" and os.confstr("CS_GNU_LIBC_VERSION")


@pytest.mark.skipif(not has_glibc(), reason="only glibc can be told")
def test_freed_memory_is_used_again_without_page_faults():
    kept, faults = words(FAULTS, JAXLAB_KEEP_MEMORY="1")
    assert kept == "True"
    assert int(faults) < 100  # of 48,828 pages
    kept, faults = words(FAULTS, JAXLAB_KEEP_MEMORY="0")
    assert kept == "False"
    assert int(faults) > 100


CACHE = """
import jax
from jaxlab.core import process
process.start()
print(jax.config.jax_enable_compilation_cache, jax.config.jax_compilation_cache_dir)
"""


@pytest.mark.slow
def test_programs_are_cached_in_the_users_folder_unless_told_otherwise(tmp_path):
    home = {"XDG_CACHE_HOME": str(tmp_path), "JAX_COMPILATION_CACHE_DIR": ""}
    assert words(CACHE, **home) == ["True", str(tmp_path / "jaxlab" / "compiled")]
    assert words(CACHE, **home, JAXLAB_COMPILATION_CACHE="0")[0] == "False"
    mine = {**home, "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "mine")}
    assert words(CACHE, **mine) == ["True", str(tmp_path / "mine")]

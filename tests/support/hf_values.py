"""The decoders of tests/values/models, and their logits."""

import functools

from jaxlab.models import hf
from tests.support import peers

VALUES = peers.VALUES / "models"
FAMILIES = sorted(folder.name for folder in VALUES.iterdir())


@functools.cache
def loaded(family):
    return hf.load(VALUES / family)

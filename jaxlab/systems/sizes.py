"""Named sizes of a model that is trained from scratch, and of what is branched from it.

Standard library only, so that a command line knows the names without jax.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Size:
    """A model, and how long it and its experts are trained."""

    embed: int
    layers: int
    heads: int
    mlp: int
    vocab_size: int
    length: int
    batch_size: int
    steps: int  # of the seed model
    rate: float  # its peak
    warmup_steps: int
    unit_steps: int
    unit_rate: float
    eval_batches: int  # of each target
    embedded_bytes: int  # of each embedded domain that are read; 0 for all


# Rates of the small ones were tried on the embedded text. `standard` was not trained:
# its rates follow the small ones', less a half for twice the width.
SIZES = {
    "quick": Size(64, 2, 4, 256, 1024, 128, 8, 60, 1e-2, 10, 20, 4e-3, 2, 150_000),
    "small": Size(128, 4, 4, 512, 2048, 256, 8, 400, 6e-3, 50, 40, 2e-3, 4, 900_000),
    "standard": Size(256, 6, 8, 1024, 8192, 512, 16, 3000, 3e-3, 200, 150, 1e-3, 8, 0),
}

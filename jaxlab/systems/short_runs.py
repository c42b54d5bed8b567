"""Short runs: warm-up and decay of a schedule that is longer than the run; no jax.

`--config.steps=10` is the first thing that one tries, and the warm-up of a shipped
config has no room in so few steps.
"""

import logging
import math

import ml_collections

_log = logging.getLogger(__name__)


def shorten_schedule(
    config: ml_collections.ConfigDict, stated: ml_collections.ConfigDict
) -> None:
    """Shortens warm-up and decay in proportion, where a short run has no room for them.

    A schedule that fits, or of which the user said a part, is left as it is.

    Args:
        config: with the user's flags; changed.
        stated: the same without them.
    """
    names = ("warmup_steps", "decay_steps")
    if "optim" not in config or not 0 <= config.steps < stated.steps:
        return
    new, old = config.optim, stated.optim
    if new.schedule_steps or any(new[name] != old[name] for name in names):
        return
    if _fits(new, config.steps):
        return
    for name in names:
        new[name] = old[name] * config.steps // stated.steps
    words = [f"optim.{name} {old[name]} -> {new[name]}" for name in names if old[name]]
    _log.warning(
        "%d steps instead of %d: %s, in proportion",
        *(config.steps, stated.steps, ", ".join(words)),
    )


def _fits(section: ml_collections.ConfigDict, steps: int) -> bool:
    """As `optim.schedule` asks it."""
    length = max(math.ceil((steps - section.warmup_steps) / max(section.cycles, 1)), 1)
    decays = section.schedule != "wsd" or section.decay_steps <= length
    return section.warmup_steps <= steps and decays

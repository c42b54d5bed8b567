"""Optimizers as optax transforms, and schedules, from plain configs."""

from jaxlab.optim.build import (
    OptimConfig,
    build,
    clip_by_global_norm,
    ema_of,
    parameter_ema,
    schedule,
)

__all__ = [
    "OptimConfig",
    "build",
    "clip_by_global_norm",
    "ema_of",
    "parameter_ema",
    "schedule",
]

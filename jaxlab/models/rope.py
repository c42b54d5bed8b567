"""Rotary positions (Su et al. 2021, arXiv:2104.09864), also for long contexts.

Half-split layout, as in Hugging Face's models: dimension i rotates with i + C/2.
Frequencies are scaled as in Llama 3.1 (`llama3`), by YaRN (Peng et al. 2023,
arXiv:2309.00071) or linearly. Tables and rotation are f32.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

from jaxlab.core import errors, ranges


@dataclasses.dataclass(frozen=True)
class Rope:
    """Rotary frequencies: `theta` and, for long contexts, how they are scaled.

    Attributes:
        theta: base of the geometric series of wavelengths.
        scaling: "default", "linear", "llama3" or "yarn".
        factor: how many times longer the context becomes.
        original_length: context length of the pre-trained model (llama3, yarn).
        low_freq_factor, high_freq_factor: llama3's blend borders.
        beta_fast, beta_slow: yarn's ramp borders, in rotations.
        attention_factor: yarn's multiplier of cos and sin; None = 0.1 ln(factor) + 1.
        truncate: yarn's ramp borders rounded to whole dimensions.
    """

    theta: float = 10_000.0
    scaling: str = "default"
    factor: float = 1.0
    original_length: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    truncate: bool = True

    def __post_init__(self):
        """Refuses a base or a factor that gives no frequencies."""
        if self.scaling != "default":
            ranges.check("model.rope.", vars(self), {"factor": ranges.ABOVE_0})
        if not self.theta > 1:
            raise errors.ArgumentError(
                f"rope theta {self.theta} must be above 1, e.g. 10000"
            )

    def tables(
        self, positions: jax.Array, head_dim: int
    ) -> tuple[jax.Array, jax.Array]:
        """cos and sin, f32[..., C/2], of i32[...] positions."""
        angles = positions[..., None].astype(jnp.float32) * jnp.expand_dims(
            self._frequencies(head_dim), tuple(range(positions.ndim))
        )
        scale = self._scale()
        return jnp.cos(angles) * scale, jnp.sin(angles) * scale

    def _scale(self) -> float:
        if self.scaling != "yarn":
            return 1.0
        if self.attention_factor is not None:
            return self.attention_factor
        return 0.1 * math.log(self.factor) + 1.0 if self.factor > 1 else 1.0

    def _frequencies(self, head_dim: int) -> jax.Array:
        exponent = jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim
        base = 1.0 / (self.theta**exponent)
        if self.scaling == "default":
            return base
        if self.scaling == "linear":
            return base / self.factor
        if self.scaling == "llama3":
            return self._llama3(base)
        if self.scaling == "yarn":
            return self._yarn(base, head_dim)
        raise errors.ArgumentError(
            f"rope scaling {self.scaling!r}; use default, linear, llama3 or yarn"
        )

    def _llama3(self, base: jax.Array) -> jax.Array:
        rotations = self.original_length * base / (2 * math.pi)
        keep = (rotations - self.low_freq_factor) / (
            self.high_freq_factor - self.low_freq_factor
        )
        keep = jnp.clip(keep, 0.0, 1.0)
        return keep * base + (1 - keep) * base / self.factor

    def _yarn(self, base: jax.Array, head_dim: int) -> jax.Array:
        def dimension(rotations: float) -> float:
            length = self.original_length / (rotations * 2 * math.pi)
            return head_dim * math.log(length) / (2 * math.log(self.theta))

        low, high = dimension(self.beta_fast), dimension(self.beta_slow)
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, head_dim - 1)
        ramp = jnp.arange(head_dim // 2, dtype=jnp.float32) - low
        interpolate = jnp.clip(ramp / ((high - low) or 0.001), 0.0, 1.0)
        return interpolate * base / self.factor + (1 - interpolate) * base


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Rotates x: [B, L, H, C] by cos, sin: f32[B or 1, L, C/2]; keeps x's dtype."""
    cos, sin = cos[:, :, None, :], sin[:, :, None, :]
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    rotated = (first * cos - second * sin, second * cos + first * sin)
    return jnp.concatenate(rotated, axis=-1).astype(x.dtype)

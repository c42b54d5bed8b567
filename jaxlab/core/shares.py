"""A number x of which 1 - x is taken, as an argument of a compiled step.

A decay of 0.9 that is compiled in meets a gradient as 0.9 and as 1 - 0.9, both rounded
to float32 once. Were only 0.9 the argument, 1 - x would be taken of what is rounded
already, and another number: so both are arguments.
"""

from typing import Any

import flax.struct
import jax


@flax.struct.dataclass
class Share:
    """x with its 1 - x; computes as x does.

    Attributes:
        value: x.
        rest: 1 - x, taken on the host.

    >>> decay = Share(0.9, 1 - 0.9)
    >>> (decay * 2.0, 2.0 * decay, decay**2, 1 - decay, decay + 1)
    (1.8, 1.8, 0.81, 0.09999999999999998, 1.9)
    """

    value: Any
    rest: Any

    def __mul__(self, other: Any) -> Any:
        """X times other."""
        return self.value * other

    def __pow__(self, other: Any) -> Any:
        """X to the power of other."""
        return self.value**other

    def __add__(self, other: Any) -> Any:
        """X plus other."""
        return self.value + other

    def __rsub__(self, other: Any) -> Any:
        """Other minus x; of 1 it is what the host took."""
        is_one = not isinstance(other, jax.Array) and other == 1
        return self.rest if is_one else other - self.value

    __rmul__ = __mul__
    __radd__ = __add__

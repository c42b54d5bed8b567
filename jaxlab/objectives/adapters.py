"""Any loss of an adapter beside a base that it does not move (`models/lora.py`)."""

import jax

from jaxlab.core import types


def beside_base(
    objective: types.Objective, *, dropout: bool = False
) -> types.Objective:
    """The objective of an adapter's parameters alone.

    Args:
        objective: of parameters {"base": ..., "lora": ...}, and "key" with `dropout`.
        dropout: a step drops what goes into the adapter, by its own key.

    Returns:
        An objective of the "lora", whose `frozen` is {"base": ..., "inner": what the
        inner objective gets as `frozen`}.
    """

    def beside(params, batch, *, key, frozen) -> types.Loss:
        whole = {"base": frozen["base"], "lora": params}
        if dropout:
            whole["key"] = jax.random.fold_in(key, 0)
        return objective(whole, batch, key=key, frozen=frozen["inner"])

    return beside

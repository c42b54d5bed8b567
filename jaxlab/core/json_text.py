"""JSON text of reports and records: NaN as null, arrays as lists; no jax, no numpy."""

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Any


def dumps(value: Any) -> str:
    """The text of a file that holds a value.

    Raises:
        ValueError: the value contains itself.
    """
    try:
        plain = json_value(value)
    except RecursionError:
        raise ValueError("Circular reference detected") from None
    return json.dumps(plain, indent=2, sort_keys=True, allow_nan=False) + "\n"


def json_value(value: Any) -> Any:
    """A value as JSON has it: what every report and record of ours is written with.

    Mappings, named tuples and dataclasses become objects; tuples and arrays, lists; NaN
    and infinities, which JSON does not have, null; anything else, its text.

    >>> json_value({"losses": (0.5, float("nan")), "steps": range(2)})
    {'losses': [0.5, None], 'steps': 'range(0, 2)'}
    """
    if hasattr(value, "_asdict"):
        value = value._asdict()
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    elif hasattr(value, "tolist"):  # numpy, which commands must not import
        value = value.tolist()
    if isinstance(value, Mapping):
        return {key: json_value(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [json_value(each) for each in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, int | str) else str(value)

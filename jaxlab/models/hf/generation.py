"""How a published model generates: `generation_config.json`, and which tokens end it.

Models with several end-of-text tokens, such as one for a turn and one for a document,
list them in `generation_config.json`, in config.json, or one here and others there.
Each of them ends a text.
"""

import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

from jaxlab.core import errors, json_text, value_types

FILE = "generation_config.json"
_EOS = "eos_token_id"
_FIX = "download it again"


def read(folder: str | os.PathLike) -> dict[str, Any]:
    """What a folder says of generating; `eos_token_id` has config.json's as well.

    {} where it says nothing.

    Raises:
        UserError: a file is damaged.
    """
    folder = pathlib.Path(folder)
    said = json_text.read_object(folder / FILE, _FIX) or {}
    config = json_text.read_object(folder / "config.json", _FIX) or {}
    try:
        value_types.check(said, {_EOS: value_types.TOKEN_IDS}, file=FILE)
        value_types.check(config, {_EOS: value_types.TOKEN_IDS})
    except errors.UserError as error:
        raise errors.UserError(f"{folder}: {error}") from None
    ids = eos_ids(said)
    ids += tuple(i for i in eos_ids(config) if i not in ids)
    if len(ids) > len(eos_ids(said)):
        said[_EOS] = ids[0] if len(ids) == 1 else list(ids)
    return said


def eos_ids(said: Mapping[str, Any]) -> tuple[int, ...]:
    """The end-of-text ids of a generation_config.json, or of a config.json.

    >>> eos_ids({"eos_token_id": [2, 7]}), eos_ids({"eos_token_id": 2}), eos_ids({})
    ((2, 7), (2,), ())
    """
    ids = said.get(_EOS)
    if ids is None:
        return ()
    return tuple(ids) if isinstance(ids, list | tuple) else (ids,)


def with_eos(said: Mapping[str, Any], ids: Iterable[int]) -> dict[str, Any]:
    """The same with more ids that end a text, behind those that it has.

    >>> with_eos({"eos_token_id": 7}, [2, 7]), with_eos({}, [2])
    ({'eos_token_id': [7, 2]}, {'eos_token_id': 2})
    """
    every = list(dict.fromkeys([*eos_ids(said), *ids]))
    return {**said, _EOS: every if len(every) > 1 else every[0]}

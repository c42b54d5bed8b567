"""What keeps files from being merged, found before any work and listed at once."""

import re
from collections.abc import Callable, Mapping, Sequence

from jaxlab.core import errors
from jaxlab.merge.files.read import source as source_lib
from jaxlab.merge.files.read import tokenizers as tokenizers_lib

# Keys of config.json that a merge itself answers for, or that only keep the books.
_BOOKS = re.compile(r"_.*|.*version|dtype|torch_dtype")
_SHOWN = 40


# Keys of config.json in which models that are merged may differ; or what names them,
# asked only where there is a difference.
FreeKeys = Sequence[str] | Callable[[], Sequence[str]]
# A config.json -> what it says, in one form for all that say the same.
SpellOut = Callable[[Mapping], Mapping]


def compare(
    inputs: Sequence[source_lib.Source],
    *,
    is_cast: bool,
    free_keys: FreeKeys = (),
    spell_out: SpellOut | None = None,
    is_forced: bool = False,
) -> list[str]:
    """Refuses inputs that differ in tensors, shapes, dtypes, kind or config.json.

    Args:
        inputs: all of them; each is compared with the first.
        is_cast: the dtype of the result is given, so those of the inputs may differ.
        free_keys: of config.json, or of a run's `model` section: differences in these
            change nothing that a merge needs.
        spell_out: of a Hugging Face config.json; None compares key by key.
        is_forced: models of different tokenizers are merged all the same.

    Returns:
        What the user should know: which inputs have other tokenizer files.

    Raises:
        ArgumentError: with every difference, its folder and its tensor.
    """
    first, *others = inputs
    lines = []
    for other in others:
        where = f"{other.path}, unlike {first.path}"
        if other.kind != first.kind:
            lines.append(f"{where}, is a {other.kind} and not a {first.kind}")
            continue
        mine, theirs = first.tensors, other.tensors
        lines += [f"{other.path} lacks {name}" for name in mine if name not in theirs]
        lines += [f"{other.path} adds {name}" for name in theirs if name not in mine]
        for name in mine.keys() & theirs.keys():
            a, b = mine[name], theirs[name]
            if a.shape != b.shape:
                sizes = f"{list(b.shape)} and not {list(a.shape)}"
                lines.append(f"{name} in {where}, is {sizes}")
            elif a.dtype != b.dtype and not (
                is_cast and a.is_floating and b.is_floating
            ):
                hint = "" if is_cast else "; give the dtype of the result"
                lines.append(f"{name} in {where}, is {b.dtype} and not {a.dtype}{hint}")
        lines += _config_differences(first, other, free_keys, spell_out)
    tokenizers = tokenizers_lib.compare(inputs)
    if not is_forced:
        lines += [
            f"{each.words}; --force (force=True) merges them all the same"
            for each in tokenizers
            if each.is_grave
        ]
    refuse(sorted(lines))
    return [each.words for each in tokenizers]


def refuse(lines: Sequence[str]) -> None:
    """Raises one ArgumentError that lists all lines, if there are any."""
    if lines:
        more = [f"and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else []
        count = "1 problem" if len(lines) == 1 else f"{len(lines)} problems"
        shown = "; ".join([*lines[:_SHOWN], *more])
        raise errors.ArgumentError(f"these models cannot be merged, {count}: {shown}")


def _config_differences(first, other, free_keys, spell_out) -> list[str]:
    """Differences between what two models compute, by their config.json."""
    mine, theirs = (_describe(source) for source in (first, other))
    if mine != theirs and mine and theirs and spell_out and not first.is_run:
        mine, theirs = spell_out(first.config), spell_out(other.config)
    keys, differ = mine.keys() | theirs.keys(), lambda a, b: a != b
    if first.is_run:
        keys, differ = mine.keys() & theirs.keys(), _say_otherwise
    keys = [key for key in sorted(keys) if differ(mine.get(key), theirs.get(key))]
    if keys:
        free = {*(free_keys() if callable(free_keys) else free_keys)}
        keys = [key for key in keys if key not in free]
    # Commands hand in what names the keys; a Python caller can add one.
    is_named = callable(free_keys) or spell_out
    fix = "" if is_named else "; if that changes nothing, free_keys=[{!r}]"
    return [
        f"{first.path} and {other.path} cannot be merged, they differ: {key} "
        f"{mine.get(key)!r} and {theirs.get(key)!r}{fix.format(key)}"
        for key in keys
    ]


def _say_otherwise(a, b) -> bool:
    """Whether values of two runs' configs differ, of which one may say more.

    A tuned run spells out what its start left open; 0 and None are the same there.

    >>> _say_otherwise({"theta": 1.0}, {"theta": 1.0, "factor": 8.0})
    False
    >>> _say_otherwise(0, None), _say_otherwise("pre", "post")
    (False, True)
    """
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return any(_say_otherwise(a[key], b[key]) for key in a.keys() & b.keys())
    return (a or None) != (b or None)


def _describe(source) -> Mapping:
    """What the config.json of a folder, or its `model` section of a run, says."""
    config = (source.config.get("model") or {}) if source.is_run else source.config
    return {key: value for key, value in config.items() if not _BOOKS.fullmatch(key)}

"""`"%s: %s" % (a, b)` and `"{}: {}".format(a, b)` of traced text, part by part.

What stands in a format has the format's mark, what is put there its own. Of parts that
cannot be told apart (widths that are computed, a format of several writers) the whole
result has one mark, or is `FOREIGN`.
"""

import re
import string
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from jaxlab.data.templates import traced

_CONVERSION = re.compile(r"%(?:\((?P<key>[^)]*)\))?(?P<how>[-#0 +]*\d*(?:\.\d*)?)(.)")


def interpolate(form: traced.Traced, values: Any) -> traced.Traced:
    """What `form % values` is."""
    traced.check_widths(form)
    plain = str.__str__(form)
    return _join(form, plain % values, _split_percent(plain, values), values)


def fill(
    form: traced.Traced, write: Callable[..., str], args: tuple, kwargs: Mapping
) -> traced.Traced:
    """What `form.format(*args, **kwargs)` is.

    Args:
        form: the format.
        write: the sandbox's `format` of it.
        args, kwargs: its values.
    """
    traced.check_widths(form)
    text = str.__str__(write(*args, **kwargs))
    return _join(
        form, text, _split_braces(str.__str__(form), args, kwargs), [args, kwargs]
    )


def _join(form, text, parts: Iterable[Any], values) -> traced.Traced:
    mark = traced.common_mark(form)
    try:
        pieces = [
            part if isinstance(part, traced.Traced) else traced.Traced(part, mark)
            for part in parts
        ]
        made = traced.join(pieces)
    except (LookupError, TypeError, ValueError):
        made = None
    if made is not None and len({*form.marks}) < 2 and str.__eq__(made, text):
        return made
    return traced.Traced(text, traced.common_mark([form, values], numbers=True))


def _split_percent(form: str, values: Any) -> Iterator[str]:
    """Literal parts, plain, and values, traced."""
    left = iter(values if isinstance(values, tuple) else (values,))
    start = 0
    for found in _CONVERSION.finditer(form):
        yield form[start : found.start()]
        start = found.end()
        if found[3] == "%":
            yield "%"
            continue
        value = next(left) if found["key"] is None else values[found["key"]]
        how = found["how"] + found[3]
        yield _text(value, how == "s", f"%{how}")
    yield form[start:]


def _split_braces(form: str, args: tuple, kwargs: Mapping) -> Iterator[str]:
    """The same of a format of `str.format`."""
    count = 0
    for literal, name, how, conversion in string.Formatter().parse(form):
        yield literal
        if name is None:
            continue
        if not name:
            name, count = str(count), count + 1
        value = args[int(name)] if name.isdigit() else kwargs[name]
        if how or conversion not in (None, "s"):
            raise ValueError(name)
        yield _text(value, True, "%s")


def _text(value: Any, is_plain: bool, form: str) -> traced.Traced:
    if is_plain and isinstance(value, str):
        return traced.trace(value)
    text = form % (value,)
    return traced.Traced(text, traced.common_mark(value, numbers=True))

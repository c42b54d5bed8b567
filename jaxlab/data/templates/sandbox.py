"""Jinja that renders templates of strangers to traced text, within limits.

jinja2's immutable sandbox with the settings of transformers (`trim_blocks`,
`lstrip_blocks`, loop controls, `raise_exception`, `strftime_now`, `tojson` without
ASCII escapes, {% generation %}), and three things more:

- what a template writes, and every string that it spells, is marked as its own
  (`traced`);
- steps of loops, calls, filters and operators are counted, and so are the characters
  that they make: a template that never ends is stopped by a count, not by a clock, so
  that it needs no thread and no signal, and ends at the same place everywhere;
- nothing outside the text is reached: no file is included or imported.
"""

import contextlib
import contextvars
import datetime
import functools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jinja2
from jinja2 import compiler, ext, nodes, sandbox

from jaxlab.data.templates import formats, traced

MOST_STEPS = 500_000
_CHARACTERS_PER_STEP = 256
_OF_CONSTANTS = 1 << 20  # characters
_MOST_BITS = 4096  # of a number
# Filters that make as much as a number says.
_BY_NUMBER = frozenset(
    {"batch", "center", "indent", "round", "slice", "truncate", "wordwrap"}
)


class LimitError(jinja2.TemplateError):
    """A template takes more steps or characters than any chat needs."""


class _Budget:
    """What a rendering may still do; counted, not timed."""

    def __init__(self, characters: int, now: datetime.datetime | None = None):
        self.steps, self.longest, self.now = MOST_STEPS, characters, now

    def step(self, count: int = 1) -> None:
        self.steps -= count
        if self.steps < 0:
            raise LimitError(f"it takes more than {MOST_STEPS:,} steps")

    def make(self, count: int) -> None:
        if count > self.longest:
            raise LimitError(f"it writes more than {self.longest:,} characters")
        self.step(1 + count // _CHARACTERS_PER_STEP)


_budget: contextvars.ContextVar[_Budget] = contextvars.ContextVar("budget")


def render(
    template: jinja2.Template,
    values: Mapping[str, Any],
    *,
    longest: int,
    now: datetime.datetime | None = None,
) -> traced.Traced:
    """What a template of `compile_template` makes of values.

    Args:
        template: compiled.
        values: by name; strings in them are traced.
        longest: characters that the text, and any string on the way, may have.
        now: what `strftime_now` tells; None: the clock's.

    Raises:
        jinja2.TemplateError: raised by the template, or a limit.
        Exception: whatever else a template can provoke.
    """
    with _spend(_Budget(longest, now)):
        return _concat(template.root_render_func(template.new_context(dict(values))))


@functools.lru_cache(maxsize=64)
def compile_template(text: str) -> jinja2.Template:
    """A template that `render` takes.

    Raises:
        jinja2.TemplateError: it is not one.
    """
    with _spend(_Budget(_OF_CONSTANTS)):  # filters of constants are computed here
        return _Environment().from_string(text)


@contextlib.contextmanager
def _spend(budget: _Budget) -> Iterator[None]:
    tokens = _budget.set(budget), traced.spend.set(budget.make)
    try:
        yield
    finally:
        _budget.reset(tokens[0])
        traced.spend.reset(tokens[1])


def _concat(pieces: Iterable[str]) -> traced.Traced:
    """Pieces of output: what is no traced text is the template's own data."""
    return traced.Traced("").join(
        piece if isinstance(piece, traced.Traced) else _own(piece) for piece in pieces
    )


@functools.lru_cache(maxsize=4096)
def _own(text: str) -> traced.Traced:
    return traced.Traced(text, traced.OWN)


class _Code(compiler.CodeGenerator):
    """Python code in which strings are traced and loops are counted."""

    def visit_Const(self, node, frame) -> None:  # noqa: N802
        value = node.as_const(frame.eval_ctx)
        if isinstance(value, str):
            self.write(f"environment.own({str.__str__(value)!r})")
        else:
            super().visit_Const(node, frame)

    def visit_Concat(self, node, frame) -> None:  # noqa: N802
        self.write("environment.join((")
        for each in node.nodes:
            self.visit(each, frame)
            self.write(", ")
        self.write("))")


class _Generation(ext.Extension):
    """{% generation %}: what it holds is an answer."""

    tags = frozenset({"generation"})

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        call = self.call_method("_generate")
        return nodes.CallBlock(call, [], [], body).set_lineno(line)

    def _generate(self, caller):
        return traced.set_generated(caller())


class _Environment(sandbox.ImmutableSandboxedEnvironment):
    code_generator_class = _Code
    intercepted_binops = frozenset(sandbox.SandboxedEnvironment.default_binop_table)
    concat = staticmethod(_concat)
    own = staticmethod(_own)
    join = staticmethod(traced.join)

    def __init__(self):
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[_Generation, ext.loopcontrols],
            finalize=_finalize,
            optimized=False,  # else a constant is computed before anything counts
            cache_size=0,
        )
        self.filters = {
            name: _count(each, name in _BY_NUMBER)
            for name, each in self.filters.items()
        }
        self.filters |= {"tojson": _to_json, "join": _join, "format": _format}
        self.globals = {
            "range": self.globals["range"],
            "dict": dict,
            "namespace": self.globals["namespace"],
            "cycler": self.globals["cycler"],
            "joiner": self.globals["joiner"],
            "raise_exception": _raise_exception,
            "strftime_now": _strftime_now,
        }

    def _parse(self, source, name, filename):
        tree = super()._parse(source, name, filename)
        for loop in tree.find_all(nodes.For):
            counted = nodes.EnvironmentAttribute("count_steps")
            loop.iter = nodes.Call(counted, [loop.iter], [], None, None, lineno=1)
        return tree

    def count_steps(self, values: Iterable) -> Iterable:
        """The values of a loop, each a step."""
        budget = _budget.get()
        for value in values:
            budget.step()
            yield value

    def getattr(self, obj, attribute):
        return super().getattr(_trace(obj), attribute)

    def getitem(self, obj, argument):
        return super().getitem(_trace(obj), argument)

    def is_safe_attribute(self, obj, attr, value):
        # Marks are not a template's to see, nor to make.
        if isinstance(obj, traced.Traced) and attr not in _METHODS:
            return False
        return super().is_safe_attribute(obj, attr, value)

    def wrap_str_format(self, value):
        form = super().wrap_str_format(value)  # no attribute of an object is reached
        if form is None:
            return None

        def format_text(*args, **kwargs):
            return formats.fill(_trace(value.__self__), form, args, kwargs)

        return format_text

    def call(self, context, obj, *args, **kwargs):
        _budget.get().step(1 + _size(*args))
        return super().call(context, obj, *args, **kwargs)

    def call_binop(self, context, operator, left, right):
        left, right = _trace(left), _trace(right)
        _check_operands(operator, left, right)
        if operator == "%" and isinstance(left, str):
            return formats.interpolate(left, right)
        return super().call_binop(context, operator, left, right)


_METHODS = frozenset(name for name in dir(str) if not name.startswith("_"))


def _trace(value: Any) -> Any:
    return traced.trace(value) if isinstance(value, str) else value


def _finalize(value: Any) -> traced.Traced:
    return traced.trace(value if isinstance(value, str) else str(value))


_SIZED = (str, list, tuple, dict, set, range)


def _size(*values: Any) -> int:
    """Steps that a call on so much takes at least."""
    sizes = (
        len(value) // (_CHARACTERS_PER_STEP if isinstance(value, str) else 1)
        for value in values
        if isinstance(value, _SIZED)
    )
    return sum(sizes)


def _check_operands(operator: str, left: Any, right: Any) -> None:
    budget = _budget.get()
    budget.step(1 + _size(left, right))
    if operator == "*":
        for many, count in ((left, right), (right, left)):
            if isinstance(many, _SIZED) and isinstance(count, int):
                budget.make(len(many) * max(count, 0))
    bits = [x.bit_length() for x in (left, right) if isinstance(x, int)]
    if len(bits) == 2:
        power = bits[0] * right if operator == "**" else sum(bits)
        if power > _MOST_BITS:
            raise LimitError(f"it computes with numbers of more than {_MOST_BITS} bits")


def _count(call: Callable, by_number: bool) -> Callable:
    """A filter that is a step, and more of what is large."""

    @functools.wraps(call)
    def apply(*args, **kwargs):
        _budget.get().step(1 + _size(*args))
        for value in (*args, *kwargs.values()) if by_number else ():
            if isinstance(value, int):
                _budget.get().make(abs(value))
        result = call(*args, **kwargs)
        given = next((value for value in args if isinstance(value, str)), "")
        if isinstance(result, str) and result.lower() == given.lower():  # title
            return traced.Traced(str.__str__(result), traced.trace(given).marks)
        return _trace(result)

    return apply


@jinja2.pass_environment
def _join(environment, value, d="", attribute=None):
    if attribute is not None:
        get = jinja2.filters.make_attrgetter(environment, attribute)
        value = map(get, value)
    _budget.get().step()
    return _trace(str(d)).join(
        each if isinstance(each, str) else str(each) for each in value
    )


def _format(value, *args, **kwargs):
    return formats.interpolate(_trace(value), kwargs or args)


def _to_json(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    text = json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )
    return traced.Traced(text, traced.common_mark(value))


def _raise_exception(message):
    raise jinja2.TemplateError(str(message))


def _strftime_now(form):
    now = _budget.get().now or datetime.datetime.now()
    form = _trace(form)
    return traced.Traced(now.strftime(str.__str__(form)), traced.common_mark(form))

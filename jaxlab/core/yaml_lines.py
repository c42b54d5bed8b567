"""YAML with the line of every key, so that a mistake in it can be pointed at."""

from typing import Any

import yaml

from jaxlab.core import errors

_MERGE = "tag:yaml.org,2002:merge"

_MOST = 100_000  # values of a recipe; aliases of aliases would be more than memory


def load(text: str, file: str) -> tuple[Any, dict[tuple, int]]:
    """The value of a document, and the line (from 1) of each key and item by its path.

    Raises:
        UserError: not YAML, a key that is given twice or is no text or number, or a
            value that holds itself.

    >>> load("a:\\n  - b: 1", "x.yaml")
    ({'a': [{'b': 1}]}, {('a',): 1, ('a', 0): 2, ('a', 0, 'b'): 2})
    """
    reader = None
    try:
        reader = _Reader(yaml.SafeLoader(text), file)
        node = reader.loader.get_single_node()
        return (None if node is None else reader.value(node, ())), reader.lines
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f"line {mark.line + 1}: " if mark else ""
        problem = getattr(error, "problem", None) or "not YAML"
        raise errors.UserError(f"{file}: {line}{problem}") from None
    except RecursionError:
        raise errors.UserError(f"{file}: it is nested too deep") from None
    finally:
        if reader:
            reader.loader.dispose()


class _Reader:
    """Values of nodes; `lines` and `within`, the nodes around one, as it goes."""

    def __init__(self, loader: yaml.SafeLoader, file: str):
        self.loader, self.file = loader, file
        self.lines: dict[tuple, int] = {}
        self.within: set[int] = set()
        self.merged: dict[int, dict | None] = {}
        self.count = 0

    def value(self, node, path):
        if id(node) in self.within:
            raise self.error(node, "a value holds itself")
        self.add(node, 1)
        if not isinstance(node, yaml.CollectionNode):
            return self.scalar(node)
        self.within.add(id(node))
        is_mapping = isinstance(node, yaml.MappingNode)
        value = self.mapping(node, path) if is_mapping else self.items(node, path)
        self.within.discard(id(node))
        return value

    def mapping(self, node, path):
        mapping = {}
        for key, (key_node, value_node) in self.pairs(node).items():
            self.lines[*path, key] = key_node.start_mark.line + 1
            mapping[key] = self.value(value_node, (*path, key))
        return mapping

    def pairs(self, node):
        """Key -> its nodes; `<<`, the merge key, adds what the mapping does not say.

        Of several that add a key the first counts. Each mapping is put together once:
        merges of merges would grow tenfold with every line.
        """
        if (known := self.merged.get(id(node), self)) is not self:
            if known is None:
                raise self.error(node, "a value holds itself")
            return known
        self.merged[id(node)] = None  # begun
        added, own = {}, {}
        for key_node, value_node in node.value:
            if key_node.tag == _MERGE:
                for key, pair in self.merges(value_node):
                    added.setdefault(key, pair)
            elif (key := self.key(key_node)) in own:
                raise self.error(key_node, f"{key} is given twice")
            else:
                own[key] = key_node, value_node
        self.merged[id(node)] = {k: x for k, x in added.items() if k not in own} | own
        return self.merged[id(node)]

    def merges(self, node):
        """What one `<<` adds: of a mapping, or of a list of them."""
        is_list = isinstance(node, yaml.SequenceNode)
        for part in node.value if is_list else [node]:
            if not isinstance(part, yaml.MappingNode):
                raise self.error(part, "<< takes a mapping or a list of them")
            pairs = self.pairs(part)
            self.add(part, 1 + len(pairs))
            yield from pairs.items()

    def add(self, node, count):
        self.count += count
        if self.count > _MOST:
            raise self.error(node, f"a recipe has at most {_MOST:,} values")

    def items(self, node, path):
        for i, item in enumerate(node.value):
            self.lines[*path, i] = item.start_mark.line + 1
        return [self.value(item, (*path, i)) for i, item in enumerate(node.value)]

    def key(self, node):
        if not isinstance(node, yaml.ScalarNode):
            raise self.error(node, "a key is a list or a mapping; use a text")
        return self.scalar(node)

    def scalar(self, node):
        try:
            return self.loader.construct_object(node)
        except ValueError as error:  # a date that is none, thousands of digits
            raise self.error(node, str(error).split(";")[0]) from None
        except (KeyError, IndexError, AttributeError, TypeError):
            raise self.error(
                node, f"{node.value!r:.60} is no {node.tag[-20:]}"
            ) from None

    def error(self, node, problem):
        return errors.UserError(
            f"{self.file}: line {node.start_mark.line + 1}: {problem}"
        )

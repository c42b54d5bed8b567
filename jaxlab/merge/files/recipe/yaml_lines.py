"""YAML with the line of every key, so that a mistake in it can be pointed at."""

from typing import Any

import yaml

from jaxlab.core import errors


def load(text: str, file: str) -> tuple[Any, dict[tuple, int]]:
    """The value of a document, and the line (from 1) of each key and item by its path.

    Raises:
        UserError: not YAML, or a key that is given twice.

    >>> load("a:\\n  - b: 1", "x.yaml")
    ({'a': [{'b': 1}]}, {('a',): 1, ('a', 0): 2, ('a', 0, 'b'): 2})
    """
    loader = yaml.SafeLoader(text)
    lines: dict[tuple, int] = {}
    try:
        node = loader.get_single_node()
        return (None if node is None else _value(loader, node, (), lines, file)), lines
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f"line {mark.line + 1}: " if mark else ""
        problem = getattr(error, "problem", None) or "not YAML"
        raise errors.UserError(f"{file}: {line}{problem}") from None
    finally:
        loader.dispose()


def _value(loader, node, path, lines, file):
    if isinstance(node, yaml.MappingNode):
        loader.flatten_mapping(node)  # `<<`, the merge key
        mapping = {}
        for key_node, value_node in node.value:
            key, line = loader.construct_object(key_node), key_node.start_mark.line + 1
            if key in mapping:
                raise errors.UserError(f"{file}: line {line}: {key} is given twice")
            lines[*path, key] = line
            mapping[key] = _value(loader, value_node, (*path, key), lines, file)
        return mapping
    if isinstance(node, yaml.SequenceNode):
        items = []
        for i, item in enumerate(node.value):
            lines[*path, i] = item.start_mark.line + 1
            items.append(_value(loader, item, (*path, i), lines, file))
        return items
    return loader.construct_object(node)

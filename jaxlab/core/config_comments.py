"""What the keys of a config mean, from the comments beside them in the source.

A config is composed of dicts that are written out in a few files: its own, a system's
`config.py`, `systems/sections.py`. Each key has its line there, at its end or above it;
so has each field of a dataclass, if not in the docstring's Attributes. A key is
explained by the dict that has most in common with the section where it stands.
"""

import ast
import io
import pathlib
import re
import tokenize
from collections.abc import Iterable, Mapping
from typing import Any


def read(config: Mapping[str, Any], files: Iterable[pathlib.Path]) -> dict[str, str]:
    """Dotted key -> its line, for every key that is not a section.

    Args:
        config: a ConfigDict.
        files: where its dicts are written; the first wins among equals.
    """
    return _explain(config, [each for file in files for each in _dicts_of(file)])


def _explain(config, written, prefix=""):
    lines = {}
    for name, value in config.items():
        if hasattr(value, "items"):
            lines |= _explain(value, written, f"{prefix}{name}.")
            if len(value):
                continue
        those = [each for each in written if each.get(name)]
        common = [len(each.keys() & {*config.keys()}) for each in those]
        best = those[common.index(max(common))] if those else {}
        lines[prefix + name] = best.get(name, "")
    return lines


def _dicts_of(file) -> list[dict[str, str]]:
    """Key -> comment, "" for none, of every dict and dataclass of a file."""
    source = file.read_text("utf-8")
    comments = _comments(source)
    return [
        _of_fields(node, comments)
        if isinstance(node, ast.ClassDef)
        else {
            key.value: _beside(key.lineno, value.end_lineno, comments)
            for key, value in zip(node.keys, node.values, strict=True)
            if isinstance(key, ast.Constant) and isinstance(key.value, str)
        }
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Dict | ast.ClassDef)
    ]


def _of_fields(node, comments):
    text = ast.get_docstring(node) or ""
    _, _, attributes = text.partition("Attributes:\n")
    told = dict(re.findall(r"(?ms)^    (\w+): (.*?)\.?\n?(?=^    \w|\Z)", attributes))
    return {
        each.target.id: " ".join(told.get(each.target.id, "").split())
        or _beside(each.lineno, each.end_lineno, comments)
        for each in node.body
        if isinstance(each, ast.AnnAssign)
    }


def _comments(source) -> dict[int, tuple[bool, str]]:
    """Line -> (whether the comment stands alone there, its words)."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return {
        token.start[0]: (
            not token.line[: token.start[1]].strip(),
            token.string.lstrip("# "),
        )
        for token in tokens
        if token.type == tokenize.COMMENT and not token.string.startswith("# fmt")
    }


def _beside(first, last, comments):
    """The comment at the end of a line that a key takes, or those right above it."""
    for line in (first, last):
        if line in comments:
            return comments[line][1]
    above = []
    while comments.get(first := first - 1, (False, ""))[0]:
        above.insert(0, comments[first][1])
    return " ".join(above)

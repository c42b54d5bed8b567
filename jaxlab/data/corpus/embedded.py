"""The embedded corpus: real text that every installation already has.

Nothing is downloaded and nothing is imported: files of the standard library and of the
declared dependencies are parsed with `ast`.

    python_source        standard library modules, their docstrings cut out
    language_reference   pydoc's topics and the standard library's docstrings
    numerical_docs       docstrings of numpy, and of scipy where installed
    ml_docs              docstrings of jax, flax, optax
    legal                licence texts of installed packages and of Python

The domains do not overlap and hold no exact duplicates. All is technical English or
code, and it changes with the installed versions, so results on it are examples, never
reference numbers. Every document's `source` names package, version, file and licence.
"""

import ast
import hashlib
import importlib.metadata
import importlib.util
import json
import logging
import pathlib
import platform
import re
import sysconfig
import warnings
from collections.abc import Callable, Iterator
from typing import NamedTuple

from jaxlab.data.corpus import documents as documents_lib

_log = logging.getLogger(__name__)

DOMAINS = (
    "python_source",
    "language_reference",
    "numerical_docs",
    "ml_docs",
    "legal",
)
_PYTHON = "PSF-2.0"
_NUMERICAL = {"numpy": "BSD-3-Clause", "scipy": "BSD-3-Clause"}
_ML = {"jax": "Apache-2.0", "flax": "Apache-2.0", "optax": "Apache-2.0"}
_LEAST_CHARACTERS = 80  # shorter docstrings are stubs: "See base class."
# Tests and bundled copies; encodings are tables; pydoc_data is read by itself.
_LEFT_OUT = re.compile(
    r"_?tests?|testing|idlelib|lib2to3|turtledemo|site-packages|dist-packages"
    r"|encodings|pydoc_data|_bundled|_vendor(ed)?|__pycache__|config-.*"
)
_LICENCE_NAMES = ("LICEN", "COPYING", "NOTICE")


class _Package(NamedTuple):
    folder: pathlib.Path
    name: str  # of documents' ids: the package, or "python"
    title: str  # with version
    licence: str


def read_domains(
    max_bytes_per_domain: int | None = None,
) -> dict[str, list[documents_lib.Document]]:
    """The documents of every domain, in a fixed order of file-name hashes.

    Args:
        max_bytes_per_domain: UTF-8 bytes of each domain at most. Files are then taken
            in hash order until it is reached, so the choice is even and only what is
            used is parsed; and of each document at most 1/32 of the limit (but 2 KiB)
            is taken, cut at a line's end, so that no domain is a handful of files.
            None reads everything: about 20 MB, half a minute.

    Returns:
        Domain -> documents. A domain may be small or empty where the installation
        lacks its sources (a stripped Python, say); that is logged.
    """
    seen: set[bytes] = set()
    domains = {}
    for domain in DOMAINS:
        stream = _READERS[domain]()
        domains[domain] = list(_limit(stream, domain, max_bytes_per_domain, seen))
        size = sum(len(document.text) for document in domains[domain])
        if size < 0.9 * min(50_000, max_bytes_per_domain or 50_000):
            _log.warning("embedded domain %s has only %d characters", domain, size)
    return domains


def write(folder: pathlib.Path, max_bytes_per_domain: int | None = None) -> None:
    """Writes the domains as JSON lines, so that their sources can be read."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, texts in read_domains(max_bytes_per_domain).items():
        if not texts:
            _log.warning("embedded domain %s has no text here; left out", name)
            continue
        rows = (
            {"id": d.id, "text": d.text, "source": d.source, "domain": name}
            for d in texts
        )
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(lines, "utf-8")


def _limit(
    stream: Iterator[documents_lib.Document],
    domain: str,
    most: int | None,
    seen: set[bytes],
) -> Iterator[documents_lib.Document]:
    """Drops duplicates of anything seen; stops at `most` bytes."""
    used = 0
    for document in stream:
        text = document.text
        if most is not None:
            text = _cut(text, min(max(2048, most // 32), most - used))
        digest = hashlib.blake2b(text.encode("utf-8"), digest_size=16).digest()
        if digest in seen or not text.strip():
            continue
        seen.add(digest)
        used += len(text.encode("utf-8"))
        yield document._replace(text=text, domain=domain)
        if most is not None and used > most - _LEAST_CHARACTERS:
            return


def _cut(text: str, most: int) -> str:
    """The first lines of a text that fit `most` UTF-8 bytes."""
    data = text.encode("utf-8")
    if len(data) <= most:
        return text
    return data[: data.rfind(b"\n", 0, most) + 1].decode("utf-8")


# ------------------------------------------------------------------ domains


def _python_source() -> Iterator[documents_lib.Document]:
    python = _python()
    for file in _files(python.folder):
        parsed = _parse(file)
        if parsed is not None:
            code = _without_docstrings(*parsed)
            if len(code) >= _LEAST_CHARACTERS:
                yield _document(python, file, "", code)


def _language_reference() -> Iterator[documents_lib.Document]:
    # Topics and docstrings alternate, so that a limited corpus holds both.
    docstrings = _docstrings(_python())
    for topic in _topics():
        yield topic
        for _, docstring in zip(range(40), docstrings, strict=False):
            yield docstring
    yield from docstrings


def _docs_of(licences: dict[str, str]) -> Iterator[documents_lib.Document]:
    packages = [p for name in licences if (p := _package(name, licences[name]))]
    streams = [_docstrings(package) for package in packages]
    while streams:  # in turn, so that a limited corpus holds all of them
        for stream in list(streams):
            document = next(stream, None)
            if document is None:
                streams.remove(stream)
            else:
                yield document


def _legal() -> Iterator[documents_lib.Document]:
    # numpy is always there; the packages beside it are those of this installation.
    numpy = _package("numpy", _NUMERICAL["numpy"])
    site = numpy.folder.parent if numpy else pathlib.Path(sysconfig.get_path("purelib"))
    python = _python()
    files = [p for p in python.folder.glob("LICENSE*") if p.is_file()]
    for path in site.glob("*.dist-info/**/*"):
        if path.name.upper().startswith(_LICENCE_NAMES) and path.is_file():
            files.append(path)
    for path in sorted(files, key=lambda p: _hash_key(f"{p.parent.name}/{p.name}")):
        text = _read(path)
        if text is None or len(text) < _LEAST_CHARACTERS:
            continue
        inside = path.parent == python.folder
        relative = path.name if inside else path.relative_to(site).as_posix()
        owner = python.title if inside else relative.split(".dist-info")[0]
        yield documents_lib.Document(
            f"legal/{relative}", text, f"{owner}, {relative} (a licence text)"
        )


_READERS: dict[str, Callable[[], Iterator[documents_lib.Document]]] = {
    "python_source": _python_source,
    "language_reference": _language_reference,
    "numerical_docs": lambda: _docs_of(_NUMERICAL),
    "ml_docs": lambda: _docs_of(_ML),
    "legal": _legal,
}


# ------------------------------------------------------------------ packages and files


def _python() -> _Package:
    folder = pathlib.Path(sysconfig.get_path("stdlib"))
    return _Package(folder, "python", f"Python {platform.python_version()}", _PYTHON)


def _package(name: str, licence: str) -> _Package | None:
    spec = importlib.util.find_spec(name)  # finds, does not import
    if spec is None or not spec.submodule_search_locations:
        _log.info("embedded corpus: %s is not installed", name)
        return None
    folder = pathlib.Path(next(iter(spec.submodule_search_locations)))
    return _Package(folder, name, f"{name} {importlib.metadata.version(name)}", licence)


def _files(folder: pathlib.Path) -> list[pathlib.Path]:
    """Modules of a package without its tests, in hash order."""

    def walk(at: pathlib.Path) -> Iterator[pathlib.Path]:
        for path in at.iterdir():
            if path.is_dir():
                if not _LEFT_OUT.fullmatch(path.name):
                    yield from walk(path)
            elif path.suffix == ".py" and not path.name.startswith(
                ("test_", "conftest", "_sysconfigdata")
            ):
                yield path

    if not folder.is_dir():
        return []
    return sorted(
        walk(folder), key=lambda path: _hash_key(path.relative_to(folder).as_posix())
    )


def _hash_key(name: str) -> tuple[bytes, str]:
    return hashlib.blake2b(name.encode(), digest_size=8).digest(), name


def _read(path: pathlib.Path) -> str | None:
    try:
        return path.read_bytes().decode("utf-8").replace("\r\n", "\n")
    except (OSError, UnicodeDecodeError) as error:
        _log.debug("embedded corpus: %s left out (%s)", path, error)
        return None


def _parse(path: pathlib.Path) -> tuple[str, ast.Module] | None:
    source = _read(path)
    if source is None or not source.strip():
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # other people's invalid escapes
            return source, ast.parse(source)
    except (SyntaxError, ValueError, RecursionError) as error:
        _log.debug("embedded corpus: %s left out (%s)", path, error)
        return None


def _document(
    package: _Package, file: pathlib.Path, name: str, text: str
) -> documents_lib.Document:
    relative = file.relative_to(package.folder).as_posix()
    where = f"{package.name}/{relative}" + (f":{name}" if name else "")
    source = f"{package.title}, {relative}" + (f", {name}" if name else "")
    return documents_lib.Document(where, text, f"{source} ({package.licence})")


# ------------------------------------------------------------------ docstrings


def _docstrings(package: _Package) -> Iterator[documents_lib.Document]:
    for file in _files(package.folder):
        source = _read(file)
        if source is None or ('"""' not in source and "'''" not in source):
            continue
        parsed = _parse(file)
        for name, node in _walk_documented(parsed[1]) if parsed else ():
            text = ast.get_docstring(node)
            if text and len(text) > _LEAST_CHARACTERS:
                line = getattr(node, "lineno", 1)  # names recur: overloads, closures
                name = f"{name or 'module'} (line {line})"
                yield _document(package, file, name, text + "\n")


def _walk_documented(tree: ast.Module) -> Iterator[tuple[str, ast.AST]]:
    """(Qualified name, node) of everything that can have a docstring."""
    stack: list[tuple[str, ast.AST]] = [("", tree)]
    while stack:
        name, node = stack.pop()
        if isinstance(
            node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
        ):
            yield name, node
        for child in reversed(list(ast.iter_child_nodes(node))):
            if isinstance(child, ast.stmt):
                inner = getattr(child, "name", None)
                stack.append((f"{name}.{inner}".strip(".") if inner else name, child))


def _without_docstrings(source: str, tree: ast.Module) -> str:
    """The source with docstrings cut out, still valid Python."""
    lines = source.split("\n")
    for _, node in _walk_documented(tree):
        if ast.get_docstring(node, clean=False) is None:
            continue
        string = node.body[0]
        first, last = string.lineno - 1, string.end_lineno - 1
        before = lines[first].encode()[: string.col_offset].decode()
        after = lines[last].encode()[string.end_col_offset :].decode()
        if before.strip() or after.strip(" \t;"):
            keep = before + "..." + after  # shares its line with code or a comment
        elif len(node.body) == 1 and not isinstance(node, ast.Module):
            keep = before + "..."
        else:
            keep = None
        for number in range(first, last + 1):
            lines[number] = None
        lines[first] = keep
    return "\n".join(line for line in lines if line is not None)


def _topics() -> Iterator[documents_lib.Document]:
    """The language reference that `help("if")` shows."""
    python = _python()
    file = python.folder / "pydoc_data" / "topics.py"
    parsed = _parse(file) if file.exists() else None
    if parsed is None:
        return
    value = next((n.value for n in parsed[1].body if isinstance(n, ast.Assign)), None)
    topics = ast.literal_eval(value) if value is not None else {}
    for name in sorted(topics, key=_hash_key):
        yield _document(python, file, name, topics[name])

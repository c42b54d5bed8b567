"""The embedded corpus: real, separate, bounded, the same each time."""

import ast

import pytest

from jaxlab.data.corpus import embedded as embedded_lib
from jaxlab.data.corpus import split

LIMIT = 60_000


@pytest.fixture(scope="module")
def embedded():
    return embedded_lib.read_domains(LIMIT)


def test_every_domain_is_filled_to_its_limit_by_many_documents(embedded):
    assert tuple(embedded) == embedded_lib.DOMAINS
    for domain, found in embedded.items():
        size = sum(len(document.text.encode()) for document in found)
        assert 0.9 * LIMIT < size <= LIMIT, domain
        assert len(found) >= 25, domain
        assert all(document.domain == domain for document in found)
        train, held_out = split.split_documents(found, 0.1)
        assert train
        assert held_out


def test_sources_name_version_file_and_licence(embedded):
    sources = {d: [doc.source for doc in docs] for d, docs in embedded.items()}
    assert all("(PSF-2.0)" in s and ".py" in s for s in sources["python_source"])
    assert all("(BSD-3-Clause)" in s for s in sources["numerical_docs"])
    packages = {s.split(" ")[0] for s in sources["ml_docs"]}
    assert packages == {"jax", "flax", "optax"}  # in turn, not the first alone
    assert any("topics.py" in s for s in sources["language_reference"])
    identities = [doc.id for docs in embedded.values() for doc in docs]
    assert len(identities) == len(set(identities))


def test_no_text_is_in_two_domains(embedded):
    texts = [document.text for found in embedded.values() for document in found]
    assert len(texts) == len(set(texts))


def test_the_corpus_is_the_same_each_time(embedded):
    assert embedded_lib.read_domains(LIMIT) == embedded


def test_docstrings_are_cut_out_and_the_code_stays_valid():
    source = (
        '"""Module."""\n'
        "import os  # kept\n"
        "class A:\n"
        "    '''Only a docstring.'''\n"
        "def f(): 'é'\n"
        "def g(x):\n"
        '    """Two\n'
        '    lines."""; y = 1\n'
        "    return 'a string', y\n"
    )
    cut = embedded_lib._without_docstrings(source, ast.parse(source))
    assert cut == (
        "import os  # kept\n"
        "class A:\n"
        "    ...\n"
        "def f(): ...\n"
        "def g(x):\n"
        "    ...; y = 1\n"
        "    return 'a string', y\n"
    )
    ast.parse(cut)


def test_qualified_names_lead_through_classes():
    tree = ast.parse("class A:\n  class B:\n    def f(self): pass\n  def g(self): pass")
    assert [name for name, _ in embedded_lib._walk_documented(tree)] == [
        "",
        "A",
        "A.B",
        "A.B.f",
        "A.g",
    ]


def test_cutting_keeps_whole_lines_within_the_bytes():
    assert embedded_lib._cut("éé\nab\ncd", 8) == "éé\nab\n"
    assert embedded_lib._cut("short", 8) == "short"

"""Text of many languages, and of their translations, for pre-training.

What a model that "has seen all languages" has seen, before it is fine-tuned in one
(`systems/tram/classification.py`): each language alone, and texts beside their
translations. Conneau and Lample 2019 (arXiv:1901.07291); Vulic and Moens 2016
(arXiv:1509.07308).
"""

import itertools
import json
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jaxlab.core import errors
from jaxlab.data.corpus import documents
from jaxlab.data.examples import labelled

# Thai, Lao, Burmese, Khmer, Japanese and Chinese put no spaces between words; there
# two characters pass for one.
_NO_SPACES = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff"
_WORD = re.compile(f"[{_NO_SPACES}]{{1,2}}|[^\\s{_NO_SPACES}]+")
_UNSPACED = re.compile(f"[{_NO_SPACES}]")


class Texts(NamedTuple):
    """Text files that belong together.

    Attributes:
        files: language -> its files: .jsonl[.gz|.zst] with `text`, .txt with a text
            per line, or .tsv as `labelled` reads (whose labels are not looked at).
        parallel: whether texts of the same `id` are translations of each other; where
            a file has no ids, texts at the same position.
    """

    files: Mapping[str, Sequence[str | pathlib.Path]]
    parallel: bool = False


def pretraining_text(
    sources: Sequence[Texts],
    out: str | pathlib.Path,
    *,
    interleaved: bool = False,
    pivot: str = "",
    seed: int = 0,
) -> dict[str, int]:
    """Writes what a model that has seen all languages is pre-trained on.

    OUT/LANGUAGE.jsonl has every text of a language, OUT/parallel.jsonl the texts that
    have translations. Each file is a domain of `data.source`, so that `data.weights`
    says how much of it is read; a source that is listed twice counts twice. The
    documents of parallel.jsonl are, by default, every pair A, line feed, B in both
    directions, from which a causal model learns to say B after A: the translation
    language modelling of Conneau and Lample 2019 (arXiv:1901.07291).

    Args:
        sources: the texts, never labels.
        out: a folder that does not exist.
        interleaved: instead, one document of all translations of a text. Their words
            are mixed, each language's in its order and all advancing alike, so that
            every word is predicted from words of the others (the length-ratio shuffle
            of Vulic and Moens 2016, arXiv:1509.07308, at random positions).
        pivot: a language that is in every pair; "" takes all pairs of languages.
        seed: of the random positions.

    Returns:
        How many documents each file has.

    Raises:
        UserError: a file of a test split, nothing to pair, an unreadable file.
    """
    if interleaved and pivot:
        raise errors.UserError("pivot chooses pairs; interleaved texts are not paired")
    texts: dict[str, list[str]] = {}
    parallel: list[str] = []
    random = np.random.default_rng(seed)
    for source in sources:
        texts_of = {name: _texts_by_id(source, name) for name in source.files}
        for name, own in texts_of.items():
            texts.setdefault(name, []).extend(own.values())
        if source.parallel and interleaved:
            parallel += [_interleave(group, random) for group in _groups(texts_of)]
        elif source.parallel:
            parallel += _pairs(texts_of, pivot)
    if any(source.parallel for source in sources):
        if not parallel:
            raise errors.UserError("no text has a translation; check the ids")
        texts["parallel"] = parallel
    out = pathlib.Path(out)
    try:
        out.mkdir(parents=True)
    except FileExistsError:
        raise errors.UserError(f"{out} exists; remove it or name another") from None
    for name, own in texts.items():
        lines = (json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in own)
        (out / f"{name}.jsonl").write_text("".join(lines), "utf-8")
    return {name: len(own) for name, own in texts.items()}


def _groups(found: Mapping[str, Mapping[str, str]]) -> Iterator[list[str]]:
    """The translations of every text that has some."""
    for key in dict.fromkeys(itertools.chain.from_iterable(found.values())):
        group = [texts[key] for texts in found.values() if key in texts]
        if len(group) > 1:
            yield group


def _pairs(found: Mapping[str, Mapping[str, str]], pivot: str) -> list[str]:
    return [
        f"{found[a][key]}\n{found[b][key]}"
        for a, b in itertools.permutations(found, 2)
        if pivot in ("", a, b)
        for key in found[a]
        if key in found[b]
    ]


def _texts_by_id(source: Texts, language: str) -> dict[str, str]:
    texts = {}
    for path in map(pathlib.Path, source.files[language]):
        if "test" in (path.parent.name, *re.split(r"[._-]", path.name)):
            raise errors.UserError(f"{path} is of a test split; leave it out")
        for key, text in _read_texts(path):
            key = key if source.parallel else f"{path} {key}"
            if key in texts:
                raise errors.UserError(f"{path}: two texts of {language} are {key!r}")
            texts[key] = text
    return texts


def _read_texts(path: pathlib.Path) -> Iterator[tuple[str, str]]:
    if path.suffix == ".tsv":
        for row in labelled.read_rows(path):
            for part, text in enumerate(row.text.split(labelled.SEPARATOR)):
                yield f"{row.id}.{part}", text
        return
    for document in documents.read_documents(path):
        key = document.id.removeprefix(f"{path.name}:")
        if path.suffix != ".txt":
            yield key, document.text
            continue
        for number, line in enumerate(document.text.split("\n")):
            if line.strip():
                yield str(number), line


def _interleave(group: Sequence[str], random: np.random.Generator) -> str:
    units = [_WORD.findall(text) for text in group]
    positions = np.concatenate(
        [(np.arange(len(u)) + random.random(len(u))) / max(len(u), 1) for u in units]
    )
    mixed = [u for own in units for u in own]
    text = ""
    for index in np.argsort(positions, kind="stable"):
        unit = mixed[index]
        text += unit if not text or _UNSPACED.match(unit) else f" {unit}"
    return text

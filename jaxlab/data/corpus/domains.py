"""The corpus: from a folder of text to token files, with held-out documents.

    text on disk --read_documents--> documents --write_tokens--> token files

Reading is in `documents`, the files' layout in `token_files`; their public names are
gathered here.
"""

import hashlib
import json
import logging
import pathlib
from collections.abc import Iterable, Iterator, Sequence

from jaxlab.core import errors, folders, paths
from jaxlab.data.corpus import documents as documents_
from jaxlab.data.corpus import token_files, token_writer
from jaxlab.data.tokenizers import tokenizer as tokenizer_

Document = documents_.Document
read_documents = documents_.read_documents
read_domains = documents_.read_domains
TokenFile = token_files.TokenFile

__all__ = [
    "Document",
    "TokenFile",
    "prepare",
    "read_documents",
    "read_domains",
    "split_documents",
    "training_texts",
    "write_tokens",
]

log = logging.getLogger(__name__)


def prepare(
    source: str | pathlib.Path,
    tokenizer: tokenizer_.Tokenizer,
    output: str | pathlib.Path,
    *,
    held_out_fraction: float = 0.0,
    seed: int = 0,
    split: str = "train",
    parts: int = 1,
) -> dict[str, token_files.TokenFile]:
    """Writes the token files of every domain of a folder, and the tokenizer beside.

    Args:
        source: a folder with one subfolder or one JSON-lines file a domain (see
            `read_domains`); or a single file, which is one domain.
        tokenizer: encodes the text; saved to OUTPUT/tokenizer.
        output: folder for NAME.npy ... of each domain.
        held_out_fraction: above 0, that share of each domain's documents goes to
            NAME.held_out.npy and the domain's text is held in memory meanwhile; with
            0 documents are streamed.
        seed: of the held-out split.
        split: which of NAME.train.jsonl, NAME.val.jsonl ... to read.
        parts: above 1, cuts the training documents of each domain into that many
            disjoint files NAME.1, NAME.2 ...: every parts-th document. They share
            NAME.held_out.

    Returns:
        Name -> token file: NAME, and NAME.held_out where something is held out.
    """
    if parts > 1 and not held_out_fraction:
        raise errors.UserError("parts of a domain need a held_out_fraction above 0")
    output = pathlib.Path(output)
    domains = domains_of(source, split)
    output.mkdir(parents=True, exist_ok=True)
    tokenizer.save(output / "tokenizer")
    files = {}
    for name, path in domains.items():
        documents = documents_.read_documents(path, domain=name)
        if held_out_fraction:
            texts = [document for document in documents if document.text.strip()]
            sides = split_documents(texts, held_out_fraction, seed)
            if not sides[1]:
                raise errors.UserError(
                    f"domain {name!r} has one document, none can be held out; "
                    "add documents or set held_out_fraction to 0"
                )
            if len(sides[0]) < parts:
                raise errors.UserError(
                    f"domain {name!r} has {len(sides[0])} training documents, too few "
                    f"for {parts} parts"
                )
            for part in range(parts):
                own = name if parts == 1 else f"{name}.{part + 1}"
                documents = sides[0][part::parts]
                files[own] = write_tokens(documents, tokenizer, output / own)
            held_out = f"{name}.held_out"
            files[held_out] = write_tokens(sides[1], tokenizer, output / held_out)
        else:
            files[name] = write_tokens(documents, tokenizer, output / name)
        log.info("%s: written", name)
    return files


def training_texts(
    source: str | pathlib.Path,
    *,
    held_out_fraction: float = 0.0,
    seed: int = 0,
    split: str = "train",
) -> Iterator[str]:
    """The texts that `prepare` would train on, to train a tokenizer from."""
    for name, path in domains_of(source, split).items():
        documents = list(documents_.read_documents(path, domain=name))
        if held_out_fraction:
            documents, _ = split_documents(documents, held_out_fraction, seed)
        yield from (document.text for document in documents)


def domain_names(source: str | pathlib.Path, *, split: str = "train") -> list[str]:
    """The domains of a folder or file, as `prepare` would call them."""
    return list(domains_of(source, split))


def domains_of(
    source: str | pathlib.Path, split: str = "train"
) -> dict[str, pathlib.Path]:
    """Domain name -> its folder or file, of a folder or of a single file."""
    source = paths.path(source)
    if source.is_file():
        return {source.name.split(".")[0]: source}
    return documents_.domain_paths(source, split=split)


def split_documents(
    documents: Sequence[Document], held_out_fraction: float, seed: int = 0
) -> tuple[list[Document], list[Document]]:
    """Splits into (train, held out) by a hash of the text.

    A document's side depends on its own text and the seed alone: it does not move when
    documents are added, renamed or reordered, and exact duplicates share a side. The
    held-out share therefore varies around `held_out_fraction`. With two or more
    distinct documents neither side is empty.

    >>> texts = [Document(str(i), f"text {i}") for i in range(100)]
    >>> [len(side) for side in split_documents(texts, 0.2)]
    [82, 18]
    """
    if not 0 < held_out_fraction < 1:
        raise errors.UserError(
            f"held_out_fraction {held_out_fraction} is not between 0 and 1; try 0.1"
        )
    shares = [hash_share(document.text, seed) for document in documents]
    threshold = held_out_fraction
    if len(documents) > 1:
        ordered = sorted(set(shares))
        if ordered[0] >= threshold:  # nothing would be held out
            threshold = (ordered[0] + [*ordered, 1.0][1]) / 2
        elif ordered[-1] < threshold and len(ordered) > 1:  # nothing would be left
            threshold = ordered[-1]
    pairs = list(zip(documents, shares, strict=True))
    train = [document for document, share in pairs if share >= threshold]
    held_out = [document for document, share in pairs if share < threshold]
    if len(documents) > 1 and not train:  # one text many times: cut the list
        train, held_out = held_out[1:], held_out[:1]
    return train, held_out


def hash_share(text: str, seed: int) -> float:
    """A number in [0, 1) that is fixed by the text and the seed."""
    digest = hashlib.blake2b(
        text.encode("utf-8"), digest_size=6, key=str(seed).encode()
    ).digest()
    return int.from_bytes(digest, "big") / 2**48


# ------------------------------------------------------------------ writing


def write_tokens(
    documents: Iterable[Document],
    tokenizer: tokenizer_.Tokenizer,
    prefix: str | pathlib.Path,
) -> token_files.TokenFile:
    """Encodes documents into PREFIX.npy and the files beside it.

    Text is encoded about a megabyte at a time, so memory stays bounded. Documents
    without text (empty or white space) are left out and counted in the log. The files
    appear under their names only when complete, PREFIX.json last.

    Raises:
        UserError: no document with text.
    """
    path = token_files.npy(prefix)
    path.parent.mkdir(parents=True, exist_ok=True)
    files = {s: token_files.beside(path, s) for s in token_files.SUFFIXES}
    parts = {suffix: folders.temporary_name(file) for suffix, file in files.items()}
    try:
        with token_writer.TokenWriter(parts, tokenizer) as writer:
            for batch, ids in token_writer.encoded(documents, tokenizer, path.parent):
                writer.add(batch, ids)
        info = writer.info()
        if not info["documents"]:
            raise errors.UserError(f"no document with text for {path}; add documents")
        parts[".json"].write_text(json.dumps(info, indent=1) + "\n", "utf-8")
        folders.publish({parts[suffix]: file for suffix, file in files.items()})
    finally:
        for part in parts.values():
            part.unlink(missing_ok=True)
    return token_files.TokenFile.open(path)

"""A prepared corpus: tokenizer, training files and held-out files of every domain.

embedded text or a folder of domains -> DIR/text (embedded only) -> tokenizer
-> DIR/NAME.npy and DIR/NAME.held_out.npy, once; the next start opens them.
"""

import itertools
import logging
import pathlib
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from jaxlab.core import errors, json_text, missing_models, paths, progress, report
from jaxlab.data.corpus import (
    documents,
    domains,
    embedded,
    split,
    token_files,
    token_writer,
)
from jaxlab.data.shards import plan, token_shards
from jaxlab.data.tokenizers import sentence_pieces
from jaxlab.data.tokenizers import tokenizer as tokenizer_lib

EMBEDDED = "embedded"
_HELD_OUT = ".held_out"
_BY_FILE = "held_out_files"  # in a record: domains whose held-out text is a file
_RECORDS = ("corpus", "plan", "manifest")  # .json, as beside each domain's files

_log = logging.getLogger(__name__)


class Prepared(NamedTuple):
    """What a run reads.

    Attributes:
        tokenizer: of every file.
        train: domain -> token file.
        held_out: domain -> token file of documents that are not trained on.
    """

    tokenizer: tokenizer_lib.Tokenizer
    train: Mapping[str, token_files.TokenFile | token_shards.TokenShards]
    held_out: Mapping[str, token_files.TokenFile | token_shards.TokenShards]


def prepare(
    source: str,
    folder: str | pathlib.Path,
    *,
    tokenizer: str = "",
    vocab_size: int = 4096,
    held_out_fraction: float = 0.05,
    max_bytes_per_domain: int | None = None,
    seed: int = 0,
    parts: int = 1,
    added: Collection[str] = (),
) -> Prepared:
    """Opens the corpus prepared in `folder`, or prepares it there.

    Args:
        source: "embedded", or a folder with a subfolder or NAME.jsonl per domain; or
            several, joined by commas.
        folder: where the token files go.
        tokenizer: path of a tokenizer; "" trains SentencePiece on the training text.
        vocab_size: of a trained tokenizer.
        held_out_fraction: share of each domain's documents kept out of training; where
            a domain has a file of held-out text (`domains.held_out_file`), that file.
        max_bytes_per_domain: of the embedded text; None takes all of it.
        seed: of the held-out split and of the tokenizer's sample.
        parts: disjoint training files NAME.1, NAME.2 ... of each domain; 1 leaves it
            whole.
        added: names of token files that somebody put there beside the source's.

    Raises:
        UserError: the folder was prepared otherwise; unreadable or empty text.
    """
    folder = pathlib.Path(folder)
    sources = [
        s if s == EMBEDDED else str(pathlib.Path(s)) for s in paths.split(source)
    ]
    made_from = {
        "source": ",".join(sources),
        "tokenizer": tokenizer,
        "vocab_size": vocab_size,
        "held_out_fraction": held_out_fraction,
        "max_bytes_per_domain": max_bytes_per_domain,
        "seed": seed,
        **({"parts": parts} if parts > 1 else {}),
    }
    record = folder / "corpus.json"
    if (folder / plan.PLAN).exists():
        raise errors.UserError(
            f"{folder} is of `jaxlab data tokenize`; name no source beside it "
            "(--config.data.source=)"
        )
    fix = f"remove {folder} to prepare the text again"
    saved = json_text.read_object(record, fix)
    # Begun before there were such files, or without one, it keeps the split it has.
    by_file = {} if saved is None else {k: saved[k] for k in saved.keys() & {_BY_FILE}}
    if saved == made_from | by_file:
        return open_folder(folder)  # the text may be gone
    find_names(source)
    if tokenizer and not pathlib.Path(tokenizer).exists():
        raise missing_models.explain_tokenizer(tokenizer)
    if saved is None:
        by_file = _prepare(folder, made_from)
    else:
        _check_settings(folder, saved, made_from | by_file)
        _check_text(folder, saved, made_from, added)
    report.write_json(record, made_from | by_file)
    return open_folder(folder)


def find_names(source: str, parts: int = 1) -> tuple[list[str], list[str]]:
    """Names of the training and of the held-out files that `prepare` will make."""
    found = []
    for path in paths.split(source):
        if path != EMBEDDED and not pathlib.Path(path).exists():
            raise missing_models.explain_data(path)
        found += embedded.DOMAINS if path == EMBEDDED else domains.find_domains(path)
    return [part for name in found for part in _part_names(name, parts)], found


def _check_settings(folder: pathlib.Path, saved: Mapping, made_from: Mapping) -> None:
    """Refuses to open a corpus under other settings; paths say nothing of them."""
    changed = [
        f"{key} {saved.get(key)!r}, not {made_from.get(key)!r}"
        for key in sorted(saved.keys() | made_from.keys())
        if key not in ("source", "tokenizer") and saved.get(key) != made_from.get(key)
    ]
    wanted = made_from["tokenizer"]
    if wanted != saved.get("tokenizer"):
        own = tokenizer_lib.load(folder / "tokenizer").fingerprint
        if not wanted or tokenizer_lib.load(wanted).fingerprint != own:
            changed.append(f"another tokenizer than {wanted or 'one trained on it'}")
    if changed:
        raise errors.UserError(
            f"{folder} was prepared with {'; '.join(changed)}; use the same, or "
            "another folder, or remove it to prepare the text again"
        )


def _check_text(
    folder: pathlib.Path, saved: Mapping, made_from: Mapping, added: Collection[str]
) -> None:
    """Refuses text that is elsewhere now and is not what the folder was prepared from.

    It is prepared once more, with the folder's tokenizer, and has to be the same.
    """
    old, new = saved.get("source"), made_from["source"]
    if old == new:
        return
    progress.line(f"{folder} was prepared from {old}: comparing {new} with that")
    with tempfile.TemporaryDirectory(prefix=".compared-", dir=folder) as part:
        own_tokenizer = {"tokenizer": str(folder / "tokenizer")}
        _prepare(
            pathlib.Path(part),
            {**made_from, **own_tokenizer},
            may_read_files=_BY_FILE in saved,
        )
        then, now = (
            {p.stem: _checksum(p) for p in sorted(pathlib.Path(place).glob("*.npy"))}
            for place in (folder, part)
        )
    then = {name: x for name, x in then.items() if name not in added or name in now}
    # A domain that is one file is called by it, and keeps the name it had.
    is_one = len(open_folder(folder).train.keys() - set(added)) == 1
    if then != now and not (is_one and [*then.values()] == [*now.values()]):
        raise errors.UserError(
            f"{folder} was prepared from other text, {old}; use another folder, or "
            f"remove it to prepare {new}"
        )


def _checksum(path: pathlib.Path) -> str:
    return token_files.TokenFile.open(path).info.get("sha256", "")


def open_folder(folder: str | pathlib.Path) -> Prepared:
    """Opens a folder of `jaxlab data prepare` or `jaxlab data tokenize`.

    Raises:
        UserError: no token files, a truncated one, or a tokenisation half-way.
    """
    folder = pathlib.Path(folder)
    if (folder / plan.MANIFEST).exists():
        train, held_out = token_shards.open_folder(folder)
        return Prepared(tokenizer_lib.load(folder / "tokenizer"), train, held_out)
    if (folder / plan.PLAN).exists():
        raise errors.UserError(
            f"{folder} is not finished; start the same `jaxlab data tokenize` again"
        )
    files = {
        path.stem: token_files.TokenFile.open(path)
        for path in sorted(folder.glob("*.npy"))
    }
    if not files:
        raise errors.UserError(
            f"{folder} holds no token files; make them with `jaxlab data prepare`"
        )
    held_out = {
        name.removesuffix(_HELD_OUT): file
        for name, file in files.items()
        if name.endswith(_HELD_OUT)
    }
    train = {n: file for n, file in files.items() if not n.endswith(_HELD_OUT)}
    return Prepared(tokenizer_lib.load(folder / "tokenizer"), train, held_out)


def write_domains(
    source: str | pathlib.Path,
    tokenizer: tokenizer_lib.Tokenizer,
    folder: str | pathlib.Path,
    **options,
) -> dict[str, token_files.TokenFile]:
    """Writes the token files of every domain of a source, and the tokenizer beside.

    Args:
        source: a folder with one subfolder or JSON-lines file per domain, or a single
            file, which is one domain.
        tokenizer: encodes the text; saved to FOLDER/tokenizer.
        folder: for NAME.npy ... of each domain.
        **options: of `write_domain`.

    Returns:
        Name -> token file: NAME, and NAME.held_out where something is held out.
    """
    folder, files = pathlib.Path(folder), {}
    sources = domains.find_domains(source)
    tokenizer.save(folder / "tokenizer")
    for name, path in sources.items():
        files |= write_domain(path, name, tokenizer, folder, **options)
        _log.info("%s: written", name)
    return files


def write_domain(
    path: str | pathlib.Path,
    name: str,
    tokenizer: tokenizer_lib.Tokenizer,
    folder: pathlib.Path,
    *,
    held_out_fraction: float = 0.0,
    seed: int = 0,
    parts: int = 1,
    may_read_files: bool = True,
) -> dict[str, token_files.TokenFile]:
    """Writes the token files of one domain.

    Args:
        path: of its documents, see `documents.read_documents`.
        name: of the files.
        tokenizer: encodes the text.
        folder: for NAME.npy and the files beside it.
        held_out_fraction: above 0, documents go to NAME.held_out by the rule of
            `corpus.split`, or those of the domain's file of held-out text do.
        seed: of that rule.
        parts: above 1, cuts the training documents into that many disjoint files
            NAME.1, NAME.2 ...: every parts-th document. They share NAME.held_out.
        may_read_files: False leaves files of held-out text unread.

    Raises:
        UserError: too few documents, or parts without held-out documents.
    """

    def read() -> Iterator[documents.Document]:
        return documents.read_documents(path, domain=name)

    rule, sides = None, _part_names(name, parts)
    training, held_out = itertools.cycle(sides), name + _HELD_OUT
    if not held_out_fraction:
        domains.warn_of_unread(path, "nothing is held out")
    else:
        with_text = (document for document in read() if document.text.strip())
        options = {"domain": name, "may_read_files": may_read_files}
        rule = split.domain_rule(path, with_text, held_out_fraction, seed, **options)
        sides = [*sides, held_out]
    if parts > 1:
        _check_parts(read(), rule, name, parts)
    every = read()
    if rule is not None and rule.file:
        every = rule.join(every, documents.read_documents(rule.file, domain=name))

    def side_of(document: documents.Document) -> str:
        is_held_out = rule is not None and rule.holds_out(document)
        return held_out if is_held_out else next(training)

    prefixes = {side: folder / side for side in sides}
    return token_writer.write_files(every, tokenizer, prefixes, side_of)


def training_texts(
    source: str | pathlib.Path,
    *,
    held_out_fraction: float = 0.0,
    seed: int = 0,
    may_read_files: bool = True,
) -> Iterator[str]:
    """The texts that `write_domains` would train on, to train a tokenizer from.

    Documents without text are among them, and count where a domain's limit moves:
    tokenizers keep the fingerprints that they have in older runs and pools.
    """
    for name, path in domains.find_domains(source).items():
        rule = None
        if held_out_fraction:
            everything = documents.read_documents(path, domain=name)
            options = {"domain": name, "may_read_files": may_read_files}
            rule = split.domain_rule(
                path, everything, held_out_fraction, seed, **options
            )
        for document in documents.read_documents(path, domain=name):
            if rule is None or not rule.holds_out(document):
                yield document.text


def _part_names(name: str, parts: int) -> list[str]:
    return [name] if parts == 1 else [f"{name}.{i}" for i in range(1, parts + 1)]


def _check_parts(
    read: Iterable[documents.Document],
    rule: split.Rule | None,
    name: str,
    parts: int,
) -> None:
    if rule is None:
        raise errors.UserError("parts of a domain need a held_out_fraction above 0")
    count = sum(bool(d.text.strip()) and not rule.holds_out(d) for d in read)
    if count < parts:
        raise errors.UserError(
            f"domain {name!r} has {count} training documents, too few for {parts} parts"
        )


# ------------------------------------------------------------------ several sources


def _prepare(
    folder: pathlib.Path, made_from: Mapping, *, may_read_files: bool = True
) -> dict[str, list[str]]:
    """Writes the files; returns what the record says beside `made_from`."""
    names = paths.split(made_from["source"])
    sources = [_source_path(name, folder, made_from) for name in names]
    _refuse_shared_names(sources, made_from.get("parts", 1))
    rule = {
        "held_out_fraction": made_from["held_out_fraction"],
        "seed": made_from["seed"],
        "may_read_files": may_read_files,
    }
    if made_from["tokenizer"]:
        tokenizer = tokenizer_lib.load(made_from["tokenizer"])
    else:
        texts = itertools.chain.from_iterable(
            training_texts(source, **rule) for source in sources
        )
        tokenizer = sentence_pieces.train(texts, made_from["vocab_size"])
    for source in sources:
        parts = made_from.get("parts", 1)
        write_domains(source, tokenizer, folder, parts=parts, **rule)
    if not (may_read_files and made_from["held_out_fraction"]):
        return {}
    by_file = [name for source in sources for name in domains.held_out_files(source)]
    return {_BY_FILE: sorted(by_file)} if by_file else {}


def _source_path(source: str, folder: pathlib.Path, made_from: Mapping) -> pathlib.Path:
    """A source as a path; the embedded text is written to FOLDER/text first."""
    if source != EMBEDDED:
        return pathlib.Path(source)
    embedded.write(folder / "text", made_from["max_bytes_per_domain"])
    return folder / "text"


def _refuse_shared_names(sources: Sequence[pathlib.Path], parts: int) -> None:
    """Refuses domains of which one would be written over another, or over a record."""
    takers = dict.fromkeys(_RECORDS, "a record of the folder")
    for source in sources:
        for name, path in domains.find_domains(source).items():
            if name.endswith(_HELD_OUT):
                raise errors.UserError(
                    f"no domain may be called {name!r}, which is the held-out set of "
                    f"another; rename {path}"
                )
            if name.endswith(".npy"):  # the file of `law` is law.npy
                raise errors.UserError(
                    f"no domain may be called {name!r}, as token files are; "
                    f"rename {path}"
                )
            stems = _part_names(name, parts)
            for stem in (*stems, name + _HELD_OUT):
                if stem in takers:
                    raise errors.UserError(
                        f"domain {name!r} is in {path} and would share {stem}.json "
                        f"with {takers[stem]}; rename one"
                    )
            takers |= dict.fromkeys((*stems, name + _HELD_OUT), f"that in {path}")

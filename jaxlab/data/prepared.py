"""A prepared corpus: tokenizer, training files and held-out files of every domain.

embedded text or a folder of domains -> DIR/text (embedded only) -> tokenizer
-> DIR/NAME.npy and DIR/NAME.held_out.npy, once; the next start opens them.
"""

import itertools
import json
import logging
import pathlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from jaxlab.core import errors, report
from jaxlab.data.corpus import domains, embedded, token_files
from jaxlab.data.shards import plan, token_shards
from jaxlab.data.tokenizers import tokenizer as tokenizer_lib

EMBEDDED = "embedded"

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
) -> Prepared:
    """Opens the corpus prepared in `folder`, or prepares it there.

    Args:
        source: "embedded", or a folder with a subfolder or NAME.jsonl a domain; or
            several, joined by commas.
        folder: where the token files go.
        tokenizer: path of a tokenizer; "" trains SentencePiece on the training text.
        vocab_size: of a trained tokenizer.
        held_out_fraction: share of each domain's documents kept out of training.
        max_bytes_per_domain: of the embedded text; None takes all of it.
        seed: of the held-out split and of the tokenizer's sample.
        parts: disjoint training files NAME.1, NAME.2 ... of each domain; 1 leaves it
            whole.

    Raises:
        UserError: the folder was prepared otherwise; unreadable or empty text.
    """
    folder = pathlib.Path(folder)
    paths = [s if s == EMBEDDED else str(pathlib.Path(s)) for s in source.split(",")]
    made_from = {
        "source": ",".join(paths),
        "tokenizer": tokenizer,
        "vocab_size": vocab_size,
        "held_out_fraction": held_out_fraction,
        "max_bytes_per_domain": max_bytes_per_domain,
        "seed": seed,
        **({"parts": parts} if parts > 1 else {}),
    }
    for path in paths:
        if path != EMBEDDED and not pathlib.Path(path).exists():
            raise errors.UserError(f"no data at {path}; give a folder or a file")
    if tokenizer and not pathlib.Path(tokenizer).exists():
        raise errors.UserError(f"no tokenizer at {tokenizer}; give a folder or a file")
    record = folder / "corpus.json"
    if (folder / plan.PLAN).exists():
        raise errors.UserError(
            f"{folder} is of `jaxlab data tokenize`; name no source beside it "
            "(--config.data.source=)"
        )
    if not record.exists():
        _prepare(folder, made_from)
        report.write_json(record, made_from)
    elif json.loads(record.read_text("utf-8")) != made_from:
        raise errors.UserError(
            f"{folder} was prepared with other settings ({record}); remove the folder "
            "to prepare it again, or use another one"
        )
    return open_folder(folder)


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
        path.stem: domains.TokenFile.open(path) for path in sorted(folder.glob("*.npy"))
    }
    if not files:
        raise errors.UserError(
            f"{folder} holds no token files; make them with `jaxlab data prepare`"
        )
    held_out = {
        name.removesuffix(".held_out"): file
        for name, file in files.items()
        if name.endswith(".held_out")
    }
    train = {n: file for n, file in files.items() if not n.endswith(".held_out")}
    return Prepared(tokenizer_lib.load(folder / "tokenizer"), train, held_out)


def _prepare(folder: pathlib.Path, made_from: Mapping) -> None:
    sources = [
        _written(name, folder, made_from) for name in made_from["source"].split(",")
    ]
    _refuse_repeated(sources)
    split = {
        "held_out_fraction": made_from["held_out_fraction"],
        "seed": made_from["seed"],
    }
    parts = made_from.get("parts", 1)
    if made_from["tokenizer"]:
        tokenizer = tokenizer_lib.load(made_from["tokenizer"])
    else:
        texts = itertools.chain.from_iterable(
            domains.training_texts(source, **split) for source in sources
        )
        tokenizer = tokenizer_lib.train_sentencepiece(texts, made_from["vocab_size"])
    for source in sources:
        domains.prepare(source, tokenizer, folder, **split, parts=parts)


def _written(source: str, folder: pathlib.Path, made_from: Mapping) -> pathlib.Path:
    """A source as a path; the embedded text is written to FOLDER/text first."""
    if source != EMBEDDED:
        return pathlib.Path(source)
    _write_embedded(folder / "text", made_from["max_bytes_per_domain"])
    return folder / "text"


def _refuse_repeated(sources: Sequence[pathlib.Path]) -> None:
    seen: dict[str, pathlib.Path] = {}
    for source in sources:
        for name in domains.domain_names(source):
            if name in seen:
                raise errors.UserError(
                    f"domain {name!r} is in {seen[name]} and in {source}; rename one"
                )
            seen[name] = source


def _write_embedded(folder: pathlib.Path, max_bytes: int | None) -> None:
    """Writes the embedded corpus as JSON lines, so that its sources can be read."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, documents in embedded.embedded(max_bytes).items():
        if not documents:
            _log.warning("embedded domain %s has no text here; left out", name)
            continue
        rows = (
            {"id": d.id, "text": d.text, "source": d.source, "domain": name}
            for d in documents
        )
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(lines, "utf-8")

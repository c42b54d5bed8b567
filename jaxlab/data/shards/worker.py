"""The work of a tokenisation: one shard, the same bytes on whichever machine.

Everything is written to a local folder first and then renamed (in a bucket: uploaded)
file by file, the record last. A worker that is killed leaves no record, one that comes
late renames the same bytes: shards can be tried again, and twice at a time.
"""

import contextlib
import functools
import hashlib
import pathlib
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from typing import Any

from jaxlab.core import errors, folders, report
from jaxlab.core import paths as paths_lib
from jaxlab.data.corpus import documents as documents_
from jaxlab.data.corpus import domains, token_files, token_writer
from jaxlab.data.shards import plan
from jaxlab.data.tokenizers import tokenizer as tokenizer_


def attempt(job: plan.Job, shard: plan.Shard) -> None:
    """Writes a shard, or else what is wrong with its text, for whoever began the work.

    Every engine calls this, in this process or on another machine; what came of it is
    in OUT alone.
    """
    try:
        write(job, shard)
    except errors.UserError as error:
        place = paths_lib.path(job.out) / f"{shard.prefix}{plan.MISTAKE}"
        paths_lib.make_folder(place.parent)
        folders.write_text(place, str(error))


def write(job: plan.Job, shard: plan.Shard) -> None:
    """Tokenizes the files of a shard.

    Raises:
        UserError: text that cannot be read, a file that changed since it was planned.
    """
    tokenizer = _tokenizer(job.out, job.tokenizer)
    with _staging(job) as folder:
        record = _written(job, shard, tokenizer, folder)
        last = f"{shard.prefix}{plan.RECORD}"
        report.write_json(folder / last, record)
        for name in (*record["files"], last):
            _publish(folder / name, paths_lib.path(job.out) / name)


def _written(job, shard, tokenizer, folder) -> dict[str, Any]:
    """Writes the shard's files into a folder; returns its record."""
    sides = {"train": shard.prefix}
    if job.held_out_fraction:
        sides["held_out"] = f"{shard.domain}{plan.HELD_OUT}/{shard.name}"
    sources: list[dict[str, Any]] = []
    with contextlib.ExitStack() as stack:
        writers = {}
        for side, prefix in sides.items():
            (folder / prefix).parent.mkdir()
            paths = {s: folder / f"{prefix}{s}" for s in token_files.SUFFIXES}
            writer = token_writer.TokenWriter(paths, tokenizer)
            writers[side] = stack.enter_context(writer)
        documents = _documents(job, shard, sources)
        for batch, ids in token_writer.encoded(documents, tokenizer, shard.prefix):
            _add(writers, batch, ids, job)
    record = {"domain": shard.domain, "shard": shard.name, "sources": sources}
    files = record["files"] = {}
    for side, prefix in sides.items():
        record[side] = info = writers[side].info()
        report.write_json(folder / f"{prefix}.json", info)
        for suffix in token_files.SUFFIXES:
            path = folder / f"{prefix}{suffix}"
            if info["documents"]:
                files[prefix + suffix] = _checksum(path)
    return record


def _add(writers, batch, ids, job) -> None:
    """Each document to its side, which follows from its text and the seed alone."""
    if "held_out" not in writers:
        writers["train"].add(batch, ids)
        return
    pairs = {"train": ([], []), "held_out": ([], [])}
    for document, own in zip(batch, ids, strict=True):
        share = domains.hash_share(document.text, job.seed)
        side = pairs["held_out" if share < job.held_out_fraction else "train"]
        side[0].append(document)
        side[1].append(own)
    for name, (documents, of_side) in pairs.items():
        writers[name].add(documents, of_side)


def _documents(job, shard, sources) -> Iterator[documents_.Document]:
    """The documents of a shard; `sources` gets the checksum of each file read.

    A document's source is the name below the corpus's folder, so that the bytes do not
    depend on where that folder is.
    """
    for name, size in shard.files:
        with _local(paths_lib.path(job.source) / name) as path:
            sources.append({"file": name, **_checksum(path)})
            if sources[-1]["bytes"] != size:
                raise errors.UserError(
                    f"{job.source}/{name} changed meanwhile ({size} bytes, then "
                    f"{sources[-1]['bytes']}); start the same command again"
                )
            own = name.removeprefix(f"{shard.domain}/")
            for document in documents_.read_file(path, own, shard.domain):
                place = document.source.removeprefix(str(path))
                yield document._replace(source=name + place)


def _checksum(path: pathlib.Path) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"bytes": path.stat().st_size, "sha256": digest}


@functools.lru_cache(maxsize=1)
def _tokenizer(out: str, fingerprint: str) -> tokenizer_.Tokenizer:
    """Once a process, not once a shard."""
    with tempfile.TemporaryDirectory() as folder:
        folders.copy_files(paths_lib.path(out) / "tokenizer", pathlib.Path(folder))
        tokenizer = tokenizer_.load(folder)
    if tokenizer.fingerprint != fingerprint:
        raise errors.UserError(f"{out}/tokenizer is another one now; restore it")
    return tokenizer


# ------------------------------------------------------------------ buckets


@contextlib.contextmanager
def _local(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """The file itself, or a copy of one in a bucket; messages name the original."""
    if not paths_lib.is_remote(path):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="jaxlab-") as folder:
        copy = pathlib.Path(folder, path.name)
        try:
            with (
                paths_lib.reached(path),
                path.open("rb") as source,
                copy.open("wb") as to,
            ):
                shutil.copyfileobj(source, to, 1 << 24)
            yield copy
        except errors.UserError as error:
            raise errors.UserError(str(error).replace(str(copy), str(path))) from None


@contextlib.contextmanager
def _staging(job: plan.Job) -> Iterator[pathlib.Path]:
    """A folder on OUT's own disk, where files can be renamed into OUT; else local."""
    if paths_lib.is_remote(job.out):
        with tempfile.TemporaryDirectory(prefix="jaxlab-") as folder:
            yield pathlib.Path(folder)
        return
    folder = pathlib.Path(job.out, plan.STAGING, uuid.uuid4().hex)
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _publish(file: pathlib.Path, target: pathlib.Path) -> None:
    if paths_lib.is_remote(target):
        with (
            paths_lib.reached(target),
            file.open("rb") as source,
            target.open("wb") as to,
        ):
            shutil.copyfileobj(source, to, 1 << 24)
        return
    target.parent.mkdir(exist_ok=True)
    folders.publish({file: target}, durable=True)

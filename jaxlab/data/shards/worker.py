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
from jaxlab.data.corpus import documents as documents_lib
from jaxlab.data.corpus import token_files, token_writer
from jaxlab.data.shards import plan
from jaxlab.data.tokenizers import tokenizer as tokenizer_lib


def attempt(job: plan.Job, shard: plan.Shard) -> None:
    """Writes a shard, or else what is wrong with its text, for whoever began the work.

    Every engine calls this, in this process or on another machine; what came of it is
    in OUT alone.
    """
    try:
        write(job, shard)
    except errors.UserError as error:
        mistake = paths_lib.path(job.out) / f"{shard.prefix}{plan.MISTAKE}"
        paths_lib.make_folder(mistake.parent)
        folders.write_text(mistake, str(error))


def write(job: plan.Job, shard: plan.Shard) -> None:
    """Tokenizes the files of a shard.

    Raises:
        UserError: text that cannot be read, a file that changed since it was planned.
    """
    tokenizer = _load_tokenizer(job.out, job.tokenizer)
    with _staging(job) as folder:
        record = _write_files(job, shard, tokenizer, folder)
        last = f"{shard.prefix}{plan.RECORD}"
        report.write_json(folder / last, record)
        for name in (*record["files"], last):
            _publish(folder / name, paths_lib.path(job.out) / name)


def _write_files(job, shard, tokenizer, folder) -> dict[str, Any]:
    """Writes the shard's files into a folder; returns its record."""
    rule = job.rules.get(shard.text_domain)
    prefixes = {"held_out" if shard.is_held_out else "train": shard.prefix}
    if rule is not None and not rule.file:
        prefixes["held_out"] = f"{shard.domain}{plan.HELD_OUT}/{shard.name}"
    paths = {
        side: {suffix: folder / f"{prefix}{suffix}" for suffix in token_files.SUFFIXES}
        for side, prefix in prefixes.items()
    }
    for own in paths.values():
        own[".npy"].parent.mkdir()
    sources: list[dict[str, Any]] = []
    documents = _copied_documents(job, shard, sources)
    if rule is not None and not shard.is_held_out:
        documents = rule.join(documents)
    infos = token_writer.write_sides(
        documents,
        tokenizer,
        paths,
        lambda d: "held_out" if rule is not None and rule.holds_out(d) else "train",
        shard.prefix,
    )
    record = {
        "domain": shard.text_domain, "shard": shard.name, "sources": sources, **infos
    }  # fmt: skip
    if (entry := job.rule_entry(shard.domain)) is not None:
        record["rule"] = entry
    files = record["files"] = {}
    for side, info in infos.items():
        report.write_json(paths[side][".json"], info)
        if info["documents"]:
            for suffix, path in paths[side].items():
                files[prefixes[side] + suffix] = _checksum(path)
    return record


def read_shard(job: plan.Job, shard: plan.Shard) -> Iterator[documents_lib.Document]:
    """The documents of a shard as they lie in the source, in a bucket too."""
    for name, _ in shard.files:
        path = paths_lib.path(job.source) / name
        with paths_lib.explain_errors(path):
            yield from _read_file(path, name, shard.text_domain)


def _copied_documents(job, shard, sources) -> Iterator[documents_lib.Document]:
    """The same of local copies; `sources` gets the checksum of each file read."""
    for name, size in shard.files:
        with _local(paths_lib.path(job.source) / name) as path:
            sources.append({"file": name, **_checksum(path)})
            if sources[-1]["bytes"] != size:
                raise errors.UserError(
                    f"{job.source}/{name} changed meanwhile ({size} bytes, then "
                    f"{sources[-1]['bytes']}); start the same command again"
                )
            yield from _read_file(path, name, shard.text_domain)


def _read_file(path, name, domain) -> Iterator[documents_lib.Document]:
    """The documents of a file that is called `name` below the corpus's folder.

    Their source is that name, so that the bytes do not depend on where the folder is.
    """
    for document in documents_lib.read_file(
        path, name.removeprefix(f"{domain}/"), domain
    ):
        line = document.source.removeprefix(str(path))
        yield document._replace(source=name + line)


def _checksum(path: pathlib.Path) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"bytes": path.stat().st_size, "sha256": digest}


@functools.lru_cache(maxsize=1)
def _load_tokenizer(out: str, fingerprint: str) -> tokenizer_lib.Tokenizer:
    """Once per process, not once per shard."""
    with tempfile.TemporaryDirectory() as folder:
        folders.copy_files(paths_lib.path(out) / "tokenizer", pathlib.Path(folder))
        tokenizer = tokenizer_lib.load(folder)
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
                paths_lib.explain_errors(path),
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
            paths_lib.explain_errors(target),
            file.open("rb") as source,
            target.open("wb") as to,
        ):
            shutil.copyfileobj(source, to, 1 << 24)
        return
    target.parent.mkdir(exist_ok=True)
    folders.publish({file: target}, durable=True)

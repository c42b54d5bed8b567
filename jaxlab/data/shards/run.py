"""Tokenising a corpus of any size into shards: in this process, in several, on Beam.

    plan -> every shard that has no record yet, by some engine -> manifest

The engines call one function, `worker.attempt`, and hand nothing back: what was
done is what lies in OUT, so that the same command continues a run that was killed, on
the same engine or on another. The manifest has every file's size and SHA-256, the
sources' too, and no time, host or folder: equal corpora have equal manifests.

Held out is what `jaxlab data prepare` holds out too (`corpus.split`): by the fraction
alone, or, where a domain would have nothing on one side, by a limit of its own, or by
a file of held-out text, which is a shard of its own. Small
domains ended in an error before there was one rule; begun then, they continue: shards
whose record says another rule are made again.
"""

import concurrent.futures
import contextlib
import fcntl
import functools
import hashlib
import itertools
import multiprocessing
import os
import pathlib
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from jaxlab.core import errors, folders, json_text, paths, progress, report
from jaxlab.data.corpus import documents as documents_lib
from jaxlab.data.corpus import split
from jaxlab.data.shards import plan, worker
from jaxlab.data.tokenizers import tokenizer as tokenizer_lib

_SHOWN_SECONDS = 10.0  # between lines of progress

Engine = Callable[[plan.Job, Sequence[plan.Shard]], None]


def tokenize(
    source: str,
    out: str,
    tokenizer: tokenizer_lib.Tokenizer,
    *,
    held_out_fraction: float = 0.0,
    seed: int = 0,
    shard_bytes: int = plan.SHARD_BYTES,
    engine: Engine | None = None,
) -> dict[str, Any]:
    """Tokenizes a corpus, or finishes one that was begun.

    Args:
        source: a folder (a subfolder or NAME.jsonl[.gz|.zst] per domain), or one file;
            may be in a bucket.
        out: a new folder, or the one that was begun; may be in a bucket.
        tokenizer: encodes the text; saved to OUT/tokenizer.
        held_out_fraction: share of documents that are kept out of training.
        seed: of that split.
        shard_bytes: of files that share a shard.
        engine: does the work; None for this process.

    Returns:
        The manifest.

    Raises:
        UserError: see `plan.make_plan`; text that cannot be read, after all other
            shards are written; a domain without training or held-out documents.
    """
    if not 0 <= held_out_fraction < 1:
        raise errors.UserError(
            f"{held_out_fraction} held out is not a share; try 0.001"
        )
    out = str(paths.absolute(out))
    paths.make_folder(out)
    with _lock(out):
        fingerprint = tokenizer.fingerprint
        job = plan.Job("", out, held_out_fraction, seed, fingerprint, {})
        job, shards = plan.make_plan(source, job, shard_bytes)
        job = job._replace(rules=_find_rules(job, shards))
        names = documents_lib.list_files(out)
        _clean(out, names)
        _save_tokenizer(tokenizer, out)
        whole = plan.read_records(job, shards, names)
        missing = [shard for shard in shards if shard.prefix not in whole]
        with _progress(job, shards, missing):
            (engine or in_process)(job, missing)
        return _finish(job, shards)


def _find_rules(job: plan.Job, shards: Sequence[plan.Shard]) -> dict[str, split.Rule]:
    """The rule of each domain, from as few of its documents as tell it."""
    if not job.held_out_fraction:
        return {}
    rules = {}
    own_shards: dict[str, list[plan.Shard]] = {}
    for shard in shards:
        own_shards.setdefault(shard.domain, []).append(shard)

    def read(domain: str) -> Iterator[documents_lib.Document]:
        own = own_shards[domain]
        return itertools.chain.from_iterable(worker.read_shard(job, s) for s in own)

    for domain in own_shards:
        if domain.endswith(plan.HELD_OUT):
            continue
        if (file := domain + plan.HELD_OUT) in own_shards:
            path = paths.path(job.source) / own_shards[file][0].files[0][0]
            rules[domain] = split.file_rule(
                path, read(file), read(domain), job.seed, domain=domain
            )
            continue
        documents = read(domain)
        with_text = (document for document in documents if document.text.strip())
        try:
            rules[domain] = split.find_rule(
                with_text, job.held_out_fraction, job.seed, domain=domain
            )
        except errors.UserError:  # whoever writes the shards says what is wrong
            rules[domain] = split.Rule(job.held_out_fraction, job.seed)
    return rules


def in_process(job: plan.Job, shards: Sequence[plan.Shard]) -> None:
    """One shard after the other, here."""
    for shard in shards:
        worker.attempt(job, shard)


def in_processes(workers: int) -> Engine:
    """So many shards at a time, each in a process of its own on one core."""

    def run(job: plan.Job, shards: Sequence[plan.Shard]) -> None:
        if not shards:
            return
        pool = concurrent.futures.ProcessPoolExecutor(
            min(workers, len(shards)),
            multiprocessing.get_context("spawn"),  # jax and tokenizers have threads
            _begin_worker,
        )
        largest_first = sorted(shards, key=lambda shard: -shard.size_bytes)
        try:
            work = functools.partial(worker.attempt, job)
            for future in [pool.submit(work, shard) for shard in largest_first]:
                future.result()
        except concurrent.futures.process.BrokenProcessPool:
            raise errors.UserError(
                "a worker was killed, perhaps for lack of memory; start the same "
                "command again, with fewer --workers"
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)

    return run


def _begin_worker() -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # the parent says what happened
    parent = multiprocessing.parent_process()

    def end_with_it() -> None:  # else a worker of a killed parent waits for ever
        parent.join()
        os._exit(1)

    threading.Thread(target=end_with_it, daemon=True).start()


def verify(folder: str) -> int:
    """Compares every file of a finished folder with the manifest; returns how many.

    Raises:
        UserError: not finished; a file is missing or another one.
    """
    root = paths.path(folder)
    manifest = json_text.read_object(root / plan.MANIFEST, plan.FIX, plan.KEYS)
    if manifest is None:
        raise errors.UserError(
            f"{folder} has no {plan.MANIFEST}, which `jaxlab data tokenize` writes at "
            "its end; give its OUT, finished"
        )
    with json_text.as_written(root / plan.MANIFEST, plan.FIX):
        files = {
            name: entry["sha256"]
            for record in manifest["shards"]
            for name, entry in record["files"].items()
        }
    for name, expected in files.items():
        try:
            with paths.inside(root, name, root / plan.MANIFEST).open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        except FileNotFoundError:
            digest = None
        if digest != expected:
            raise errors.UserError(
                f"{folder}/{name} is {'damaged' if digest else 'missing'}; remove it "
                f"and {plan.MANIFEST}, and start `jaxlab data tokenize` again"
            )
    return len(files)


def _finish(job: plan.Job, shards: Sequence[plan.Shard]) -> dict[str, Any]:
    """Writes the manifest, or says what is wrong with the shards that are missing."""
    records = plan.read_records(job, shards)
    missing = [shard for shard in shards if shard.prefix not in records]
    if missing:
        mistake = paths.path(job.out) / f"{missing[0].prefix}{plan.MISTAKE}"
        why = paths.read_text(mistake) or f"{missing[0].prefix} was not written"
        others = f" ({len(missing)} of {len(shards)} shards are not written; then "
        raise errors.UserError(f"{why}{others}start the same command again)")
    domains: dict[str, dict[str, Any]] = {}
    for shard in shards:
        for side in ("train", "held_out"):
            info = records[shard.prefix].get(side)
            if info is None:
                continue
            total = domains.setdefault(shard.text_domain, {}).setdefault(side, {})
            for key in plan.COUNTS:
                total[key] = total.get(key, 0) + info[key]
    for domain, sides in domains.items():
        for side, total in sides.items():
            if not total["documents"]:
                what = "--held-out" if "held_out" in sides else "documents"
                raise errors.UserError(
                    f"domain {domain!r} has no {side.replace('_', ' ')} documents; "
                    f"use other {what}, in a new folder"
                )
    manifest = {
        "domains": domains,
        "held_out_fraction": job.held_out_fraction,
        "seed": job.seed,
        "shards": [records[shard.prefix] for shard in shards],
        "tokenizer": job.tokenizer,
    }
    report.write_json(paths.path(job.out) / plan.MANIFEST, manifest)
    return manifest


@contextlib.contextmanager
def _lock(out: str) -> Iterator[None]:
    """Locks a folder until the block, or the process, ends; a bucket has no locks."""
    if paths.is_remote(out):
        yield
        return
    folder = os.open(out, os.O_RDONLY)
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise errors.UserError(
                f"another process writes to {out}; wait for it or stop it"
            ) from None
        yield
    finally:
        os.close(folder)


def _clean(out: str, names: Mapping[str, int]) -> None:
    """Removes what a run that was killed, or that found a mistake, left behind."""
    shutil.rmtree(pathlib.Path(out, plan.STAGING), ignore_errors=True)
    for name in names:
        if plan.MISTAKE in name:
            (paths.path(out) / name).unlink()


def _save_tokenizer(tokenizer: tokenizer_lib.Tokenizer, out: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save(folder)
        folders.copy_files(pathlib.Path(folder), paths.path(out) / "tokenizer")


@contextlib.contextmanager
def _progress(
    job: plan.Job,
    shards: Sequence[plan.Shard],
    missing: Sequence[plan.Shard],
) -> Iterator[None]:
    """Shows, for any engine, how many shards have their record, and when all will."""
    done, stop, started = (
        len(shards) - len(missing),
        threading.Event(),
        time.monotonic(),
    )
    if done:
        progress.line(f"{done} of {len(shards)} shards are written already")
    sizes = {s.prefix + plan.RECORD: s.size_bytes for s in missing}

    def show() -> None:
        while not stop.wait(_SHOWN_SECONDS):
            new = sizes.keys() & {
                f"{domain}/{name}"
                for domain in {shard.domain for shard in missing}
                for name in documents_lib.list_files(f"{job.out}/{domain}")
            }
            size, seconds = sum(map(sizes.get, new)), time.monotonic() - started
            line = f"{done + len(new)} of {len(shards)} shards"
            if size:
                line += f", {size / seconds / 1e6:.1f} MB of files per second"
                left = progress.time_left(seconds, size, sum(sizes.values()))
                line += f", {left} left"
            progress.line(line)

    thread = threading.Thread(target=show, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        if not paths.is_remote(job.out):
            shutil.rmtree(pathlib.Path(job.out, plan.STAGING), ignore_errors=True)

"""The plan of a tokenisation: which files of a corpus go into which shard.

A shard is the unit of work, of resumption and of output: files of one domain that
follow each other, closed at 256 MB (Dolma's come larger: one file per shard; ten
thousand small texts share some). The plan is made once and kept, since it gives shards
their names:

    OUT/plan.json                         settings, and the files of every shard
    OUT/NAME/00017-of-00230.npy ...       a token file, see `token_files`
    OUT/NAME.held_out/00017-of-00230.npy  the same of held-out documents
    OUT/NAME/00017-of-00230.record.json   written last: the shard is whole
    OUT/NAME.held_out/00000-of-00001.record.json  of a domain's file of held-out text
    OUT/manifest.json                     all records, once there are all

OUT and the source may be in a bucket. Files are known by name and size.
"""

import concurrent.futures
import json
import logging
import operator
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jaxlab.core import errors, folders, json_text, paths
from jaxlab.data.corpus import documents as documents_lib
from jaxlab.data.corpus import domains as domains_lib
from jaxlab.data.corpus import split

PLAN, MANIFEST, STAGING = "plan.json", "manifest.json", ".staging"
RECORD, MISTAKE = ".record.json", ".mistake.txt"
FIX = "remove it and start `jaxlab data tokenize` again"  # of a damaged file of these
KEYS = ("domains", "shards")  # of a manifest
COUNTS = ("documents", "tokens", "bytes", "words")  # of a side of a record
HELD_OUT = ".held_out"
SHARD_BYTES = 256_000_000  # of files as they are on disk

_log = logging.getLogger(__name__)


class Job(NamedTuple):
    """What a worker has to know; sent to other machines.

    Attributes:
        source: folder that the files' names start from.
        out: folder of the shards.
        held_out_fraction: share of documents that are kept out of training.
        seed: of that split.
        tokenizer: fingerprint of OUT/tokenizer.
        rules: by domain, which of its documents are held out; {} holds out none.
    """

    source: str
    out: str
    held_out_fraction: float
    seed: int
    tokenizer: str
    rules: Mapping[str, split.Rule]

    def rule_entry(self, domain: str) -> dict[str, Any] | None:
        """What a shard's record says of its rule: None for the fraction itself."""
        rule = self.rules.get(domain.removesuffix(HELD_OUT))
        plain = split.Rule(self.held_out_fraction, self.seed)
        return None if rule in (None, plain) else rule.to_json()


class Shard(NamedTuple):
    """One unit of work.

    Attributes:
        domain: its name; NAME.held_out for the domain's file of held-out text.
        name: e.g. "00017-of-00230".
        files: (name below the source, bytes) of each file, in order.
    """

    domain: str
    name: str
    files: tuple[tuple[str, int], ...]

    @property
    def prefix(self) -> str:
        """Below OUT, e.g. "web/00017-of-00230"."""
        return f"{self.domain}/{self.name}"

    @property
    def is_held_out(self) -> bool:
        """Whether its files are held-out text."""
        return self.domain.endswith(HELD_OUT)

    @property
    def text_domain(self) -> str:
        """The domain that its text is of."""
        return self.domain.removesuffix(HELD_OUT)

    @property
    def size_bytes(self) -> int:
        """Of its files."""
        return sum(size for _, size in self.files)


def make_plan(
    source: str, job: Job, shard_bytes: int = SHARD_BYTES
) -> tuple[Job, list[Shard]]:
    """The plan that OUT was begun with, or a new one.

    Args:
        source: a folder (a subfolder or NAME.jsonl per domain), or one file.
        job: where to, and how; its source is filled in.
        shard_bytes: a shard is closed when it has as many.

    Raises:
        UserError: no documents; OUT holds something else, or was begun with other
            settings; the source has other files than then.
    """
    root, files_of = _list_files(source, bool(job.held_out_fraction))
    job = job._replace(source=str(root))
    settings = {  # no folder: a copy elsewhere is as good
        "held_out_fraction": job.held_out_fraction,
        "seed": job.seed,
        "tokenizer": job.tokenizer,
        "shard_bytes": shard_bytes,
    }
    path = paths.path(job.out) / PLAN
    fix = f"remove {job.out} and start `jaxlab data tokenize` again"
    plan = json_text.read_object(path, fix, ("settings", "shards"))
    if plan is None:
        _refuse_others(job.out)
        shards = _group_files(files_of, shard_bytes)
        plan = {
            "settings": settings,
            "shards": [shard._asdict() for shard in shards],
            "source": source,
        }
        folders.write_text(path, json.dumps(plan, indent=1) + "\n")
        return job, shards
    with json_text.as_written(path, fix):
        if plan["settings"] != settings:
            changes = _describe_changes(plan["settings"], settings)
            raise errors.UserError(
                f"{job.out} was begun with {changes}; use the same, or another folder"
            )
        if not any(shard["domain"].endswith(HELD_OUT) for shard in plan["shards"]):
            # Begun before such files were read, or without one: its split stays.
            for domain in [name for name in files_of if name.endswith(HELD_OUT)]:
                ((file, _),) = files_of.pop(domain)
                _log.warning("%s is not read: %s was begun without it", file, job.out)
        return job, [
            _with_current_sizes(shard, files_of, job)
            for shard in _same_files(plan, files_of, job)
        ]


def read_records(
    job: Job, shards: Sequence[Shard], names: Mapping[str, int] | None = None
) -> dict[str, dict[str, Any]]:
    """The records of the shards that are whole, by prefix.

    Args:
        job: whose OUT it is.
        shards: of the plan.
        names: the listing of OUT, if it is known.

    Raises:
        UserError: a file of the source changed since its shard was written.
    """
    names = documents_lib.list_files(job.out) if names is None else names
    shards = [shard for shard in shards if shard.prefix + RECORD in names]
    out = paths.path(job.out)
    with concurrent.futures.ThreadPoolExecutor(16) as pool:  # a bucket is far away
        values = pool.map(
            lambda s: json_text.read_object(
                out / (s.prefix + RECORD), FIX, ("files", "shard", "domain")
            ),
            shards,
        )
        records = {s.prefix: value for s, value in zip(shards, values, strict=True)}
    for shard in shards:
        with json_text.as_written(out / (shard.prefix + RECORD), FIX):
            if why := _find_staleness(job, shard, records[shard.prefix], names):
                _log.warning("%s: made again", why)
                del records[shard.prefix]
    return records


def _find_staleness(job, shard, record, names) -> str | None:
    """Why a shard's files are not what this job would write, if they are not."""
    for side in ("train", "held_out"):
        for key in () if record.get(side) is None else COUNTS:
            operator.index(record[side][key])
    files = record["files"].items()
    if any(names.get(name) != entry["bytes"] for name, entry in files):
        return f"{shard.prefix} is not whole"
    for (name, size), entry in zip(shard.files, record["sources"], strict=True):
        if size != entry["bytes"]:
            file = paths.path(job.out) / (shard.prefix + RECORD)
            raise errors.UserError(
                f"{job.source}/{name} changed since its shard was written "
                f"({entry['bytes']} bytes then, {size} now); restore it, or remove "
                f"{file} to have the shard made again"
            )
    if record.get("rule") != job.rule_entry(shard.domain):
        return f"{shard.prefix} holds out other documents"
    return None


def _list_files(
    source: str, holds_out: bool
) -> tuple[pathlib.Path, dict[str, list[tuple[str, int]]]]:
    """The folder that names start from; by domain, name and bytes of each file.

    Files of held-out text are under NAME.held_out, after their domain.
    """
    root, names = paths.absolute(source), documents_lib.list_files(source)
    domains = domains_lib.find_domains(source)
    if [*names] == [root.name] and root.is_file():
        root = root.parent
    files_of = {}
    for domain, path in domains.items():
        if domain == "tokenizer" or domain.endswith(HELD_OUT):
            raise errors.UserError(f"no domain may be called {domain!r}; rename {path}")
        files_of[domain] = _files_of_domain(path, names)
        if not holds_out:
            domains_lib.warn_of_unread(path, "nothing is held out")
        elif (file := domains_lib.held_out_file(path)) is not None:
            (size,) = documents_lib.list_files(file).values()
            name = f"{path.name}/{file.name}" if file.parent == path else file.name
            files_of[domain + HELD_OUT] = [(name, size)]
    return root, files_of


def _files_of_domain(
    path: pathlib.Path, names: Mapping[str, int]
) -> list[tuple[str, int]]:
    """Name and bytes of each file of a domain, out of those of all."""
    if path.name in names:
        return [(path.name, names[path.name])]
    folder = f"{path.name}/"
    own = {n.removeprefix(folder): n for n in names if n.startswith(folder)}
    if documents_lib.TFDS in own:
        raise errors.UserError(
            f"{path} is a TFDS data set; use `jaxlab data prepare` for it"
        )
    sizes = {short: names[name] for short, name in own.items()}
    readable = documents_lib.readable_files(sizes, path)
    return [(own[short], sizes[short]) for short in readable]


def _group_files(
    files_of: Mapping[str, list[tuple[str, int]]], shard_bytes: int
) -> list[Shard]:
    shards = []
    for domain, files in files_of.items():
        groups, size = [[]], 0
        for file in files:
            if groups[-1] and size + file[1] > shard_bytes:
                groups.append([])
                size = 0
            groups[-1].append(file)
            size += file[1]
        for number, group in enumerate(groups):
            name = f"{number:05d}-of-{len(groups):05d}"
            shards.append(Shard(domain, name, tuple(group)))
    return shards


def _refuse_others(out: str) -> None:
    others = [n for n in documents_lib.list_files(out) if not folders.is_temporary(n)]
    if others:
        raise errors.UserError(
            f"{out} holds {others[0]} and is not of `jaxlab data tokenize`; remove it "
            "or choose another folder"
        )


def _describe_changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    keys = [key for key in new if old.get(key) != new[key]]
    return ", ".join(f"{key} {old.get(key)}, not {new[key]}" for key in keys)


def _same_files(plan, files_of, job) -> list[Shard]:
    """The shards of a plan, if the source still has their files and no other."""
    shards = [
        Shard(s["domain"], s["name"], tuple(map(tuple, s["files"])))
        for s in plan["shards"]
    ]
    out = paths.path(job.out)
    for shard in shards:
        paths.inside(out, shard.prefix, out / PLAN)
    then = {name for shard in shards for name, _ in shard.files}
    now = {name for files in files_of.values() for name, _ in files}
    if then != now:
        first = min(then ^ now)
        what = "has no" if first in then else "has a new"
        raise errors.UserError(
            f"{job.source} {what} {first} since {job.out} was begun; restore it, or "
            "use another folder"
        )
    return shards


def _with_current_sizes(shard: Shard, files_of: Mapping[str, list], job: Job) -> Shard:
    """With the sizes of now: a file may be repaired until its shard is written."""
    sizes = dict(files_of[shard.domain])
    return shard._replace(files=tuple((name, sizes[name]) for name, _ in shard.files))

"""Run directory layout: its files, its config.json, which system trained it.

RUN/config.json      what was trained, as flags say it; `system` names the system
RUN/metrics.jsonl    one row per step, one per evaluation
RUN/checkpoints/     the parameters, per step
RUN/data/            prepared text and tokenizer, of a run that keeps its own
RUN/tokenizer/       the tokenizer, of runs of encoders and of merged folders

The layout and the keys are in this file alone. No jax is imported: `jaxlab merge` looks
at its inputs without.

Written before `system` was always there (commit 865b6a5 and older), and told apart in
`_recognise` alone: merges of Hugging Face folders, which recorded token files that
never were, `data: {"files": ["not kept"]}`; and whatever was trained by a config
without `system`.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
import shutil
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from jaxlab.core import errors, folders, json_text, missing_models, paths, value_types

CONFIG, METRICS, CHECKPOINTS = "config.json", "metrics.jsonl", "checkpoints"
_SINCE = {"data.allowed": []}  # keys that older runs lack, with what these did
_DERIVED = ("data_order", "data_shares", "truncated", "dropped", "base")
_RESTORE = "restore it from a copy"
_PLACES = dict.fromkeys(("folder", "tokenizer"), value_types.TEXT.or_null())
_MOST_ROWS = 1 << 29  # bytes; a million steps have two thirds of it
# `system` of what no config of ours trained: a merge of Hugging Face folders, and an
# Experiment that somebody gave to `train.fit`.
MERGE, FIT = "merge", "fit"
# What the parameters are of; a decoder's where the system is not listed.
_KINDS = {
    "languages.classify": "classifier", "tulu.reward": "reward",
    "encoders.embed": "encoder", "encoders.rerank": "scorer",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Run:
    """A run directory.

    Attributes:
        folder: where it is; also in a bucket.
        config: its config.json.
        system: which system trained it, as `systems.SYSTEMS` calls it; or MERGE, FIT.
    """

    folder: pathlib.Path
    config: Mapping[str, Any]
    system: str

    @property
    def kind(self) -> str:
        """What its parameters are of: one of _KINDS, or a decoder."""
        return _KINDS.get(self.system, "decoder")

    @property
    def is_trained(self) -> bool:
        """Whether one of our systems trained it, so that its config says how."""
        return self.system not in (MERGE, FIT)

    @property
    def checkpoints(self) -> pathlib.Path:
        """Where its step folders are."""
        return self.folder / CHECKPOINTS

    @property
    def data(self) -> pathlib.Path | None:
        """Where its prepared text is; None where it keeps none.

        Only `olmo.pretrain` prepares text; from token files it prepares nothing.
        """
        data = self.section("data")
        if self.system != "olmo.pretrain" or data.get("files"):
            return None
        return data_folder(self.section("data", ("folder",)), self.folder)

    def section(self, name: str, keys: Iterable[str] = ()) -> Mapping[str, Any]:
        """A section of the config; {} where it has none and no keys are asked for.

        Args:
            name: of the section.
            keys: that it must have.

        Raises:
            UserError: it is not a section, or lacks one of the keys.
        """
        section = self.config.get(name, {})
        if not isinstance(section, Mapping):
            raise errors.UserError(
                f"{self.folder / CONFIG} is damaged: {name!r} is not a section; "
                f"{_RESTORE}"
            )
        if name == "data":
            value_types.check(section, _PLACES, "data.", str(self.folder / CONFIG))
        if lost := [f"{name}.{key}" for key in keys if key not in section]:
            raise errors.UserError(
                f"{self.folder / CONFIG} is damaged: it has no {', '.join(lost)}; "
                f"{_RESTORE}"
            )
        return section

    def tokenizer(self) -> pathlib.Path:
        """Where its tokenizer is: a folder or a file; of a run in a bucket, there."""
        data = self.section("data")
        if paths.is_remote(self.folder):
            return tokenizer_folder(self.folder)
        if isinstance(given := self.config.get("tokenizer"), str):  # merged: beside it,
            beside = self.folder / "tokenizer"  # or where its inputs have it
            return beside if beside.exists() else self.folder / given
        if self.kind in ("encoder", "scorer"):
            return encoder_tokenizer_folder(self.folder)
        if data.get("files"):
            return pathlib.Path(self.section("data", ("tokenizer",))["tokenizer"] or "")
        folder = self.data or data.get("folder")
        return tokenizer_folder(self.folder, data=folder)


def find(path: str | os.PathLike) -> Run | None:
    """The run directory at a path; None for a Hugging Face folder.

    Raises:
        UserError: neither of the two, or a Hugging Face folder in a bucket.
    """
    if missing_models.is_address(path):
        raise missing_models.explain(path)
    folder = paths.path(path)
    if not paths.is_folder(folder):
        raise missing_models.explain(path)
    raw = json_text.read_object(folder / CONFIG, _RESTORE)
    if raw is None:
        raise missing_models.explain(path)
    if "model_type" in raw:
        if paths.is_remote(folder):
            raise errors.UserError(
                f"{path} is a Hugging Face folder; copy it to a local folder"
            )
        return None
    if not isinstance(raw.get("system", ""), str):
        raise errors.UserError(
            f"{folder / CONFIG} is damaged: 'system' is not a name; {_RESTORE}"
        )
    config = _recognise(raw)
    if config is None and paths.is_folder(folder / CHECKPOINTS):
        config = _with_system(raw)  # an Experiment of somebody's own
    if config is None:
        raise errors.UserError(
            f"{path} is neither a run directory nor a Hugging Face folder: its "
            f"{CONFIG} has neither system nor model_type"
        )
    return Run(folder, config, config["system"])


def read(path: str | os.PathLike) -> Run:
    """The run directory at a path.

    Raises:
        UserError: it is something else.
    """
    run = find(path)
    if run is None:
        raise errors.UserError(f"{path} is a Hugging Face folder, not a run directory")
    return run


def checkpoints(folder: str | os.PathLike) -> pathlib.Path:
    """Where the step folders of a run directory are, begun or not."""
    return paths.path(folder) / CHECKPOINTS


def has_checkpoints(path: str | os.PathLike) -> bool:
    """Whether a path is a directory that some run of `train` saves steps in."""
    return paths.is_folder(paths.path(path) / CHECKPOINTS)


def tokenizer_folder(
    workdir: str | os.PathLike, *, data: str | os.PathLike | None = None
) -> pathlib.Path:
    """Where a run of a language model has its tokenizer; `data`: its data elsewhere."""
    return paths.path(data or paths.path(workdir) / "data") / "tokenizer"


def encoder_tokenizer_folder(workdir: str | os.PathLike) -> pathlib.Path:
    """Where a run of an encoder has its tokenizer."""
    return pathlib.Path(workdir) / "tokenizer"


def data_folder(data: Mapping[str, Any], workdir: str | os.PathLike) -> pathlib.Path:
    """Where a run's prepared data is, by the `data` section of its config.

    Token files are memory-mapped, so those of a run in a bucket are in the user's cache
    folder. They are prepared again on every machine, and anew where the text changed.
    """
    if data["folder"]:
        return pathlib.Path(data["folder"])
    if not paths.is_remote(workdir):
        return pathlib.Path(workdir) / "data"
    text = []
    for source in paths.split(data["source"]):
        below = [pathlib.Path(source, name) for name in paths.list_files(source)]
        files = [file for file in (pathlib.Path(source), *below) if file.is_file()]
        stats = [(str(file), file.stat()) for file in files]
        text += sorted((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats)
    key = hashlib.sha256(repr((str(paths.path(workdir)), text)).encode())
    return paths.cache("data", key.hexdigest()[:16])


# ------------------------------------------------------------------ config.json


def write_config(folder: str | os.PathLike, config: Mapping[str, Any]) -> None:
    """Writes config.json; a config that names no system is one given to `train.fit`."""
    text = json_text.dumps(_with_system(config))
    folders.write_text(paths.path(folder) / CONFIG, text)


def merge_input(folder: pathlib.Path) -> tuple[pathlib.Path, dict[str, Any]] | None:
    """A local run as a merge reads it; None for a folder that no run saved steps in.

    Returns:
        (where its step folders are, its `merged_config`).
    """
    step_folders = folder / CHECKPOINTS
    return (step_folders, merged_config(folder)) if step_folders.is_dir() else None


def merged_config(folder: pathlib.Path) -> dict[str, Any]:
    """What a merge of local runs like this one writes as its config.json elsewhere.

    It keeps neither text nor tokenizer of its own, and says where theirs are. {} of
    checkpoints without a config.json.
    """
    if not (folder / CONFIG).is_file():
        return {}
    run = read(folder)
    config, tokenizer = dict(run.config), run.tokenizer().absolute()
    if tokenizer.exists():  # a classifier has none
        config["tokenizer"] = str(tokenizer)
    if run.data is not None:
        config["data"] = {**config["data"], "folder": str(run.data.absolute())}
    return config


def copy(
    source: pathlib.Path, folder: pathlib.Path, step: int, config: Mapping[str, Any]
) -> None:
    """Copies one checkpoint of a local run, and its rows, under another config."""
    newest = pathlib.Path(CHECKPOINTS, str(step))
    shutil.copytree(source / newest, folder / newest)
    if (source / METRICS).exists():
        shutil.copyfile(source / METRICS, folder / METRICS)
    write_config(folder, config)


def check_config(
    folder: str | os.PathLike, config: Mapping[str, Any], *, free: tuple[str, ...] = ()
) -> None:
    """Refuses to resume a run under another config.

    Args:
        folder: of the run; nothing is checked when it has no config.json.
        config: of this start.
        free: prefixes of keys that may differ, e.g. `mesh`: they change how the run
            is computed, not what. A path that is spelled otherwise may, too, and
            that of a start which was moved: its weights are not read again.

    Raises:
        UserError: with every differing key, its old and its new value.
    """
    raw = json_text.read_object(paths.path(folder) / CONFIG, _RESTORE)
    if raw is None:
        return
    saved = json_text.json_value(raw)  # once, an infinity was written
    old = _SINCE | _flat(_with_system(_recognise(saved) or saved))
    new = _SINCE | _flat(json.loads(json_text.dumps(_with_system(config))))
    keys = sorted(
        key
        for key in old.keys() | new.keys()
        if old.get(key) != new.get(key)
        and not paths.is_same(old.get(key), new.get(key))
        and not (key == "init_from" and paths.was_moved(old.get(key), new.get(key)))
        and not any(key == f or key.startswith(f + ".") for f in free)
    )
    # What follows from the settings is told where they alone do not differ.
    set_by_hand = [k for k in keys if k.partition(".")[0] not in _DERIVED]
    if keys:
        shown = "; ".join(
            f"{k}: {_short(old.get(k))} -> {_short(new.get(k))}"
            for k in set_by_hand or keys
        )
        raise errors.UserError(
            f"{folder} holds a run with another config: {shown}. Use another "
            "--workdir, or the old values to resume"
        )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]} ..."


def refuse_other_folder(folder: str | os.PathLike) -> None:
    """Refuses a run directory to be whose config.json is somebody else's.

    Raises:
        UserError: it is of a Hugging Face model, say, and would be written over.
    """
    raw = json_text.read_object(paths.path(folder) / CONFIG, _RESTORE)
    is_run = has_checkpoints(folder) or (paths.path(folder) / METRICS).exists()
    if raw and not is_run and _recognise(raw) is None:
        what = "a Hugging Face folder" if "model_type" in raw else "no run directory"
        raise errors.UserError(
            f"{folder} is {what}, and its {CONFIG} would be lost; use another --workdir"
        )


def keep_every(folder: str | os.PathLike) -> int:
    """Steps between the checkpoints that a run keeps for good; 0 if there are none."""
    config = json_text.read_object(paths.path(folder) / CONFIG, _RESTORE) or {}
    section = config.get("run")
    steps = section.get("keep_every") if isinstance(section, Mapping) else 0
    return steps if type(steps) is int else 0


def _with_system(config: Mapping[str, Any]) -> dict[str, Any]:
    return {"system": FIT, **config}


def _recognise(raw: Mapping[str, Any]) -> dict[str, Any] | None:
    """A config.json with its `system`; None for one that is not a run's.

    The only place that looks at other keys to tell what a run is.
    """
    if isinstance(raw.get("system"), str):
        return dict(raw)
    data, encoder = raw.get("data"), raw.get("encoder")
    if isinstance(encoder, Mapping):
        is_scorer = encoder.get("head") == "score"
        return {**raw, "system": "encoders.rerank" if is_scorer else "encoders.embed"}
    if not isinstance(raw.get("model"), Mapping) or not isinstance(data, Mapping):
        return None
    if data.get("files") == ["not kept"]:
        model, tokenizer = raw["model"], str(data.get("tokenizer", ""))
        return {"system": MERGE, "model": model, "tokenizer": tokenizer}
    if "files" in data:
        system = "olmo.pretrain"
    elif "train_language" in data:
        system = "languages.classify"
    else:
        system = "tulu.dpo" if "preference" in raw else "tulu.sft"
    return {**raw, "system": system}


def _flat(config: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(config, Mapping):
        return {prefix: config}
    items = [_flat(v, f"{prefix}.{k}" if prefix else k) for k, v in config.items()]
    return {key: value for item in items for key, value in item.items()}


# ------------------------------------------------------------------ metrics.jsonl


def rows(folder: str | os.PathLike) -> list[dict[str, Any]]:
    """The rows of a run, the first step's first; [] where it has none.

    A last line that was cut by a kill is left out, and a line of somebody's own that
    has no step.
    """
    return [row for _, row in _lines(folder) if _has_step(row)]


def lines_until(folder: str | os.PathLike, step: int) -> list[str]:
    """The lines of metrics.jsonl that a run resumed at a step keeps.

    Those of later steps come again. A line of somebody's own without a step stays.
    """
    lines = _lines(folder)
    return [x for x, row in lines if not _has_step(row) or row["step"] <= step]


def _lines(folder: str | os.PathLike) -> Iterator[tuple[str, Any]]:
    text = paths.read_text(paths.path(folder) / METRICS, _MOST_ROWS) or ""
    for line in text.split("\n"):
        try:
            yield line, json.loads(line)
        except (ValueError, RecursionError):
            continue


def _has_step(row: Any) -> bool:
    return isinstance(row, dict) and type(row.get("step")) is int

"""Run directories: what `train` leaves, and where each part of it is.

RUN/config.json      what was trained, as flags say it; `system` names the system
RUN/metrics.jsonl    one row per step
RUN/checkpoints/     the parameters, per step
RUN/data/            prepared text of a run that keeps its own
"""

import hashlib
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from jaxlab.core import paths


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
    for source in data["source"].split(","):
        files = [pathlib.Path(source), *pathlib.Path(source).rglob("*")]
        stats = [(str(file), file.stat()) for file in files if file.is_file()]
        text += sorted((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats)
    key = hashlib.sha256(repr((str(paths.path(workdir)), text)).encode())
    return paths.cache("data", key.hexdigest()[:16])

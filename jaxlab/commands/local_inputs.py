"""What a command reads from the disks of this machine, for `launch/`.

A TPU that is made for a command has this checkout and nothing else; a job that waits in
a queue for hours should not find then that its text is not there.
"""

import argparse
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jaxlab.core import errors, missing_models, paths

# What `launch/tpu_workers.sh` copies of the checkout.
SHIPPED = ("LICENSE", "README.md", "configs", "jaxlab", "launch", "pyproject.toml")
_MODELS = ("init_from", "model", "encoder", "reference")
Inputs = Sequence[tuple[str, str]]  # (flag, path)


def of_config(config: Mapping[str, Any], prefix: str = "--config.") -> Inputs:
    """Flag -> path of every text, tokenizer and model that a config names.

    >>> of_config({"data": {"source": "a,embedded", "sets": ({"folder": "s"},)}})
    [('--config.data.source', 'a'), ('--config.data.sets', 's')]
    """
    return [(flag, path) for flag, path in _of_config(config, prefix) if path]


def _of_config(config, prefix) -> Iterator[tuple[str, str]]:
    data, mine = config.get("data", {}), config.get("mine", {})
    for path in paths.split(data.get("source", "")):
        if path != "embedded":
            yield f"{prefix}data.source", path
    if not data.get("source"):
        yield f"{prefix}data.folder", data.get("folder", "")
    for path in data.get("files", ()):
        yield f"{prefix}data.files", path
    for one in data.get("sets", ()):
        yield f"{prefix}data.sets", dict(one).get("folder", "")
    yield f"{prefix}data.tokenizer", data.get("tokenizer", "")
    yield f"{prefix}init_from", config.get("init_from") or ""
    yield f"{prefix}mine.encoder", mine.get("encoder", "")


def of_arguments(args: argparse.Namespace) -> Inputs:
    """The same of a verb whose flags name its inputs."""
    found = []
    for name in ("model", "data", "tokenizer", "corpus", "queries", "reranker"):
        value = getattr(args, name, None) or ()
        for text in [value] if isinstance(value, str) else value:
            found += [(f"--{name}", x) for x in paths.split(text) if x != "embedded"]
    return found


# ------------------------------------------------------------------ where it will run


def check(verb: Any, args: argparse.Namespace, where: str, user: str) -> Iterator[str]:
    """Refuses a command whose inputs will not be where it runs, or says which are.

    Args:
        verb: the module of the command.
        args: its arguments.
        where: as for `cli.check`.
        user: the folder where the user is; the command will run in this one.

    Yields:
        What to remember.

    Raises:
        UserError: with the flag and the path.
    """
    if not where:
        return
    inputs, workdir = of_arguments(args), ""
    if hasattr(verb, "inputs"):
        inputs, workdir = verb.inputs(args)
    folders = [pathlib.Path(), pathlib.Path(user)]
    if where == "here":
        _check_new_run(inputs, workdir)
    elif where == "new":
        _check_new_machine(inputs, folders)
    else:
        for flag, path in _only_here(inputs, folders):
            yield f"{flag}: {path} is on this machine; every worker needs a copy"
        if workdir and not paths.is_remote(workdir):
            yield f"--workdir: {workdir} is lost with the TPU; gs://BUCKET/RUN is not"


def _check_new_run(inputs: Inputs, workdir: str) -> None:
    """Refuses a run that has yet to begin and whose inputs are not here.

    Raises:
        UserError: with the flag and the path. A run that has begun has prepared them.
    """
    if not workdir or paths.is_remote(workdir) or pathlib.Path(workdir).exists():
        return
    for flag, path in _local(inputs):
        if not pathlib.Path(path).exists():
            if flag.rpartition(".")[2] in _MODELS:
                raise missing_models.explain(path)
            raise errors.UserError(f"{flag}: {path} does not exist")


def _check_new_machine(inputs: Inputs, folders: Sequence[pathlib.Path]) -> None:
    """Refuses what only this machine has, for one that has yet to be made.

    Args:
        inputs: of the command.
        folders: the checkout, where the command will run; where the user is.

    Raises:
        UserError: with the flag and the path.
    """
    for flag, path in _only_here(inputs, folders):
        raise errors.UserError(
            f"{flag}: {path} is on this machine and not on a new TPU; make it with "
            "create, copy that to all workers (gcloud compute tpus tpu-vm scp "
            "--recurse), and use run"
        )


def _only_here(inputs: Inputs, folders: Sequence[pathlib.Path]) -> Inputs:
    """The inputs that are here and that a copy of the checkout lacks."""
    checkout = folders[0].resolve()
    shipped = [checkout / name for name in SHIPPED]

    def is_only_here(path: str) -> bool:
        places = [(folder / path).resolve() for folder in folders]
        return any(
            place.exists() and not any(place.is_relative_to(x) for x in shipped)
            for place in places
        )

    return [(flag, path) for flag, path in _local(inputs) if is_only_here(path)]


def _local(inputs: Inputs) -> Inputs:
    return [(flag, path) for flag, path in inputs if not paths.is_remote(path)]

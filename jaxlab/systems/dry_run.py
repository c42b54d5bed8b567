"""What a config would train here: `jaxlab train --dry-run`. Nothing is written.

Sizes and memory are arithmetic (`plan/`), the text is looked for but not read.
"""

import math
import os
import pathlib
from collections.abc import Iterator, Mapping

import jax
import ml_collections

from jaxlab import load, optim
from jaxlab.core import checkpoint, errors, locks, missing_models, paths, runs
from jaxlab.core import mesh as mesh_lib
from jaxlab.data import prepared
from jaxlab.data.corpus import domains
from jaxlab.data.examples import chat
from jaxlab.data.tokenizers import tokenizer as tokenizer_lib
from jaxlab.plan import memory as memory_lib
from jaxlab.plan import shape as shape_lib
from jaxlab.plan import topology
from jaxlab.systems.planning import shapes

_GIB = 2**30


def describe(
    config: ml_collections.ConfigDict, workdir: pathlib.Path, mesh: jax.sharding.Mesh
) -> Iterator[tuple[str, str]]:
    """(what, words) of a run that would be started so.

    Args:
        config: that `checks.check` has passed.
        workdir: of the run.
        mesh: of the devices here.

    Raises:
        UserError: text, tokenizer or start that is not there, or a batch that the mesh
            does not divide.
    """
    data = config.data
    tokens = f"{data.batch_size:,} x {data.length:,} tokens"
    if config.steps:
        total = config.steps * data.batch_size * data.length
        yield "steps", f"{config.steps:,} of {tokens}: {total:,} in all"
    else:
        yield "steps", f"{config.get('epochs', 0)} epochs of the data, {tokens} a step"
    yield "rate", _rate(config)
    yield from _size(config, mesh)
    if config.get("init_from"):
        yield "start", _start(config.init_from)
        if config.data.get("style") == chat.OWN:
            yield "template", _template(config)
    elif "init_from" in config and not config.model.get("embed", 0):
        raise errors.UserError("set --config.init_from to the model to start from")
    yield "data", "; ".join(_data(data))
    yield "run", _run(config, workdir)


def _rate(config) -> str:
    section = optim.OptimConfig(**config.optim.to_dict())
    parts = [f"{section.optimizer} at {section.learning_rate:g}, {section.schedule}"]
    if section.warmup_steps:
        parts.append(f"warm-up of {section.warmup_steps:,} steps")
    return ", ".join(parts)


def _size(config, mesh) -> Iterator[tuple[str, str]]:
    sizes = {axis: size for axis, size in mesh.shape.items() if size > 1}
    device = jax.local_devices()[0]
    where = f"{mesh.size} x {device.device_kind}, mesh {sizes or 'of one device'}"
    try:
        shape = shapes.shape(_with_vocab(config, mesh))
    except errors.UserError:  # only the model that it starts from knows
        yield "model", "as large as the one that it starts from"
        yield "devices", where
        return
    shape_lib.check(shape, mesh.shape)
    yield "model", f"{shape.params:,} parameters"
    memory = memory_lib.estimate(shape, topology.parse("v5e:1x1"), mesh.shape)
    room = _room(device)
    shares = mesh.size if device.platform == "cpu" else 1  # one memory for all
    has = f" of {room / _GIB:.1f}" if room else ""
    yield "devices", where
    yield (
        "memory",
        (
            f"about {memory.total / _GIB:.2f}{has} GiB per device: state "
            f"{memory.state / _GIB:.2f}, gradients {memory.gradients / _GIB:.2f}, "
            f"activations {(memory.activations + memory.working) / _GIB:.2f}"
            + (": it may not fit" if room and memory.total * shares > room else "")
        ),
    )


def _with_vocab(config, mesh) -> ml_collections.ConfigDict:
    """The config with the vocabulary of its tokenizer, where that is a file."""
    sized = ml_collections.ConfigDict(config.to_dict())
    name = config.data.get("tokenizer", "")
    if name and not config.model.get("vocab", 0):
        tokenizer = tokenizer_lib.load(name)
        sized.model.vocab = mesh_lib.padded_vocab(tokenizer.vocab_size, mesh, 128)
    return sized


def _room(device: jax.Device) -> float:
    """Bytes of a device; of this machine for a CPU; 0 where nobody says."""
    stats = device.memory_stats() or {}
    if "bytes_limit" in stats:
        return float(stats["bytes_limit"])
    if device.platform == "cpu":
        return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return 0.0


def _start(path: str) -> str:
    return f"{path}, {load.kind(path)}"


def _template(config) -> str:
    template = load.chat_template(
        config.init_from,
        tokenizer=config.data.tokenizer or None,
        allowed=config.data.allowed,
    )
    template.check()
    return f"its own; answers end with id {', '.join(map(str, sorted(template.ends)))}"


def _data(data: Mapping) -> Iterator[str]:
    if "source" not in data:
        yield ", ".join(str(each) for each in data.get("sets", ())) or "none is named"
        return
    for file in data.get("files", ()):
        yield f"{file}, {_megabytes(pathlib.Path(file))}"
    if data.get("files"):
        return
    if not data["source"]:
        if not data.get("folder"):
            raise errors.UserError("no data: set --config.data.source")
        files = prepared.open_folder(data["folder"]).train
        yield from (f"{name}, {file.size:,} tokens" for name, file in files.items())
        return
    for source in data["source"].split(","):
        if source == prepared.EMBEDDED:
            yield "the embedded text"
            continue
        if not pathlib.Path(source).exists():
            raise missing_models.explain_data(source)
        if "layout" not in data:  # conversations and labelled texts are no domains
            yield f"{source}, {_megabytes(pathlib.Path(source))}"
            continue
        for name, path in domains.find_domains(source).items():
            line = f"{name}, {_megabytes(path)}"
            file = domains.held_out_file(path)
            if file is not None and data.get("held_out_fraction"):
                line += f"; held out: {file.name}, {_megabytes(file)}"
            yield line


def _megabytes(path: pathlib.Path) -> str:
    if not path.exists():
        raise missing_models.explain_data(path)
    size = path.stat().st_size if path.is_file() else paths.size_bytes(path)
    return f"{math.ceil(size / 1e5) / 10:,.1f} MB"


def _run(config, workdir) -> str:
    if owner := locks.owner(workdir):
        return f"{workdir} is being written by another process ({owner})"
    saved = checkpoint.steps(runs.checkpoints(workdir))
    if not saved:
        return f"{workdir} is new"
    if saved[0] >= config.steps > 0:
        return f"{workdir} is finished, at step {saved[0]:,}"
    return f"{workdir} resumes at step {saved[0]:,}"

"""What both stages of TULU begin with: a model to tune, conversations, a length.

check          what a config must name
load_start     the model of `init_from`, and the config with its sizes
open_run       a run itself, to read what it read
encode         conversations -> tokens and labels, counted where they are cut
with_steps     the config with the steps that its epochs come to
"""

import dataclasses
import logging
import math
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import jax
import ml_collections

from jaxlab import load, models
from jaxlab.core import checkpoint, errors, ranges, runs
from jaxlab.data.examples import chat, conversation_rows
from jaxlab.models import sections as sections_lib
from jaxlab.models.hf import generation as generation_lib

_log = logging.getLogger(__name__)


class Reading(NamedTuple):
    """The data of a run.

    Attributes:
        parts: rows that are trained on, and those held out where any are.
        names: of the conversations or pairs, by their number in the data.
        truncated: how many sides lost their end.
        dropped: how many have nothing to learn.
    """

    parts: Sequence[conversation_rows.Rows | conversation_rows.PairRows]
    names: Sequence[str]
    truncated: int
    dropped: int


def check(config: ml_collections.ConfigDict) -> None:
    """Refuses a config that names no data or no start, before either is read.

    Raises:
        UserError: one is not named, or the start is not there.
    """
    if not config.data.source:
        raise errors.UserError(
            "no data: set --config.data.source to .jsonl files of conversations"
        )
    if not config.init_from:
        raise errors.UserError(
            "set --config.init_from to the model to tune: a run of jaxlab train, or a "
            "Hugging Face folder"
        )
    load.find(config.init_from)


def load_start(
    config: ml_collections.ConfigDict, workdir: pathlib.Path, mesh: jax.sharding.Mesh
) -> tuple[load.Loaded, ml_collections.ConfigDict]:
    """The model to tune, and the config with its sizes.

    A run that resumes has both, and no parameters are loaded.

    Raises:
        UserError: a start of other sizes than the config says.
    """
    if checkpoint.steps(runs.checkpoints(workdir)):
        start = open_run(config, workdir)
    else:
        start = _begin(config, workdir, mesh)
    made = start.config
    _check_sizes(config, made)
    if config.data.length > made.length:
        _log.warning(
            "rows of %d tokens, and %s was trained on %d: it has not learnt the "
            "positions beyond; --config.data.length=%d stays within",
            *(config.data.length, config.init_from, made.length, made.length),
        )
    # How it is computed is this run's; what it is, that of the start.
    settings = {x: config.model[x] for x in made.FREE if x in config.model}
    length = max(config.data.length, made.length)
    made = dataclasses.replace(made, length=length, **settings)
    sized = ml_collections.ConfigDict(config.to_dict())
    sized.model = ml_collections.ConfigDict(sections_lib.section(made))
    return start._replace(config=made, model=models.Decoder(made)), sized


def open_run(
    config: ml_collections.ConfigDict, workdir: str | pathlib.Path
) -> load.Loaded:
    """A run without its parameters, with the tokenizer and the template that it has."""
    run = load.architecture(workdir)
    if config.data.style == chat.OWN:
        run = run._replace(template=_template(workdir, config))
    return run


def _begin(config, workdir, mesh) -> load.Loaded:
    """The start, with what a run keeps of it beside the weights."""
    own = config.data.tokenizer or None
    texts = template = None
    if config.data.style == chat.OWN:  # before the weights are read
        template = _template(config.init_from, config, own)
        texts = template.texts
    start = load.decoder(config.init_from, tokenizer=own, mesh=mesh)
    ends = [start.tokenizer.eos_id, *sorted(template.ends if template else ())]
    generation = generation_lib.with_eos(start.generation, ends)
    load.save_tokenizer(workdir, start.tokenizer, texts)
    load.save_generation(workdir, generation)
    if template is None:
        _tell_of_another_format(config)
    return start._replace(template=template, generation=generation)


def _template(path, config, tokenizer=None):
    allowed = config.data.allowed
    template = load.chat_template(path, tokenizer=tokenizer, allowed=allowed)
    template.check()
    return template


def _tell_of_another_format(config) -> None:
    """Says where a model that has a chat template learns a format of ours instead."""
    try:
        load.chat_format(config.init_from, tokenizer=config.data.tokenizer or None)
    except errors.UserError:
        _log.warning(
            "%s has a chat template of its own; this run is tuned in TULU's format "
            "(--config.data.style=%s), which is also the template that it is exported "
            "with; --config.data.style=%s tunes in its own",
            *(config.init_from, config.data.style, chat.OWN),
        )


def _check_sizes(config, made: models.TransformerConfig) -> None:
    """Refuses a config with other sizes than the model that it starts from."""
    if not config.model.embed:
        return
    values = {**config.model.to_dict(), "vocab": made.vocab}  # may be padded
    stated = sections_lib.transformer_config(values, None)
    lines = [
        f"{name} {getattr(stated, name)} and {getattr(made, name)}"
        for name in config.model
        if name not in (*made.UNTIED, "vocab")
        and getattr(stated, name) != getattr(made, name)
    ]
    if lines:
        raise errors.UserError(
            f"config.model and {config.init_from} differ: {'; '.join(lines)}. Set "
            "--config.model.embed=0 to take the model as it is"
        )


def encode(
    start: load.Loaded,
    conversations: Sequence[Sequence[chat.Message]],
    names: Sequence[str],
    data: ml_collections.ConfigDict,
    *,
    last_only: bool = False,
) -> chat.Examples:
    """Conversations as the `data` section of a config says, counted.

    Args:
        start: of `load_start`.
        conversations: messages in their order.
        names: of their rows, for errors.
        data: the section.
        last_only: only the last answer is trained on.
    """
    settings = {"length": data.length, "last_only": last_only}
    if start.template is not None:
        from jaxlab.data.examples import own_template  # here: nothing else needs jinja2

        examples = own_template.encode(start.template, conversations, names, **settings)
    else:
        begin = chat.begin_id(start.tokenizer, data.begin)
        examples = chat.encode(
            start.tokenizer, conversations, style=data.style, begin=begin, **settings
        )
    if examples.truncated or examples.dropped:
        _log.warning(
            "%d of %d conversations cut at %d tokens; %d left out, of which no answer "
            "is left",
            *(examples.truncated, len(conversations), data.length, examples.dropped),
        )
    return examples


def with_steps(
    config: ml_collections.ConfigDict, rows: int
) -> ml_collections.ConfigDict:
    """The config with the steps of its epochs over `rows`, and those of its warm-up."""
    allowed = {"warmup": ranges.SHARE}
    if not config.steps:
        allowed["epochs"] = ranges.ABOVE_0
    ranges.check("", config.to_dict(), allowed)
    settled = ml_collections.ConfigDict(config.to_dict())
    settled.steps = config.steps or math.ceil(
        config.epochs * rows / config.data.batch_size
    )
    settled.optim.warmup_steps = config.optim.warmup_steps or round(
        config.warmup * settled.steps
    )
    return settled

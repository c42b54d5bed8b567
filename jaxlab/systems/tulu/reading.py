"""The data of a tuned run, read again from its config: `jaxlab data inspect`."""

import pathlib

import ml_collections

from jaxlab.core import runs
from jaxlab.data.tokenizers import tokenizer as tokenizer_lib
from jaxlab.systems.tulu import config as config_lib
from jaxlab.systems.tulu import (
    instruction_tuning,
    judged_tuning,
    preference_tuning,
    reward_modelling,
)
from jaxlab.systems.tulu import start as start_lib

_KINDS = {
    "tulu.sft": (config_lib.instruction, instruction_tuning.read),
    "tulu.dpo": (config_lib.preferences, preference_tuning.read),
    "tulu.kto": (config_lib.judgements, judged_tuning.read),
    "tulu.reward": (config_lib.rewards, reward_modelling.read),
}
_READ = ("source", "style", "begin", "length", "batch_size", "seed")


def of_run(
    workdir: str | pathlib.Path, run: runs.Run
) -> tuple[start_lib.Reading, tokenizer_lib.Tokenizer]:
    """What a run of one of TULU's stages reads, and its tokenizer.

    Args:
        workdir: the run directory.
        run: it, opened.

    Raises:
        UserError: its data or its tokenizer is not there.
    """
    describe, read = _KINDS[run.system]
    config = describe()
    data = run.section("data", _READ)  # older ones lack what they did not have
    config.data = ml_collections.ConfigDict({**config.data.to_dict(), **data})
    start = start_lib.open_run(config, workdir)
    return read(config, start), start.tokenizer

"""The data of a tuned run, read again from its config: `jaxlab data inspect`."""

import pathlib

import ml_collections

from jaxlab.core import runs
from jaxlab.data.tokenizers import tokenizer as tokenizer_lib
from jaxlab.systems.tulu import config as config_lib
from jaxlab.systems.tulu import instruction_tuning, preference_tuning
from jaxlab.systems.tulu import start as start_lib

_READ = ("source", "style", "begin", "length", "batch_size", "seed")


def of_run(
    workdir: str | pathlib.Path, run: runs.Run
) -> tuple[start_lib.Reading, tokenizer_lib.Tokenizer]:
    """What a run of `tulu.sft` or `tulu.dpo` reads, and its tokenizer.

    Args:
        workdir: the run directory.
        run: it, opened.

    Raises:
        UserError: its data or its tokenizer is not there.
    """
    is_sft = run.system == "tulu.sft"
    config = config_lib.instruction() if is_sft else config_lib.preferences()
    data = run.section("data", _READ)  # older ones lack what they did not have
    config.data = ml_collections.ConfigDict({**config.data.to_dict(), **data})
    start = start_lib.open_run(config, workdir)
    read = instruction_tuning.read if is_sft else preference_tuning.read
    return read(config, start), start.tokenizer

"""`jaxlab train`: trains what a config describes, the same as `python -m jaxlab.train`.

Every key of the config is a flag, so the flags are read by `core/config.py`.
"""

import argparse
from collections.abc import Sequence

SUMMARY = "Train what a config describes, or resume it"
DETAILS = """\
Every key of the config is a flag: --config.optim.learning_rate=3e-4; `jaxlab
configs` lists configs and explains their keys. A config file is Python and runs as
code: read one of others first. A stopped run continues, bit for bit, with the same
command. For example:

  jaxlab train --config=olmo:tiny --workdir=runs/tiny"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Says what --help cannot know."""
    parser.usage = (
        "jaxlab train --config=FILE[:VARIANT] --workdir=DIR [--config.KEY=VALUE ...] "
        "[--dry-run]"
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="say parameters, memory, steps and data, then stop; writes nothing",
    )


def parse(parser: argparse.ArgumentParser, argv: Sequence[str]) -> argparse.Namespace:
    """Leaves the config's flags as they are, in `args.flags`."""
    args, args.flags = parser.parse_known_args(argv)
    return args


def check(args: argparse.Namespace) -> None:
    """Refuses a config that cannot work, on whatever machine; for `cli.check`.

    Raises:
        UserError: as `train.main`, before it looks for devices and data.
    """
    from jaxlab.systems import checks

    checks.check(_parse(args)[0])


def inputs(args: argparse.Namespace) -> tuple[list[tuple[str, str]], str]:
    """What the run reads, as `local_inputs.of_config` has it, and its workdir."""
    from jaxlab.commands import local_inputs

    parsed, plain = _parse(args)
    file = plain["config"].rpartition(":")[0] or plain["config"]
    named = [("--config", file)] if "/" in file or file.endswith(".py") else []
    return [*named, *local_inputs.of_config(parsed.to_dict())], plain["workdir"]


def _parse(args: argparse.Namespace):
    """(config, --config and --workdir as they were given)."""
    from jaxlab.core import config
    from jaxlab.systems import short_runs

    plain, *_ = config.split_flags(args.flags)
    flags = list(args.flags)
    if plain.get("workdir"):
        flags += ["--workdir=."]  # a bucket is reached from there, not from here
    return config.parse(flags, short_runs.shorten_schedule)[0], plain


def run(args: argparse.Namespace) -> int:
    """Hands the config's flags on."""
    from jaxlab import train

    return train.main(args.flags, dry_run=args.dry_run)

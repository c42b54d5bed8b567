"""Configs from the command line: `--config=FILE[:VARIANT] [--config.KEY=VALUE ...]`.

A config is a Python file whose `get_config(variant)` returns an ml_collections
ConfigDict: data only; VARIANTS, where the file has it, are the variants that there are.
FILE may be the name of a config that comes with jaxlab and is found wherever that is
installed: `olmo`, or `configs/olmo.py` where there is no such file.

Overrides have the type of the value that they replace, and every mistake is one line
that names what was meant. A section that is empty in the file (say `data.weights`)
takes new keys, which are numbers.

jax is not imported before a mistake has to be raised.
"""

import contextlib
import difflib
import importlib.util
import inspect
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import NoReturn

import ml_collections
from absl import flags
from ml_collections import config_flags

from jaxlab.core import installation, paths

_EXAMPLE = "--config=olmo:tiny"
_KEY = re.compile(r"--(no)?config\.(?P<key>[^=]+)(=.*)?", re.DOTALL)


Settle = Callable[[ml_collections.ConfigDict, ml_collections.ConfigDict], None]


def parse(
    argv: Sequence[str], settle: Settle | None = None
) -> tuple[ml_collections.ConfigDict, pathlib.Path]:
    """Reads --config, its overrides and --workdir, in any order.

    Args:
        argv: without the program's name; `--flag=value` or `--flag value`.
        settle: called with the config and with that of the file alone, before the
            config is locked; it may change the first.

    Returns:
        (the config, locked; the run directory, which need not exist and may be in a
        bucket: see `core/paths.py`).

    Raises:
        UserError: an unknown flag or key (with the nearest one), a wrong type, a
            missing file, variant or workdir, or a config file that fails.
    """
    plain, overrides, unknown = split_flags(argv)
    if not plain.get("config"):
        _refuse(f"give --config=FILE[:VARIANT], e.g. {_EXAMPLE}")
    if not plain.get("workdir"):
        _refuse("give --workdir=DIR, the folder that the run is written to")
    workdir = paths.path(plain["workdir"])
    config = load(plain["config"])
    if unknown:
        _refuse(f"unknown flag {unknown[0]!r}; {_flag_like(unknown[0], config)}")
    _check_keys(config, overrides)
    _override(config, overrides)
    if settle is not None:
        settle(config, load(plain["config"]))
    config.lock()
    return config, workdir


def load(path: str) -> ml_collections.ConfigDict:
    """The config of FILE[:VARIANT], without overrides.

    Raises:
        UserError: no such file or variant, or a config file that fails.
    """
    name, _, variant = path.partition(":")
    file = find(name)
    with _one_line(name, file):
        module = _module(file)
        if not callable(getattr(module, "get_config", None)):
            raise ValueError(
                "it defines no get_config(variant), which returns a config"
            )
        variants = tuple(getattr(module, "VARIANTS", ()))
        if variant and variants and variant not in variants:
            near = difflib.get_close_matches(variant, variants, n=1)
            hint = f"did you mean {near[0]}? There are" if near else "use one of"
            raise ValueError(f"variant {variant!r}; {hint} {', '.join(variants)}")
        if variant and not inspect.signature(module.get_config).parameters:
            raise ValueError(f"get_config takes no variant; use --config={name}")
        config = module.get_config(*([variant] if variant else []))
    if not isinstance(config, ml_collections.ConfigDict):
        _refuse(
            f"{name}: get_config returned {type(config).__name__}, not a ConfigDict"
        )
    return config


def find(name: str) -> pathlib.Path:
    """The file of a config: a path, or the name of one that comes with jaxlab.

    Raises:
        UserError: there is none.
    """
    file, shipped = pathlib.Path(name), installation.configs()
    if file.is_file():
        if file.suffix != ".py":
            _refuse(f"config file {name!r} is not a Python file; e.g. {_EXAMPLE}")
        return file
    is_name = str(file) in (file.stem, f"configs/{file.stem}.py")
    if file.is_dir() and not (is_name and file.stem in shipped):
        _refuse(f"config {name!r} is a folder; name a Python file, or {_EXAMPLE}")
    if file.with_suffix(".py").is_file():
        _refuse(f"config file {name!r} does not exist; did you mean {name}.py?")
    if not is_name or file.stem not in shipped:
        hint = _hint(file.stem, shipped, "of jaxlab's own there are")
        _refuse(f"config file {name!r} does not exist; {hint}")
    return shipped[file.stem]


def variants(file: pathlib.Path) -> tuple[str, ...]:
    """The variants that a config file names in VARIANTS; () where it has no such list.

    Raises:
        UserError: the file fails.
    """
    with _one_line(str(file), file):
        return tuple(getattr(_module(file), "VARIANTS", ()))


def _module(file):
    spec = importlib.util.spec_from_file_location("jaxlab_config", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@contextlib.contextmanager
def _one_line(name, file):
    """Whatever a config file raises, as a line that says where."""
    try:
        yield
    except Exception as error:
        _refuse(f"{name}: {_reason(error, file)}")


def _hint(word, names, otherwise):
    near = difflib.get_close_matches(word, names, n=1)
    return f"did you mean {near[0]}?" if near else f"{otherwise} {', '.join(names)}"


def is_shipped(path: str) -> bool:
    """Whether FILE[:VARIANT] comes with jaxlab, whose tests check it."""
    file = find(path.partition(":")[0]).resolve()
    return file in [shipped.resolve() for shipped in installation.configs().values()]


def split_flags(argv: Sequence[str]) -> tuple[dict[str, str], list[str], list[str]]:
    """({"config": FILE, "workdir": DIR}, overrides as `--flag=value`, other flags)."""
    plain: dict[str, str] = {}
    overrides: list[str] = []
    unknown: list[str] = []
    rest = list(argv)
    while rest:
        argument = re.sub("^-(?!-)", "--", rest.pop(0))
        name, equals, value = argument.partition("=")
        if not name.startswith("--"):
            hint = _flag_for(argument, "config" in plain)
            _refuse(f"unexpected argument {argument!r}; flags begin with --{hint}")
        if not equals and rest and not rest[0].startswith("--"):
            value, equals = rest.pop(0), "="
        if name in ("--config", "--workdir"):
            plain[name.removeprefix("--")] = value
        elif _KEY.fullmatch(name):
            overrides.append(name + equals + value)
        else:
            near = difflib.get_close_matches(name, ["--config", "--workdir"], n=1)
            if near:
                _refuse(f"unknown flag {name!r}; did you mean {near[0]}?")
            unknown.append(name)
    return plain, overrides, unknown


def _flag_for(word: str, has_config: bool) -> str:
    """What a word without -- may have been meant as."""
    if word.startswith("config."):
        return f": --{word}"
    name = pathlib.Path(word.partition(":")[0])
    is_config = name.suffix == ".py" or str(name) in installation.configs()
    return f": --config={word}" if is_config and not has_config else ""


def _flag_like(flag: str, config: ml_collections.ConfigDict) -> str:
    """Keys are flags with `config.` in front, which is easily left out."""
    key, keys = flag.removeprefix("--").replace("-", "_"), _keys(config)
    meant = [name for name in keys if key in (name, name.rpartition(".")[2])]
    meant = meant or difflib.get_close_matches(key, keys, n=1, cutoff=0.8)
    if meant:
        return f"did you mean --config.{meant[0]}?"
    return "use --config, --workdir, or a key of the config: --config.KEY=VALUE"


def _check_keys(config: ml_collections.ConfigDict, overrides: Sequence[str]) -> None:
    """Refuses unknown keys; makes room for those of sections that are empty."""
    keys = _keys(config)
    for override in overrides:
        key = _KEY.fullmatch(override)["key"]
        section, _, last = key.rpartition(".")
        if key in keys:
            continue
        if section in keys and keys[section] == {}:
            config[section][last] = 0.0
            continue
        _refuse(f"unknown config key {key!r}; {_nearest(key, keys)}")


def _nearest(key: str, keys: Mapping[str, object]) -> str:
    section, _, last = key.rpartition(".")
    # Not a section: "optim" is near to every misspelt key of it.
    sections = [k for k, v in keys.items() if isinstance(v, ml_collections.ConfigDict)]
    leaves = [name for name in keys if name not in sections]
    siblings = [name for name in keys if name.rpartition(".")[0] == section]
    if siblings and section:  # of one section all begin alike: their ends are compared
        ends = {name.rpartition(".")[2]: name for name in siblings if name in leaves}
        near = [ends[end] for end in difflib.get_close_matches(last, ends, n=1)]
    else:
        near = difflib.get_close_matches(key, leaves, n=1)
    near = near or [name for name in keys if name.rpartition(".")[2] == last]
    if near:
        return f"did you mean {near[0]}?"
    siblings = siblings or [name for name in keys if "." not in name]
    return f"there are {', '.join(siblings)}"


def _override(config: ml_collections.ConfigDict, overrides: Sequence[str]) -> None:
    """Sets the keys; ml_collections parses each value by the type of the old one."""
    argv = ["jaxlab", *overrides]
    values = flags.FlagValues()
    try:
        # With `sys_argv`, since it would look for overrides in the process's own.
        config_flags.DEFINE_config_dict(
            "config", config, flag_values=values, lock_config=False, sys_argv=argv
        )
        values(argv)
    except Exception as error:
        message = " ".join(str(error).split())
        refusal = re.match(r"flag --config\.(?P<key>[\w.]+)=(?P<value>.*?): ", message)
        if not refusal:
            _refuse(message[:300] or type(error).__name__)
        key, value = refusal["key"], refusal["value"]
        _refuse(
            f"config key {key!r} cannot be {value!r}; {_describe_type(config, key)}"
        )


def _describe_type(config: ml_collections.ConfigDict, key: str) -> str:
    """What a key takes, in words."""
    old = _keys(config)[key]
    if isinstance(old, ml_collections.ConfigDict) and len(old):
        inner = next(iter(old))
        return f"it is a section: set a key of it, e.g. --config.{key}.{inner}="
    if isinstance(old, Mapping):
        return "it takes a value of type dict, e.g. {'web': 0.5}"
    example = "" if old in ("", None) else f", e.g. {old}"
    return f"it takes a value of type {type(old).__name__}{example}"


def _keys(config: ml_collections.ConfigDict, prefix: str = "") -> dict[str, object]:
    """Every key with its dots -> its value; sections too."""
    keys = {}
    for name, value in config.items():
        keys[prefix + name] = value
        if isinstance(value, ml_collections.ConfigDict):
            keys |= _keys(value, f"{prefix}{name}.")
            if not value:
                keys[prefix + name] = {}
    return keys


def _reason(error: Exception, file: pathlib.Path) -> str:
    """The message of a config file that refuses, or the line where it fails."""
    message = getattr(error, "msg", "") or str(error)  # a SyntaxError's without place
    message = " ".join(message.split()) or "no reason given"
    if isinstance(error, ValueError):
        return message
    trace, line = error.__traceback__, getattr(error, "lineno", None)
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == str(file.absolute()):
            line = trace.tb_lineno
        trace = trace.tb_next
    where = f" (line {line})" if line else ""
    return f"{type(error).__name__}: {message}{where}"


def _refuse(message: str) -> NoReturn:
    from jaxlab.core import errors

    raise errors.UserError(message) from None

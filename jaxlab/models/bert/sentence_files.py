"""sentence-transformers' files beside the weights <-> `BertConfig`.

    modules.json                          what follows the encoder
    1_Pooling/config.json                 how a row becomes one vector
    sentence_bert_config.json             where texts are cut, and lower case
    config_sentence_transformers.json     prompts, similarity, truncated vectors

What a file says is followed, or refused in one line; nothing is passed over. The rules
are those of sentence-transformers 5: a query's prompt is the one called "query", a
document's the first of "document", "passage" and "corpus", else the default one. The
similarity is the cosine where config_sentence_transformers.json names none, and the
inner product where there is no such file, as in folders of ours.
"""

import dataclasses
import json
import logging
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from jaxlab.core import errors, json_text, links, paths
from jaxlab.models.bert.config import SIMILARITIES, BertConfig

SETTINGS = "config_sentence_transformers.json"
_MODULES = "modules.json"
# The first that is there counts; older versions had one for each family.
_ROWS = tuple(
    f"sentence_{name}_config.json"
    for name in (
        "bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet",
    )
)  # fmt: skip
_ORDER = ("Transformer", "Pooling", "Normalize")
_NOTHING_AT_INFERENCE = ("Transformer", "Dropout")

_log = logging.getLogger(__name__)


def with_settings(config: BertConfig, folder: pathlib.Path) -> BertConfig:
    """The config with what sentence-transformers wrote beside it.

    Without a modules.json vectors are the mean, as sentence-transformers has it.

    Raises:
        UserError: a module, a pooling or a setting that is not computed here.
    """
    if config.head == "score":
        return config
    chosen = {} if not (folder / _MODULES).is_file() else _modules(config, folder)
    normalize = chosen.get("normalize", False)
    if (folder / SETTINGS).is_file():
        chosen |= _settings(folder / SETTINGS, config.embed, normalize)
    prefixes = [chosen.get(x, "") for x in ("query_prefix", "document_prefix")]
    if any(prefixes) and not chosen.pop("include_prompt", True):
        raise errors.UserError(
            f"{folder / '1_Pooling' / 'config.json'} leaves prompts out of the pooling "
            "(include_prompt false), which is not supported; set it to true, or the "
            f'prompts of {SETTINGS} to ""'
        )
    chosen.pop("include_prompt", None)
    return dataclasses.replace(config, **chosen)


def find(folder: pathlib.Path) -> list[pathlib.Path]:
    """The files of the folders that modules.json names; [] where there is none."""
    if not (folder / _MODULES).is_file():
        return []
    file = folder / _MODULES
    names = [str(x.get("path") or "") for x in _read_json(file, list)]
    found = [paths.inside(folder, name, file) for name in names if name]
    return [each for path in found for each in path.glob("*")]


def write_settings(config: BertConfig, folder: pathlib.Path) -> None:
    """Writes what `with_settings` and sentence-transformers read."""
    if config.head == "score":
        return
    modules = [("Transformer", "")]
    if config.pooling != "none":
        modules.append(("Pooling", "1_Pooling"))
        (folder / "1_Pooling").mkdir()
        flags = {
            "word_embedding_dimension": config.embed,
            "pooling_mode_cls_token": config.pooling == "cls",
            "pooling_mode_mean_tokens": config.pooling == "mean",
            "pooling_mode_max_tokens": False,
            "pooling_mode_mean_sqrt_len_tokens": False,
        }
        _write_json(folder / "1_Pooling" / "config.json", flags)
    if config.normalize:
        modules.append(("Normalize", f"{len(modules)}_Normalize"))
    described = [
        {
            "idx": i, "name": str(i), "path": path,
            "type": f"sentence_transformers.models.{kind}",
        }
        for i, (kind, path) in enumerate(modules)
    ]  # fmt: skip
    _write_json(folder / _MODULES, described)
    _write_json(
        folder / _ROWS[0],
        {"max_seq_length": config.row_length, "do_lower_case": config.lower_case},
    )
    settings = {
        "prompts": {
            "query": config.query_prefix, "document": config.document_prefix,
        },
        "default_prompt_name": None,
        "similarity_fn_name": config.similarity,
    }  # fmt: skip
    if config.truncate is not None:
        settings["truncate_dim"] = config.truncate
    if config.normalize and config.truncate is None:  # the two agree on unit vectors
        settings["similarity_fn_name"] = "cosine"
    _write_json(folder / SETTINGS, settings)


# ------------------------------------------------------------------ parts


def _modules(config, folder) -> dict[str, Any]:
    """What modules.json and the files that it names say."""
    chosen: dict[str, Any] = {"pooling": "none"}
    listed, kinds = _read_json(folder / _MODULES, list), []
    for module in listed:
        if not (isinstance(module, dict) and isinstance(module.get("type"), str)):
            raise errors.UserError(
                f"{folder / _MODULES}: {str(module)[:60]!r} is not a module; download "
                "it again"
            )
        package, _, kind = module["type"].rpartition(".")
        code = folder / f"{package.replace('.', '/')}.py"
        if "--" in package or code.is_file():
            raise errors.UserError(
                f"{folder / _MODULES}: {module['type']} is the model's own code, which "
                "is not run; use a model of sentence-transformers' modules"
            )
        kinds.append(kind)
        if kind == "Pooling":
            path = str(module.get("path"))
            file = paths.inside(folder, path, folder / _MODULES) / "config.json"
            links.refuse_outside(file, folder)
            chosen["pooling"], chosen["include_prompt"] = _pooling(file, config)
        elif kind == "Normalize":
            chosen["normalize"] = True
        elif kind == "Transformer" and module.get("path"):
            raise errors.UserError(
                f"{folder / _MODULES}: the Transformer is in {module['path']}/; move "
                'its files up and set its "path" to ""'
            )
        elif kind not in _NOTHING_AT_INFERENCE:
            raise errors.UserError(
                f"{folder / _MODULES} has a {kind} module; supported are "
                "Transformer, Pooling and Normalize"
            )
    kinds = [kind for kind in kinds if kind != "Dropout"]
    if kinds != [kind for kind in _ORDER if kind in kinds]:
        raise errors.UserError(
            f"{folder / _MODULES} has {', '.join(kinds)}; supported are "
            f"{', '.join(_ORDER)} in this order"
        )
    return chosen | _rows(config, folder)


def _pooling(file, config) -> tuple[str, bool]:
    """The pooling, and whether the tokens of a prompt take part."""
    raw = _read_json(file, dict)
    modes = [
        re.sub(r"^pooling_mode_|_tokens?$", "", name)
        for name, value in raw.items()
        if name.startswith("pooling_mode_") and value
    ]
    if raw.get("pooling_mode"):  # newer versions name it
        modes = [raw["pooling_mode"]]
    if modes not in (["mean"], ["cls"]):
        raise errors.UserError(
            f"{file} pools by {' and '.join(map(str, modes)) or 'nothing'}; supported "
            "are mean and cls"
        )
    return modes[0], raw.get("include_prompt") is not False


def _rows(config, folder) -> dict[str, Any]:
    """Where texts are cut, and whether they are lower-cased before."""
    file = next((folder / x for x in _ROWS if (folder / x).is_file()), None)
    raw = {} if file is None else _read_json(file, dict)
    lengths = [(file, "max_seq_length", raw.get("max_seq_length"))]
    # Newer versions (6.2 does) leave the length to the tokenizer, whose "none" is 1e30.
    tokenizer = folder / "tokenizer_config.json"
    if tokenizer.is_file():
        length = _read_json(tokenizer, dict).get("model_max_length")
        lengths.append((tokenizer, "model_max_length", length))
    for place, key, value in lengths:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if value is not None and not (is_number and value >= 1):
            raise errors.UserError(
                f"{place}: {key} {value!r} is not a number of tokens; set it to one, "
                f"e.g. {config.length}"
            )
    length = next(filter(None, (value for *_, value in lengths)), config.length)
    lower = raw.get("do_lower_case", False)
    if not isinstance(lower, bool | None):
        raise errors.UserError(
            f"{file}: do_lower_case {lower!r}; set it to true or false"
        )
    return {"row_length": int(min(length, config.length)), "lower_case": bool(lower)}


def _settings(file, embed: int, normalize: bool) -> dict[str, Any]:
    """What config_sentence_transformers.json says of texts and vectors."""
    raw = _read_json(file, dict)
    similarity = raw.get("similarity_fn_name") or "cosine"
    if similarity not in SIMILARITIES:
        raise errors.UserError(
            f"{file}: similarity_fn_name {similarity!r}; supported are "
            f"{', '.join(SIMILARITIES)}"
        )
    truncate = raw.get("truncate_dim")
    if truncate is not None and not (type(truncate) is int and truncate >= 1):
        raise errors.UserError(
            f"{file}: truncate_dim {truncate!r} is not a length of vectors; set it to "
            f"at most {embed}, or to null"
        )
    if truncate is not None and truncate >= embed:
        truncate = None
    if similarity == "cosine" and normalize and truncate is None:
        similarity = "dot"  # the same of unit vectors, and how runs of before say it
    prompts, default = _prompts(raw, file)
    chosen = {
        "query_prefix": _prompt(prompts, default, ("query",)),
        "document_prefix": _prompt(prompts, default, ("document", "passage", "corpus")),
    }
    if any(prompts.values()) and not any(chosen.values()):
        _log.warning(
            "%s: the prompts %s are for neither queries nor documents and are not "
            "used; choose one with --query-prefix or --document-prefix",
            file,
            ", ".join(prompts),
        )
    return chosen | {"similarity": similarity, "truncate": truncate}


def _prompts(raw: Mapping[str, Any], file) -> tuple[dict[str, str], str | None]:
    """The prompts by name, and the name of the default one."""
    prompts, default = raw.get("prompts") or {}, raw.get("default_prompt_name")
    if not isinstance(prompts, dict) or not all(
        isinstance(text, str | None) for text in prompts.values()
    ):
        raise errors.UserError(f'{file}: "prompts" is not an object of texts')
    prompts = {name: text or "" for name, text in prompts.items()}
    if default is not None and default not in [*prompts]:  # it may be of any type
        raise errors.UserError(
            f"{file}: default_prompt_name {default!r} is not among its prompts "
            f"({', '.join(prompts) or 'none'}); name one of them, or null"
        )
    return prompts, default


def _prompt(prompts, default: str | None, names: Sequence[str]) -> str:
    name = next((name for name in names if name in prompts), default)
    return "" if name is None else prompts[name]


def _read_json(file, kind: type) -> Any:
    data = paths.read_bytes(file)
    if data is None:
        raise errors.UserError(f"{file} is missing; download it again")
    value = json_text.parse(data, file, "download it again")
    if not isinstance(value, kind):
        word = {list: "list", dict: "object"}[kind]
        raise errors.UserError(f"{file} is not a JSON {word}; download it again")
    return value


def _write_json(file, value):
    file.write_text(json.dumps(value, indent=2) + "\n")

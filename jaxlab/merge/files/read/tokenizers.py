"""Whether models that are merged speak of the same tokens.

Row 17 of one embedding is averaged with row 17 of the other. Where 17 is another token
there, the result is noise. Tokens that were added, or reserved and renamed, are few and
differ between a model and what was tuned from it: these are said, the others refused.
"""

import contextlib
import hashlib
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from jaxlab.core import errors, json_text, tokenizer_files
from jaxlab.merge.files.read import source as source_lib

_OWN = "own"  # as data.examples.chat calls it
_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt")


class Difference(NamedTuple):
    """How one input's tokenizer differs from the first's.

    Attributes:
        words: a line of it.
        is_grave: ordinary tokens have other ids, not only added ones.
    """

    words: str
    is_grave: bool


def compare(inputs: Sequence[source_lib.Source]) -> list[Difference]:
    """What differs between the tokenizers of the first input and of the others."""
    first, found = inputs[0], []
    for other in inputs[1:]:
        for name in _FILES:
            mine, theirs = (x.tokenizer / name for x in (first, other))
            if not (mine.is_file() and theirs.is_file()) or _sha(mine) == _sha(theirs):
                continue
            words = f"{mine} and {theirs} are different tokenizers"
            a, b = _vocabulary(mine), _vocabulary(theirs)
            if a is None or b is None:
                found.append(Difference(words, False))
                continue
            ids = [i for i in sorted(a.keys() & b.keys()) if a[i] != b[i]]
            if ids:
                i = ids[0]
                words = f"{words}: id {i} is {a[i][0]!r} and {b[i][0]!r}"
                words += f", and {len(ids) - 1} more differ" if len(ids) > 1 else ""
                is_grave = any(not (a[i][1] or b[i][1]) for i in ids)
                found.append(Difference(words, is_grave))
    return found


def choose(inputs: Sequence[source_lib.Source], named: int | None) -> source_lib.Source:
    """Whose tokenizer, chat template and generation_config.json the result has.

    Args:
        inputs: of the merge.
        named: number of the one that the recipe names, or of its base; None: the
            first. Where it is a run that does not say how conversations are written,
            as a base does not: the first that does.
    """
    asked = inputs[named or 0]
    if not asked.is_run or _template(asked):
        return asked
    return next((source for source in inputs if _template(source)), asked)


def template_notes(
    inputs: Sequence[source_lib.Source], kept: source_lib.Source
) -> list[str]:
    """Says whose chat template the result has, where the inputs' differ."""
    templates = [_template(source) for source in inputs]
    if all(source.is_run for source in inputs) and _template(kept):
        templates = [template for template in templates if template]
    if all(template == templates[0] for template in templates):
        return []
    has = "the chat template" if _template(kept) else "no chat template, as that"
    return [
        f"the chat templates of the models differ; the result has {has} of {kept.path} "
        "(tokenizer_source of a recipe chooses another)"
    ]


def eos_notes(
    inputs: Sequence[source_lib.Source], kept: source_lib.Source
) -> list[str]:
    """Says which tokens end a text of one input, and do not end one of the result."""
    own, notes = _eos_ids(kept), []
    for source in inputs:
        if more := sorted(_eos_ids(source) - own):
            notes.append(
                f"texts of {source.path} end with id {', '.join(map(str, more))} too; "
                f"the result has the generation_config.json of {kept.path}"
            )
    return notes


def _eos_ids(source) -> set[int]:
    if source.is_run or not pathlib.Path(source.path).is_dir():
        return set()
    texts = [source.config]
    with contextlib.suppress(errors.UserError):  # a damaged file is copied as it is
        file = pathlib.Path(source.path, "generation_config.json")
        texts.append(json_text.read_object(file, "restore it from a copy") or {})
    ids = [text.get("eos_token_id") for text in texts]
    ids = [each if isinstance(each, list) else [each] for each in ids]
    return {i for each in ids for i in each if isinstance(i, int)}


def style(source: source_lib.Source) -> dict[str, str]:
    """What a run's config says of the conversations that it was tuned on."""
    data = source.config.get("data") if source.is_run else None
    if not isinstance(data, Mapping) or "style" not in data:
        return {}
    return {"style": data["style"], "begin": data.get("begin", "bos")}


def _template(source) -> dict[str, str]:
    tuned = style(source)
    if tuned and tuned["style"] != _OWN:
        return tuned
    try:
        return tokenizer_files.chat_templates(source.tokenizer)
    except errors.UserError:  # of a damaged file, which is copied as it is
        return {}


def _vocabulary(file: pathlib.Path) -> dict[int, tuple[str, bool]] | None:
    """Id -> (token, whether it was added); None for a file that says no ids."""
    try:
        data = tokenizer_files.read(file)
        if file.suffix == ".model":
            return _pieces(data)
        raw = json.loads(data)
        vocab = raw["model"]["vocab"] if "model" in raw else raw
        if isinstance(vocab, list):
            vocab = {entry[0]: i for i, entry in enumerate(vocab)}
        tokens = {i: (token, False) for token, i in vocab.items()}
        added = raw.get("added_tokens", ()) if "model" in raw else ()
        return tokens | {entry["id"]: (entry["content"], True) for entry in added}
    except Exception:  # whatever it is, it is copied as it is
        return None


def _pieces(data: bytes) -> dict[int, tuple[str, bool]]:
    import sentencepiece

    model = sentencepiece.SentencePieceProcessor(model_proto=data)
    return {
        i: (model.id_to_piece(i), model.is_control(i) or model.is_unknown(i))
        for i in range(model.vocab_size())
    }


def _sha(file) -> str:
    with open(file, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()

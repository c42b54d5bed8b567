"""The padding token of an exported reward model, which must end no text.

transformers reads a score at the last token that is not padding. Where a tokenizer pads
with its end of text, as many do, that would be the token before the end: another score.
"""

import dataclasses
import os

from jaxlab import models
from jaxlab.core import errors, tokenizer_files
from jaxlab.load import by_path

_NAMES = (
    *("<|padding|>", "<|pad|>", "<pad>", "[PAD]", "<|finetune_right_pad_id|>"),
    *("<unk>", "<|unk|>", "<|reserved_special_token_0|>", "<|endofprompt|>"),
)


def choose(
    loaded: by_path.Loaded, folder: str | os.PathLike
) -> models.TransformerConfig:
    """The config of a reward model with a padding token, which `folder` names, too.

    Args:
        loaded: the reward model.
        folder: of its tokenizer's files.

    Raises:
        UserError: every token of the vocabulary may end a text.
    """
    tokenizer, ends = loaded.tokenizer, {*loaded.eos_ids}
    own = tokenizer.pad_id
    for name in _NAMES:
        ids = tokenizer.encode(name, special=True)
        if len(ids) == 1 and ids[0] not in ends and own in (ids[0], *ends):
            tokenizer_files.set_pad_token(folder, name)
            return dataclasses.replace(loaded.config, pad_id=ids[0])
    if own not in ends:  # of another name; the files have it
        return dataclasses.replace(loaded.config, pad_id=own)
    raise errors.UserError(
        "the tokenizer has no token for padding but its end of text, at which the score"
        " is read; add one, e.g. <pad>, and name it as pad_token in "
        "tokenizer_config.json"
    )

"""Text to evaluate on: a folder or a file of it, token files, or the embedded text."""

import pathlib

from jaxlab.core import errors
from jaxlab.data import prepared
from jaxlab.data.corpus import token_files
from jaxlab.data.tokenizers import tokenizer as tokenizer_lib

_EMBEDDED_BYTES = 1_000_000  # per domain; a twentieth of its documents is evaluated


def open_text(
    data: str | pathlib.Path,
    tokenizer: tokenizer_lib.Tokenizer,
    folder: str | pathlib.Path,
) -> dict[str, token_files.TokenFile]:
    """Domain -> token file of everything that is evaluated.

    Args:
        data: a folder of `jaxlab data prepare` (its held-out sets; without any, all of
            it), a folder or file of text (all of it), or "embedded" (a held-out part).
        tokenizer: the model's.
        folder: where text that has to be encoded is written.

    Raises:
        UserError: unreadable text, or token files of another tokenizer.
    """
    folder, path = pathlib.Path(folder), pathlib.Path(data)
    if data == prepared.EMBEDDED:
        tokenizer.save(folder / "model")
        made = prepared.prepare(
            data,
            folder / "text",
            tokenizer=str(folder / "model"),
            max_bytes_per_domain=_EMBEDDED_BYTES,
        )
        return dict(made.held_out)
    if path.is_dir() and any(path.glob("*.npy")):
        made = prepared.open_folder(path)
        files = dict(made.held_out or made.train)
        check_tokenizer(files, tokenizer, data)
        return files
    if not path.exists():
        raise errors.UserError(
            f"data {data} does not exist; give a folder or file of text, or embedded"
        )
    return prepared.write_domains(path, tokenizer, folder)


def check_tokenizer(
    files: dict[str, token_files.TokenFile],
    tokenizer: tokenizer_lib.Tokenizer,
    where: str | pathlib.Path,
) -> None:
    """Refuses token files that another tokenizer made."""
    for file in files.values():
        if file.info.get("tokenizer", tokenizer.fingerprint) != tokenizer.fingerprint:
            raise errors.UserError(
                f"{where} was encoded with another tokenizer than the model's; give "
                "the text itself"
            )

"""Log-probabilities of a reference policy, kept outside of runs: asked once for all.

    CACHE/reference/KEY/SHA256.json     {"made_with": {...}, "logps": {ROW: [c, r]}}

KEY is of what the policy is (a checksum of its weights, its config, its dtype) and how
it is asked (row length, style, tail weight); ROW is of the tokens and the labels of
both answers. So nothing is found that another model, another text, template or
tokenizer was asked for. A file is one part of the work, written whole and called by its
own sha256: a killed run goes on behind its last part, several runs may write at once,
and a damaged file is seen, removed, and its rows are asked again.
"""

import contextlib
import hashlib
import json
import logging
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxlab.core import errors, folders, paths

_log = logging.getLogger(__name__)


class Cache:
    """The kept log-probabilities of one policy that is asked in one way."""

    def __init__(self, folder: str, made_with: Mapping[str, Any]):
        """Opens it; nothing is written before something is added.

        Args:
            folder: that holds all caches; "" is the user's cache folder.
            made_with: everything that the numbers depend on but for the rows.
        """
        text = json.dumps(made_with, sort_keys=True)
        self._made_with = json.loads(text)
        home = paths.path(folder) if folder else paths.cache("reference")
        self._folder = home / hashlib.sha256(text.encode()).hexdigest()[:32]
        self._can_write = True

    def read(self) -> dict[str, tuple[float, float]]:
        """Row -> log-probabilities of both answers; damaged files are removed."""
        found: dict[str, tuple[float, float]] = {}
        if not paths.is_folder(self._folder):
            return found
        for file in sorted(self._folder.glob("*.json")):
            found |= self._read(file)
        return found

    def _read(self, file: pathlib.Path) -> dict[str, tuple[float, float]]:
        data = paths.read_bytes(file)
        if data is None:  # another run has just removed it
            return {}
        if _name(data) != file.name:
            _log.warning("%s is damaged; its pairs are asked again", file)
            with contextlib.suppress(OSError):
                file.unlink()
            return {}
        saved = json.loads(data)
        if saved["made_with"] != self._made_with:
            _log.warning("%s is of another reference, and is not used", file)
            return {}
        return {row: tuple(pair) for row, pair in saved["logps"].items()}

    def add(self, rows: Sequence[str], logps: np.ndarray) -> None:
        """Keeps the numbers f32[N, 2] of rows; a disk that takes none is told once."""
        if not (len(rows) and self._can_write):
            return
        pairs = dict(zip(rows, logps.tolist(), strict=True))
        data = json.dumps({"made_with": self._made_with, "logps": pairs}).encode()
        try:
            paths.make_folder(self._folder)
            folders.write_bytes(self._folder / _name(data), data)
        except (OSError, errors.UserError) as error:
            self._can_write = False
            _log.warning(
                "%s: the reference is not kept for other runs: %s", self._folder, error
            )


def row_names(batch: Mapping[str, np.ndarray]) -> list[str]:
    """A name of each row of `tokens`, `loss_mask` [B, 2, L]: of what it holds."""
    tokens = np.ascontiguousarray(batch["tokens"], np.int32)
    labels = np.ascontiguousarray(batch["loss_mask"], np.float32)
    return [
        hashlib.sha256(row.tobytes() + mask.tobytes()).hexdigest()[:32]
        for row, mask in zip(tokens, labels, strict=True)
    ]


def _name(data: bytes) -> str:
    return f"{hashlib.sha256(data).hexdigest()}.json"

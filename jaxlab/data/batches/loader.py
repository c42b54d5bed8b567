"""The loader: batch number `step` as a pure function of (seed, step).

There is no iterator and no state to save. Batch `step` holds draws step * batch_size
... (step + 1) * batch_size - 1 of the mixture's order, which knows nothing of hosts,
workers or microbatches: each host asks for its rows of the global batch.

Layouts:

* "chunks", as OLMo (Groeneveld et al., 2024, arXiv:2402.00838): rows are cut straight
  from the token file, documents run across their borders, the tokens that do not fill
  a last row are ignored. `document_mask` adds `segment_ids` so that attention stays
  inside documents; positions are not reset, as in OLMo (with rotary embeddings that
  changes nothing once attention is masked).
* "packed": whole documents side by side, with segments, positions and a loss mask; see
  `packing`.

A batch has `tokens` i32[B, L] and, where they apply, `segment_ids` i32[B, L] (1, 2, ...
along the row; 0 is padding), `positions` i32[B, L] and `loss_mask` f32[B, L]: 1 where
the token counts as a label, that is, is predicted from the one before it. Nothing is
shifted here. Without `loss_mask` every token but the row's first is a label.

*Deviation* from OLMo: the end of an epoch that does not fill a batch is joined by the
beginning of the next. OLMo drops it, or repeats the epoch's head up to a multiple of
the world size, which makes the data depend on the number of hosts.
"""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxlab.core import errors
from jaxlab.data.batches import held_out, layouts
from jaxlab.data.batches import mixture as mixture_lib
from jaxlab.data.corpus import token_files

LAYOUTS = ("chunks", "packed")

eval_batches = held_out.eval_batches


class Loader:
    """Batches of token rows; `loader(step)` is `loader.batch_at(step)`.

    Attributes:
        rows: rows of the global batch (the batch size).
        mixture: the sources and their shares.
        source_rows: rows that each source makes in one epoch.
    """

    def __init__(
        self,
        source: mixture_lib.Mixture | token_files.TokenFile | Sequence,
        *,
        length: int,
        batch_size: int,
        seed: int = 0,
        layout: str = "chunks",
        document_mask: bool = False,
    ):
        """Prepares the order; a "packed" layout is computed here, once.

        Args:
            source: a mixture, a token file or several (concatenated).
            length: tokens of a row.
            batch_size: rows of the global batch.
            seed: of the order.
            layout: "chunks" or "packed".
            document_mask: segment ids for "chunks"; "packed" always has them.

        Raises:
            UserError: a setting that cannot be; a source too small for one row.
        """
        if isinstance(source, token_files.TokenFile):
            source = [source]
        if not isinstance(source, mixture_lib.Mixture):
            source = mixture_lib.Mixture(list(source))
        if layout not in LAYOUTS:
            raise errors.UserError(f"layout {layout!r} is not one of {LAYOUTS}")
        for name, value, least in (
            ("length", length, 2),
            ("batch_size", batch_size, 1),
            ("seed", seed, 0),
        ):
            if value < least:
                raise errors.UserError(f"{name} {value} is too small; use >= {least}")
        self.mixture, self.length, self.rows = source, length, batch_size
        self.seed = seed
        self.layout, self.document_mask = layout, document_mask
        made = {}  # a file that is listed twice is packed once
        for file in source.sources:
            if file.path not in made:
                made[file.path] = _rows(file, length, layout, document_mask)
        self._sources = [made[file.path] for file in source.sources]
        self.source_rows = [len(rows) for rows in self._sources]

    def __call__(self, step: int, rows: slice = slice(None)) -> dict[str, np.ndarray]:
        """See `batch_at`."""
        return self.batch_at(step, rows)

    def batch_at(self, step: int, rows: slice = slice(None)) -> dict[str, np.ndarray]:
        """The batch of a step, or some rows of it; the same however often asked.

        Raises:
            UserError: a token file was removed or truncated since it was opened.
        """
        draws = self._draws(step, rows)
        spec = batch_spec(
            len(draws.source), self.length, self.layout, self.document_mask
        )
        batch = {name: np.zeros(shape, dtype) for name, (shape, dtype) in spec.items()}
        for i, (source, row) in enumerate(zip(draws.source, draws.row, strict=True)):
            self._sources[source].fill({k: v[i] for k, v in batch.items()}, int(row))
        return batch

    def describe(self, step: int) -> list[dict[str, Any]]:
        """What each row of a step's batch holds.

        Returns:
            For each row: `row` in the batch, `source` and `file`, `index` among the
            source's rows, `epoch`, and `documents` in the order they stand in the row:
            `id`, `source`, `document` (its number in the file) and the file's tokens
            `start`..`stop` that the row holds of it, context tokens left out.
        """
        draws = self._draws(step, slice(None))
        described = []
        for i, (source, row, epoch) in enumerate(zip(*draws, strict=True)):
            rows = self._sources[source]
            file = rows.file
            documents = []
            for index, start, stop in rows.contents(int(row)):
                span = file.span(index)
                documents.append(
                    {
                        "id": span.id,
                        "source": span.source,
                        "document": index,
                        "start": start,
                        "stop": stop,
                    }
                )
            described.append(
                {
                    "row": i,
                    "source": self.mixture.names[source],
                    "file": str(file.path),
                    "index": int(row),
                    "epoch": int(epoch),
                    "documents": documents,
                }
            )
        return described

    def shares(self, steps: int) -> dict[str, dict[str, float]]:
        """What `steps` batches read of each source: `rows`, `share`, `epochs`."""
        drawn = self.mixture.counts(
            steps * self.rows, rows=self.source_rows, seed=self.seed
        )
        total = max(1, int(drawn.sum()))
        report: dict[str, dict[str, float]] = {}
        for name, count, rows in zip(
            self.mixture.names, drawn.tolist(), self.source_rows, strict=True
        ):
            entry = report.setdefault(name, {"rows": 0, "share": 0.0, "epochs": 0.0})
            entry["rows"] += count
            entry["share"] += count / total
            entry["epochs"] += count / rows
        return report

    def order_sha256(self, epoch: int = 0) -> str:
        """Sha256 of an epoch's order; see `Mixture.order_sha256`."""
        return self.mixture.order_sha256(epoch, rows=self.source_rows, seed=self.seed)

    @functools.cached_property
    def fingerprint(self) -> dict[str, Any]:
        """Everything the batches follow from, as JSON: equal means equal batches.

        Files count by name, size and checksum, not by folder: a run may resume where
        its data was copied to.
        """
        return {
            "files": [
                {
                    "name": file.path.name,
                    "tokens": file.size,
                    "dtype": file.dtype.name,
                    "sha256": file.info.get("sha256"),
                }
                for file in self.mixture.sources
            ],
            "quotas": self.mixture.quotas and list(self.mixture.quotas),
            "length": self.length,
            "batch_size": self.rows,
            "seed": self.seed,
            "layout": self.layout,
            "document_mask": self.document_mask,
        }

    def _draws(self, step: int, rows: slice) -> mixture_lib.Draws:
        if step < 0:
            raise errors.UserError(f"step {step} is negative; the first step is 0")
        start = step * self.rows
        draws = self.mixture.draws(
            start, start + self.rows, rows=self.source_rows, seed=self.seed
        )
        return mixture_lib.Draws(*(array[rows] for array in draws))


def batch_spec(
    rows: int, length: int, layout: str = "chunks", document_mask: bool = False
) -> dict[str, tuple[tuple[int, int], type[np.generic]]]:
    """Name -> (shape, dtype) of a batch's arrays.

    >>> sorted(batch_spec(8, 128, document_mask=True))
    ['segment_ids', 'tokens']
    """
    dtypes: dict[str, type[np.generic]] = {"tokens": np.int32}
    if layout == "packed" or document_mask:
        dtypes["segment_ids"] = np.int32
    if layout == "packed":
        dtypes |= {"positions": np.int32, "loss_mask": np.float32}
    return {name: ((rows, length), dtype) for name, dtype in dtypes.items()}


def _rows(
    file: token_files.TokenFile, length: int, layout: str, document_mask: bool
) -> layouts.Chunks | layouts.Packed:
    if layout == "packed":
        return layouts.Packed(file, length)
    return layouts.Chunks(file, length, document_mask)

"""Batches of single answers that are good or bad, for `objectives.kto`.

Each row is there twice: a prompt with its own answer, and with the answer of the row
before it in its batch, which the estimate of a policy's distance from its reference
needs. So that what a reference says of both can be computed once, rows are put into
batches once, in an order of the seed; an epoch has an order of the batches. The last
one may have fewer rows. Ethayarajh et al. 2024 (arXiv:2402.01306), section 4.1.
"""

import hashlib
from typing import Any

import numpy as np

from jaxlab.core import errors
from jaxlab.data.batches import mixture
from jaxlab.data.examples import chat, conversation_rows


class JudgedRows:
    """Batches of judged answers, each a pure function of (seed, step).

    Attributes:
        rows: of the global batch, B.
        count: rows of an epoch; those of `fill` have the order of the batches.
        reference: f32[N, 2], in that order: log-probabilities of both answers under the
            reference policy, given to the loss as `reference_logps`; or None.
    """

    def __init__(
        self,
        examples: chat.Examples,
        is_good: np.ndarray,
        *,
        length: int,
        batch_size: int,
        seed: int = 0,
        reference: np.ndarray | None = None,
    ):
        """Puts examples, of which only the last answer has labels, into batches.

        Args:
            examples: conversations of at most `length` tokens.
            is_good: bool[N], of each.
            length: tokens of a row.
            batch_size: rows of a batch.
            seed: of the order.
            reference: as the attribute.

        Raises:
            UserError: no example, or fewer than two rows in a batch.
        """
        if batch_size < 2:
            raise errors.UserError(
                f"batch_size {batch_size} leaves no other answer; use 2 or more"
            )
        conversation_rows.check_count(len(examples.ends), batch_size)
        self.rows, self.count = batch_size, len(examples.ends)
        self.length, self.seed, self.reference = length, seed, reference
        order = mixture.permutation(self.count, seed, 0).astype(np.int64)
        self.examples, self.is_good = examples.take(order), np.asarray(is_good)[order]
        self._orders: dict = {}

    def __call__(self, step: int, rows: slice = slice(None)) -> dict[str, np.ndarray]:
        """`tokens` i32[B, 2, L], `loss_mask` f32[B, 2, L], `is_desirable` bool[B]."""
        return self.fill(self._draw(step)[0][rows])

    def describe(self, step: int) -> list[tuple[int, list[int]]]:
        """(epoch, [example]) of each row of a step; [] of an empty one."""
        drawn, epoch = self._draw(step)
        return [(epoch, [int(row)] if row >= 0 else []) for row in drawn]

    def _draw(self, step: int) -> tuple[np.ndarray, int]:
        """i64[B]: the rows of a step, -1 of empty ones; and their epoch."""
        blocks, numbers = -(-self.count // self.rows), np.array([step])
        block, epoch = mixture.endless(numbers, blocks, self.seed, self._orders)
        chosen = np.arange(block[0] * self.rows, (block[0] + 1) * self.rows)
        return np.where(chosen < self.count, chosen, -1), int(epoch[0])

    def fill(self, chosen: np.ndarray) -> dict[str, np.ndarray]:
        """A batch of rows by number; -1 is an empty one."""
        shape = len(chosen), 2, self.length
        batch: dict[str, np.ndarray] = {
            "tokens": np.zeros(shape, np.int32),
            "loss_mask": np.zeros(shape, np.float32),
            "is_desirable": self.is_good[chosen] & (chosen >= 0),
        }
        for number, row in enumerate(chosen):
            if row < 0:
                continue
            prompt, _ = self._parts(row)
            for side, answered in enumerate((row, self._before(row))):
                if side and answered == row:
                    continue  # alone in its batch
                answer, is_label = self._parts(answered)[1]
                tokens = np.concatenate([prompt, answer])[: self.length]
                labels = is_label[: len(tokens) - len(prompt)]
                batch["tokens"][number, side, : len(tokens)] = tokens
                batch["loss_mask"][number, side, len(prompt) : len(tokens)] = labels
        if self.reference is not None:
            batch["reference_logps"] = self.reference[chosen].astype(np.float32)
        return batch

    def _before(self, row: int) -> int:
        """The row before one in its batch; of the first the last."""
        first = row // self.rows * self.rows
        last = min(first + self.rows, self.count) - 1
        return row - 1 if row > first else last

    def _parts(self, row: int) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
        """The prompt's tokens, and the answer's tokens and labels."""
        start = self.examples.ends[row - 1] if row else 0
        own = slice(start, self.examples.ends[row])
        tokens, is_label = self.examples.tokens[own], self.examples.is_label[own]
        first = int(np.argmax(is_label))
        return tokens[:first], (tokens[first:], is_label[first:])

    @property
    def fingerprint(self) -> dict[str, Any]:
        """What must be equal for two runs to read the same."""
        good = np.ascontiguousarray(self.is_good, np.uint8)
        digest = conversation_rows.sha256(self.examples)
        return {
            "answers": self.count,
            "sha256": hashlib.sha256(digest.encode() + good.tobytes()).hexdigest(),
        }


def spec(rows: int, length: int, *, reference: bool = False) -> conversation_rows.Spec:
    """Name -> (shape, dtype) of the arrays of a batch of `JudgedRows`."""
    own = conversation_rows.pair_spec(rows, length, reference=reference)
    return own | {"is_desirable": ((rows,), np.bool_)}

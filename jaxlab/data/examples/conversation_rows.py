"""Batches of conversations and of pairs, each a pure function of (seed, step).

Rows of conversations hold one each, as in TÜLU's programs, or, `packed`, as many as
fit (`packing`), which attention keeps apart by segment. Rows are fixed once; each epoch
has an order of its own, and a batch may hold the end of one and the beginning of the
next. Several hosts ask for their rows of the same global batch.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from jaxlab.core import errors
from jaxlab.data.batches import mixture, packing
from jaxlab.data.examples import chat

Spec = dict[str, tuple[tuple[int, ...], type[np.generic]]]


class Rows:
    """Batches of conversations, for `objectives.next_token`.

    Attributes:
        rows: of the global batch, B.
        count: rows of an epoch.
    """

    def __init__(
        self,
        examples: chat.Examples,
        *,
        length: int,
        batch_size: int,
        seed: int = 0,
        packed: bool = True,
    ):
        """Puts examples of at most `length` tokens into rows.

        Raises:
            UserError: no example, or no row in a batch.
        """
        check_count(len(examples.ends), batch_size)
        self.examples, self.length, self.seed = examples, length, seed
        self.rows = batch_size
        sizes = examples.sizes
        whole = [[item] for item in range(len(sizes))]
        self._contents = packing.pack(sizes, length) if packed else whole
        self.count = len(self._contents)
        self._orders: dict = {}

    def __call__(self, step: int, rows: slice = slice(None)) -> dict[str, np.ndarray]:
        """`tokens`, `segment_ids`, `positions` i32[B, L] and `loss_mask` f32[B, L]."""
        return self.fill(_draw(self, step)[0][rows])

    def describe(self, step: int) -> list[tuple[int, list[int]]]:
        """(epoch, examples) of each row of a step."""
        return [
            (int(epoch), self._contents[row])
            for row, epoch in zip(*_draw(self, step), strict=True)
        ]

    def fill(self, chosen: np.ndarray) -> dict[str, np.ndarray]:
        """A batch of rows by number; -1 is an empty one."""
        batch = _empty(row_spec(len(chosen), self.length))
        for number, row in enumerate(chosen):
            first = 0
            items = self._contents[row] if row >= 0 else []
            for segment, item in enumerate(items, start=1):
                last = _put(batch, (number,), first, self.examples, item)
                batch["segment_ids"][number, first:last] = segment
                batch["positions"][number, first:last] = np.arange(last - first)
                first = last
        return batch

    @property
    def fingerprint(self) -> dict[str, Any]:
        """What must be equal for two runs to read the same."""
        return {
            "examples": len(self.examples.ends),
            "rows": self.count,
            "sha256": sha256(self.examples),
        }


class PairRows:
    """Batches of pairs, for `objectives.preference`.

    Attributes:
        rows: pairs of the global batch, B.
        count: pairs of an epoch.
    """

    def __init__(
        self,
        chosen: chat.Examples,
        rejected: chat.Examples,
        *,
        length: int,
        batch_size: int,
        seed: int = 0,
        reference: np.ndarray | None = None,
        margins: np.ndarray | None = None,
    ):
        """Pairs of examples of at most `length` tokens.

        Args:
            chosen, rejected: as `match_sides` returns them.
            length: tokens of a row.
            batch_size: pairs of a batch.
            seed: of the order.
            reference: f32[N, 2]: log-probabilities of chosen and rejected under the
                reference policy, given to the loss as `reference_logps`.
            margins: f32[N], for `objectives.reward`, which reads scores at the end of
                both: batches have `margin` and `lengths` i32[B, 2] then.

        Raises:
            UserError: no pair, or no pair in a batch.
        """
        check_count(len(chosen.ends), batch_size)
        self.sides, self.length, self.seed = (chosen, rejected), length, seed
        self.rows, self.count, self.reference = batch_size, len(chosen.ends), reference
        self.margins = margins
        self._orders: dict = {}

    def __call__(self, step: int, rows: slice = slice(None)) -> dict[str, np.ndarray]:
        """`tokens` i32[B, 2, L], `loss_mask` f32[B, 2, L]: chosen, then rejected."""
        return self.fill(_draw(self, step)[0][rows])

    def describe(self, step: int) -> list[tuple[int, list[int]]]:
        """(epoch, [pair]) of each row of a step."""
        drawn = zip(*_draw(self, step), strict=True)
        return [(int(epoch), [int(pair)]) for pair, epoch in drawn]

    def fill(self, chosen: np.ndarray) -> dict[str, np.ndarray]:
        """A batch of pairs by number; -1 is an empty one."""
        batch = _empty(pair_spec(len(chosen), self.length))
        for number, item in enumerate(chosen):
            for side, examples in enumerate(self.sides if item >= 0 else ()):
                _put(batch, (number, side), 0, examples, item)
        if self.reference is not None:
            batch["reference_logps"] = self.reference[chosen].astype(np.float32)
        if self.margins is not None:
            batch["margin"] = self.margins[chosen].astype(np.float32)
            sizes = np.stack([side.sizes[chosen] for side in self.sides], axis=1)
            batch["lengths"] = np.where(chosen[:, None] >= 0, sizes, 0).astype(np.int32)
        return batch

    @property
    def fingerprint(self) -> dict[str, Any]:
        """What must be equal for two runs to read the same."""
        own = {"pairs": self.count, "sha256": sha256(*self.sides)}
        if self.margins is not None:
            own["margins"] = hashlib.sha256(self.margins.tobytes()).hexdigest()
        return own


def row_spec(rows: int, length: int) -> Spec:
    """Name -> (shape, dtype) of the arrays of a batch of `Rows`."""
    dtypes = dict.fromkeys(("tokens", "segment_ids", "positions"), np.int32)
    dtypes["loss_mask"] = np.float32
    return {name: ((rows, length), dtype) for name, dtype in dtypes.items()}


def pair_spec(
    pairs: int, length: int, *, reference: bool = False, margins: bool = False
) -> Spec:
    """Name -> (shape, dtype) of the arrays of a batch of `PairRows`.

    Args:
        pairs: of a batch.
        length: tokens of a row.
        reference: it has log-probabilities of the reference policy.
        margins: it has margins and lengths, as for reward models.
    """
    dtypes = {"tokens": np.int32, "loss_mask": np.float32}
    spec: Spec = {name: ((pairs, 2, length), dtype) for name, dtype in dtypes.items()}
    if margins:
        spec |= {"margin": ((pairs,), np.float32), "lengths": ((pairs, 2), np.int32)}
    return spec | ({"reference_logps": ((pairs, 2), np.float32)} if reference else {})


def match_sides(
    chosen: chat.Examples, rejected: chat.Examples
) -> tuple[chat.Examples, chat.Examples]:
    """Both sides of the pairs that have something to learn on both."""
    both = np.intersect1d(chosen.number, rejected.number)
    return tuple(x.take(np.searchsorted(x.number, both)) for x in (chosen, rejected))


def parts(
    sides: Sequence[chat.Examples], fraction: float, seed: int
) -> list[tuple[chat.Examples, ...]]:
    """What is trained on, and what is held out where anything is, of each side.

    Args:
        sides: examples of one number: conversations, or chosen and rejected ones.
        fraction: that is held out.
        seed: of the split.

    Raises:
        UserError: a fraction that leaves nothing to train on.
    """
    if not 0 <= fraction < 1:
        raise errors.UserError(f"data.held_out_fraction {fraction}; use 0 to below 1")
    trained_on, held_out = split(len(sides[0].ends), fraction, seed)
    numbers = [trained_on, held_out] if len(held_out) else [trained_on]
    return [tuple(side.take(part) for side in sides) for part in numbers]


def split(count: int, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """i64 numbers of what is trained on, and of what is held out, both sorted.

    >>> [part.tolist() for part in split(5, 0.4, seed=0)]
    [[0, 1, 3], [2, 4]]
    """
    if not count:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    held_out = int(count * fraction)
    order = mixture.permutation(count, seed, 0).astype(np.int64)
    return np.sort(order[held_out:]), np.sort(order[:held_out])


def eval_batches(
    rows: Rows | PairRows, most: int = 0
) -> Iterator[Mapping[str, np.ndarray]]:
    """Batches of one shape that hold every row once, in order.

    Args:
        rows: of these; empty ones fill up the last batch.
        most: batches; 0 is all.
    """
    for number, start in enumerate(range(0, rows.count, rows.rows)):
        if most and number >= most:
            return
        chosen = np.arange(start, start + rows.rows)
        yield rows.fill(np.where(chosen < rows.count, chosen, -1))


def sha256(*examples: chat.Examples) -> str:
    """Of tokens, labels and borders."""
    digest = hashlib.sha256()
    for some in examples:
        for array in (some.tokens, some.is_label, some.ends):
            digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _draw(batches: Rows | PairRows, step: int) -> tuple[np.ndarray, np.ndarray]:
    """i64[B] twice: the rows of an epoch that a step takes, and the epochs."""
    numbers = np.arange(step * batches.rows, (step + 1) * batches.rows)
    return mixture.endless(numbers, batches.count, batches.seed, batches._orders)


def check_count(count: int, batch_size: int) -> None:
    """Refuses no example, and no row in a batch.

    Raises:
        UserError: either of the two.
    """
    if batch_size < 1:
        raise errors.UserError(f"batch_size {batch_size} is too small; use >= 1")
    if not count:
        raise errors.UserError(
            "there is no example to train on: add some, or raise data.length if all "
            "answers were cut off"
        )


def _empty(spec: Spec) -> dict[str, np.ndarray]:
    return {name: np.zeros(shape, dtype) for name, (shape, dtype) in spec.items()}


def _put(batch, row: tuple, first: int, examples: chat.Examples, item: int) -> int:
    """Writes an example into a row from `first` on; returns where it ends."""
    start, stop = examples.ends[item - 1] if item else 0, examples.ends[item]
    last = first + int(stop - start)
    batch["tokens"][(*row, slice(first, last))] = examples.tokens[start:stop]
    batch["loss_mask"][(*row, slice(first, last))] = examples.is_label[start:stop]
    return last

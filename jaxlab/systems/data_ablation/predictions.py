"""What the experts of a pool predict on one evaluation set, kept on disk.

Each expert reads an evaluation set once. Its log-probabilities are kept under the hash
of its parameters and of the set, so that another ranking or search by the ensemble runs
no model, and an expert that was added later is the only one that is run. The losses of
merged mixtures and of the seed model are kept alike.
"""

import functools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxlab import ablation, models
from jaxlab.core import progress as progress_lib
from jaxlab.core import types
from jaxlab.data.tokenizers import tokenizer as tokenizer_lib
from jaxlab.systems.data_ablation import experts


class Subject(NamedTuple):
    """Experts that share one model, and where their predictions are kept.

    Attributes:
        pool: the experts, and the seed model if it is known.
        decoder: their model.
        tokenizer: its tokenizer.
        cache: folder of kept predictions, or None.
        fingerprints: expert -> that of its parameters; used with `cache`.
        seed_fingerprint: of the seed model's parameters.
    """

    pool: ablation.ModelPool
    decoder: models.Decoder
    tokenizer: tokenizer_lib.Tokenizer
    cache: pathlib.Path | None = None
    fingerprints: Mapping[str, str] | None = None
    seed_fingerprint: str = ""

    @property
    def losses_fn(self) -> Any:
        """(params, batch) -> nats and tokens by row."""
        return experts.losses_of(self.decoder)


def expert_logps(
    subject: Subject,
    batches: Sequence[types.Batch],
    progress: progress_lib.Progress | None = None,
) -> ablation.TokenLogps:
    """One pass of every expert whose predictions are not kept yet."""
    pool, logps_fn = subject.pool, experts.logps_of(subject.decoder)
    if subject.cache is None:
        return ablation.expert_logps(pool, logps_fn, batches, progress=progress)
    text = ablation.cache.digest(list(batches))
    keys = {
        name: ablation.cache.digest("logps by window", subject.fingerprints[name], text)
        for name in pool.names
    }
    by_expert = {
        name: ablation.cache.load(_path(subject, key), ablation.TokenLogps, key)
        for name, key in keys.items()
    }
    if missing := [name for name in pool.names if by_expert[name] is None]:
        part = ablation.ModelPool.create({name: pool.expert(name) for name in missing})
        fresh = ablation.expert_logps(part, logps_fn, batches, progress=progress)
        for index, name in enumerate(missing):
            by_expert[name] = fresh._replace(logps=fresh.logps[index : index + 1])
            ablation.cache.save(_path(subject, keys[name]), by_expert[name], keys[name])
    rows = np.concatenate([by_expert[name].logps for name in pool.names])
    return by_expert[pool.names[0]]._replace(logps=rows)


def merged_losses(
    subject: Subject,
    mixtures: Sequence[ablation.Mixture],
    batches: Sequence[types.Batch],
    progress: progress_lib.Progress | None = None,
) -> ablation.DocumentLosses:
    """The losses of merged models, by document."""
    rows = subject.pool.weights(mixtures)
    return _load_or_compute(
        subject,
        lambda: ("merged", dict(subject.fingerprints), subject.pool.names, rows),
        batches,
        lambda: ablation.document_losses(
            subject.pool, mixtures, subject.losses_fn, batches, progress=progress
        ),
    )


def ensemble_losses(
    subject: Subject,
    mixtures: Sequence[ablation.Mixture],
    logps: ablation.TokenLogps,
) -> ablation.DocumentLosses:
    """The losses of the mixtures' ensembles, by document; no model is run."""
    rows = subject.pool.weights(mixtures)
    return ablation.ensemble.document_losses(logps, rows)


def seed_loss(subject: Subject, batches: Sequence[types.Batch]) -> float | None:
    """The seed model's loss in nats per token; None where it is unknown."""
    if subject.pool.seed is None:
        return None
    compute = functools.partial(
        ablation.model_losses, [subject.pool.seed], subject.losses_fn, batches
    )
    losses = _load_or_compute(
        subject, lambda: ("seed", subject.seed_fingerprint), batches, compute
    )
    return float(losses.loss[0])


def _load_or_compute(subject, key, batches, compute) -> ablation.DocumentLosses:
    if subject.cache is None:
        return compute()
    digest = ablation.cache.digest("by window", key(), list(batches))
    path = _path(subject, digest)
    return ablation.cache.load_or_compute(
        path, ablation.DocumentLosses, digest, compute
    )


def _path(subject: Subject, digest: str) -> pathlib.Path:
    return subject.cache / f"{digest[:24]}.npz"

"""Rerankers and retrieval encoders, trained from published weights or from each other.

    retrieval sets with judged queries -> mined negatives       systems/refit/mining.py
    rerank   a cross-encoder, by lists of candidates            objectives.listwise
    embed    a bi-encoder, by in-batch and mined negatives      objectives.contrastive

Nogueira and Cho 2019 (arXiv:1901.04085); Gao et al. 2021 (arXiv:2101.08751);
Karpukhin et al. 2020 (arXiv:2004.04906). A share of the training queries is held out
and evaluated beside the bi-encoder that mined, so that test queries choose nothing.

Deviations: there is no dropout (`models/bert/encoder.py`).
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np

from jaxlab import load, models, objectives, optim, retrieval
from jaxlab.core import errors, paths, progress, ranges, runs, types
from jaxlab.core import mesh as mesh_lib
from jaxlab.data.examples import ranked_lists, text_rows
from jaxlab.models import sections
from jaxlab.models.bert import encoder as encoder_lib
from jaxlab.retrieval import encode, metrics, own_documents
from jaxlab.systems import experiments
from jaxlab.systems.refit import mining

OBJECTIVES = {"listwise": objectives.listwise, "pointwise": objectives.pointwise}
# Where they are those of the model that a run starts from.
_SOME_SIZES = {"embed": 64, "layers": 1, "heads": 1, "mlp": 64}
_METRICS = ("ndcg@10", "mrr@10")


def rerank(
    config: ml_collections.ConfigDict, workdir: pathlib.Path, mesh: jax.sharding.Mesh
) -> types.Experiment:
    """The cross-encoder that `configs/refit.py:cross_encoder` describes."""
    paths.refuse_buckets(workdir, "encoders.rerank")
    start = _open(config, mesh)
    scorer, params = start.config, start.params
    if scorer.head != "score" or len(scorer.labels) != 1:
        scorer, params = encoder_lib.as_scorer(
            scorer, params, jax.random.key(config.seed)
        )
    ranges.check_length("--config.data.length", config.data.length, scorer.length)
    sets = _mine(config, workdir, mesh)
    batches = ranked_lists.Lists(
        mining.training_lists(sets, config.mine.depth, config.prior),
        start.tokenizer,
        batch_size=config.data.batch_size,
        candidates=config.data.candidates,
        length=config.data.length,
        seed=config.data.seed,
    )
    model = models.BertScorer(scorer)
    return _experiment(
        config,
        workdir,
        model=model,
        start=start._replace(config=scorer, model=model, params=params),
        batches=batches,
        evals=rerank_evals(model.apply, start.tokenizer, sets, config),
    )


def embed(
    config: ml_collections.ConfigDict, workdir: pathlib.Path, mesh: jax.sharding.Mesh
) -> types.Experiment:
    """The bi-encoder that `configs/refit.py:bi_encoder` describes."""
    paths.refuse_buckets(workdir, "encoders.embed")
    start = _open(config, mesh)
    if start.config.head == "score":
        raise errors.UserError(f"init_from {config.init_from} is a cross-encoder")
    for key in ("length", "query_length"):
        ranges.check_length(
            f"--config.data.{key}", config.data[key], start.config.length
        )
    try:
        encoder = start.config.for_search
    except errors.ArgumentError as error:
        raise errors.UserError(f"init_from {config.init_from}: {error}") from error
    start = start._replace(config=encoder)
    sets = _mine(config, workdir, mesh)
    lists = mining.training_lists(sets, config.mine.depth)
    batches = ranked_lists.Contrasts(
        lists._replace(
            queries=[*map(encoder.query, lists.queries)],
            documents=[*map(encoder.document, lists.documents)],
        ),
        start.tokenizer,
        batch_size=config.data.batch_size,
        negatives=config.data.negatives,
        query_length=config.data.query_length,
        length=config.data.length,
        seed=config.data.seed,
    )
    model = models.BertEncoder(start.config)
    return _experiment(
        config,
        workdir,
        model=model,
        start=start,
        batches=batches,
        evals=embed_evals(model.apply, start, sets, config),
    )


def experiment(
    config: ml_collections.ConfigDict,
    model: models.BertScorer | models.BertEncoder,
    /,
    **data: Any,
) -> types.Experiment:
    """What a config of `rerank` or `embed` trains.

    Args:
        config: the whole of it.
        model: of its sizes.
        **data: the fields of an Experiment that need data or a start.

    Raises:
        UserError: a setting that the objective or the optimizer cannot use.
    """
    return experiments.with_numbers(config, functools.partial(_build, model), data)


def check(config: ml_collections.ConfigDict) -> None:
    """Refuses what no start could be trained by; opens neither device nor file."""
    some = models.BertConfig(vocab=128, **{**config.model.to_dict(), **_SOME_SIZES})
    experiment(config, models.BertEncoder(some), batches=None)


def rerank_evals(
    apply: Callable,
    tokenizer: Any,
    sets: Sequence[mining.MinedSet],
    config: ml_collections.ConfigDict,
) -> dict[str, Callable[[types.Params], dict[str, float]]]:
    """Set -> function of params: measures of held-out queries' first documents.

    `first_...` are those of the order in which the bi-encoder found them.
    """

    def evaluate(one, queries, params):
        rows = np.stack([one.rows[x][: config.eval.depth] for x in queries])
        encoded = text_rows.encode_pairs(
            tokenizer,
            [one.queries[x] for x in queries for _ in rows[0]],
            [one.passages[x] for x in rows.ravel()],
            config.data.length,
            cut="longest",
        )
        scores = encode.apply_rows(_on_every_host(apply), params, encoded)
        first = [[one.scores[x][row] for row in one.rows[x]] for x in queries]
        first = np.array(first)[:, : rows.shape[1]]
        scores = scores.reshape(rows.shape) + config.eval.prior * first
        return _measure(one, queries, rows, scores, first)

    return _by_set(evaluate, sets, config)


def embed_evals(
    apply: Callable,
    start: load.Loaded,
    sets: Sequence[mining.MinedSet],
    config: ml_collections.ConfigDict,
) -> dict[str, Callable[[types.Params], dict[str, float]]]:
    """Set -> function of params: measures of held-out queries among a pool.

    The pool is every document that one of them found or that is relevant to one;
    `first_...` are the measures of the parameters that the run started from.
    """

    def search(one, queries, params):
        row = {x: i for i, x in enumerate(one.ids)}
        relevant = {row[x] for query in queries for x in one.qrels[query]}
        nearest = {x for query in queries for x in one.rows[query].tolist()}
        pool = np.array(sorted(relevant | nearest))
        vectors = functools.partial(
            encode.embed_texts, _on_every_host(apply), params, start.tokenizer
        )
        texts = [start.config.query(one.queries[x]) for x in queries]
        asked = vectors(texts, length=config.data.length)
        texts = [start.config.document(one.passages[x]) for x in pool]
        documents = vectors(texts, length=config.data.length)
        index = retrieval.Index(documents.vectors, pool.tolist())
        scores, rows = index.search(asked.vectors, config.eval.depth)
        return rows, scores

    at_start: dict[str, Any] = {}

    def evaluate(one, queries, params):
        if one.name not in at_start:
            at_start[one.name] = search(one, queries, start.params)
        before = _measure(one, queries, *at_start[one.name])
        now = _measure(one, queries, *search(one, queries, params))
        return now | {f"first_{x}": before[x] for x in _METRICS}

    return _by_set(evaluate, sets, config)


# ------------------------------------------------------------------ parts


def _experiment(config, workdir, *, model, start, batches, evals):
    if jax.process_index() == 0:
        start.tokenizer.save(runs.encoder_tokenizer_folder(workdir))
    return experiment(
        config,
        model,
        batches=batches,
        init_from=start.params,
        evals=evals,
        config={
            **config.to_dict(),
            "encoder": sections.encoder_section(start.config),
            "data_order": {
                "queries": len(batches.data.queries),
                "sha256": batches.data.sha256(),
                "truncated": batches.count_truncated(),
            },
        },
    )


def _build(model, config, /, **data: Any) -> types.Experiment:
    tx, rate = optim.build(optim.OptimConfig(**config.optim.to_dict()), config.steps)
    return types.Experiment(
        model=model,
        objective=_objective(config, model.apply),
        tx=tx,
        steps=config.steps,
        example=(np.zeros((1, 8), np.int32), np.ones((1, 8), bool)),
        micro_batches=config.micro_batches,
        seed=config.seed,
        learning_rate=rate,
        **data,
    )


def _objective(config, apply: Callable) -> types.Objective:
    if "contrastive" not in config:
        if config.objective not in OBJECTIVES:
            raise errors.UserError(
                f"objective {config.objective!r}; use one of {', '.join(OBJECTIVES)}"
            )
        return OBJECTIVES[config.objective](apply)
    if config.micro_batches != 1:
        raise errors.UserError(
            f"micro_batches {config.micro_batches} would leave out negatives: use 1, "
            "and contrastive.chunks to save memory"
        )
    queries, chunks = config.data.batch_size, config.contrastive.chunks
    objective = objectives.contrastive(
        apply, queries=queries, **config.contrastive.to_dict()
    )
    if queries % chunks:
        raise errors.UserError(
            f"contrastive.chunks {chunks} does not divide a batch of {queries} queries;"
            " set it to a divisor of data.batch_size"
        )
    return objective


def _open(config, mesh) -> load.Loaded:
    """`init_from`, computed as the config's `model` section says."""
    if not config.init_from:
        raise errors.UserError(
            "set --config.init_from to an encoder: a Hugging Face folder or a run"
        )
    start = load.bert(config.init_from, mesh=mesh)
    changed = dataclasses.replace(start.config, **config.model.to_dict())
    return start._replace(config=changed)


def _mine(config, workdir, mesh) -> list[mining.MinedSet]:
    if not config.data.sets:
        raise errors.UserError(
            "set --config.data.sets to BEIR folders, e.g. \"({'folder': 'scifact', "
            "'split': 'train'},)\""
        )
    path = config.mine.encoder or config.init_from
    encoder = load.encoder(path, mesh=mesh)
    length = config.mine.length or encoder.config.row_length
    ranges.check_length("--config.mine.length", length, encoder.config.length)
    folder = pathlib.Path(config.mine.index or workdir / "index")
    options = {
        "length": length,
        "depth": max(config.mine.depth, config.eval.depth),
        "held_out": config.data.held_out,
        "seed": config.data.split_seed,
    }
    sets, watch = [], progress.Clock()
    say = watch.say if jax.process_index() == 0 else lambda text: None
    say(f"mining negatives with {path}: the documents of {len(config.data.sets)} sets")
    for entry in config.data.sets:
        if entry in config.data.sets[: len(sets)]:  # up-weighted by being repeated
            sets.append(sets[config.data.sets.index(entry)])
            continue
        meter = progress.Meter("documents encoded", say)
        with progress.announce("mining", say):
            one = mining.mine(entry, path, encoder, folder, progress=meter, **options)
        if one.name in [other.name for other in sets]:
            raise errors.UserError(
                f"data.sets: two different sets are called {one.name}; rename a folder"
            )
        sets.append(one)
        say(
            f"{one.name}: {len(one.trained_on)} queries to train on, "
            f"{len(one.held_out)} held out, {len(one.ids)} documents"
        )
    return sets


def _by_set(evaluate, sets, config) -> dict[str, Callable]:
    by_name = {one.name: one for one in sets}  # a set that is repeated counts once
    asked = {name: _evaluated_queries(one, config) for name, one in by_name.items()}
    return {
        name: functools.partial(evaluate, one, asked[name])
        for name, one in by_name.items()
        if asked[name]
    }


def _evaluated_queries(one: mining.MinedSet, config) -> list[str]:
    """The held-out queries that are evaluated."""
    return list(one.held_out[: config.eval.queries or None])


def _measure(
    one: mining.MinedSet,
    queries: Sequence[str],
    rows: np.ndarray,
    scores: np.ndarray,
    first: np.ndarray | None = None,
) -> dict[str, float]:
    """Means over the queries, and those of the scores `first` beside them."""
    qrels = {query: one.qrels[query] for query in queries}

    def means(scores) -> Mapping[str, float]:
        ids = np.array(one.ids, object)[rows]
        run = metrics.as_run(queries, scores, ids)
        run, _ = own_documents.leave_out(run, qrels)
        return metrics.evaluate(qrels, run, _METRICS).means

    before = {} if first is None else means(first)
    return {
        **means(scores),
        **{f"first_{name}": value for name, value in before.items()},
        "queries": float(len(queries)),
    }


@functools.cache
def _on_every_host(apply: Callable) -> Callable:
    """`apply` with a result that every host can read; one function for each model."""

    def gather(variables, *rows):
        return mesh_lib.replicate(apply(variables, *rows))

    return gather

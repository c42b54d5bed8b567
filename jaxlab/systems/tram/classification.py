"""Zero-shot cross-lingual transfer: learn a task in one language, be asked in others.

    a decoder pre-trained on text of all languages        olmo.pretrain
    -> trunk of a Classifier with a fresh head            classify
    -> fine-tuned on labelled texts of one language
    -> accuracy on the test texts of every language

The second protocol of TRAM (Sherborne et al. 2023, arXiv:2310.03646, section 4), at the
scale of a laptop: SIB-200's topics (Adelani et al. 2023, arXiv:2309.07445) or PAWS-X's
paraphrases (Yang et al. 2019, arXiv:1908.11828). How answers move to other languages
hangs on the pre-trained model: `tools/multilingual/` makes the text that it is trained
on, and a start in which translations are alike.

Deviations: the trunk is a decoder that was trained causally, where the paper starts
from XLM-R; its attention sees both directions here unless `model.is_causal` is set.
"""

import dataclasses
import functools
import hashlib
import logging
import pathlib
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import ml_collections
import numpy as np
from flax import linen as nn

from jaxlab import load, models, objectives, optim
from jaxlab.core import errors, ranges, runs, types
from jaxlab.data.examples import labelled
from jaxlab.evals import accuracy
from jaxlab.systems import experiments, trust_regions

_TRUNK = ("embed", "blocks", "final_norm")

_log = logging.getLogger(__name__)


def classify(
    config: ml_collections.ConfigDict, workdir: pathlib.Path, mesh: jax.sharding.Mesh
) -> types.Experiment:
    """The experiment that `configs/languages.py` describes."""
    del workdir  # nothing of the data is kept there
    data = config.data

    # ---- the start and the texts, as its tokenizer encodes them
    opened = _open_decoder(config.init_from, mesh)
    texts = _read_texts(data)
    encode = functools.partial(
        labelled.encode, opened.tokenizer, length=_length(config, opened)
    )
    train = encode(texts.train)
    tests = {name: encode(examples) for name, examples in texts.tests.items()}
    truncated = {"train": train.truncated}
    truncated |= {name: examples.truncated for name, examples in tests.items()}
    if any(truncated.values()):
        _log.warning("texts cut at %d tokens: %s", data.length, truncated)

    # ---- the classifier
    model = models.Classifier(
        dataclasses.replace(opened.config, **config.model.to_dict()),
        len(texts.labels),
    )
    made = experiments.with_numbers(
        config,
        functools.partial(_build, model),
        {
            "batches": labelled.Batches(train, data.batch_size, data.seed),
            "evals": accuracy_evals(model, tests, data.batch_size),
            "config": {
                **config.to_dict(),
                "labels": list(texts.labels),
                "data_order": {
                    "examples": len(train.labels),
                    "sha256": _sha256(train),
                },
                "truncated": truncated,
            },
        },
    )
    start = _with_fresh_head(made, opened.params)
    return dataclasses.replace(made, init_from=start)


def check(config: ml_collections.ConfigDict) -> None:
    """Refuses what no start could be trained by; opens neither device nor file."""
    _check_splits(config.data)
    some = models.TransformerConfig(
        vocab=128, embed=64, layers=1, heads=1, mlp=64, **config.model.to_dict()
    )
    experiments.with_numbers(
        config, functools.partial(_build, models.Classifier(some, 2)), {"batches": None}
    )


def _build(model, config, /, **data) -> types.Experiment:
    tx, rate = optim.build(optim.OptimConfig(**config.optim.to_dict()), config.steps)
    experiment = types.Experiment(
        model=model,
        objective=objectives.task_loss(objectives.classifier(model.apply)),
        tx=tx,
        steps=config.steps,
        example=(np.zeros((1, 8), np.int32), np.ones((1, 8), bool)),
        micro_batches=config.micro_batches,
        seed=config.seed,
        learning_rate=rate,
        **data,
    )
    return trust_regions.from_section(experiment, config.trust, objectives.classifier)


def evaluation_batches(
    config: ml_collections.ConfigDict, mesh: jax.sharding.Mesh
) -> dict[str, list[dict[str, np.ndarray]]]:
    """Language -> the batches that `classify` evaluates it on."""
    opened = _open_decoder(config.init_from, mesh)
    texts = _read_texts(config.data)
    return {
        name: list(
            labelled.eval_batches(
                labelled.encode(opened.tokenizer, examples, _length(config, opened)),
                config.data.batch_size,
            )
        )
        for name, examples in texts.tests.items()
    }


def accuracy_evals(
    model: models.Classifier, tests: Mapping[str, labelled.Encoded], batch_size: int
) -> dict[str, Callable[[types.Params], dict[str, float]]]:
    """Language -> function of params that returns those of `accuracy.evaluate`."""
    return {
        name: functools.partial(
            lambda batches, params: accuracy.evaluate(model.apply, params, batches),
            list(labelled.eval_batches(examples, batch_size)),
        )
        for name, examples in tests.items()
    }


def _open_decoder(path, mesh) -> load.Loaded:
    if not path:
        raise errors.UserError(
            "set --config.init_from to a model that has seen all languages: a run of "
            "jaxlab train, or a Hugging Face folder, of a decoder"
        )
    run = runs.find(path)
    if run is not None and run.kind != "decoder":
        raise errors.UserError(
            f"init_from {path} is not a run of a decoder; give the run that it started "
            "from"
        )
    return load.decoder(path, mesh=mesh)


def _length(config, opened) -> int:
    length = config.data.length
    ranges.check_length("--config.data.length", length, opened.config.length)
    return length


class _Texts(NamedTuple):
    """What a run reads: examples to train on, language -> examples to be asked."""

    train: labelled.Labelled
    tests: dict[str, labelled.Labelled]
    labels: tuple[str, ...]


def _read_texts(data: ml_collections.ConfigDict) -> _Texts:
    """The training examples and those of every language that is tested.

    Raises:
        UserError: a language or split that is not there; a test on what is trained on;
            a label that no training example has.
    """
    if not data.source:
        raise errors.UserError(
            "set --config.data.source to a folder of SIB-200's or PAWS-X's layout"
        )
    sets, labels = labelled.read(data.source)
    train = sets.get(data.train_language, {}).get(data.train_split)
    if train is None:
        there = [f"{name} {split}" for name, splits in sets.items() for split in splits]
        raise errors.UserError(
            f"{data.source} has no {data.train_language} {data.train_split}; there are "
            f"{', '.join(there)}"
        )
    _check_splits(data)
    wanted = list(data.languages) or list(sets)
    if missing := [n for n in wanted if data.eval_split not in sets.get(n, {})]:
        raise errors.UserError(
            f"{data.source} has no {data.eval_split} split of {', '.join(missing)}; "
            "add it or set data.languages"
        )
    tests = {name: sets[name][data.eval_split] for name in wanted}
    learnt = {*train.labels.tolist()}
    if never := [labels[i] for i in range(len(labels)) if i not in learnt]:
        raise errors.UserError(
            f"no {data.train_language} {data.train_split} example is labelled "
            f"{', '.join(never)}; add some"
        )
    return _Texts(train, tests, labels)


def _check_splits(data: ml_collections.ConfigDict) -> None:
    if data.eval_split == data.train_split:
        raise errors.UserError(
            f"data.eval_split is data.train_split, {data.train_split!r}: its texts are "
            "translations of those that are trained on; use another split"
        )


def _with_fresh_head(
    experiment: types.Experiment, decoder: types.Params
) -> types.Params:
    """The decoder's trunk, and the head that the experiment's seed draws."""
    key, _ = jax.random.split(jax.random.key(experiment.seed))

    @jax.jit
    def head(key):
        params = experiment.model.init(key, *experiment.example)["params"]
        return nn.unbox(params)["classify"]

    trunk = {name: decoder[name] for name in _TRUNK if name in decoder}
    return {**trunk, "classify": head(key)}


def _sha256(examples: labelled.Encoded) -> str:
    digest = hashlib.sha256()
    for array in (examples.tokens, examples.mask, examples.labels):
        digest.update(array.tobytes())
    return digest.hexdigest()

"""Cross-domain language modelling: fine-tune on one domain, perplexity on the others.

Protocol (a) of TRAM's comparison (`systems/tram/study.py`), after section 5.2 of
Sherborne et al. 2023 (arXiv:2310.03646): GPT-2 on one domain of M2D2, zero-shot
perplexity on all.

    WORKDIR/model    pre-trained on some domains, or a run of the user's
    WORKDIR/data     token files of every domain, held-out files of every domain
"""

import dataclasses
import pathlib
from collections.abc import Sequence

import numpy as np

from jaxlab import objectives
from jaxlab.core import checkpoint, errors
from jaxlab.core import mesh as mesh_lib
from jaxlab.data import prepared
from jaxlab.systems import branches, corpora
from jaxlab.systems.olmo import config as olmo_config
from jaxlab.systems.olmo import pretraining
from jaxlab.systems.tram import study

_PROBED_TARGETS = 4
# Times the rate of an ablation's experts, which is constant from the first step. Adam's
# perplexity on biomedical abstracts at 2, 4 and 8 times the small size's: 121.0, 113.9
# and 121.4.
_RATE = 4.0


def protocol(
    data: str,
    source: str,
    workdir: pathlib.Path,
    *,
    model: str = "",
    size: str = "small",
    pretrained_on: Sequence[str] = (),
    targets: Sequence[str] = (),
    steps: int | None = None,
    rate: float | None = None,
) -> study.Protocol:
    """The task, with its start model trained if need be.

    Args:
        data: as `data.source` of a config: folders of domains, joined by commas.
        source: the domain that is fine-tuned on.
        workdir: where the data, the model and the runs go.
        model: a run to start from; "" pre-trains one of `size`.
        size: one of `sizes.SIZES`.
        pretrained_on: domains of that pre-training; () is all but `source`.
        targets: domains that are looked at; () is all but `source`.
        steps: updates of a run; None for the size's.
        rate: of the config, about which the grid lies; None for four times the size's.

    Raises:
        UserError: unknown domains, or too few.
    """
    # ---- the corpus, and the model that every run starts from
    if source in targets:
        raise errors.UserError(
            f"{source} is what is fine-tuned on; leave it out of --targets"
        )
    recipe = _recipe(data, workdir, model, size, steps, rate)
    named = (data, (source, *pretrained_on), (source, *targets))
    if not corpora.is_prepared(recipe.base.data, workdir):
        _check_domains(*named, *prepared.find_names(data))
    corpus = corpora.open_corpus(recipe.base.data, workdir)
    _check_domains(*named, corpus.train, corpus.held_out)
    targets = tuple(targets) or tuple(n for n in corpus.held_out if n != source)
    others = tuple(name for name in corpus.train if name != source)
    pretrained_on = tuple(pretrained_on) or others
    start = pathlib.Path(model) if model else workdir / "model"
    if not model:
        mesh = mesh_lib.make_mesh(recipe.base.mesh.to_dict())
        branches.fit(branches.base_config(recipe, pretrained_on), start, mesh, "model")

    # ---- what is trained and measured
    config = fine_tuning(recipe, start, source)
    decoder = branches.decoder(recipe.base, corpus)
    held_out = branches.held_out_batches(config, corpus)
    batches = corpora.make_loader(config.data, corpus.train)
    probed = {name: held_out[name][:1] for name in targets[:_PROBED_TARGETS]}
    return study.Protocol(
        config=config,
        system=pretraining.pretrain,
        task=objectives.language_model(decoder.apply),
        metric="perplexity",
        higher_is_better=False,
        tuned_on=source,
        source=source,
        targets=targets,
        surface=[_arrays(batches(step)) for step in range(2)],
        probes={name: [_arrays(b) for b in some] for name, some in probed.items()},
        start=checkpoint.load_params(start),
    )


def _recipe(data, workdir, model, size, steps, rate) -> branches.Recipe:
    options = {"unit_steps": steps, "unit_rate": rate}
    if model:
        recipe = branches.recipe_from_run(model, data, workdir, **options)
    else:
        recipe = branches.recipe_at_size(size, data, workdir, **options)
    if rate is not None:
        return recipe
    return dataclasses.replace(recipe, unit_rate=_RATE * recipe.unit_rate)


def _check_domains(data, trained, evaluated, train, held_out) -> None:
    """Refuses names that are not among those of the training and held-out files."""
    for name in trained:
        if name not in train:
            raise errors.UserError(
                f"no domain {name} in {data}; there are {', '.join(train)}"
            )
    for name in evaluated:
        if name not in held_out:
            raise errors.UserError(
                f"no held-out text of {name}; there is {', '.join(held_out)}"
            )


def fine_tuning(recipe, start, source):
    """The paper's schedule: a fifth of warm-up, then down to nothing; no decay."""
    config = branches.branch_config(recipe, {source: 1.0}, start)
    # A run of the user's may have been trained without evaluations; here they decide.
    config.eval_batches = config.eval_batches or olmo_config.pretraining().eval_batches
    config.optim.update(
        {
            "schedule": "linear", "warmup_steps": config.steps // 5,
            "warmup_start": 0.0, "final": 0.0, "beta2": 0.99, "weight_decay": 0.0,
        }
    )  # fmt: skip
    return config


def _arrays(batch):
    return {name: np.asarray(value) for name, value in batch.items()}

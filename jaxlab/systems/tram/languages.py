"""Zero-shot cross-lingual transfer: fine-tune in one language, be asked in the others.

Protocol (b) of TRAM's comparison (`systems/tram/study.py`), after section 5.1 of
Sherborne et al. 2023 (arXiv:2310.03646): XLM-R on English XNLI, accuracy in 14 other
languages. The model and the sets are those of `systems/tram/classification.py`.
Settings are chosen on the dev split of the language that is trained on.
"""

import dataclasses
import pathlib
from collections.abc import Sequence

import jax
import ml_collections

from jaxlab import objectives
from jaxlab.core import errors, types
from jaxlab.core import mesh as mesh_lib
from jaxlab.systems.tram import classification, study
from jaxlab.systems.tram import config as config_lib

_TUNED_ON = "dev"
_PROBED_TARGETS = 4


def protocol(
    data: str,
    source: str,
    workdir: pathlib.Path,
    *,
    model: str,
    targets: Sequence[str] = (),
    steps: int | None = None,
    rate: float | None = None,
    length: int | None = None,
) -> study.Protocol:
    """The task.

    Args:
        data: a folder of labelled texts, as `data/examples/labelled.py` reads.
        source: the language that is trained on; "" is the config's, English.
        workdir: where the runs go.
        model: a run of a decoder that has seen all languages.
        targets: languages that are asked; () is all others.
        steps, rate: of a run; None for 100 and 2e-3.
        length: tokens of a row; None for the config's.

    Raises:
        UserError: as `languages.classify`.
    """
    config = config_lib.classification()
    config.update({"init_from": model, "steps": 100 if steps is None else steps})
    config.data.source = data
    config.data.train_language = source or config.data.train_language
    config.optim.update(
        {
            "learning_rate": 2e-3 if rate is None else rate,
            "warmup_steps": config.steps // 5,
        }
    )
    if length is not None:
        config.data.length = length
    source = config.data.train_language
    if targets:
        config.data.languages = (source, *targets)
    mesh = mesh_lib.make_mesh(config.mesh.to_dict())
    with mesh_lib.use(mesh):
        experiment = _with_dev(config, workdir, mesh)
    there = [name for name in experiment.evals if name not in (source, _TUNED_ON)]
    if missing := [name for name in targets if name not in there]:
        raise errors.UserError(
            f"no {', '.join(missing)} to be asked in; there are {', '.join(there)}"
        )
    targets = tuple(targets) or tuple(there)
    batches = classification.evaluation_batches(config, mesh)
    return study.Protocol(
        config=config,
        system=_with_dev,
        task=objectives.classifier(experiment.model.apply),
        metric="accuracy",
        higher_is_better=True,
        tuned_on=_TUNED_ON,
        source=source,
        targets=targets,
        surface=[dict(experiment.batches(0))],
        probes={name: batches[name][:4] for name in targets[:_PROBED_TARGETS]},
        start=experiment.init_from,
    )


def _with_dev(
    config: ml_collections.ConfigDict, workdir: pathlib.Path, mesh: jax.sharding.Mesh
) -> types.Experiment:
    """The experiment, which is also evaluated on the dev split of its own language."""
    experiment = classification.classify(config, workdir, mesh)
    dev = ml_collections.ConfigDict(config.to_dict())
    dev.data.update({"eval_split": "dev", "languages": (dev.data.train_language,)})
    (evaluate,) = classification.classify(dev, workdir, mesh).evals.values()
    return dataclasses.replace(experiment, evals={**experiment.evals, "dev": evaluate})

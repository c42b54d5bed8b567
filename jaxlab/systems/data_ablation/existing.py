"""A pool that is there, judged anew: what `jaxlab ablate report` computes.

POOL/checked.json    which mixtures the last report trained, and how: one that
                     trains nothing shows them again
"""

import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jaxlab import ablation
from jaxlab.core import json_text, progress, report
from jaxlab.data import prepared
from jaxlab.systems.data_ablation import mixtures as mixtures_lib
from jaxlab.systems.data_ablation import recipe as recipe_lib
from jaxlab.systems.data_ablation import study as study_lib

_CHECKED = "checked.json"


def judge(
    pool: pathlib.Path,
    training: Mapping[str, Any] | None = None,
    *,
    candidates: int = 256,
    mesh_shape: Mapping[str, int] | None = None,
    say: Callable[[str], None] = print,
    done: Callable[[str, float], None] = lambda stage, share: None,
) -> study_lib.Outcome:
    """Ranks the mixtures of a pool's experts, and checks that by training some.

    Args:
        pool: its folder.
        training: fields of the `Study` that say what is trained; None trains nothing,
            and shows what the last report trained.
        candidates: mixtures that are merged and scored at most.
        mesh_shape: sizes by axis that differ from the recipe's.
        say, done: as for `study.run`.

    Raises:
        UserError: no pool, or a study that its members do not allow.
    """
    recipe = recipe_lib.read(pool)
    recipe.base.mesh.update(mesh_shape or {})
    fields, to_check = (dict(training), None) if training else _read_checked(pool)
    study = study_lib.Study(recipe, candidates=candidates, **fields)
    names = [unit.name for unit in ablation.pool_folder.members(pool)]
    corpus = prepared.open_folder(pool / "data")
    study_lib.check(study, names, corpus)
    if to_check is None:
        to_check = mixtures_lib.choose(names, study.trained, study.seed, study.largest)
    total = study_lib.judging_steps(study, len(names), to_check, len(corpus.held_out))
    plan = progress.Stages(total, done)
    outcome = study_lib.judge(study, pool, plan, to_check=to_check, say=say)
    if training:
        record = {"options": fields, "mixtures": to_check}
        report.write_json(pool / _CHECKED, record)
    return outcome


def _read_checked(pool: pathlib.Path) -> tuple[dict[str, Any], Sequence[Mapping]]:
    """(fields of the last report's Study, the mixtures that it trained)."""
    fix = "remove it, and train the mixtures again with --trained N"
    before = json_text.read_object(pool / _CHECKED, fix, ("options", "mixtures"))
    if before is None:
        return {"trained": 0}, []
    # The choices of the searches are left out: in a larger pool they are others.
    return before["options"] | {"searched": ()}, before["mixtures"]

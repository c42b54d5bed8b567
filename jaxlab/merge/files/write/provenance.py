"""The record of a merge: `merge.json`, and the metadata of its safetensors files."""

import importlib.metadata
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

import jaxlab
from jaxlab.merge.files.read import digests as digests_lib
from jaxlab.merge.files.read import source as source_lib
from jaxlab.merge.files.recipe import recipe as recipe_lib


def report(
    recipe: recipe_lib.Recipe,
    inputs: Sequence[source_lib.Source],
    options: Mapping[str, Any],
    dtypes: Mapping[str, np.dtype],
    notes: Sequence[str],
    digests: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """The provenance of a merge.

    Args:
        options: how the result is written.
        dtypes: of the result's tensors.
        notes: what the user was told.
        digests: by input or by file, as the kind is; None for blanks of the same
            lengths.
    """
    kind = options["digest"]

    def digest_of(path, is_file):
        if kind is None or is_file != (kind in digests_lib.OF_FILES):
            return {}
        blank = "?" * digests_lib.LENGTHS[kind]
        return {kind: blank if digests is None else digests[path]}

    def file_entry(source, file):
        name, size = os.path.relpath(file, source.path), os.path.getsize(file)
        return {"name": name, "size": size} | digest_of(file, True)

    return {
        "format": recipe_lib.FORMAT,
        "recipe": recipe.as_mapping(),
        "options": dict(options),
        "dtypes": sorted({str(dtype) for dtype in dtypes.values()}),
        "inputs": [
            {"path": os.path.abspath(source.path)}
            | ({"step": source.step} if source.is_run else {})
            | digest_of(source.path, False)
            | {"files": [file_entry(source, file) for file in source.files]}
            for source in inputs
        ],
        "notes": list(notes),
        "versions": {
            "jaxlab": jaxlab.__version__,
            "numpy": np.__version__,
            "jax": importlib.metadata.version("jax"),
        },
    }


def metadata(record: Mapping[str, Any]) -> dict[str, str]:
    """A record as the strings that a safetensors header may hold."""
    return {"merge": json.dumps(record, separators=(",", ":"))}

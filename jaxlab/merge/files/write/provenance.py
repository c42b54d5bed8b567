"""What a merge says of itself: `merge.json`, and the metadata of its files."""

import importlib.metadata
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

import jaxlab
from jaxlab.core import errors
from jaxlab.merge.files.read import digests
from jaxlab.merge.files.read import source as source_lib
from jaxlab.merge.files.recipe import recipe as recipe_lib

_LENGTH = {"crc32": 8, "sha256": 64}


def report(
    recipe: recipe_lib.Recipe,
    inputs: Sequence[source_lib.Source],
    options: Mapping[str, Any],
    dtypes: Mapping[str, np.dtype],
    notes: Sequence[str],
    found: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """The provenance of a merge.

    Args:
        options: how the result is written.
        dtypes: of the result's tensors.
        notes: what the user was told.
        found: digest by file; None for blanks of the same length.
    """
    kind = options["digest"]

    def described(source, file):
        entry = {"name": os.path.relpath(file, source.path)}
        entry["size"] = os.path.getsize(file)
        if kind:
            entry[kind] = "?" * _LENGTH[kind] if found is None else found[file]
        return entry

    return {
        "format": recipe_lib.FORMAT,
        "recipe": recipe.as_mapping(),
        "options": dict(options),
        "dtypes": sorted({str(dtype) for dtype in dtypes.values()}),
        "inputs": [
            {"path": os.path.abspath(source.path)}
            | ({"step": source.step} if source.is_run else {})
            | {"files": [described(source, file) for file in source.files]}
            for source in inputs
        ],
        "notes": list(notes),
        "versions": {
            "jaxlab": jaxlab.__version__,
            "numpy": np.__version__,
            "jax": importlib.metadata.version("jax"),
        },
    }


def metadata(found: Mapping[str, Any]) -> dict[str, str]:
    """A report as the strings that a safetensors header may hold."""
    return {"merge": json.dumps(found, separators=(",", ":"))}


def digests_of(
    ledger: digests.Ledger, inputs: Sequence[source_lib.Source], buffer_bytes: int
) -> dict[str, str]:
    """Digest by file; what the merge did not read is read now."""
    if ledger.kind is None:
        return {}
    buffer = memoryview(bytearray(buffer_bytes))
    return {
        file: ledger.digest(file, buffer) for source in inputs for file in source.files
    }


def check_sizes(recipe: recipe_lib.Recipe) -> None:
    """Refuses a repetition whose inputs have other sizes; digests come later.

    Raises:
        UserError: naming the files.
    """
    changed = [
        file
        for file, (size, _) in recipe.expected.items()
        if not os.path.isfile(file) or os.path.getsize(file) != size
    ]
    if changed:
        raise errors.UserError(
            f"{len(changed)} input files are not those of the merge to be repeated: "
            f"{', '.join(changed)}; restore them, or merge anew from a recipe"
        )

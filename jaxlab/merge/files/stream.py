"""Merges of files larger than memory: read in chunks, merged, written in chunks.

    merge_files(["general", "math"], "merged", "linear", weights=[0.7, 0.3])
    merge_files(["math", "code"], "merged", "ties", base="base", density=0.4)

Two threads each read a block of every model into buffers that are used again, combine
it and write it where it belongs. Methods whose coefficients are known (linear,
interpolate, task_arithmetic) read each file once and need numpy alone. Methods that
look at a whole tensor first, at its angles (slerp, nuslerp, multislerp, karcher,
model_stock) or its largest differences (ties, dare, breadcrumbs, della, sce), take one
or more passes over it before. Results are those of the functions over trees, up to one
rounding.

Memory does not grow with the model, with its largest tensor or with the number of
models: at most 16 chunks beyond the imported libraries.

The folder appears when it is whole (nothing is forced to the disk: that is against a
kill, not against a power failure). `merge.json` in it, and the metadata of its
safetensors files, say what was merged: the recipe with each model's parameters,
checksums of the inputs, sizes of their files, versions. It is itself a recipe, and
gives the same bytes again or refuses because an input changed.
"""

import collections
import functools
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxlab.core import errors, folders
from jaxlab.core import progress as progress_lib
from jaxlab.merge.files.passes import job as job_lib
from jaxlab.merge.files.passes import parts, run
from jaxlab.merge.files.read import compatible, opener, tied, tokenizers
from jaxlab.merge.files.read import digests as digests_lib
from jaxlab.merge.files.read import reader as reader_lib
from jaxlab.merge.files.recipe import recipe as recipe_lib
from jaxlab.merge.files.write import outputs, provenance

# (merged tensors, folder to fill)
Writer = Callable[[Mapping[str, np.ndarray], pathlib.Path], None]

FORMATS = ("hf", "orbax")
_TOLD = 8  # tensors that are not finite, named one by one
_FORMAT_OF = {"folder": "hf", "run": "orbax", "checkpoint": "orbax"}  # if none is given
_DEFAULTS = {
    "format": None,
    "shard_bytes": 5_000_000_000,
    "digest": "xxh3",
    "layer_axis": None,
}


def merge_files(
    inputs: Sequence[str | os.PathLike],
    out: str | os.PathLike,
    method: str = "linear",
    *,
    base: str | os.PathLike | None = None,
    dtype: Any = None,
    chunk_bytes: int = 4 << 20,
    memory_bytes: int | None = None,
    format: str | None = None,
    shard_bytes: int = 5_000_000_000,
    digest: str | None = "xxh3",
    seed: int = 0,
    layer_axis: str | None = None,
    free_keys: compatible.FreeKeys = (),
    spell_out: compatible.SpellOut | None = None,
    force: bool = False,
    progress: progress_lib.Progress | None = None,
    **parameters: Any,
) -> dict[str, Any]:
    """Merges checkpoints on disk into a new one.

    Args:
        inputs: Hugging Face folders of safetensors, or single safetensors files; run
            directories (their newest checkpoint); or other Orbax checkpoints. All of
            one kind and of the same tensors, in files of any layout.
        out: a folder that does not exist or is empty.
        method: one of `merge.files.recipe.methods.METHODS`, mergekit's names.
        base: of methods that merge differences from it; one of the inputs or not.
        dtype: of the floating tensors of the result; None for that of the inputs, which
            must then be the same in all.
        chunk_bytes: how much a thread takes at a time.
        memory_bytes: sets `chunk_bytes` to a sixteenth of it.
        format: "hf", a folder of safetensors with config and tokenizer; or "orbax": of
            runs a run directory whose parameters `core.checkpoint.load_params` opens,
            of other checkpoints one of their structure. Orbax saves it at the end from
            a temporary file that is mapped, and takes the memory that it takes. None
            for what the inputs are.
        shard_bytes: a safetensors file is closed before it grows beyond this.
        digest: of what is merged: "xxh3", of each input's tensors as they are read;
            "crc32" or "sha256" of each file, which is read once more; or None.
        seed: of the methods that draw.
        layer_axis: regular expression of names; such tensors stack the layers on their
            first axis and are merged layer by layer.
        free_keys: keys of config.json (of a run: of its `model` section) in which the
            inputs may differ; or a function without arguments that names them. Keys
            that begin with `_` or end in `version`, and dtypes, are always free.
        spell_out: brings config.json into one form for all that say the same, as
            `models.hf.defaults.spell_out` does; None compares key by key.
        force: merges models of different tokenizers, too.
        progress: called now and then with the bytes read and to be read.
        **parameters: of the method (`METHODS[method].parameters`), by mergekit's names
            or those of the functions over trees (weights, lam). One value, or for a
            parameter that each model has a sequence of one each. Models without a
            weight weigh 1. A value may be a list over the layers or conditions as
            `merge.files.recipe.recipe` describes.

    Returns:
        What `merge.json` holds.

    Raises:
        ArgumentError: a UserError and a ValueError: everything that is wrong with the
            arguments, or everything in which the inputs differ, before any work.
        UserError: a file is damaged or the disk is full.
    """
    recipe = recipe_lib.from_arguments(
        inputs, method, base=base, dtype=dtype, seed=seed, parameters=parameters
    )
    return merge_recipe(
        recipe,
        out,
        chunk_bytes=chunk_bytes if memory_bytes is None else memory_bytes // 16,
        progress=progress,
        format=format,
        shard_bytes=shard_bytes,
        digest=digest,
        layer_axis=layer_axis,
        free_keys=free_keys,
        spell_out=spell_out,
        force=force,
    )


def merge_recipe(
    recipe: recipe_lib.Recipe,
    out: str | os.PathLike,
    *,
    chunk_bytes: int = 4 << 20,
    progress: progress_lib.Progress | None = None,
    writer: Writer | None = None,
    free_keys: compatible.FreeKeys = (),
    spell_out: compatible.SpellOut | None = None,
    force: bool = False,
    **options: Any,
) -> dict[str, Any]:
    """Makes the merge of a recipe.

    Args:
        recipe, out, chunk_bytes, progress, free_keys, spell_out, force: as in
            `merge_files`.
        writer: fills the folder from the merged tensors, mapped from a temporary file;
            None writes what `format` says.
        **options: format, shard_bytes, digest and layer_axis of `merge_files`; those
            not given are those of the recipe, if it is an earlier merge's.
    """
    # ---- refuse what cannot be merged
    options = _settle(recipe, options, chunk_bytes)
    folders.refuse_existing(out)
    inputs = opener.open_all(recipe.models)
    first, is_cast = inputs[0], recipe.dtype is not None
    copies = tied.find(inputs)
    tokenizer_notes = compatible.compare(
        inputs,
        is_cast=is_cast,
        free_keys=free_keys,
        spell_out=spell_out,
        is_forced=force or bool(recipe.sizes),  # what was merged once is merged again
    )
    named = recipe.models.index(recipe.tokenizer) if recipe.tokenizer else None
    kept = tokenizers.choose(inputs, named)
    tokenizer_notes += tokenizers.template_notes(inputs, kept)
    tokenizer_notes += tokenizers.eos_notes(inputs, kept)
    options["format"] = options["format"] or _FORMAT_OF[first.kind]
    if writer is None and options["format"] == "orbax":
        empty = [name for name, tensor in first.tensors.items() if not tensor.size]
        compatible.refuse([f"{n} is empty, which Orbax does not save" for n in empty])
        from jaxlab.merge.files.write import orbax_folder  # imports jax

        writer = functools.partial(orbax_folder.write_like, first, kept)
    elif writer is None and first.kind != "folder":
        raise errors.ArgumentError(
            "Orbax checkpoints are merged to format orbax; runs also by `jaxlab "
            "merge`, which knows their model, to a Hugging Face folder"
        )
    digests_lib.check_sizes(recipe.sizes)

    # ---- what is merged with what, into what
    dtypes = {
        name: recipe.result_dtype if is_cast and tensor.is_floating else tensor.dtype
        for name, tensor in first.tensors.items()
    }
    pieces, recipe_notes = parts.parts(
        recipe, inputs, dtypes, options["layer_axis"], chunk_bytes, copies
    )
    notes = [*recipe.notes, *recipe_notes, *tokenizer_notes]
    describe = functools.partial(
        provenance.report, recipe, inputs, options, dtypes, notes
    )
    output = outputs.Output(
        out,
        {name: (t.shape, dtypes[name]) for name, t in first.tensors.items()},
        shard_bytes=options["shard_bytes"],
        metadata=provenance.metadata(describe()),
        is_rewritten=writer is not None,
    )

    # ---- merge, then check what was read, then give the result its name
    with reader_lib.Reader(inputs, options["digest"]) as reader, output:
        job = job_lib.Job(recipe, reader, output, chunk_bytes)
        total = sum(t.size for source in inputs for t in source.tensors.values())
        run.run(job, pieces, total, progress)
        reader.check_fingerprints()
        digests = reader.digests()
        digests_lib.check(digests, recipe.digests)
        report = describe(digests)
        # Not in the files' headers, whose lengths were announced before the work.
        told = report | {"notes": [*notes, *_not_finite(job, inputs)]}
        if writer is not None:
            output.rewrite(writer, told)
            return told
        outputs.copy_extras(kept.path, output.part)
        config = dict(inputs[recipe.base or 0].config)
        if is_cast:
            keys = {"dtype", "torch_dtype"} & config.keys()
            config |= dict.fromkeys(keys, recipe.dtype)
        texts = {"config.json": config, "merge.json": told}
        output.finish(provenance.metadata(report), texts)
    return told


def _not_finite(job, inputs) -> list[str]:
    """Which tensors of the result hold NaN or infinities, and of which inputs."""
    lines, counts = [], collections.Counter()
    for name, count in job.not_finite:
        counts[name] += count
    for name, count in sorted((+counts).items()):
        guilty = [
            source.path for i, source in enumerate(inputs)
            if job_lib.has_not_finite(job, i, name, source.tensors[name])
        ]  # fmt: skip
        whose = f"those of {', '.join(guilty)} do" if guilty else "no input's does"
        lines.append(f"{name} holds {count:,} NaN or infinite values; {whose}")
    more = [f"and {len(lines) - _TOLD} more tensors"] if len(lines) > _TOLD else []
    return [*lines[:_TOLD], *more]


def _settle(recipe, options, chunk_bytes) -> dict[str, Any]:
    """All options: those given, those of the merge to be repeated, the defaults."""
    options = _DEFAULTS | dict(recipe.options) | options
    lines = []
    if options["format"] not in (None, *FORMATS):
        lines.append(f"format {options['format']!r}; use one of {', '.join(FORMATS)}")
    kinds = tuple(digests_lib.LENGTHS)
    if options["digest"] not in (None, *kinds):
        lines.append(
            f"digest {options['digest']!r}; use one of {', '.join(kinds)} or None"
        )
    elif recipe.sizes and options["digest"] != recipe.options["digest"]:
        lines.append(
            f"the merge to be repeated recorded {recipe.options['digest']}, not "
            f"{options['digest']}; leave that out"
        )
    for name, value, least in (
        ("shard_bytes", options["shard_bytes"], 1),
        ("chunk_bytes", chunk_bytes, 1 << 12),
    ):
        if not value >= least:
            lines.append(f"{name} {value} is below {least}")
    if lines:
        raise errors.ArgumentError("; ".join(lines))
    return options

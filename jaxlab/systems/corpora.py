"""Text to train on, as the `data` section of a pre-training config names it.

open_corpus        token files, a folder of text, or the embedded text
make_loader        their batches, weighted by domain
perplexity_evals   held-out perplexity, per domain
"""

import functools
import pathlib
from collections.abc import Collection, Mapping

import ml_collections

from jaxlab import models
from jaxlab.core import errors, runs
from jaxlab.data import prepared
from jaxlab.data.batches import loader, mixture
from jaxlab.data.corpus import token_files
from jaxlab.data.tokenizers import tokenizer as tokenizer_lib
from jaxlab.evals import perplexity

_CHECKED_TOKENS = 1 << 22  # of each file before the run; every row is, as it is read


def open_corpus(
    data: ml_collections.ConfigDict,
    workdir: pathlib.Path,
    *,
    added: Collection[str] = (),
) -> prepared.Prepared:
    """The corpus a data config names: token files, a folder of text, or "embedded".

    A `data.folder` without a source is read as `jaxlab data prepare` left it. `added`
    is that of `prepared.prepare`.

    Raises:
        UserError: nothing is named, or a file is missing.
    """
    if data.files:
        if not data.tokenizer:
            raise errors.UserError(
                "data.files needs the tokenizer that made them; set "
                "--config.data.tokenizer"
            )
        tokenizer = tokenizer_lib.load(data.tokenizer)
        files = [
            token_files.TokenFile.open(
                path,
                data.files_dtype or None,
                eos_id=tokenizer.eos_id,
                vocab_size=tokenizer.vocab_size,
            )
            for path in data.files
        ]
        for file in files:
            file.check_ids(file.tokens[:_CHECKED_TOKENS])
            _check_tokenizer(file, tokenizer)
        # A list, not names: a path that is repeated is up-weighted, as in OLMo.
        train = {f"{i}:{file.name}": file for i, file in enumerate(files)}
        return prepared.Prepared(tokenizer, train, {})
    if not data.source and data.folder:
        return prepared.open_folder(data.folder)
    if not data.source:
        raise errors.UserError(
            "no data: set --config.data.source to a folder of text (a subfolder a "
            "domain) or to embedded, or --config.data.files to token files"
        )
    return prepared.prepare(
        data.source,
        runs.data_folder(data, workdir),
        tokenizer=data.tokenizer,
        vocab_size=data.vocab_size,
        held_out_fraction=data.held_out_fraction,
        max_bytes_per_domain=data.max_bytes_per_domain or None,
        seed=data.split_seed,
        parts=data.parts,
        added=added,
    )


def is_prepared(data: ml_collections.ConfigDict, workdir: pathlib.Path) -> bool:
    """Whether `open_corpus` finds a corpus that it has already prepared."""
    return (pathlib.Path(runs.data_folder(data, workdir)) / "corpus.json").exists()


def _check_tokenizer(file, tokenizer: tokenizer_lib.Tokenizer) -> None:
    made_by = file.info.get("tokenizer", tokenizer.fingerprint)
    if made_by != tokenizer.fingerprint:
        raise errors.UserError(
            f"{file.path} was encoded with another tokenizer than data.tokenizer; name "
            "the one that lies beside it"
        )


def make_loader(
    data: ml_collections.ConfigDict, files: Mapping[str, token_files.TokenFile]
) -> loader.Loader:
    """The loader of a data config over named token files."""
    weights = dict(data.weights)
    if unknown := sorted(set(weights) - set(files)):
        raise errors.UserError(
            f"data.weights names {', '.join(unknown)}; the domains are "
            f"{', '.join(files)}"
        )
    names = [name for name in files if not weights or weights.get(name)]
    mixed = mixture.Mixture(
        [files[name] for name in names],
        [weights[name] for name in names] if weights else None,
        names,
    )
    return loader.Loader(
        mixed,
        length=data.length,
        batch_size=data.batch_size,
        seed=data.seed,
        layout=data.layout,
        document_mask=data.document_mask,
    )


def held_out_windows(workdir: pathlib.Path) -> str:
    """How a run draws its held-out windows: "spread" over documents.

    "" where it began without a word of that in its config.json: document by document,
    so that its numbers before and after a resume are of the same text.
    """
    saved = runs.find(workdir) if runs.has_checkpoints(workdir) else None
    return "spread" if saved is None else saved.config.get("held_out_windows", "")


def perplexity_evals(
    model: models.Decoder,
    held_out: Mapping[str, token_files.TokenFile],
    data: ml_collections.ConfigDict,
    max_batches: int,
    windows: str = "spread",
) -> dict:
    """Domain -> function of params that returns its held-out perplexity.

    `max_batches` 0 evaluates nothing; `windows` is of `held_out_windows`.
    """
    if not max_batches:
        return {}
    return {
        name: functools.partial(
            lambda batches, params: perplexity.evaluate(model.apply, params, batches),
            list(
                loader.eval_batches(
                    file,
                    data.length,
                    data.batch_size,
                    max_batches,
                    spread=windows == "spread",
                )
            ),
        )
        for name, file in held_out.items()
    }

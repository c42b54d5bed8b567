"""Turns a folder of text into token files, one per domain.

    python tools/prepare_corpus.py TEXT OUT --tokenizer olmo/tokenizer.json
    python tools/prepare_corpus.py TEXT OUT --train-vocab 8192 --held-out 0.1

TEXT holds one subfolder, or one NAME.jsonl[.gz|.zst] in Dolma's format, a domain.
`jaxlab data prepare` calls the same function.
"""

import argparse
import logging
import sys

from jaxlab.core import errors
from jaxlab.data.corpus import domains
from jaxlab.data.tokenizers import tokenizer


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("text", help="folder of domains, or one file")
    parser.add_argument("out", help="folder for the token files")
    given = parser.add_mutually_exclusive_group(required=True)
    given.add_argument("--tokenizer", help="tokenizer.json[.gz], .model or a folder")
    given.add_argument("--train-vocab", type=int, help="train SentencePiece, this size")
    parser.add_argument("--held-out", type=float, default=0.0, help="share, e.g. 0.1")
    parser.add_argument("--seed", type=int, default=0, help="of the held-out split")
    parser.add_argument("--split", default="train", help="which NAME.SPLIT.jsonl")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        if options.tokenizer:
            model = tokenizer.load(options.tokenizer)
        else:
            model = tokenizer.train_sentencepiece(
                domains.training_texts(
                    options.text,
                    held_out_fraction=options.held_out,
                    seed=options.seed,
                    split=options.split,
                ),
                options.train_vocab,
                seed=options.seed,
            )
        files = domains.prepare(
            options.text,
            model,
            options.out,
            held_out_fraction=options.held_out,
            seed=options.seed,
            split=options.split,
        )
    except errors.UserError as error:
        print(f"prepare_corpus: {error}", file=sys.stderr)
        return 2
    for name, file in files.items():
        print(f"{name}: {file.info['documents']} documents, {file.size} tokens")
    return 0


if __name__ == "__main__":
    sys.exit(main())

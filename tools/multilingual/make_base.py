"""A small decoder that has seen several languages: what `jaxlab tram languages` needs.

    python tools/multilingual/make_base.py BASE \
        --parallel eng_Latn=sib/eng_Latn.train.tsv,deu_Latn=sib/deu_Latn.train.tsv \
        --parallel eng_Latn=xquad/en.corpus.jsonl,spa_Latn=xquad/es.corpus.jsonl
    jaxlab tram languages RUN --data sib --model BASE/run

Every --parallel names files whose texts are translations of each other (by `id`, or by
position in files without ids), --text files that are not; labels are never read. Then

    BASE/text   a file per language, and translations with their words interleaved
    BASE/data   tokenizer and token files
    BASE/start  an untrained decoder whose embedding is latent semantic analysis
    BASE/run    that start, pre-trained: 4 layers of 128, 600 steps of 16 x 128 tokens

The same command continues a run that was stopped. The steps are those of
`parallel_text.py` and `latent_semantics.py`; sizes were chosen for ten minutes on two
CPU cores.
"""

import argparse
import pathlib

import latent_semantics
import parallel_text

from jaxlab.core import mesh as mesh_lib
from jaxlab.core import process
from jaxlab.systems import branches
from jaxlab.systems.olmo import config as olmo_config


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--parallel", action="append", default=[], type=files)
    parser.add_argument("--text", action="append", default=[], type=files)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--vocab-size", type=int, default=8192)
    options = parser.parse_args()
    process.start()
    out, mesh = options.out, mesh_lib.make_mesh({"data": -1})
    if not (out / "text").exists():
        sources = [parallel_text.Texts(group, True) for group in options.parallel]
        sources += [parallel_text.Texts(group) for group in options.text]
        counts = parallel_text.pretraining_text(sources, out / "text", interleaved=True)
        print(", ".join(f"{name} {count:,}" for name, count in counts.items()))
    config = pretraining(out, options)
    if not (out / "start").exists():
        with mesh_lib.use(mesh):
            latent_semantics.write_start(config, out / "start", mesh)
    branches.fit(config, out / "run", mesh, "base")


def files(text: str) -> dict[str, list[str]]:
    """Language -> its files, from LANGUAGE=FILE,LANGUAGE=FILE; one may come again."""
    files_of: dict[str, list[str]] = {}
    for part in text.split(","):
        name, equals, path = part.partition("=")
        if not equals:
            raise argparse.ArgumentTypeError(f"{part!r} is not LANGUAGE=FILE")
        files_of.setdefault(name, []).append(path)
    return files_of


def pretraining(out: pathlib.Path, options: argparse.Namespace):
    """The config of BASE/run."""
    config = olmo_config.pretraining()
    config.steps, config.eval_batches = options.steps, 4
    config.init_from = str(out / "start")
    config.model.update(
        {
            "embed": 128, "layers": 4, "heads": 4, "mlp": 512, "length": 128,
            "tied": True, "dtype": "float32",
        }
    )  # fmt: skip
    config.data.update(
        {
            "source": str(out / "text"), "folder": str(out / "data"), "length": 128,
            "batch_size": 16, "vocab_size": options.vocab_size,
        }
    )  # fmt: skip
    config.optim.update({"learning_rate": 1e-3, "warmup_steps": options.steps // 10})
    config.run.update({"save_every": 100, "eval_every": 300})
    return config


if __name__ == "__main__":
    main()

"""Every verb of `jaxlab`, one after the other, on inputs of a few kilobytes.

    python -m tests.support.reach FOLDER

FOLDER/in is what is read, FOLDER/out where all outputs are asked to go. FOLDER/noted
gets a line for whatever Python writes, and for every use of the network; what may be in
it is for tests/commands/test_reach.py to say.
"""

import json
import os
import pathlib
import shutil
import sys

from jaxlab import cli
from jaxlab.systems import sizes
from tests.support import pools, sib, toy_retrieval, verb_runs

# Line by line; of a later one the inputs are outputs of those before it.
LINES = """
configs
configs olmo:tiny
data prepare in/text out/prepared --vocab-size=320
data tokenize in/text out/shards --tokenizer=out/prepared/tokenizer --workers=2
data verify out/shards
data mix in/mix.yaml --out=out/mix
train --config=olmo:tiny --workdir=out/run --config.data.source=in/text {olmo}
train --config=olmo:tiny --workdir=out/run2 --config.data.source=in/text {olmo} \
    --dry-run
data inspect --workdir=out/run --step=1 --text
checkpoint ls out/run
checkpoint verify out/run --all
checkpoint export out/run out/exported
convert out/run out/hf
evaluate out/hf --data=in/text --max-batches=1 --json=out/evaluated.json
generate out/run --prompt=The --max-new-tokens=2
train --config=tulu:tiny --workdir=out/sft --config.init_from=out/hf \
    --config.model.embed=0 --config.data.source=in/chats.jsonl {tulu}
train --config=tulu:tiny_dpo --workdir=out/dpo --config.init_from=out/sft \
    --config.model.embed=0 --config.data.source=in/pairs.jsonl {tulu}
merge out/hf out/exported -o out/merged
merge out/run out/run -o out/merged_run --format=orbax
plan --config=olmo:tiny --topology=v5e:2x2 --json=out/plan.json --plot=out/plan.png
plan --config=olmo:tiny --topology=v5e:2x2 --search
plan --config=olmo:tiny --topology=v5e:2x2 --mesh=fsdp=4 --merge=ties
doctor out
retrieve index out/index --corpus=in/set/corpus.jsonl --encoder=in/bert
retrieve search out/index --query=w3 --k=2
retrieve search --first-stage=bm25 --corpus=in/set/corpus.jsonl \
    --queries=in/set/queries.jsonl --run=out/bm25.trec
retrieve refit out/refit --index=out/index --queries=in/set/queries.jsonl \
    --qrels=in/set/qrels.train.tsv --reranker=in/bert_scorer --k=4
retrieve evaluate --qrels=in/set/qrels.train.tsv out/bm25.trec
ablate pool out/pool --data=in/text {pool}
ablate rank out/pool --target law --json=out/ranked.json
ablate search out/pool --target law=2 code
ablate report out/pool
tram domains out/tram --data=in/text --source=law --model=out/run {tram}
tram languages out/languages --data=in/sib --source=eng_Latn --model=out/run \
    --length=16 {tram}
demo --quick --data=in/text --workdir=out/demo
"""
_OLMO = (
    "steps=2", "eval_batches=1", "data.vocab_size=320", "data.length=32",
    "data.batch_size=8", "data.held_out_fraction=0.2", "optim.warmup_steps=1",
    "model.embed=32", "model.layers=1", "model.heads=2", "model.mlp=64",
    "model.length=64",
)  # fmt: skip
# Of the events that Python audits: those of the network, and how many paths each of
# those has that change a file's name or what a folder holds.
_NETWORK = {
    f"socket.{name}"
    for name in (
        "connect", "bind", "sendto", "sendmsg", "getaddrinfo", "gethostbyname",
        "gethostbyaddr", "getnameinfo",
    )
}  # fmt: skip
_WRITES = {
    "os.rename": 2, "os.link": 2, "os.symlink": 2, "os.remove": 1, "os.rmdir": 1,
    "os.mkdir": 1, "os.chmod": 1, "os.chown": 1, "os.utime": 1,
}  # fmt: skip
_SHARED = {
    "olmo": " ".join(f"--config.{size}" for size in _OLMO),
    "tulu": "--config.data.batch_size=2 --config.data.length=64",
    "pool": " ".join(pools.MADE),
    "tram": "--optimizers=adam --no-tuning --seeds=6 --steps=1",
}


def commands() -> list[list[str]]:
    """The command lines, as words."""
    lines = LINES.replace("\\\n", "").strip().splitlines()
    return [line.format(**_SHARED).split() for line in lines]


def write_inputs(folder: pathlib.Path) -> None:
    """What the command lines read."""
    (folder / "text").mkdir(parents=True)
    verb_runs.write_text(folder / "text")
    toy_retrieval.write_set(folder / "set")
    values = pathlib.Path(__file__).parents[1] / "values" / "bert"
    for name in ("bert", "bert_scorer"):
        shutil.copytree(values / name, folder / name)
        toy_retrieval.tokenizer().save(folder / name)
    chat = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
    pair = {"prompt": "hi", "chosen": "ho", "rejected": "no"}
    for name, row in (("chats", {"messages": chat}), ("pairs", pair)):
        rows = [json.dumps(row) + "\n"] * 8
        (folder / f"{name}.jsonl").write_text("".join(rows))
    recipe = "sources: [{name: chats, path: chats.jsonl}]\n"
    (folder / "mix.yaml").write_text(recipe)
    for language in ("eng_Latn", "deu_Latn"):
        for split in ("train", "dev", "test"):
            rows = [(str(i), ["law", "sea"][i % 2], f"text {i}") for i in range(16)]
            sib.write(folder / "sib", language, split, rows)


def _note(file: pathlib.Path) -> None:
    """Adds a line to a file, `EVENT PATH`, when this process writes or connects."""
    notes = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def hook(event, arguments):
        if event in _NETWORK:
            found = [repr(arguments[1:])]
        elif event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            found = arguments[:1]
        else:
            found = arguments[: _WRITES.get(event, 0)]
        for name in found:
            if not isinstance(name, int):  # an open file
                name, inside = os.fsdecode(name), arguments[-1]
                if event in _WRITES and isinstance(inside, int) and inside >= 0:
                    name = os.path.join(os.readlink(f"/proc/self/fd/{inside}"), name)
                os.write(notes, f"{event} {os.path.abspath(name)}\n".encode())

    sys.addaudithook(hook)


def main(folder: pathlib.Path) -> None:
    """Runs them all; stops at the first that fails."""
    _note(folder / "noted")
    sizes.SIZES["quick"] = pools.TINY
    os.chdir(folder)
    for argv in commands():
        print("jaxlab", *argv, flush=True)
        if code := cli.run(argv):
            sys.exit(f"exit code {code} of: jaxlab {' '.join(argv)}")


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))

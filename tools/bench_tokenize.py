"""Speed of `jaxlab data tokenize` against the tokenizer alone.

    python tools/bench_tokenize.py TEXT --tokenizer olmo/tokenizer.json
    python tools/bench_tokenize.py TEXT --tokenizer a.model --rounds 5 --workers 2

The texts of TEXT (a subfolder or NAME.jsonl per domain) are copied to .jsonl.gz files,
Dolma's format, until they are --megabytes large. In every round, by turns:

    alone      the library's own call for many texts, which lie in memory; nothing kept
    jaxlab     read, tokenized and written with checksums, in this process
    processes  the same in --workers processes
    beam       the same on Beam's DirectRunner, in this process; if it is installed

Each on one thread per process. Megabytes are of text (UTF-8); seconds of CPU count,
which other programs on the machine disturb little, and wall time is shown beside.
Ratios are medians over rounds. What processes cost to start is in their numbers: it
counts in a small corpus and vanishes in a large one.
"""

import argparse
import gzip
import importlib.util
import json
import os
import pathlib
import resource
import statistics
import sys
import tempfile
import time

os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("JAX_PLATFORMS", "cpu")

from jaxlab.data.corpus import domains as domains_lib
from jaxlab.data.shards import beam, run
from jaxlab.data.tokenizers import tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("text")
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--megabytes", type=float, default=32.0)
    parser.add_argument("--files", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    model = tokenizer.load(options.tokenizer)
    if hasattr(model, "processor"):  # SentencePiece: our call takes all cores
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    texts = [
        document.text
        for documents in domains_lib.read_domains(options.text).values()
        for document in documents
    ]
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        texts = write_copies(texts, folder / "text", options)
        size = sum(len(text.encode("utf-8")) for text in texts) / 1e6
        seconds_of = measure(texts, folder, model, options)
    print(f"{size:.1f} MB of text, {len(texts)} documents, {options.files} files")
    cpu = {name: [cpu for cpu, _ in rounds] for name, rounds in seconds_of.items()}
    for name, rounds in seconds_of.items():
        pairs = zip(cpu["alone"], cpu[name], strict=True)
        ratio = statistics.median(alone / own for alone, own in pairs)
        wall = statistics.median(wall for _, wall in rounds)
        print(
            f"{name:>9}: {size / statistics.median(cpu[name]):6.2f} MB per CPU-second, "
            f"{ratio:.2f} of alone; wall {wall:.1f} s"
        )


def write_copies(texts, folder, options) -> list[str]:
    """Copies of the texts in files of one domain; returns all of them."""
    (folder / "web").mkdir(parents=True)
    each = options.megabytes * 1e6 / options.files
    everything, number = [], 0
    for file in range(options.files):
        size, path = 0, folder / "web" / f"{file:04d}.json.gz"
        with gzip.open(path, "wt", compresslevel=6, encoding="utf-8") as out:
            while size < each:
                text = texts[number % len(texts)]
                row = {"id": str(number), "text": text, "source": "bench"}
                out.write(json.dumps(row, ensure_ascii=False) + "\n")
                size += len(text.encode("utf-8"))
                everything.append(text)
                number += 1
    return everything


def measure(texts, folder, model, options) -> dict[str, list[tuple[float, float]]]:
    """CPU and wall seconds of each way, by rounds."""
    engines = {"jaxlab": run.in_process}
    engines["processes"] = run.in_processes(options.workers)
    has_beam = importlib.util.find_spec("apache_beam") is not None
    seconds_of: dict[str, list] = {"alone": []}
    for turn in range(options.rounds):
        seconds_of["alone"].append(measure_seconds(lambda: alone(texts, model)))
        if has_beam:  # a pipeline runs once
            engines["beam"] = beam.engine("DirectRunner")
        for name, engine in engines.items():
            out = str(folder / f"{name}{turn}")
            seconds = measure_seconds(
                lambda out=out, engine=engine: run.tokenize(
                    str(folder / "text"), out, model, shard_bytes=1, engine=engine
                )
            )
            seconds_of.setdefault(name, []).append(seconds)
        print(f"round {turn + 1} of {options.rounds}", file=sys.stderr)
    return seconds_of


def alone(texts, model) -> None:
    for start in range(0, len(texts), 256):
        batch = texts[start : start + 256]
        if hasattr(model, "processor"):
            model.processor.encode(batch, num_threads=1)
        else:
            model.plain.encode_batch_fast(batch, add_special_tokens=False)


def measure_seconds(call) -> tuple[float, float]:
    wall, cpu = time.perf_counter(), cpu_seconds()
    call()
    return cpu_seconds() - cpu, time.perf_counter() - wall


def cpu_seconds() -> float:
    """Of this process, and of its children that have ended."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


if __name__ == "__main__":
    main()

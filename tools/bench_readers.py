"""Memory that each reader takes, against the size of its file.

    python tools/bench_readers.py [--megabytes 50] [READER ...]

Each reads a file of its own in a process of its own: peak resident memory over what the
process held after its imports, pages of mapped files included, divided by the file's
bytes as they are unpacked. A line is half a kilobyte, as of web text.
"""

import argparse
import gzip
import importlib
import json
import pathlib
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator

WORDS = "the quick brown fox jumps over the lazy dog while others keep on reading " * 7


def exhaust(values) -> None:
    """Reads without keeping."""
    for _ in values:
        pass


def lines_of(row: Callable[[int], object]) -> Callable[[int], Iterator[bytes]]:
    """A file of JSON lines, or of texts, by what line i is."""

    def write(size: int) -> Iterator[bytes]:
        number = 0
        while size > 0:
            made = row(number)
            line = made if isinstance(made, str) else json.dumps(made)
            yield (data := line.encode() + b"\n")
            size, number = size - len(data), number + 1

    return write


def json_list(row: Callable[[int], object]) -> Callable[[int], Iterator[bytes]]:
    """A file that is one JSON list."""

    def write(size: int) -> Iterator[bytes]:
        yield b"["
        for number, line in enumerate(lines_of(row)(size)):
            yield b"," * (number > 0) + line
        yield b"]"

    return write


def tensors(size: int) -> Iterator[bytes]:
    """A file of safetensors with one tensor."""
    count = size // 4
    entry = {"dtype": "F32", "shape": [count], "data_offsets": [0, 4 * count]}
    header = json.dumps({"x": entry}).encode()
    yield len(header).to_bytes(8, "little") + header
    for _ in range(count >> 16):
        yield bytes(1 << 18)
    yield bytes(4 * (count & 0xFFFF))


def vocabulary(size: int) -> Iterator[bytes]:
    """A tokenizer.json of byte-level pairs with a vocabulary of that size."""
    ends = {"<|endoftext|>": 0}
    vocab = ends | {f"token-{i}": i for i in range(1, size // 24)}
    model = {"type": "BPE", "vocab": vocab, "merges": []}
    yield json.dumps({"version": "1.0", "added_tokens": [], "model": model}).encode()


def chat(i: int) -> dict:
    """A conversation."""
    messages = [{"role": "user", "content": f"{i}?"}]
    return {"messages": [*messages, {"role": "assistant", "content": WORDS}]}


def read_documents(path) -> None:
    from jaxlab.data.corpus import documents

    exhaust(documents.read_documents(path))


def read_conversations(path) -> None:
    from jaxlab.data.examples import conversations

    conversations.read(str(path))


def read_corpus(path) -> None:
    from jaxlab.retrieval import formats

    formats.read_corpus(path)


def read_queries(path) -> None:
    from jaxlab.retrieval import formats

    formats.read_queries(path)


def read_qrels(path) -> None:
    from jaxlab.retrieval import formats

    formats.read_qrels(path)


def read_run(path) -> None:
    from jaxlab.retrieval import formats

    formats.read_run(path)


def read_rows(path) -> None:
    from jaxlab.core import runs

    runs.rows(path.parent)


def read_object(path) -> None:
    from jaxlab.core import json_text

    json_text.read_object(path, "restore it")


def read_safetensors(path) -> None:
    from jaxlab.core import safetensors

    float(safetensors.read(path)["x"].sum())  # every page


def read_tokenizer(path) -> None:
    from jaxlab.data import tokenizers

    tokenizers.load(path)


def read_table(path) -> None:
    import numpy as np

    from jaxlab.data.corpus import token_files

    with gzip.open(path) as table:
        tokens = int(table.read()[-60:].split(b"\n")[-2].split(b",")[1])
    with (path.parent / "x.npy").open("wb") as file:
        file.truncate(2 * tokens)
    assert token_files.TokenFile.open(path.parent / "x", np.uint16).ends[-1] == tokens


JUDGED = lines_of(lambda i: f"query-{i // 20}\tdocument-{i}\t1")
RUN = lines_of(lambda i: f"query-{i // 20} Q0 document-{i} {i} {1 / (i + 1)} x")
TEXT = lines_of(lambda i: {"text": WORDS})
TEXTS = lines_of(lambda i: {"_id": f"d{i}", "title": "", "text": WORDS})
ROW = lines_of(lambda i: {"step": i, **{f"loss/{k}": i / 7 for k in range(12)}})
TABLE = lines_of(lambda i: f"{9 * i},{9 * i + 9},document-{i},web/7.jsonl.gz:{i},{i}")
READERS = {  # name -> (file, what is in it, its reader)
    "documents": ("x.jsonl", TEXT, read_documents),
    "documents, .gz": ("x.jsonl.gz", TEXT, read_documents),
    "documents, .zst": ("x.jsonl.zst", TEXT, read_documents),
    "one document": ("x.txt", lines_of(lambda i: WORDS), read_documents),
    "conversations": ("x.jsonl", lines_of(chat), read_conversations),
    "conversations, .json": ("x.json", json_list(chat), read_conversations),
    "corpus": ("x.jsonl", TEXTS, read_corpus),
    "queries": ("x.jsonl", TEXTS, read_queries),
    "judgments": ("x.tsv", JUDGED, read_qrels),
    "TREC run": ("x.trec", RUN, read_run),
    "rows of a run": ("metrics.jsonl", ROW, read_rows),
    "a JSON object": ("x.json", lambda size: [b'{"x":', *json_list(chat)(size), b"}"],
                      read_object),
    "table of a token file, .gz": ("x.csv.gz", TABLE, read_table),
    "tokenizer.json": ("tokenizer.json", vocabulary, read_tokenizer),
    "safetensors": ("x.safetensors", tensors, read_safetensors),
}  # fmt: skip


def measure(name: str, folder: pathlib.Path) -> None:
    """In a process of its own: prints the bytes that a reader takes."""
    for module in ("core.runs", "data.examples.conversations", "retrieval.formats"):
        importlib.import_module(f"jaxlab.{module}")
    file, _, read = READERS[name]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    read(folder / file)
    print(1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before))


def _open(path: pathlib.Path):
    if path.suffix == ".gz":
        return gzip.open(path, "wb", 1)
    if path.suffix == ".zst":
        import zstandard

        return zstandard.open(path, "wb")
    return path.open("wb")


def main(argv: list[str] | None = None) -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("readers", nargs="*", default=[*READERS])
    parser.add_argument("--megabytes", type=int, default=50)
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.measure:
        measure(args.readers[0], pathlib.Path(args.measure))
        return
    for name in args.readers:
        file, content, _ = READERS[name]
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder, file)
            size = args.megabytes * 10**6
            with _open(path) as to:
                for data in content(size):
                    to.write(data)
            words = [sys.executable, __file__, name, "--measure", folder]
            done = subprocess.run(words, capture_output=True, text=True, check=True)
            print(f"{name:<28}{int(done.stdout.split()[-1]) / size:5.1f}", flush=True)


if __name__ == "__main__":
    main()

"""A corpus of two domains, in many files and languages; the bytes of a folder."""

import gzip
import json

import zstandard

LANGUAGES = ("word number {}. ", "слово {}, ", "語{}、", "كلمة {} ", "🙂 {}\n")


def lines(name, count):
    texts = [LANGUAGES[i % 5].format(i) * (3 + i % 7) for i in range(count)]
    texts[1] = " \n"  # left out
    rows = [{"id": f"{name}{i}", "text": text} for i, text in enumerate(texts)]
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def write_corpus(folder):
    """Two domains: web of many files and kinds, law of one file."""
    web = folder / "web"
    (web / "more").mkdir(parents=True)
    (web / "a.jsonl").write_bytes(lines("a", 30))
    (web / "b.jsonl.gz").write_bytes(gzip.compress(lines("b", 25)))
    (web / "c.json.gz").write_bytes(gzip.compress(lines("c", 12)))
    (web / "more" / "d.jsonl.zst").write_bytes(zstandard.compress(lines("d", 40)))
    for i in range(8):
        (web / "more" / f"{i}.txt").write_text(f"Text {i}. " * 40)
    (web / "more" / "empty.txt").touch()  # left out
    (folder / "law.jsonl").write_bytes(lines("law", 20))
    return folder


def contents(folder):
    """Every file's bytes by its name."""
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}

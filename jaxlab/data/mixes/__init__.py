"""Mixtures of instruction data: a recipe becomes one file of conversations.

    read -> draw `count` -> split what is too long -> drop by words, duplicates and
    evaluation questions -> OUT/mix.jsonl, OUT/mix.json

`recipe` says what a recipe may hold, `readers` what is read. What is drawn depends on
the seed and the source's name alone: another source changes no other's rows. Splitting
is that of ShareGPT's conversations for Vicuna: pairs of turns as long as they fit, six
tokens more for each message; a pair that is too long alone is left out. *Deviation*:
the published splitter loses the last pair where that begins a piece; here it is kept.
"""

import collections
import hashlib
import json
import pathlib
import random
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from jaxlab.core import errors, folders
from jaxlab.data.examples import conversations
from jaxlab.data.mixes import decontamination, readers
from jaxlab.data.mixes import recipe as recipes
from jaxlab.data.tokenizers import tokenizer as tokenizers

FILE, REPORT = "mix.jsonl", "mix.json"
REASONS = ("words", "duplicates", "evaluation")
_PER_MESSAGE = 6  # tokens of a message's header, as the published splitter counts
_SILENT = lambda text: None  # noqa: E731


class Row(NamedTuple):
    """What became of one source.

    Attributes:
        name: of the source.
        read: conversations.
        drawn: of these; after splitting, pieces of them.
        dropped: reason -> how many.
        kept: conversations of it in the mixture.
        tokens: of their messages; None without a tokenizer.
    """

    name: str
    read: int
    drawn: int
    dropped: dict[str, int]
    kept: int
    tokens: int | None


def mix(
    recipe: str | pathlib.Path,
    out: str | pathlib.Path,
    *,
    say: Callable[[str], None] = _SILENT,
) -> list[Row]:
    """Writes a mixture.

    Args:
        recipe: a YAML file.
        out: the folder to make.
        say: is told what is done.

    Returns:
        What became of each source, in the recipe's order.

    Raises:
        UserError: a recipe or a source that cannot be read.
    """
    folders.refuse_existing(out)
    made = recipes.read(recipe)
    count = None
    if made.tokenizer:
        tokenizer = tokenizers.load(made.tokenizer)
        count = lambda text: len(tokenizer.encode(text))  # noqa: E731
    rules = _Rules(made)
    rows = []
    with folders.new_folder(out) as part:
        with (part / FILE).open("w", encoding="utf-8", newline="\n") as file:
            for source in made.sources:
                say(f"reading {source.name}")
                rows.append(_write(file, source, made.seed, rules, count))
        data = (part / FILE).read_bytes()
        report = {
            "recipe": pathlib.Path(recipe).read_text("utf-8"),
            "sha256": hashlib.sha256(data).hexdigest(),
            "sources": [row._asdict() for row in rows],
            "contaminated": rules.repeated,
        }
        (part / REPORT).write_text(json.dumps(report, indent=1) + "\n", "utf-8")
    return rows


def _write(file, source: recipes.Source, seed, rules, count) -> Row:
    draw = random.Random(f"{seed} {source.name}")
    reader, _ = readers.READERS[source.reader]
    found = list(reader(source.path, source.options, draw))
    if not found:
        raise errors.UserError(f"{source.path} has no conversation; leave it out")
    drawn = found
    if source.count and source.count < len(found):
        chosen = sorted(draw.sample(range(len(found)), source.count))
        drawn = [found[i] for i in chosen]
    if source.split:
        drawn = [piece for each in drawn for piece in split(each, source.split, count)]
    dropped: dict[str, int] = collections.Counter()
    kept, tokens = 0, 0
    for row in drawn:
        reason = None if source.exempt else rules.refuse(row)
        if reason:
            dropped[reason] += 1
            continue
        text = readers.to_line(source.name, row)
        if count is not None:
            lengths = (count(message.content) for message in row.messages)
            tokens += source.repeat * sum(lengths)
        for _ in range(source.repeat):
            file.write(text)
        kept += source.repeat
    reasons = {reason: dropped[reason] for reason in REASONS}
    total = None if count is None else tokens
    return Row(source.name, len(found), len(drawn), reasons, kept, total)


def split(
    row: conversations.Conversation, most: int, count: Callable[[str], int]
) -> Iterator[conversations.Conversation]:
    """Pieces of whole pairs of turns, none longer than `most` tokens.

    A system message stays with the first piece. What does not alternate is one piece.
    """
    lead = row.messages[:1] if row.messages[0].role == "system" else ()
    turns = row.messages[len(lead) :]
    roles = [message.role for message in turns[: len(turns) // 2 * 2]]
    if roles != ["user", "assistant"] * (len(roles) // 2):
        yield row
        return
    sizes = [count(message.content) + _PER_MESSAGE for message in row.messages]
    if sum(sizes) <= most and len(turns) % 2 == 0:
        yield row
        return
    start, length = 0, sum(sizes[: len(lead)])
    sizes = sizes[len(lead) :]

    def piece(first, end):
        before = lead if first == 0 else ()
        return row._replace(id=f"{row.id}_{first}", messages=before + turns[first:end])

    for i in range(0, len(roles), 2):
        pair = sizes[i] + sizes[i + 1]
        if length + pair > most and i > start:
            yield piece(start, i)
            start, length = i, 0
        if pair > most:
            start, length = i + 2, 0
        else:
            length += pair
    if start < len(roles):
        yield piece(start, len(roles))


class _Rules:
    """Why a conversation is not in the mixture."""

    def __init__(self, recipe: recipes.Recipe):
        self.words = tuple(word.lower() for word in recipe.words)
        self.seen: set[bytes] | None = set() if recipe.drop_duplicates else None
        self.index = None
        self.repeated: dict[str, int] = collections.Counter()
        if recipe.against["files"]:
            files = [pathlib.Path(file) for file in recipe.against["files"]]
            if missing := [file for file in files if not file.is_file()]:
                raise errors.UserError(
                    f"{missing[0]} does not exist; it was to be "
                    "what the mixture must not repeat"
                )
            fields = tuple(recipe.against["fields"])
            questions = decontamination.read_questions(files, fields)
            n, share = recipe.against["n"], recipe.against["share"]
            if n < 1 or not 0 <= share < 1:
                raise errors.UserError(
                    f"decontaminate: n {n}, share {share}; use 1 or more, and 0 to "
                    "below 1"
                )
            self.index = decontamination.Index(questions, n=n, share=share)

    def refuse(self, row: conversations.Conversation) -> str | None:
        """The reason, of REASONS; None where there is none."""
        if self.words:
            text = "\n".join(message.content for message in row.messages).lower()
            if any(word in text for word in self.words):
                return "words"
        if self.index is not None:
            for message in row.messages:
                found = message.role == "user" and self.index.find(message.content)
                if found:
                    self.repeated[found] += 1
                    return "evaluation"
        if self.seen is not None:
            said = [(message.role, message.content) for message in row.messages]
            digest = hashlib.sha256(json.dumps(said).encode()).digest()
            if digest in self.seen:
                return "duplicates"
            self.seen.add(digest)
        return None


def describe(rows: list[Row]) -> list[list[Any]]:
    """Cells of a table, one row per source and one of all."""
    total = Row(
        "all",
        sum(row.read for row in rows),
        sum(row.drawn for row in rows),
        {reason: sum(row.dropped[reason] for row in rows) for reason in REASONS},
        sum(row.kept for row in rows),
        None if rows[0].tokens is None else sum(row.tokens or 0 for row in rows),
    )
    return [
        [
            row.name, f"{row.read:,}", f"{row.drawn:,}",
            *(f"{row.dropped[reason]:,}" for reason in REASONS),
            f"{row.kept:,}", "" if row.tokens is None else f"{row.tokens:,}",
            f"{row.kept / max(total.kept, 1):.1%}",
        ]
        for row in (*rows, total)
    ]  # fmt: skip

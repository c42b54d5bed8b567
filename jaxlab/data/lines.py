"""Lines of text and JSON-lines files, plain, .gz or .zst, with `file:line` in errors.

A line ends at a line feed alone: texts hold other separators, e.g. U+2028. Line ends of
Windows and a byte-order mark are taken off. Lines without anything are left out, and
counted, so that a line's number is that of an editor.
"""

import codecs
import contextlib
import gzip
import io
import json
import pathlib
import zlib
from collections.abc import Iterator
from typing import IO, Any

from jaxlab.core import errors, json_text, paths

_BLOCK_BYTES = 1 << 20
_MOST_LINE_BYTES = 1 << 28
_DECODE = json.JSONDecoder().raw_decode
# In the first lines and characters names that stand twice are looked for: who writes
# them does so from the beginning, and in all of a file they would take twice the time.
_LOOKED_THROUGH_LINES, _LOOKED_THROUGH_CHARACTERS = 100, 1 << 17


def read(
    path: str | pathlib.Path, *, keep_blank: bool = False
) -> Iterator[tuple[int, str]]:
    """(number from 1, line without its end) of the lines of a file that are not blank.

    Args:
        path: of a file, also one in a bucket; its suffix says how it is compressed.
        keep_blank: yields blank lines too.

    Raises:
        UserError: not UTF-8, nothing in it, a damaged or missing file.
    """
    path = paths.path(path)
    offset = 0
    for number, data in enumerate(_raw_lines(path), start=1):
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise _not_utf8(path, number, offset + error.start) from None
        if not offset:
            text = text.removeprefix("\ufeff")
        offset += len(data)
        text = text.rstrip("\r\n")
        if keep_blank or (text and not text.isspace()):
            yield number, text
    if not offset:
        raise errors.UserError(f"{path} holds no line; put some in it or remove it")


def read_json(path: str | pathlib.Path) -> Iterator[tuple[int, Any]]:
    """(number from 1, value) of the lines of a JSON-lines file that are not blank.

    Raises:
        UserError: as `read`; a line that is not JSON, or has a name twice.
    """
    for number, text in read(path):
        try:  # as json.loads, which looks for white space first
            value, end = _DECODE(text)
        except (ValueError, RecursionError):
            end = None
        if end != len(text) or number <= _LOOKED_THROUGH_LINES:
            place = f"{path}:{number}"
            value = parse_json(text, place, "write one JSON object per line")
        yield number, value


def read_objects(path: str | pathlib.Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The same of a file whose lines are all JSON objects.

    Raises:
        UserError: as `read_json`; a line that is another value.
    """
    for number, value in read_json(path):
        if not isinstance(value, dict):
            raise errors.UserError(
                f"{path}:{number} is not a JSON object; write one per line"
            )
        yield number, value


def parse_json(text: str, place: str, fix: str) -> Any:
    """The value that a text of JSON spells.

    Raises:
        UserError: `json_text.read` cannot; `place` and `fix` are in the message.
    """
    try:
        return json_text.read(text, once=len(text) <= _LOOKED_THROUGH_CHARACTERS)
    except json_text.ReadError as error:
        raise errors.UserError(f"{place} {error}; {fix}") from None


def read_whole(path: str | pathlib.Path, fix: str = "cut it into documents") -> str:
    """The text of a file that is one document, or one JSON value.

    Raises:
        UserError: larger than any line may be, or not UTF-8.
    """
    with paths.path(path).open("rb") as file:
        data = file.read(_MOST_LINE_BYTES + 1)
    if len(data) > _MOST_LINE_BYTES:
        raise errors.UserError(
            f"{path} has more than {_MOST_LINE_BYTES:,} bytes, which are read at once; "
            f"{fix}"
        )
    return decode(data, path)


def decode(data: bytes, source: str | pathlib.Path) -> str:
    """The text of a whole file, whose lines keep their ends.

    Args:
        data: what is in it.
        source: its name, for messages.

    Raises:
        UserError: not UTF-8; line and byte are named.
    """
    try:
        return data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        number = 1 + data.count(b"\n", 0, error.start)
        raise _not_utf8(source, number, error.start) from None


def require_utf8(text: str, place: str) -> str:
    """The text, if UTF-8 can encode it.

    Raises:
        UserError: half a surrogate pair, which JSON can spell; `place` is named.
    """
    if not text.isascii():
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise errors.UserError(
                f"{place} holds half a surrogate pair at character {error.start} of "
                "its text; repair the \\u escape, or write it in UTF-8"
            ) from None
    return text


def _is_large(file: IO[bytes]) -> bool:
    """Whether a line of it could be longer than is read."""
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    return size > _MOST_LINE_BYTES


def _cut_lines(stream: IO[bytes], path: pathlib.Path) -> Iterator[bytes]:
    """Lines with their ends; a packed file may hold a line larger than the memory."""
    parts: list[bytes] = []  # of a line that is longer than a block
    size = 0
    while block := stream.read(_BLOCK_BYTES):
        first, *others = block.split(b"\n")
        size += len(first)
        if size > _MOST_LINE_BYTES:
            raise errors.UserError(
                f"{path} holds a line of more than {_MOST_LINE_BYTES:,} bytes; cut it "
                "into documents"
            )
        parts.append(first)
        if others:
            yield b"".join(parts) + b"\n"
            *whole, last = others
            for line in whole:
                yield line + b"\n"
            parts, size = [last], len(last)
    if size:
        yield b"".join(parts)


def _raw_lines(path: pathlib.Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            suffix = path.suffix.lower()
            if suffix == ".gz":
                with gzip.open(file, "rb") as stream:
                    yield from _cut_lines(stream, path)
            elif suffix == ".zst":
                yield from _cut_lines(io.BufferedReader(_Frames(file), 1 << 17), path)
            elif file.seekable() and not _is_large(file):
                yield from file
            else:
                yield from _cut_lines(file, path)
    except FileNotFoundError:
        raise errors.UserError(f"{path} does not exist; name another file") from None
    except IsADirectoryError:
        raise errors.UserError(f"{path} is a folder; name a file in it") from None
    except (OSError, EOFError, zlib.error) as error:
        if getattr(error, "errno", None):  # of the disk or of its rights
            raise errors.UserError(
                f"{path} cannot be read: {error.strerror}; see to it, or name "
                "another file"
            ) from None
        raise errors.UserError(
            f"{path} cannot be read ({error}); it is damaged or cut short: copy it anew"
        ) from None


class _Frames(io.RawIOBase):
    """The content of a .zst file, frame by frame, so that a cut one is seen.

    zstandard's own reader takes an end within a frame for the end of the file.
    """

    def __init__(self, file: io.BufferedIOBase):
        import zstandard

        self._file, self._error = file, zstandard.ZstdError
        # Of any window: `zstd --long=31` is sound, and asks for 2 GB at most.
        self._frames = zstandard.ZstdDecompressor(max_window_size=1 << 31)
        self._frame, self._packed, self._text = None, b"", memoryview(b"")

    def readable(self) -> bool:
        """True."""
        return True

    def readinto(self, into) -> int:
        """Fills some of a buffer; see `io.RawIOBase`."""
        while not self._text:
            packed = self._packed or self._file.read(1 << 16)
            if not packed and self._frame is None:
                return 0
            if not packed:
                raise EOFError("its last frame has no end")
            try:
                self._frame = self._frame or self._frames.decompressobj()
                self._text = memoryview(self._frame.decompress(packed))
            except self._error as error:
                raise EOFError(error) from None
            self._packed = self._frame.unused_data if self._frame.eof else b""
            self._frame = None if self._frame.eof else self._frame
        size = min(len(into), len(self._text))
        into[:size] = self._text[:size]
        self._text = self._text[size:]
        return size


def _not_utf8(source, number: int, byte: int) -> errors.UserError:
    fix = "convert it, e.g. iconv -f latin1 -t utf-8"
    with contextlib.suppress(OSError, errors.UserError):
        head = next(_raw_lines(pathlib.Path(source)))[:1024]
        if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            fix = "convert it: iconv -f utf-16 -t utf-8"
        elif b"\0" in head or head.startswith(b"%PDF"):
            fix = "it is no text; give a text file"
    return errors.UserError(
        f"{source}:{number} is not UTF-8 (byte {byte} of the file); {fix}"
    )

"""Reads ranges of the tensors of all inputs, from several threads, and checks them."""

import math
import os
from collections.abc import Sequence

import numpy as np

from jaxlab.core import errors
from jaxlab.merge.files.read import digests
from jaxlab.merge.files.read import source as source_lib


class Reader:
    """Reads ranges of tensors; threads share one.

    Use as a context manager: it keeps the files open.

    Args:
        sources: the inputs.
        digest: "xxh3" adds up checksums of what is read; "crc32" and "sha256" are of
            whole files, which are read once more for them; None for no checksums.
    """

    def __init__(self, sources: Sequence[source_lib.Source], digest: str | None):
        self._sources = sources
        self._open: dict[str, int] = {}
        self._prints = digests.Fingerprints()
        self._sums = digests.TensorSums(
            {
                (index, name): (f"{name} {t.dtype} {list(t.shape)}", t.size)
                for index, source in enumerate(sources)
                for name, t in source.tensors.items()
                if digest == "xxh3"
            }
        )
        self._digest = digest

    def __enter__(self) -> "Reader":
        try:
            for source in self._sources:
                for tensor in source.tensors.values():
                    for extent in tensor.extents:
                        if extent.file not in self._open:
                            self._open[extent.file] = os.open(extent.file, os.O_RDONLY)
        except OSError as error:
            self.__exit__()
            raise errors.UserError(
                f"cannot read {error.filename}: {error.strerror}"
            ) from None
        return self

    def __exit__(self, *exception) -> None:
        for handle in self._open.values():
            os.close(handle)
        self._open = {}

    def read(
        self, index: int, name: str, start: int, out: np.ndarray, survey: bool = False
    ) -> None:
        """Fills `out`, a vector of the tensor's dtype, with its numbers from `start`.

        Args:
            index: of the source.
            name: of the tensor.
            start: the first number.
            out: what is filled.
            survey: the numbers are read once more, and checksums are taken then.

        Raises:
            UserError: a file ends early or cannot be read.
        """
        self._read(index, name, start, out)
        if survey:
            return
        if self._digest == "xxh3":
            data = memoryview(out.view(np.uint8))
            self._sums.add((index, name), start * out.itemsize, data)
        if name in self._sources[index].fingerprints:
            self._prints.add((index, name), start, out)

    def digests(self) -> dict[str, str]:
        """Checksums of what was merged, by the path of the input or of the file."""
        if self._digest is None:
            return {}
        if self._digest == "xxh3":
            return {s.path: self._sum(i) for i, s in enumerate(self._sources)}
        files = [file for source in self._sources for file in source.files]
        return {file: digests.of_file(file, self._digest) for file in files}

    def _sum(self, index) -> str:
        """The `xxh3` of all tensors of a source; what was not read is read now."""
        total = 0
        for name, tensor in self._sources[index].tensors.items():

            def read(start, buffer, name=name, dtype=tensor.dtype):
                values = np.frombuffer(buffer, dtype)
                self._read(index, name, start // dtype.itemsize, values)

            total += self._sums.total((index, name), read)
        return f"{total % 2**64:016x}"

    def check_fingerprints(self) -> None:
        """Refuses runs whose leaves are not what was saved.

        Raises:
            UserError: naming the checkpoint and the leaf.
        """
        for (index, name), (count, value) in self._prints.sums.items():
            source = self._sources[index]
            is_whole = count == math.prod(source.tensors[name].shape)
            if is_whole and value != source.fingerprints[name]:
                raise errors.UserError(
                    f"step {source.step} of {source.path} is corrupt: {name} does not "
                    "match its checksum"
                )

    def _read(self, index, name, start, out):
        tensor = self._sources[index].tensors[name]
        if tensor.fetch is not None:
            out[:] = tensor.fetch(start, start + len(out))
            return
        view, begin = memoryview(out.view(np.uint8)), start * out.itemsize
        if tensor.inline:
            view[:] = tensor.inline[begin : begin + len(view)]
            return
        for extent in tensor.extents:
            if begin < extent.size and len(view):
                part = view[: extent.size - begin]
                self._fill(extent.file, extent.offset + begin, part)
                view = view[len(part) :]
            begin = max(begin - extent.size, 0)

    def _fill(self, file, at, view):
        try:
            while len(view):
                count = os.preadv(self._open[file], [view], at)
                if not count:
                    raise errors.UserError(f"{file} was cut short while it was read")
                view, at = view[count:], at + count
        except OSError as error:
            raise errors.UserError(f"cannot read {file}: {error.strerror}") from None

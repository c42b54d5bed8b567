"""Atomic writes: files and folders that appear under their name whole, or never.

What is written gets a temporary name beside the final one, and is renamed when it is
whole: `whole_file` and `write_text` for a file, `publish` for files that belong
together, `new_folder` for a folder. A reader sees the old one or the new one, never
half. A process that is killed leaves its temporary file or folder behind; the next
write to the same name removes it. `refuse_existing` is asked before the work that a
new folder is for.

A bucket has no renames and takes whole objects: there `write_text` and `write_bytes`
write the object itself, and the others need a local path.
"""

import contextlib
import fcntl
import glob
import os
import pathlib
import shutil
import stat
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping

from jaxlab.core import errors, locks, paths

_LOCK = ".unfinished"  # in a folder in the making; locked while its writer runs
_REPLACED = ".replaced"  # in NAME.old, a folder that a new one is taking the place of
_STALE_SECONDS = 86_400.0  # a temporary file that is unchanged for so long is removed
_UPLOAD_SECONDS = 30.0  # between uploads of a file that grows
_UPLOAD_SHARE = 0.02  # of the time goes into them at most, however long it is

# ------------------------------------------------------------------ files


def write_text(file: str | os.PathLike, text: str) -> None:
    """Writes a file, in a bucket too; a reader sees the old text or the new."""
    write_bytes(file, text.encode())


def write_bytes(file: str | os.PathLike, data: bytes) -> None:
    """Writes a file, in a bucket too; a reader sees the old bytes or the new."""
    if paths.is_remote(file):
        with paths.explain_errors(file):
            paths.path(file).write_bytes(data)
        return
    with whole_file(file) as part:
        part.write_bytes(data)


@contextlib.contextmanager
def whole_file(
    file: str | os.PathLike, *, durable: bool = False
) -> Iterator[pathlib.Path]:
    """A path to write to, which gets the name `file` when the block ends well.

    Args:
        file: in an existing local folder; an older one is replaced.
        durable: the bytes reach the disk before the name does: the power may go.
    """
    file = pathlib.Path(file)
    part = temporary_name(file)
    try:
        yield part
        publish({part: file}, durable=durable)
    except OSError as error:
        if error.errno is not None and error.filename in (None, str(part)):
            error.filename = str(file)  # of a full disk Python does not say which
        raise
    finally:
        part.unlink(missing_ok=True)


def check_target(flag: str, file: str | os.PathLike) -> None:
    """Refuses a file that cannot be written, before the work that it is for.

    Raises:
        UserError: it is a folder, or its own folder is not there.
    """
    local = pathlib.Path(file).absolute()
    if paths.is_remote(file):
        return
    if local.is_dir():
        raise errors.UserError(f"{flag} {file} is a folder; name a file")
    if not local.parent.is_dir():
        raise errors.UserError(
            f"{flag} {file}: there is no folder {local.parent}; make it first"
        )


def is_link(file: pathlib.Path) -> bool:
    """Whether a name leads to a file that has, or could have, another one."""
    try:
        status = file.lstat()
    except OSError:
        return False
    return not stat.S_ISREG(status.st_mode) or status.st_nlink > 1


def remove_link(file: pathlib.Path) -> None:
    """Removes a link with the name of a temporary file: it would be written through."""
    if is_link(file):
        file.unlink()


def refuse_link(file: pathlib.Path, fix: str) -> None:
    """Refuses to add to a file that has another name: it may be another's.

    Raises:
        UserError: it is a link, or has a second name.
    """
    if is_link(file):
        raise errors.UserError(f"{file} is a link to another file; {fix}")


def temporary_name(file: pathlib.Path) -> pathlib.Path:
    """A name beside a file, for what becomes that file; no other writer has it.

    Those that killed writers of the same file left behind are removed.
    """
    for stale in file.parent.glob(f"{glob.escape(file.name)}.*.tmp"):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - stale.stat().st_mtime > _STALE_SECONDS:
                stale.unlink()
    return file.with_name(f"{file.name}.{uuid.uuid4().hex[:8]}.tmp")


def is_temporary(name: str) -> bool:
    """Whether a file's name is one of `temporary_name`.

    >>> is_temporary("plan.json.0f3a99c1.tmp"), is_temporary("plan.json")
    (True, False)
    """
    return name.endswith(".tmp")


def publish(
    files: Mapping[pathlib.Path, pathlib.Path], *, durable: bool = False
) -> None:
    """Gives finished files their names: temporary path -> name, on the same disk.

    Of several, the last one marks the set as complete: the old one goes first and the
    new one comes last, so that old and new files never count as one set.

    Args:
        files: in the order in which they appear.
        durable: their bytes reach the disk before their names do.
    """
    if durable:
        for part in files:
            with part.open("rb") as stream:
                os.fsync(stream)
    if len(files) > 1:
        [*files.values()][-1].unlink(missing_ok=True)
    for part, file in files.items():
        os.replace(part, file)


def copy_files(source: pathlib.Path, target: pathlib.Path) -> None:
    """Copies the files of a folder, in buckets too; small ones, held in memory."""
    paths.make_folder(target)
    with paths.explain_errors(source):
        for file in sorted(source.iterdir()):
            write_bytes(target / file.name, file.read_bytes())


class Growing:
    """A text file that is added to; in a bucket, whole copies of a local one.

    Args:
        file: where it is.
        text: what it begins with; whatever was there before is replaced.
    """

    def __init__(self, file: pathlib.Path, text: str = ""):
        self.name, self._is_new = str(file), True
        self._folder = None
        local = file
        if paths.is_remote(file):
            self._folder = tempfile.TemporaryDirectory(prefix="jaxlab-")
            local = pathlib.Path(self._folder.name) / file.name
        write_text(local, text)
        self._local = local.open("a", encoding="utf-8")
        self._due = time.monotonic() + _UPLOAD_SECONDS

    def write(self, text: str) -> None:
        """Adds text."""
        self._local.write(text)
        self._is_new = True

    def flush(self) -> None:
        """Makes it seen: in a folder at once, in a bucket twice per minute."""
        self._local.flush()
        if time.monotonic() >= self._due:
            self.publish()

    def publish(self) -> None:
        """Makes it seen now, in a bucket too."""
        if self._folder is None or not self._is_new:
            return
        begin = time.monotonic()
        write_text(self.name, pathlib.Path(self._local.name).read_text("utf-8"))
        end = time.monotonic()
        self._due = end + max(_UPLOAD_SECONDS, (end - begin) / _UPLOAD_SHARE)
        self._is_new = False

    def close(self) -> None:
        """Publishes and closes; after a failed write it only closes."""
        if self._local.closed:
            return
        self._local.close()
        if self._folder is not None:
            with self._folder:
                self.publish()


# ------------------------------------------------------------------ folders


def refuse_existing(
    folder: str | os.PathLike, fix: str = "remove it or choose another folder"
) -> pathlib.Path:
    """The folder's path, if nothing or an empty folder is there.

    Args:
        folder: that the work to come will make.
        fix: what to do about an existing one.

    Raises:
        UserError: something is there, or it is in a bucket.
    """
    local = pathlib.Path(folder)
    if not is_free(local):
        raise errors.UserError(f"{local} exists; {fix}")
    if paths.is_remote(folder):
        raise errors.UserError(
            f"{folder} is in a bucket; write to a folder and copy it"
        )
    return local


def is_free(folder: pathlib.Path) -> bool:
    """Whether nothing, or an empty folder, is there."""
    if folder.is_dir():
        return not any(folder.iterdir())
    return not folder.exists()


@contextlib.contextmanager
def new_folder(
    folder: str | os.PathLike,
    *,
    replaced: Callable[[str], object] | None = None,
    writer: str = "process",
) -> Iterator[pathlib.Path]:
    """A folder to write into, which gets the name `folder` when the block ends well.

    It is the sibling `NAME.part`; its lock is held as long as its writer runs.

    Args:
        folder: to appear; those above it are made.
        replaced: allows an older folder: of its files, those whose name this accepts
            are replaced, and the others move into the new one.
        writer: what to call another one that is writing the folder.

    Raises:
        UserError: the folder exists, another process is writing it, or something that
            is not an unfinished folder has the name NAME.part.
    """
    folder = pathlib.Path(folder).resolve()  # an empty folder behind a link is filled
    part = folder.with_name(f"{folder.name}.part")
    old = folder.with_name(f"{folder.name}.old")
    if replaced is None:
        refuse_existing(folder)
    elif not is_free(folder) and os.path.lexists(old) and not _is_ours(old, _REPLACED):
        raise errors.UserError(f"{old} is in the way; rename it or use another folder")
    part.parent.mkdir(parents=True, exist_ok=True)
    lock = _claim(part, folder, writer)
    try:
        is_left = replaced is not None and _is_ours(old, _REPLACED)
        if is_left and not folder.exists():
            old.rename(folder)  # a writer was killed between the two renames
        yield part
        moves = replaced is not None and not is_free(folder)
        if moves:
            shutil.rmtree(old, ignore_errors=True)
            (folder / _REPLACED).touch()
            folder.rename(old)
        elif folder.exists():
            folder.rmdir()  # empty, or another writer came in between
        part.rename(folder)
        (folder / _LOCK).unlink()
        if moves:
            _move_others(old, folder, replaced)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    finally:
        os.close(lock)


def _claim(part: pathlib.Path, folder: pathlib.Path, writer: str) -> int:
    """Makes NAME.part anew and locks it; the open lock."""
    if os.path.lexists(part):
        if not _is_ours(part, _LOCK):
            raise errors.UserError(
                f"{part} is in the way; remove it or choose another folder"
            )
        stale = _lock(part, folder, writer)
        shutil.rmtree(part)
        os.close(stale)
    part.mkdir()
    return _lock(part, folder, writer)


def _is_ours(folder: pathlib.Path, mark: str) -> bool:
    """Whether a folder, and no link to one, was made here: it has our mark."""
    return not folder.is_symlink() and (folder / mark).is_file()


def _lock(part: pathlib.Path, folder: pathlib.Path, writer: str) -> int:
    handle = locks.create(part / _LOCK)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise errors.UserError(
            f"another {writer} is writing {folder}; wait for it"
        ) from None
    except OSError:  # a file system without locks: then no other writer is looked for
        pass
    return handle


def _move_others(
    old: pathlib.Path, folder: pathlib.Path, replaced: Callable[[str], object]
) -> None:
    for file in old.iterdir():
        is_kept = file.name != _REPLACED and not replaced(file.name)
        if is_kept and not (folder / file.name).exists():
            file.rename(folder / file.name)
    shutil.rmtree(old)

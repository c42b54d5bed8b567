"""One writer per folder: who comes second is told who is there.

    with locks.hold(workdir, "train"):
        ...                # a second process is refused, with pid and host of this one

The kernel takes the lock of a file, FOLDER/.lock, from a process that dies, however it
dies. The file says whose it is; it is removed at the end, and one that a killed process
left behind holds nobody up. A bucket and a file system without locks take none.
"""

import contextlib
import errno
import fcntl
import json
import os
import pathlib
import socket
import stat
import threading
from collections.abc import Iterator

from jaxlab.core import errors, paths

NAME = ".lock"
_held: dict[pathlib.Path, int] = {}  # folder -> the thread of this process that has it


@contextlib.contextmanager
def hold(folder: str | os.PathLike, what: str) -> Iterator[None]:
    """Holds the folder as long as the block runs; inside of itself it does nothing.

    Args:
        folder: is made where it is missing, and goes again if nothing is written.
        what: what the holder does there, for the message that others get.

    Raises:
        UserError: another process, or another thread, holds it.
    """
    if paths.is_remote(folder):
        yield
        return
    local = pathlib.Path(folder)
    if local.exists() and not local.is_dir():
        raise errors.UserError(f"{local} is a file; give a folder")
    is_new = not local.exists()
    local.mkdir(parents=True, exist_ok=True)
    key = local.resolve()
    if _held.get(key) == threading.get_ident():
        yield
        return
    handle = _lock(local, what)
    _held[key] = threading.get_ident()
    try:
        yield
    finally:
        del _held[key]
        if handle is not None:
            (local / NAME).unlink(missing_ok=True)
            os.close(handle)
        if is_new:
            with contextlib.suppress(OSError):  # what was written there stays
                local.rmdir()


def owner(folder: str | os.PathLike) -> str | None:
    """Who holds a folder, in words; None where nobody does."""
    try:
        handle = os.open(pathlib.Path(folder) / NAME, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:  # no lock, or a bucket
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _owner(handle)
    except OSError:
        return None
    finally:
        os.close(handle)
    return None


def _lock(folder: pathlib.Path, what: str) -> int | None:
    """The open, locked file, which says whose it is; None where there are no locks."""
    file = folder / NAME
    while True:
        handle = create(file)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = _owner(handle)
            os.close(handle)
            raise errors.UserError(
                f"another process ({owner}) is writing {folder}; wait for it, stop it, "
                "or use another folder"
            ) from None
        except OSError:  # a file system without locks: then nobody is looked for
            os.close(handle)
            return None
        if _is_there(file, handle):
            break
        os.close(handle)  # its holder removed it between the two calls
    mine = {"pid": os.getpid(), "host": socket.gethostname(), "what": what}
    os.ftruncate(handle, 0)
    os.pwrite(handle, json.dumps(mine).encode(), 0)
    return handle


def create(file: pathlib.Path) -> int:
    """Opens a lock file, made if it is missing, which is that and nothing else.

    In a folder of others it may be a link to a file that the user needs.

    Raises:
        UserError: it is a link, or has a second name.
    """
    flags = os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        handle = os.open(file, flags, 0o644)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.ENXIO):
            raise
    else:
        status = os.fstat(handle)
        if stat.S_ISREG(status.st_mode) and status.st_nlink <= 1:
            return handle
        os.close(handle)
    raise errors.UserError(f"{file} is a link or a pipe, and no lock; remove it")


def _is_there(file: pathlib.Path, handle: int) -> bool:
    """Whether the file still has its name."""
    try:
        return os.path.samestat(file.stat(), os.fstat(handle))
    except FileNotFoundError:
        return False


def _owner(handle: int) -> str:
    try:
        owner = json.loads(os.pread(handle, 4096, 0))
        words = f"{owner['what']}, pid {owner['pid']} on {owner['host']}"
        return errors.spell_out(words[:200])
    except (ValueError, KeyError, TypeError):  # it has not written it yet
        return "that has just begun"

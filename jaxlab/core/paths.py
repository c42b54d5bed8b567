"""Paths of local folders and gs:// buckets, with the methods of pathlib.

`path("gs://bucket/run")` is an `epath.Path` of etils, `path("runs/tiny")` is pathlib's.
They differ in little, and that is here: a bucket has no folders, takes whole objects (a
reader sees the old one or the new one, without a file that is renamed), and appends
nothing.

*Deviation*: s3:// is refused, since Orbax (0.12) writes to folders and to gs:// only.
"""

import contextlib
import errno
import importlib.util
import os
import pathlib
import re
import shutil
import stat
from collections.abc import Iterator

from jaxlab.core import errors, installation, links

MOST_BYTES = 1 << 27  # of a file that is read whole: some have 10 MB


def path(location: str | os.PathLike) -> pathlib.Path:
    """A location as a path; gs:// as etils' `epath.Path`, which has the same names.

    Raises:
        UserError: a bucket of another kind, or gcsfs is not installed.

    >>> path("runs/tiny").name
    'tiny'
    """
    text = _text(location)
    scheme, separator, rest = text.partition("://")
    if not separator:
        return pathlib.Path(location)
    if scheme != "gs":
        raise errors.UserError(
            f"{text}: checkpoints go to local folders and gs:// only; mount the bucket "
            "and give its path"
        )
    if not rest.strip("/"):
        raise errors.UserError(f"{text} names no bucket; use gs://BUCKET/FOLDER")
    if importlib.util.find_spec("gcsfs") is None:
        raise errors.UserError(f"{text} needs gcsfs: {installation.how_to_add('gcs')}")
    _set_up()
    from etils import epath

    return epath.Path(text)


def is_remote(location: str | os.PathLike) -> bool:
    """Whether a location is in a bucket.

    >>> is_remote("gs://bucket/run"), is_remote("runs/tiny")
    (True, False)
    """
    return "://" in _text(location)


def absolute(location: str | os.PathLike) -> pathlib.Path:
    """The location as a path that does not depend on the working folder."""
    return path(location) if is_remote(location) else pathlib.Path(location).absolute()


def inside(folder: pathlib.Path, name: str, said_by: str | os.PathLike) -> pathlib.Path:
    """A file by the name that a file of others gives it, below a folder.

    Raises:
        UserError: the name leads out of the folder; `said_by` is the file that says it.

    >>> inside(pathlib.Path("model"), "1_Pooling", "modules.json").as_posix()
    'model/1_Pooling'
    """
    parts = pathlib.PurePath(name).parts
    if pathlib.PurePath(name).is_absolute() or ".." in parts or "\0" in name:
        raise errors.UserError(
            f"{said_by} names {name[:200]!r}, which is not inside of {folder}; "
            "download it again"
        )
    return folder / name


def split(locations: str) -> list[str]:
    """Locations that are joined by commas; one that has commas itself is left whole.

    >>> split("runs/a,gs://b/c")
    ['runs/a', 'gs://b/c']
    """
    parts = [part for part in locations.split(",") if part]
    found: list[str] = []
    while parts:
        count = next(
            (
                n
                for n in range(len(parts), 1, -1)
                if os.path.exists(",".join(parts[:n]))
            ),
            1,
        )
        found.append(",".join(parts[:count]))
        parts = parts[count:]
    return found


def list_files(
    folder: pathlib.Path, left_out: dict[str, list[str]] | None = None
) -> dict[str, int]:
    """Bytes of every file below a local folder by its name there, links followed.

    Not followed are those that `links.reason_to_skip` names, and a link to a folder
    that it lies in, which leads nowhere new.

    Args:
        folder: to be looked through.
        left_out: gets what is no file that can be read, by the reason.
    """
    sizes: dict[str, int] = {}
    left_out = {} if left_out is None else left_out
    parents = pathlib.Path(os.path.realpath(folder)).parents
    # The real folders that a folder lies in.
    above = {os.fspath(folder): frozenset(map(str, parents))}
    walk = os.walk(folder, onerror=_raise_but_missing, followlinks=True)
    for path, folders, files in walk:
        real = os.path.realpath(path)
        within = above.pop(path)
        if real in within:
            _leave_out(left_out, "is a link to a folder it lies in", path, folder)
            folders.clear()
            continue
        if why := links.reason_to_skip(path, folder):
            _leave_out(left_out, why, path, folder)
            folders.clear()
            continue
        above |= {os.path.join(path, name): within | {real} for name in folders}
        for name in files:
            file = os.path.join(path, name)
            try:
                status = os.stat(file)
            except FileNotFoundError:
                if os.path.islink(file):  # else somebody's temporary file
                    _leave_out(left_out, "is a broken link", file, folder)
                continue
            except OSError as error:
                if error.errno != errno.ELOOP:
                    raise
                _leave_out(left_out, "is a link to itself", file, folder)
                continue
            why = os.path.islink(file) and links.reason_to_skip(file, folder)
            if why:
                _leave_out(left_out, why, file, folder)
            elif stat.S_ISREG(status.st_mode):
                sizes[_name_in(folder, file)] = status.st_size
            else:
                _leave_out(left_out, "is a pipe, socket or device", file, folder)
    return sizes


def _leave_out(left_out, reason, file, folder) -> None:
    left_out.setdefault(reason, []).append(_name_in(folder, file))


def _name_in(folder, file) -> str:
    return os.path.relpath(file, folder).replace(os.sep, "/")


def _raise_but_missing(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        raise error


def is_same(first: object, second: object) -> bool:
    """Whether two values are paths of one file or folder that is there.

    >>> is_same("/tmp", "/tmp/../tmp/."), is_same("gone", "./gone"), is_same(1, 1.0)
    (True, False, False)
    """
    if not (isinstance(first, str) and isinstance(second, str) and first and second):
        return False
    try:
        return os.path.samefile(first, second)
    except (OSError, ValueError):
        return False


def was_moved(first: object, second: object) -> bool:
    """Whether one path is of nothing any more, and another of something.

    >>> was_moved("gone", "/tmp"), was_moved("/tmp", "/"), was_moved("", "/tmp")
    (True, False, False)
    """
    if not (isinstance(first, str) and isinstance(second, str) and first and second):
        return False
    return not path(first).exists() and path(second).exists()


def refuse_buckets(folder: str | os.PathLike, name: str) -> None:
    """For a system, by its name, that keeps files of its own in a run directory.

    Raises:
        UserError: the folder is in a bucket, which takes rows and checkpoints only.
    """
    if is_remote(folder):
        raise errors.UserError(f"{name} needs a local --workdir, not {_text(folder)}")


def make_folder(folder: str | os.PathLike) -> None:
    """Makes a folder and those above it; in a bucket, sees that the bucket is there.

    Raises:
        UserError: the bucket cannot be reached, or does not exist.
    """
    if not is_remote(folder):
        pathlib.Path(folder).mkdir(parents=True, exist_ok=True)
        return
    bucket = path("/".join(_text(folder).split("/")[:3]))  # etils' mkdir would make it
    with explain_errors(bucket):
        exists = bucket.exists()
    if not exists:
        raise errors.UserError(f"there is no bucket {bucket}; make it, or name another")


def is_folder(location: str | os.PathLike) -> bool:
    """Whether a folder is there; in a bucket, whether anything is in it.

    Raises:
        UserError: the bucket could not be reached. (`is_dir` would say no, and a run
            that has a checkpoint would start again.)
    """
    if not is_remote(location):
        return pathlib.Path(location).is_dir()
    with explain_errors(location):
        try:
            return any(True for _ in path(location).iterdir())
        except FileNotFoundError:
            return False


def exists(location: pathlib.Path) -> bool:
    """Whether a file or folder is there.

    Raises:
        OSError: that cannot be seen from here, e.g. for lack of permission. (From
            Python 3.14 on, pathlib says no then.)
    """
    if is_remote(location):
        return location.exists()
    try:
        location.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def read_text(file: str | os.PathLike, most: int = MOST_BYTES) -> str | None:
    """A file's text; None where there is no file.

    Raises:
        UserError: it is not UTF-8, and as `read_bytes`.
    """
    data = read_bytes(file, most)
    try:
        return None if data is None else data.decode()
    except UnicodeDecodeError as error:
        raise errors.UserError(
            f"{file} is damaged (not UTF-8 at byte {error.start}); restore it from a "
            "copy"
        ) from None


def read_bytes(file: str | os.PathLike, most: int = MOST_BYTES) -> bytes | None:
    """A file's bytes; None where there is no file.

    Raises:
        UserError: it has more than `most`, or is a pipe, socket or device that lies
            in a folder. (One below /dev is the user's own: `<(command)`.)
    """
    with explain_errors(file):
        try:
            opened = path(file)
            is_named = is_remote(file) or os.fspath(file).startswith("/dev/")
            if not is_named and not (opened.is_file() or opened.is_dir()):
                opened.stat()  # raises where nothing is there
                raise errors.UserError(
                    f"{file} is a pipe, socket or device; put a file there"
                )
            with opened.open("rb") as stream:
                data = stream.read(most + 1)
        except FileNotFoundError:
            return None
    if len(data) > most:
        raise errors.UserError(
            f"{file} holds more than the {most:,} bytes that are read; it is damaged, "
            "or another file"
        )
    return data


def move(folder: pathlib.Path, target: pathlib.Path) -> None:
    """Moves a folder; what is at the target is removed."""
    remove(target)
    if not is_remote(folder):
        target.parent.mkdir(exist_ok=True)
        shutil.move(folder, target)
        return
    import fsspec

    store, _ = fsspec.core.url_to_fs(str(folder))
    store.mv(str(folder), str(target), recursive=True)


def remove(folder: pathlib.Path) -> None:
    """Removes a folder and all in it, if it is there."""
    if is_remote(folder):
        folder.rmtree(missing_ok=True)
    else:
        shutil.rmtree(folder, ignore_errors=True)


def size_bytes(folder: pathlib.Path) -> int:
    """Of all files in a folder."""
    if is_remote(folder):
        import fsspec

        store, _ = fsspec.core.url_to_fs(str(folder))
        return int(store.du(str(folder)))
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def modified_at(file: pathlib.Path) -> float:
    """When a file was written, in seconds since 1970."""
    return file.stat().mtime if is_remote(file) else file.stat().st_mtime


@contextlib.contextmanager
def explain_errors(location: str | os.PathLike) -> Iterator[None]:
    """Turns what goes wrong with a bucket into one line; folders have their own.

    Raises:
        UserError: the bucket could not be reached. gcsfs has tried six times.
    """
    try:
        yield
    except errors.UserError:
        raise
    except Exception as error:  # gcsfs, google.auth and aiohttp have no class in common
        if not is_remote(location):
            raise
        reason = next(iter(str(error).splitlines()), type(error).__name__)[:300]
        raise errors.UserError(
            f"cannot reach {location} ({reason}); check its name and your rights to it "
            "(`gcloud auth application-default login`)"
        ) from error


def cache(*names: str) -> pathlib.Path:
    """A folder for what can be made again, in the user's cache folder.

    A relative XDG_CACHE_HOME is ignored, as the XDG specification has it.
    """
    home = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(home):
        home = pathlib.Path.home() / ".cache"
    return pathlib.Path(home, "jaxlab", *names)


def _text(location: str | os.PathLike) -> str:
    """As text, where pathlib has made gs:/ of gs://."""
    return re.sub("^(gs|s3):/(?!/)", r"\1://", os.fspath(location))


def _set_up() -> None:
    """Before gcsfs or etils is used for the first time."""
    import fsspec

    # etils prefers TensorFlow where it finds one, say in Colab: slow to import.
    os.environ.setdefault("EPATH_USE_TF", "0")
    # gcsfs remembers listings, and tensorstore writes behind its back.
    fsspec.config.conf.setdefault("gs", {}).setdefault("use_listings_cache", False)
    fsspec.config.conf.setdefault("gcs", {}).setdefault("use_listings_cache", False)

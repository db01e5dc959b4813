"""Files that are written whole or not at all, and the folder in which computed states are cached.

What is being written lies in a hidden folder ``.errata-….part`` beside its place, with a lock that the system releases
when the process dies: so what was left behind is told from what is still at work, whoever shares the folder.
"""

import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp
from typing import TYPE_CHECKING, Any

from errata.errors import BadInput
from errata.locks import try_lock
from errata.printable import printable

if TYPE_CHECKING:
    from filelock import BaseFileLock

PART = (".errata-", ".part")  # how the name of a folder of unfinished files begins and ends
LOCK = ".errata.lock"  # in such a folder, held while its process lives
BLOCK = 4096  # bytes that are written to see whether there is room
NO_FILES = {
    stat.S_IFDIR: "a folder",
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
}


# Writing -----------------------------------------------------------------------------------------


@contextmanager
def written_whole(path: str | Path) -> Iterator[Path]:
    """Context manager that yields the path of an empty file, which takes the place of ``path`` when the block ends.

    It is flushed to the disk before, so that after a power failure, too, the old content is there or the new one. Its
    permissions are those of the file that it replaces, or what the umask leaves. The folder is made if there is none.
    After an exception ``path`` is as before. Raises :class:`BadInput` where it cannot be written, and where something
    stands that is no regular file, a link too: nothing else is ever replaced.
    """
    path = _place(path)
    check_regular(path)
    try:
        with unfinished(path.parent) as folder:
            part = folder / path.name
            part.touch()
            mode = stat.S_IMODE((path if path.exists() else part).stat().st_mode)
            yield part
            _flush(part)
            part.chmod(mode)  # safetensors puts a file of its own there, which its owner alone may read
            os.replace(part, path)
    except OSError as error:
        raise unwritable(path, error) from error


@contextmanager
def unfinished(folder: Path) -> Iterator[Path]:
    """Context manager that yields a new hidden folder in ``folder``, for files that are not whole yet; gone in the end.

    Those that dead processes left there are removed first. Raises :class:`OSError`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _remove_left(folder)
    part, lock = _locked_folder(folder)
    try:
        yield part
    finally:
        rmtree(part, ignore_errors=True)
        if lock is not None:
            lock.release()


@contextmanager
def folder_written_whole(path: str | Path, *, replace: str | None = None) -> Iterator[Path]:
    """Context manager that yields a new folder, which takes the place of ``path`` when the block ends.

    Its files are flushed to the disk before. Where a folder stands there already, it is replaced as
    :func:`check_folder` allows it. After an exception ``path`` is as before. Raises :class:`BadInput`.
    """
    path = _place(path)
    check_folder(path, replace=replace)
    try:
        with unfinished(path.parent) as hidden:
            part = hidden / path.name
            part.mkdir()
            yield part
            for file in filter(Path.is_file, part.rglob("*")):
                _flush(file)
            check_folder(path, replace=replace)
            _exchange(path, part, hidden / "before")
    except OSError as error:
        raise unwritable(path, error) from error


def _exchange(path: Path, part: Path, aside: Path) -> None:
    """Puts a folder in the place of ``path``; what stood there is moved ``aside``, and back where that fails."""
    if path.exists():
        os.replace(path, aside)
    try:
        os.replace(part, path)
    except OSError:
        if aside.exists():
            os.replace(aside, path)
        raise


def check_folder(path: Path, *, replace: str | None = None) -> None:
    """Raises :class:`BadInput` unless a new folder can stand at ``path``: nothing is there, or an empty folder.

    With ``replace`` also a folder that holds a file of that name and nothing but files: one that was written before,
    and not somebody's home.
    """
    try:
        found = path.lstat().st_mode
        entries = sorted(path.iterdir()) if stat.S_ISDIR(found) else []
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        raise unwritable(path, error) from error
    if not stat.S_ISDIR(found):
        kind = NO_FILES.get(stat.S_IFMT(found), "a file")
        raise BadInput(f"cannot write the folder {path}: {kind} stands there; choose another place")
    if entries and replace is None:
        raise BadInput(f"the folder {path} exists; add --force (force=True) to replace it, or choose another place")
    other = [entry.name for entry in entries if entry.is_symlink() or not entry.is_file()]
    if entries and (other or not (path / str(replace)).is_file()):
        holds = f"holds {printable(other[0])}" if other else f"holds no {replace}"
        raise BadInput(f"the folder {path} {holds}, so it is no earlier export, and stays; choose another place")


def check_writable(path: str | Path) -> None:
    """Raises :class:`BadInput` unless a file can be written at ``path`` now. To be called before the work it is for.

    That is tried, beside it: permissions alone tell neither of a full disk nor of one that is mounted read-only.
    """
    path = _place(path)
    check_regular(path)
    above = path.absolute().parent
    while not os.path.lexists(above):
        above = above.parent
    try:
        with unfinished(above) as folder:
            (folder / path.name).write_bytes(bytes(BLOCK))
    except OSError as error:
        raise unwritable(path, error) from error


def _place(path: str | Path) -> Path:
    """The path, with its folder resolved where it goes up: nothing has to be made to find where it leads."""
    path = Path(path)
    try:
        return path.parent.resolve() / path.name if ".." in path.parts else path
    except (OSError, RuntimeError, ValueError) as error:
        raise unwritable(path, error) from error


def check_regular(path: Path) -> None:
    """Raises :class:`BadInput` where something stands at ``path`` that is no regular file, or nothing ever can."""
    try:
        found = NO_FILES.get(stat.S_IFMT(path.lstat().st_mode))
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:  # a file where a folder should be; a name too long, or with a zero in it
        raise unwritable(path, error) from error
    if found:
        raise BadInput(f"cannot write {path}: it is {found}, and only a file is ever replaced; choose another place")


def write_bytes(path: str | Path, content: bytes) -> None:
    """Writes a file whole or not at all. Raises :class:`BadInput`."""
    with written_whole(path) as part:
        part.write_bytes(content)


def write_text(path: str | Path, text: str) -> None:
    """Writes a file of UTF-8 whole or not at all. Raises :class:`BadInput`."""
    with written_whole(path) as part:
        part.write_text(text, encoding="utf-8")


def unwritable(path: Path, error: Exception) -> BadInput:
    """The error for a file that could not be written."""
    reason = getattr(error, "strerror", None) or error
    return BadInput(f"cannot write {path}: {reason}; nothing was left there, choose another place")


def _flush(path: Path) -> None:
    with path.open("r+b") as file:
        os.fsync(file.fileno())


def _locked_folder(folder: Path) -> "tuple[Path, BaseFileLock | None]":
    """A new folder of unfinished files and its lock; None where the file system has no locks."""
    begin, end = PART
    while True:
        part = Path(mkdtemp(end, begin, folder))
        try:
            lock = try_lock(part / LOCK)
        except OSError:
            if part.is_dir():  # then nobody else can lock it either, so nobody removes it
                return part, None
            continue  # another process took it for one that was left, and has removed it
        if lock is None:  # another process does so now
            continue
        if (part / LOCK).exists():
            return part, lock
        lock.release()  # of a file that the other one has removed meanwhile


def _remove_left(folder: Path) -> None:
    """Removes the unfinished files of dead processes."""
    begin, end = PART
    for left in folder.glob(f"{begin}*{end}"):
        with suppress(OSError):  # another user's
            if left.is_dir() and not left.is_symlink() and (lock := try_lock(left / LOCK)):
                rmtree(left, ignore_errors=True)
                lock.release()


# The cache ---------------------------------------------------------------------------------------


def cache_folder() -> Path:
    """The folder of cached states: ``$ERRATA_CACHE``, otherwise ``errata`` in the user's cache folder.

    Raises :class:`BadInput` where the user has none.
    """
    own, shared = os.environ.get("ERRATA_CACHE"), os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    try:
        return Path(own).expanduser() if own else Path(shared).expanduser() / "errata"
    except RuntimeError as error:
        raise BadInput(f"no cache folder ({error}); set ERRATA_CACHE to a folder for it") from error


def cache_file(kind: str, content: Any) -> Path:
    """Path in the cache of what was computed from ``content`` (JSON), by its kind and the content's digest."""
    return cache_folder() / f"{kind}-{sha256(json.dumps(content).encode()).hexdigest()[:20]}.safetensors"
